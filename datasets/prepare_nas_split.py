#!/usr/bin/env python
"""Set COCO training images aside for the search: 5000 score the candidates, the rest trains the supernet.

    python datasets/prepare_nas_split.py --size 5000 --seed 0

Writes {panoptic,instances}_nas_{train,val}2017.json beside COCO's own annotation files.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from auto_panoptic.data.coco_splits import write_nas_split  # noqa: E402
from auto_panoptic.data.files import datasets_root  # noqa: E402
from auto_panoptic.training import run_command  # noqa: E402


def run():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=5000, help="images to score candidates (default: 5000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    args = parser.parse_args()
    annotations = datasets_root() / "coco" / "annotations"
    for part, count in write_nas_split(annotations, args.size, args.seed).items():
        print(f"{annotations / f'panoptic_{part}2017.json'}: {count} images")


if __name__ == "__main__":
    run_command(run)
