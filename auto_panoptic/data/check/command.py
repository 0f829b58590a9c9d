"""The command line of the checker."""

import argparse
import json
import sys
from collections.abc import Sequence

from ...errors import UserError
from ...read_config import read_config
from ..formats.findings import ERROR, NOTE, WARNING
from .report import format_report
from .run import run_check
from .sets import DataSet, find_data_set, from_paths


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m auto_panoptic.data.check",
        description="Read every file of data sets and list everything that is wrong with them.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered sets, of the config, or folders")
    parser.add_argument(
        "--config-file", help="config that describes own sets; without NAME, checks all it uses"
    )
    parser.add_argument("--panoptic-json", help="check this COCO-panoptic JSON without registering it")
    parser.add_argument("--panoptic-root", help="folder of its panoptic PNGs")
    parser.add_argument("--image-root", help="folder of its images")
    parser.add_argument("--instances-json", help="COCO instances JSON of the same images (optional)")
    parser.add_argument("--sem-seg-root", help="folder of semantic PNGs (optional)")
    parser.add_argument("--categories", help="JSON whose 'categories' replace those of --panoptic-json")
    parser.add_argument("--image-folder", help="check a folder with one folder of images per class")
    parser.add_argument("--json", metavar="FILE", help="write all findings and counts to FILE")
    parser.add_argument("--all", action="store_true", help="print every warning and note, not the first ones")
    parser.add_argument(
        "--processes", type=int, help="processes that read files (default: one per CPU, up to 16)"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ... that override the config; last"
    )
    return parser


def _data_sets(args: argparse.Namespace) -> list[DataSet]:
    keys = ("panoptic_json", "panoptic_root", "image_root", "instances_json", "sem_seg_root", "categories")
    paths = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    if args.opts and args.config_file is None:
        raise UserError("--opts changes the config of --config-file, which is not given.")
    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes {args.processes}: expected at least 1.")
    cfg = None if args.config_file is None else read_config(args.config_file, args.opts)
    names = list(dict.fromkeys(args.names))
    if cfg is not None and not names:
        names = list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *cfg.DATASETS.SEARCH)))
    data_sets = [find_data_set(name, cfg) for name in names]
    if paths:
        data_sets.append(from_paths(args.panoptic_json or "given by paths", paths))
    if args.image_folder is not None:
        data_sets.append(DataSet(name=args.image_folder, folder=args.image_folder))
    if not data_sets:
        raise UserError("nothing to check; give a NAME, --config-file, --panoptic-json or --image-folder.")
    return data_sets


def _write_json(path: str, reports: list) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"data_sets": [report.record() for report in reports]}, file, indent=1)
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}.") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: a mistake in the arguments.
        SystemExit: an error in a set, with exit code 2, after all of them were printed.
        KeyboardInterrupt: Ctrl-C, after what was found until then was printed.
    """
    args = _parser().parse_args(arguments)
    reports, data_sets = [], _data_sets(args)
    if args.json is not None:
        _write_json(args.json, reports)  # before the work, which may take an hour
    for data_set in data_sets:
        reports.append(run_check(data_set, args.processes))
        print(format_report(reports[-1], args.all), flush=True)
        if reports[-1].interrupted:
            break
    if args.json is not None:
        _write_json(args.json, reports)
    if reports[-1].interrupted:
        raise reports[-1].interrupted
    if len(reports) > 1:
        numbers = ", ".join(f"{sum(r.number(s) for r in reports)} {s}s" for s in (ERROR, WARNING, NOTE))
        print(f"all {len(reports)} sets: {numbers}")
    if any(report.number(ERROR) for report in reports):
        sys.exit(2)
