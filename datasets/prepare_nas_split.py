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
from auto_panoptic.data.search_split import write_split  # noqa: E402
from auto_panoptic.errors import run_command  # noqa: E402

SIZES = {"coco": 5000, "ade20k": 2000, "cityscapes": 500}
FILES = {
    "coco": ("coco/annotations/panoptic_train2017.json", "coco/annotations/instances_train2017.json"),
    "ade20k": (
        "ADEChallengeData2016/ade20k_panoptic_train.json",
        "ADEChallengeData2016/ade20k_instance_train.json",
    ),
    "cityscapes": ("cityscapes/gtFine/cityscapes_panoptic_train.json",),
}


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
    size = SIZES[args.dataset] if args.size is None else args.size
    if args.panoptic_json:
        sources = [path for path in (args.panoptic_json, args.instances_json) if path]
    else:
        sources = [datasets_root() / name for name in FILES[args.dataset]]

    def target(source: Path, part: str) -> Path:
        name = f"{source.stem}_{part}.json" if args.panoptic_json else source.name.replace("train", part)
        return source.with_name(name)

    counts = write_split(sources, target, size, args.seed, args.overwrite)
    for part, count in counts.items():
        print(f"{target(sources[0], part)}: {count} images")


if __name__ == "__main__":
    run_command(run)
