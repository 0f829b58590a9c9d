"""The command line of the converters."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ..check import format_report, run_check
from ..check.sets import from_paths
from ..formats.categories import check_categories
from ..formats.findings import ERROR
from ..formats.json_file import load_object
from ..source import paths_in
from .coco import read_coco
from .label_images import read_label_images
from .labelme import read_labelme
from .paint import write_set


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m auto_panoptic.data.convert",
        description="Write a set in COCO-panoptic format from the annotations of other tools, and check it.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{coco,labelme,png}")
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--output", required=True, type=Path, help="folder of the new set")
    every.add_argument("--processes", type=int, help="worker processes (default: one per CPU, at most 16)")
    drawn = argparse.ArgumentParser(add_help=False)
    drawn.add_argument("--stuff", nargs="+", default=[], metavar="NAME", help="classes that are no objects")
    drawn.add_argument("--void", nargs="+", default=[], metavar="NAME", help="classes to leave out")
    drawn.add_argument("--background", metavar="NAME", help="class of all that is not drawn (default: void)")

    coco = kinds.add_parser("coco", parents=[every, drawn], help="COCO instances, with or without stuff")
    coco.add_argument("--instances-json", required=True, type=Path, help="polygons or run lengths")
    coco.add_argument("--stuff-json", type=Path, help="the same of stuff, such as stuff_train2017.json")
    coco.add_argument("--image-root", required=True, type=Path, help="folder of the photographs")

    labelme = kinds.add_parser("labelme", parents=[every, drawn], help="labelme's JSON files")
    labelme.add_argument("folder", type=Path, help="folder of the JSON files")
    labelme.add_argument("--image-root", type=Path, help="folder of the photographs (default: the same)")
    labelme.add_argument("--classes", type=Path, help="JSON with 'categories', as png needs it")

    png = kinds.add_parser("png", parents=[every], help="label images, such as Cityscapes'")
    png.add_argument("--labels", required=True, type=Path, help="folder of images with a class per pixel")
    png.add_argument("--image-root", required=True, type=Path, help="folder of the photographs")
    text = "JSON with 'categories': id (the value of pixels), name, isthing; color where pixels are coloured"
    png.add_argument("--classes", required=True, type=Path, help=text)
    png.add_argument("--instances", type=Path, help="folder of images with a number per object")
    png.add_argument("--divisor", type=int, help="values from N on are class * N + number (Cityscapes: 1000)")
    png.add_argument("--label-suffix", default=".png", help="end of the label images' names (default: .png)")
    png.add_argument("--image-suffix", help="end of the photographs' names (default: any picture's)")
    png.add_argument("--instance-suffix", help="end of the instance images' names (default: as labels)")
    return parser


def _read_classes(path: Path | None) -> list[dict] | None:
    if path is None:
        return None
    categories = load_object(str(path), "category file", {"categories": list})["categories"]
    check_categories(categories, str(path))
    keys = ("id", "name", "isthing", "color", "supercategory")
    kept = ({key: c[key] for key in keys if c.get(key) is not None} for c in categories)
    return [{**category, "isthing": int(category["isthing"])} for category in kept]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: wrong options, a missing or damaged source, an error in what was made.
    """
    args = _parser().parse_args(arguments)
    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes {args.processes}: expected at least 1")
    settings: list[str] = []
    if args.kind == "coco":
        options = args.stuff_json, args.stuff, args.void, args.background
        categories, sources, draw = read_coco(args.instances_json, *options)
    elif args.kind == "labelme":
        args.image_root = args.image_root or args.folder
        options = args.stuff, args.void, args.background, _read_classes(args.classes)
        categories, sources, draw = read_labelme(args.folder, args.image_root, *options)
    else:
        if args.divisor is not None and args.divisor < 2:
            raise UserError(f"--divisor {args.divisor}: expected at least 2, such as 1000")
        categories = _read_classes(args.classes)
        suffixes = args.label_suffix, args.image_suffix, args.instance_suffix
        options = args.instances, args.divisor, *suffixes
        sources, draw = read_label_images(args.labels, args.image_root, categories, *options)
        settings = [f"divisor {args.divisor}"]
    write = functools.partial(write_set, args.output, categories, args.image_root, sources, draw, settings)
    write(args.processes)
    _report(args.output, args.processes)


def _report(output: Path, processes: int | None) -> None:
    """Check what was made, and print it."""
    report = run_check(from_paths(str(output), paths_in(output)), processes, progress=False)
    if report.interrupted:
        raise report.interrupted
    print(format_report(report))
    if errors := report.number(ERROR):
        raise UserError(f"{output} has {errors} error{'s' * (errors != 1)}, listed above")
