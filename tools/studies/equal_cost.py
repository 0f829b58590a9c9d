"""Does the search pay? The network that the quickstart finds, random ones of its space, and a Panoptic-FPN.

All from scratch in as many steps, at three costs. At 0.67 and 1.32 G the backbone is wider, as the paper
trains the choices of a small supernet at another width; a random network is drawn anew for every seed, from
all whose multiply-adds are those of the found one to within 2 %, and the ResNet-18 is as wide as it must be.
"found" is FOUND, which ``make quickstart`` leaves. A training takes 2 to 5 minutes on one core.

    python tools/studies/equal_cost.py [--seeds 8] [--only NAME] [--report]
"""

import sys

from study import ROOT, Study, main

from auto_panoptic.errors import run_command
from auto_panoptic.explore.controls import random_of_equal_cost
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.space import Architecture
from auto_panoptic.training import build_config

FOUND = ROOT / "output/quickstart/search/architecture.json"
DRAWN = ROOT / "output/studies/equal_cost/random"
SEEDS = 8
SUPERNET, RETRAIN = "configs/quick/supernet.yaml", "configs/quick/retrain.yaml"
STEPS = ("SOLVER.MAX_ITER", 400, "SOLVER.STEPS", "(320, 372)", "MODEL.CHANNELS_LAST", True)


def width(stem: int) -> tuple:
    """Options of a backbone whose stages have 2, 4, 8 and 16 times the channels of the stem."""
    stages = [stem * factor for factor in (2, 4, 8, 16)]
    return ("MODEL.SHUFFLENET.STEM_CHANNELS", stem, "MODEL.SHUFFLENET.STAGE_CHANNELS", str(stages))


# Name: width of our backbone, config of the Panoptic-FPN.
COSTS = {
    "0.34 G": ((), "configs/quick/panoptic_fpn_quarter.yaml"),
    "0.67 G": (width(112), "configs/quick/panoptic_fpn_narrow.yaml"),
    "1.32 G": (width(176), "configs/quick/panoptic_fpn.yaml"),
}


def drawn(cost: str) -> str:
    """Where the random architectures of a cost lie, one for each seed."""
    return str(DRAWN / cost.replace(" ", "") / "{seed}.json")


def draw(seeds: int = SEEDS) -> None:
    """Write the random architectures."""
    found = Architecture.load(FOUND)
    for cost, (options, _) in COSTS.items():
        costs = configured_costs(build_config(str(ROOT / SUPERNET), list(map(str, options))))
        others = random_of_equal_cost(costs, costs.cost(found).macs, seeds, seed=0, other_than=[found])
        for seed, architecture in enumerate(others):
            architecture.save(drawn(cost).replace("{seed}", str(seed)))


def trainings() -> dict[str, tuple]:
    """{name: (config, options)}."""
    rows = {}
    for cost, (options, baseline) in COSTS.items():
        rows[f"found, {cost}"] = (RETRAIN, (*options, *STEPS, "NAS.ARCHITECTURE", str(FOUND)))
        rows[f"random, {cost}"] = (RETRAIN, (*options, *STEPS, "NAS.ARCHITECTURE", drawn(cost)))
        rows[f"panoptic_fpn, {cost}"] = (baseline, STEPS)
    return rows


METRICS = ("PQ", "PQ_th", "PQ_st")
STUDY = Study(
    name="equal_cost",
    trainings=trainings(),
    comparisons=[
        *(
            (f"found, {cost}", f"{other}, {cost}", METRICS)
            for cost in COSTS
            for other in ("random", "panoptic_fpn")
        ),
        ("found, 0.34 G", "panoptic_fpn, 0.67 G", METRICS),
        ("found, 0.67 G", "panoptic_fpn, 1.32 G", METRICS),
    ],
)


if __name__ == "__main__":
    if not {"--one", "--report", "--help", "-h"} & set(sys.argv):  # what needs none, or finds them drawn
        run_command(draw)
    sys.exit(main(STUDY))
