"""Started by test_data_parallel.py under torchrun; what each process saw goes to FOLDER/<rank>.json.

    data_parallel_run.py FOLDER CONFIG WEIGHTS

Searches FOLDER/search with what is in its ledger, then lets candidates fail in one process or the other.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from toy import toy_space

import search_net
from auto_panoptic.data.formats.panoptic_png import read_panoptic
from auto_panoptic.data.register import read_panoptic_json
from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger, fair_cycle
from auto_panoptic.search.data_parallel import (
    DataParallel,
    exchange,
    follow,
    lead,
    share_evaluator,
)
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import build_config, launch_processes

# A search of four candidates on 14 images: enough that the order of the sums matters.
SETTINGS = ("NAS.POLICY", "random", "NAS.RANDOM.MODELS_PER_CYCLE", "4")
SETTINGS += ("DATASETS.SEARCH", "('toy_panoptic_nas_train',)")
METRICS = ("pq", "ap", "miou")


def in_parallel(task, make_evaluator):
    """``task`` in the main process, with ``make_evaluator`` in both; the exit code or the error's name."""
    try:
        if comm.is_main_process():
            lead(task)
        else:
            follow(make_evaluator)
    except SystemExit as end:
        return end.code
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return 0


def outcomes_of(make_evaluator, items):
    """Outcomes in the main process, none elsewhere; and how it ended."""
    found = {}

    def task():
        found.update(DataParallel(make_evaluator).run(list(enumerate(items))))

    ended = in_parallel(task, make_evaluator)
    return {"outcomes": found, "ended": ended}


class Failing:
    """Per call (when, rank): that process fails before or after it has talked with the other, or never."""

    def __init__(self, plan):
        self.plan, self.calls = plan, 0

    def __call__(self, architecture):
        when, rank = self.plan[self.calls]
        self.calls += 1
        if when == "before" and rank == comm.get_rank():
            raise ArithmeticError("broken candidate")
        total = sum(exchange(comm.get_rank() + 1))
        if when == "after" and rank == comm.get_rank():
            raise MemoryError("out of memory")
        if when == "nan":
            return {"PQ": float("nan")}, {}
        return {"PQ": 10.0 * total + self.calls}, {}


def with_shifted_truth(evaluate):
    """Let the model of a CandidateEvaluator find the truth, shifted by the digits of what it did find."""
    name, forward = evaluate.cfg.DATASETS.SEARCH[0], evaluate.model.forward
    files = {record["image_id"]: record["pan_seg_file_name"] for record in DatasetCatalog.get(name)}
    annotations = read_panoptic_json(MetadataCatalog.get(name).panoptic_json)["annotations"]
    segments = {annotation["image_id"]: annotation["segments_info"] for annotation in annotations}

    def shifted(batch):
        outputs = forward(batch)
        for sample, output in zip(batch, outputs, strict=True):
            columns = 1 + int(1e6 * abs(float(output["sem_seg"].mean()))) % 5
            ids = np.roll(read_panoptic(files[sample["image_id"]]), columns, axis=1)
            records = [{key: s[key] for key in ("id", "category_id")} for s in segments[sample["image_id"]]]
            output["panoptic_seg"] = torch.from_numpy(ids), records
        return outputs

    evaluate.model.forward = shifted
    return evaluate


def shifted_share(*args):
    return with_shifted_truth(share_evaluator(*args))


def refusing():
    if comm.get_rank() == 1:
        raise UserError("no images here")
    exchange()
    return Failing([])


def defective():
    raise KeyError("defect")


def main(args, cfg):
    space = toy_space()
    items = fair_cycle(space, seed=0, cycle=0)[:6]
    plan = [("never", 0), ("before", 1), ("before", 0), ("after", 1), ("after", 0), ("nan", 0)]
    result = {"failing": outcomes_of(lambda: Failing(plan), items), "refusing": outcomes_of(refusing, items)}

    def stopped():
        for key, _ in DataParallel(lambda: Failing(plan)).run(list(enumerate(items))):
            if key == 1:
                raise UserError("the disk is full")

    result["stopped"] = in_parallel(stopped, lambda: Failing(plan))
    result["defective"] = in_parallel(defective, None)

    chosen = fair_cycle(SearchSpace.from_config(cfg), seed=2, cycle=0)[:2]
    result["scores"] = outcomes_of(lambda: shifted_share(cfg, args.weights, METRICS), chosen)
    moving = cfg.clone()
    moving.defrost()
    moving.NAS.BN_RECALIBRATION.MOMENTUM = 0.1
    result["moving"] = outcomes_of(lambda: shifted_share(moving, args.weights, ("pq",)), chosen[:1])

    arguments = search_net.parser().parse_args(["--resume", "--weights", args.weights])
    arguments.metrics = ("pq",)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        search_net.main(arguments, cfg)
    result["printed"] = printed.getvalue()

    path = Path(cfg.OUTPUT_DIR) / "search/ledger.jsonl"
    ledger = Ledger(path)
    holder = Ledger.open(path, ledger.header, resume=True) if comm.is_main_process() else None
    with holder or contextlib.nullcontext():
        try:
            search_net.main(arguments, cfg)
        except SystemExit as end:
            result["held"] = end.code
        except UserError as error:
            result["held"] = str(error)

    # The last scenario: process 0 leaves in the middle of a candidate.
    def leaves(architecture):
        if comm.is_main_process():
            raise KeyboardInterrupt
        exchange()
        return {}, {}

    try:
        if comm.is_main_process():
            lead(lambda: list(DataParallel(lambda: leaves).run([(0, items[0])])))
        else:
            follow(lambda: leaves)
    except KeyboardInterrupt:
        result["left"] = "interrupted"
    except SystemExit as end:
        result["left"] = end.code
    (args.folder / f"{comm.get_rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, config, weights = map(Path, sys.argv[1:])
    settings = build_config(str(config), [*SETTINGS, "OUTPUT_DIR", str(folder)])
    launch_processes(main, SimpleNamespace(folder=folder, weights=str(weights)), settings)
