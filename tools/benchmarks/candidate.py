"""What a candidate of the search costs beside the network itself and beside the plain Detectron2 way.

(a) Our candidate (BatchNorm recalibration and panoptic quality) over the bare forward passes on the same,
    already decoded images: the backbone on the calibration images, the network on the search images.
(b) The straightforward way over ours: the path as a network of its own, fvcore's update_bn_stats with the
    full network on the calibration images, inference_on_dataset and COCOPanopticEvaluator. Same images, same
    thresholds; both panoptic qualities are printed.
(c) COCOPanopticEvaluator over our streaming evaluator on the same predictions, end to end.

All on the built-in data set with the quick supernet, in one process, in turns; the median counts. The last
line is one JSON object with the ratios.

    python tools/benchmarks/candidate.py [--weights output/quickstart/supernet/model_final.pth] [--images 500]
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.evaluation import COCOPanopticEvaluator, inference_on_dataset
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from auto_panoptic.data import PanopticMapper, with_data_sets  # noqa: E402
from auto_panoptic.evaluation import PanopticQualityEvaluator  # noqa: E402
from auto_panoptic.modeling import apply_architecture  # noqa: E402
from auto_panoptic.modeling.extract import extract  # noqa: E402
from auto_panoptic.modeling.searchable import panoptic_only  # noqa: E402
from auto_panoptic.search.candidate import CandidateEvaluator  # noqa: E402
from auto_panoptic.space import SearchSpace  # noqa: E402
from auto_panoptic.training import AutoPanopticTrainer, build_config, load_weights  # noqa: E402


def seconds_of(function):
    """(wall time, result) of a call, its output to the terminal kept back."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = function()
    return time.perf_counter() - start, result


@torch.inference_mode()
def bare_forward(model, evaluator) -> None:
    """Backbone on the calibration images, network on the search images; nothing else."""
    model.eval()
    for batch in evaluator.calibration:
        model.backbone.bottom_up(model.preprocess_image(batch).tensor)
    with panoptic_only(model):
        for batch in (batch for batches, _ in evaluator.data for batch in batches):
            model(batch)


class StraightforwardWay:
    """A candidate scored with Detectron2's and fvcore's own functions."""

    def __init__(self, cfg, supernet, evaluator, folder: str):
        self.cfg, self.supernet, self.folder = cfg, supernet, folder
        train = cfg.clone()
        train.defrost()
        # The images of the search: same size, no flip.
        train.INPUT.RANDOM_FLIP = "none"
        train.INPUT.MIN_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,)
        train.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST
        self.mapper = PanopticMapper(train, is_train=True)
        dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
        by_id = {d["image_id"]: d for d in dicts}
        self.batches = [[by_id[sample["image_id"]] for sample in batch] for batch in evaluator.calibration]

    def __call__(self, architecture) -> float:
        model = extract(self.supernet, architecture)
        model.train()
        loader = ([self.mapper(dict(d)) for d in batch] for batch in self.batches)
        with EventStorage():
            update_bn_stats(model, loader, len(self.batches))
        name = self.cfg.DATASETS.SEARCH[0]
        loader = build_detection_test_loader(self.cfg, name, mapper=DatasetMapper(self.cfg, is_train=False))
        results = inference_on_dataset(model.eval(), loader, COCOPanopticEvaluator(name, self.folder))
        return results["panoptic_seg"]["PQ"]


def evaluate_with(evaluator, inputs, outputs) -> float:
    evaluator.reset()
    for image, output in zip(inputs, outputs, strict=True):
        evaluator.process([image], [output])
    return evaluator.evaluate()["panoptic_seg"]["PQ"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="output/quickstart/supernet/model_final.pth", metavar="FILE")
    parser.add_argument("--images", type=int, default=500, help="calibration images (paper: 500)")
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    opts = ["NAS.BN_RECALIBRATION.NUM_IMAGES", str(args.images)]
    # Detectron2's loaders and evaluators take data sets by the name of what they are to read.
    cfg = with_data_sets(build_config("configs/quick/supernet.yaml", opts))
    model, plain = (AutoPanopticTrainer.build_model(cfg) for _ in range(2))
    for supernet in (model, plain):
        load_weights(supernet, args.weights)
    evaluator = CandidateEvaluator(cfg, model)
    space = SearchSpace.from_config(cfg)
    times = {key: [] for key in ("bare", "ours", "straightforward", "streaming", "coco")}
    print(f"torch {torch.__version__}, {args.threads} thread(s), {args.images} calibration images")
    print(f"{'candidate':>9} {'bare s':>8} {'ours s':>8} {'detectron2 s':>13} {'PQ ours':>9} {'PQ d2':>9}")
    with tempfile.TemporaryDirectory() as folder:
        theirs = StraightforwardWay(cfg, plain, evaluator, folder)
        for seed in range(args.candidates):
            architecture = space.random(np.random.default_rng(seed))
            apply_architecture(model, architecture)
            evaluator(architecture)  # warm caches: ground truth is decoded with the first candidate
            times["bare"].append(seconds_of(lambda: bare_forward(model, evaluator))[0])
            seconds, (metrics, _) = seconds_of(lambda a=architecture: evaluator(a))
            times["ours"].append(seconds)
            seconds, quality = seconds_of(lambda a=architecture: theirs(a))
            times["straightforward"].append(seconds)
            widths = {"bare": 8, "ours": 8, "straightforward": 13}
            row = " ".join(f"{times[key][-1]:{width}.2f}" for key, width in widths.items())
            print(f"{seed:9d} {row} {metrics['PQ']:9.4f} {quality:9.4f}", flush=True)

        name = cfg.DATASETS.SEARCH[0]
        inputs = [sample for batch in evaluator.data[0][0] for sample in batch]
        with torch.no_grad():
            outputs = [output for sample in inputs for output in model([sample])]
        streaming, coco = PanopticQualityEvaluator(name), COCOPanopticEvaluator(name, folder)
        for _ in range(3):
            seconds, first = seconds_of(lambda: evaluate_with(streaming, inputs, outputs))
            times["streaming"].append(seconds)
            seconds, second = seconds_of(lambda: evaluate_with(coco, inputs, outputs))
            times["coco"].append(seconds)
    median = {key: statistics.median(values) for key, values in times.items()}
    print(
        f"evaluators on {len(inputs)} images: streaming {median['streaming']:.2f} s (PQ {first:.6f}), "
        f"COCOPanopticEvaluator {median['coco']:.2f} s (PQ {second:.6f})"
    )
    figures = {
        "candidate_over_bare_forward": median["ours"] / median["bare"],
        "straightforward_over_candidate": median["straightforward"] / median["ours"],
        "coco_evaluator_over_streaming": median["coco"] / median["streaming"],
    }
    print(json.dumps({k: round(v, 3) for k, v in figures.items()} | {"threads": args.threads}))


if __name__ == "__main__":
    main()
