"""What the scripts ``datasets/prepare_*.py`` share: making and verifying derived files, the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from .derive.engine import Derivation, derive, verify, verify_instances
from .derive.once import datasets_root


def prepare(task: Derivation, processes: int | None = None) -> dict[str, str]:
    """Make what training reads beside a set, compare all of it with its sources, and say what was done."""
    report = {str(path): done for path, done in derive(task, processes, thorough=True).items()}
    report["verified"] = f"{verify_instances(task)} images"
    return report


def prepare_splits(
    description: str,
    files: Callable[[Path, str], Derivation],
    make: Callable[[Path, str, int | None], dict],
) -> None:
    """Parse the command line, and make or only verify the files of each split.

    Args:
        description: text of ``--help``.
        files: (data set root, split) -> the files of a split.
        make: (data set root, split, processes) -> {what: what was done}.

    Raises:
        UserError: a missing or damaged file, a root that is no folder.
        SystemExit: 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="default: $DETECTRON2_DATASETS, else datasets")
    parser.add_argument(
        "--splits", nargs="+", choices=("train", "val"), default=("train", "val"), help="default: train val"
    )
    parser.add_argument("--processes", type=int, help="worker processes (default: one per CPU, at most 16)")
    parser.add_argument("--check", action="store_true", help="write nothing, verify what was made earlier")
    args = parser.parse_args()
    root = args.root.expanduser() if args.root else datasets_root()
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give --root, or set DETECTRON2_DATASETS")
    os.environ["DETECTRON2_DATASETS"] = str(root)  # what is registered follows it
    try:
        for split in args.splits:
            if args.check:
                made = files(root, split)
                if not made.panoptic_json.exists():
                    raise UserError(
                        f"{made.title}: {made.panoptic_json} does not exist, so there is nothing to verify; "
                        "repeat the command without --check"
                    )
                report = {"verified": f"{verify(made, args.processes)} images"}
            else:
                report = make(root, split, args.processes)
            for what, done in report.items():
                print(f"{split}: {what}: {done}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
