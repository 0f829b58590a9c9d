#!/usr/bin/env python
"""Set training images aside for the search: they score the candidates, the rest trains the supernet.

    python datasets/prepare_nas_split.py --size 5000 --seed 0
    python datasets/prepare_nas_split.py --dataset ade20k
    python datasets/prepare_nas_split.py --panoptic-json my/panoptic_train.json --size 300

Writes, beside the data set's own annotation files,
coco:       annotations/{panoptic,instances}_nas_{train,val}2017.json   (5000 of 118287 images score)
ade20k:     ade20k_{panoptic,instance}_nas_{train,val}.json             (2000 of 20210 images score)
cityscapes: gtFine/cityscapes_panoptic_nas_{train,val}.json             (500 of 2975; not in the paper)
your own:   <name>_nas_{train,val}.json beside <name>.json

The two parts are disjoint, and the same for the same seed and size. Only --overwrite replaces another draw.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from auto_panoptic.data.derive.once import datasets_root  # noqa: E402
from auto_panoptic.data.search_split import write_own_split  # noqa: E402
from auto_panoptic.data.sets.ade20k import ade20k_root, write_ade20k_split  # noqa: E402
from auto_panoptic.data.sets.cityscapes import cityscapes_root, write_cityscapes_split  # noqa: E402
from auto_panoptic.data.sets.coco import write_nas_split  # noqa: E402
from auto_panoptic.errors import run_command  # noqa: E402

SIZES = {"coco": 5000, "ade20k": 2000, "cityscapes": 500}


def run():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--dataset", choices=list(SIZES), default="coco", help="default: coco")
    which.add_argument("--panoptic-json", type=Path, help="panoptic JSON of your own training images")
    parser.add_argument("--instances-json", type=Path, help="its instances JSON, where you register one")
    parser.add_argument(
        "--size", type=int, help="images to score candidates (default: 5000; ade20k 2000; cityscapes 500)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    parser.add_argument("--root", help="data set root (default: $DETECTRON2_DATASETS, else datasets)")
    parser.add_argument("--overwrite", action="store_true", help="replace parts of another draw")
    args = parser.parse_args()
    if args.panoptic_json and args.size is None:
        parser.error("--panoptic-json needs --size")
    if args.instances_json and not args.panoptic_json:
        parser.error("--instances-json goes with --panoptic-json")
    if args.root:
        os.environ["DETECTRON2_DATASETS"] = args.root
    draw = (SIZES[args.dataset] if args.size is None else args.size, args.seed, args.overwrite)
    if args.panoptic_json:
        root, pattern = args.panoptic_json.parent, f"{args.panoptic_json.stem}_{{}}.json"
        counts = write_own_split(args.panoptic_json, args.instances_json, *draw)
    elif args.dataset == "coco":
        root = datasets_root() / "coco" / "annotations"
        counts, pattern = write_nas_split(root, *draw), "panoptic_{}2017.json"
    elif args.dataset == "ade20k":
        root = ade20k_root()
        counts, pattern = write_ade20k_split(root, *draw), "ade20k_panoptic_{}.json"
    else:
        root = cityscapes_root() / "gtFine"
        counts, pattern = write_cityscapes_split(root, *draw), "cityscapes_panoptic_{}.json"
    for part, count in counts.items():
        print(f"{root / pattern.format(part)}: {count} images")


if __name__ == "__main__":
    run_command(run)
