"""Does the search pay? Networks that the quickstart finds, random ones of its space, and Panoptic-FPNs.

At three costs. At 0.67 and 1.32 G the supernet's backbone is wider, and the ResNet-18 is as wide as the
limit of the search allows. A seed trains a supernet, searches it, and trains what was found, and a random
network of as many multiply-adds to within 2 %, from their weights in it; a supernet serves two seeds or more.
At the lowest cost the best of finals is trained, too: one finalist for each site, and the selection. Two
schedules: the 400 steps of the config and 1200. The Panoptic-FPN is trained from scratch, in 1200 steps of
its config and in 2480: on as many images as a supernet and 1200 steps. On one core a supernet takes 8 to 30
minutes, a training 2 to 25, and finals 20.

    python tools/studies/equal_cost.py [--seeds 8] [--only NAME] [--report]
"""

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from study import ROOT, Study, logged, main

from auto_panoptic.errors import UserError
from auto_panoptic.explore.controls import random_of_equal_cost
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.space import Architecture
from auto_panoptic.training import build_config

SUPERNET, RETRAIN = "configs/quick/supernet.yaml", "configs/quick/retrain.yaml"
SEARCHES = "searches"  # in the folder of the study
SELECTED = "selected.json"  # architecture.json of the search; finals write another
LONGER = ("SOLVER.MAX_ITER", 1200, "SOLVER.STEPS", (960, 1116))
FPN_LONGER = ("SOLVER.MAX_ITER", 2480, "SOLVER.STEPS", (2005, 2315))
LONG, FPN_LONG = (f", {options[1]} steps" for options in (LONGER, FPN_LONGER))  # at the end of names
FINALS = ("--finals", "7", "--final-steps", "400", "--controls", "0")


def width(stem: int) -> tuple:
    """Options of a backbone whose stages have 2, 4, 8 and 16 times the channels of the stem."""
    stages = [stem * factor for factor in (2, 4, 8, 16)]
    return ("MODEL.SHUFFLENET.STEM_CHANNELS", stem, "MODEL.SHUFFLENET.STAGE_CHANNELS", str(stages))


# Name: width of our backbone, limit of the search, config of the Panoptic-FPN, number of supernets. What a
# search is worth depends on the limit (tools/nas_bench/limits.py); a wider backbone has the heads of 310 M.
COSTS = {
    "0.31 G": ((), "310M", "configs/quick/panoptic_fpn_quarter.yaml", 4),
    "0.67 G": (width(118), "671M", "configs/quick/panoptic_fpn_narrow.yaml", 2),
    "1.32 G": (width(188), "1317M", "configs/quick/panoptic_fpn.yaml", 1),
}


def seed_folder(cost: str, seed: object = "{seed}", folder: object = "{folder}") -> str:
    """Where the supernet, the search and the random network of a seed lie."""
    return f"{folder}/{SEARCHES}/{cost.replace(' ', '')}/{seed}"


def search(folder: Path, cost: str, seed: int, finals: bool = False) -> None:
    """Train a supernet and search it, and hold finals if they are wanted; or go on.

    Raises:
        UserError: a command failed.
    """
    options, limit, _, _ = COSTS[cost]
    out = Path(seed_folder(cost, seed, folder))
    out.mkdir(parents=True, exist_ok=True)
    common = ["--config-file", str(ROOT / SUPERNET), "--resume", *map(str, options), "SEED", str(seed)]
    weights, found = str(out / "supernet/model_final.pth"), out / "search/architecture.json"
    searching = ["search_net.py", "--weights", weights, "--max-macs", limit]
    if not (out / SELECTED).is_file():
        run(out, ["train_net.py", *common, "OUTPUT_DIR", str(out / "supernet")])
        run(out, [*searching, *common, "OUTPUT_DIR", str(out)])
        shutil.copy(found, out / "copied.json")
        (out / "copied.json").replace(out / SELECTED)
        print(f"{time.strftime('%H:%M:%S')} supernet, {cost} seed {seed}: trained and searched", flush=True)
    if finals and not (out / "search/finals.json").is_file():
        start = ["--final-weights", weights]
        run(out, [*searching, *FINALS, *start, *common, "SOLVER.IMS_PER_BATCH", "4", "OUTPUT_DIR", str(out)])
        print(f"{time.strftime('%H:%M:%S')} finals, {cost} seed {seed}: held", flush=True)


