#!/usr/bin/env python
"""Set training images aside for the search: they score the candidates, the rest trains the supernet.

    python datasets/prepare_nas_split.py --size 5000 --seed 0
    python datasets/prepare_nas_split.py --dataset ade20k

Writes, beside the data set's own annotation files,
coco:   annotations/{panoptic,instances}_nas_{train,val}2017.json   (5000 of 118287 images score)
ade20k: ade20k_{panoptic,instance}_nas_{train,val}.json             (2000 of 20210 images score)
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from auto_panoptic.data.ade20k import ade20k_root, write_ade20k_split  # noqa: E402
from auto_panoptic.data.coco_splits import write_nas_split  # noqa: E402
from auto_panoptic.data.files import datasets_root  # noqa: E402
from auto_panoptic.training import run_command  # noqa: E402

SIZES = {"coco": 5000, "ade20k": 2000}


def run():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", choices=list(SIZES), default="coco", help="default: coco")
    parser.add_argument("--size", type=int, help="images to score candidates (default: 5000; ade20k: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    args = parser.parse_args()
    size = SIZES[args.dataset] if args.size is None else args.size
    if args.dataset == "coco":
        root = datasets_root() / "coco" / "annotations"
        counts, pattern = write_nas_split(root, size, args.seed), "panoptic_{}2017.json"
    else:
        root = ade20k_root()
        counts, pattern = write_ade20k_split(root, size, args.seed), "ade20k_panoptic_{}.json"
    for part, count in counts.items():
        print(f"{root / pattern.format(part)}: {count} images")


if __name__ == "__main__":
    run_command(run)
