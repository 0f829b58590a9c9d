"""What Ray workers evaluate in tests/test_workers.py; as a script, a small search with a Ray of its own.

    python workers_run.py FOLDER SHAPES

Scores three candidates of a toy supernet by two workers and in this process, and prints both as JSON.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


class Evaluate:
    """PQ by a table {repr(indices): PQ}; a str in its place is an event.

    "raise": an exception. "mistake": a UserError. "kill": SIGKILL, always. "kill once": SIGKILL, the first
    time. Each call leaves a line in ``folder``/calls.
    """

    def __init__(self, table, folder, seconds=0.0):
        self.table, self.folder, self.seconds = table, Path(folder), seconds

    def __call__(self, architecture):
        name = repr(architecture.indices())
        before = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        with open(self.folder / "calls", "a") as stream:
            stream.write(name + "\n")
        time.sleep(self.seconds)
        value = self.table[name]
        if value == "mistake":
            from auto_panoptic.errors import UserError

            raise UserError("img.png: no such image")
        if value == "raise":
            raise ArithmeticError("broken candidate")
        if value == "kill" or (value == "kill once" and name not in before):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"PQ": 50.0 if isinstance(value, str) else value}, {"evaluation": self.seconds}


def make_evaluate(shared):
    return Evaluate(**shared)


def make_evaluate_of_rank(shared, rank):
    """Kills the rank that ``shared`` names, and no other."""
    shared = dict(shared)
    if shared.pop("rank") != rank:
        shared["table"] = {name: 1.0 if v == "kill" else v for name, v in shared["table"].items()}
    return Evaluate(**shared)


def die(shared):
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(shared):
    from auto_panoptic.errors import UserError

    raise UserError("no annotations on this node")


def toy_search(folder: Path, shapes: Path) -> dict:
    """Metrics of three candidates: of workers, of one process; names of what the workers copied."""
    import torch
    from detectron2.modeling import build_model
    from toy import answer_strongly, make_config

    from auto_panoptic.explore import fair_cycle
    from auto_panoptic.search.candidate import CandidateEvaluator
    from auto_panoptic.search.executors.ray import RayWorkers
    from auto_panoptic.space import SearchSpace

    torch.set_num_threads(1)
    cfg = make_config(folder, shapes)
    torch.manual_seed(0)
    model = build_model(cfg)
    answer_strongly(model)
    weights = str(folder / "supernet.pth")
    torch.save({"model": model.state_dict(), "space": None}, weights)
    items = list(enumerate(fair_cycle(SearchSpace.from_config(cfg), seed=2, cycle=0)[:3]))
    with RayWorkers(cfg, weights, ("pq", "miou"), 2) as workers:
        asked_early = workers.ask("examples", items[0][1])
        found = dict(workers.run(items))
        asked = workers.ask("examples", items[0][1])
        ray = workers._ray
        session = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1].name
        threads = workers.threads
        shared = ray.get(workers._shared)
        sample = shared["images"][1][0][0][0]["image"]
        in_place = not sample.flags.writeable and not sample.flags.owndata
        del shared, sample
    evaluate = CandidateEvaluator(cfg, model, ("pq", "miou"))
    (drawn,), (expected,) = asked.values(), evaluate.examples(items[0][1]).values()
    return {
        "asked_early": asked_early,
        "examples": [[(e.image_id, e.score) for e in examples] for examples in (drawn, expected)],
        "workers": [found[key]["metrics"] for key, _ in items],
        "in_process": [evaluate(architecture)[0] for _, architecture in items],
        "session": session,
        "threads": threads,
        "in_place": in_place,
    }


if __name__ == "__main__":
    print(json.dumps(toy_search(Path(sys.argv[1]), Path(sys.argv[2]))))