def run(out: Path, command: Sequence[str]) -> None:
    """A script of the project; see :func:`search`."""
    if code := logged(out / "log.txt", str(ROOT / command[0]), *command[1:]):
        raise UserError(f"{command[0]} ended with exit code {code}, see {out / 'log.txt'}")


def prepare(folder: Path, seeds: Sequence[int], names: Sequence[str], jobs: int) -> None:
    """Supernets, searches and random networks of all trainings of these names and seeds."""
    what, names = ("found", "random", "best of finals"), {name.removesuffix(LONG) for name in names}
    wanted = [cost for cost in COSTS if {f"{which}, {cost}" for which in what} & names]
    with ThreadPoolExecutor(jobs) as pool:
        for cost in wanted:
            one = partial(search, folder, cost, finals=f"best of finals, {cost}" in names)
            list(pool.map(one, seeds[: COSTS[cost][3]]))
    for cost in wanted:
        draw(folder, cost, seeds)


def draw(folder: Path, cost: str, seeds: Sequence[int]) -> None:
    """Give every seed a supernet, the first ones in turn, and a random network of its own."""
    options, _, _, supernets = COSTS[cost]
    costs = configured_costs(build_config(str(ROOT / SUPERNET), list(map(str, options))))
    for first in seeds[:supernets]:
        found = Architecture.load(Path(seed_folder(cost, first, folder)) / SELECTED)
        served = range(first, max(seeds) + 1, supernets)
        others = random_of_equal_cost(costs, costs.cost(found).macs, len(served), first, other_than=[found])
        for seed, architecture in zip(served, others, strict=True):
            out = Path(seed_folder(cost, seed, folder))
            with contextlib.suppress(FileExistsError):
                out.symlink_to(str(first))
            architecture.save(out.parent / f"random_{seed}.json")


def trainings() -> dict[str, tuple]:
    """{name: (config, options)}."""
    rows = {}
    for cost, (options, _, baseline, _) in COSTS.items():
        place = seed_folder(cost)
        start = (*options, "MODEL.WEIGHTS", f"{place}/supernet/model_final.pth")
        drawn = seed_folder(cost, "random_{seed}.json")
        networks = {"found": f"{place}/{SELECTED}", "random": drawn}
        if cost == next(iter(COSTS)):
            networks["best of finals"] = f"{place}/search/architecture.json"
        for name, architecture in networks.items():
            own = (*start, "NAS.ARCHITECTURE", architecture)
            rows |= {f"{name}, {cost}": (RETRAIN, own), f"{name}, {cost}{LONG}": (RETRAIN, (*own, *LONGER))}
        own = ("MODEL.CHANNELS_LAST", True)
        rows[f"panoptic_fpn, {cost}"] = (baseline, own)
        rows[f"panoptic_fpn, {cost}{FPN_LONG}"] = (baseline, (*own, *FPN_LONGER))
    return rows


def longer(name: str) -> str:
    """The longer training of a network."""
    return name + (FPN_LONG if name.startswith("panoptic_fpn") else LONG)


def comparisons() -> list[tuple]:
    """(first, second, metrics): short trainings, long ones, and long ones with short ones."""
    pairs = [(f"found, {cost}", f"{other}, {cost}") for cost in COSTS for other in ("random", "panoptic_fpn")]
    others = ("random", "found", "panoptic_fpn")
    pairs += [("best of finals, 0.31 G", f"{other}, 0.31 G") for other in others]
    pairs += [("found, 0.31 G", "panoptic_fpn, 0.67 G"), ("found, 0.67 G", "panoptic_fpn, 1.32 G")]
    long = [(longer(first), longer(second)) for first, second in pairs]
    equal_steps = [(longer(f"found, {cost}"), f"panoptic_fpn, {cost}") for cost in COSTS]
    trained = trainings()
    both = [(longer(name), name) for name in trained if longer(name) in trained]
    return [(*pair, ("PQ", "PQ_th", "PQ_st")) for pair in (*pairs, *long, *equal_steps, *both)]


STUDY = Study("equal_cost", trainings(), comparisons=comparisons(), prepare=prepare)


if __name__ == "__main__":
    sys.exit(main(STUDY))
