#!/usr/bin/env python
"""Take the numbers out of a pickle of Detectron2's or Caffe2's model zoo.

    python tools/convert_pickle.py IN.pkl OUT.pth

OUT.pth may then be named in MODEL.WEIGHTS. A process of its own reads the pickle, with a limit on its
memory; it runs nothing that the pickle names: it builds arrays, dicts and texts, refusing all else.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from auto_panoptic.errors import UserError, first_line, run_command  # noqa: E402

SECONDS = 600


def convert(source: Path, target: Path) -> None:
    """Write ``target``.

    Raises:
        UserError: the pickle is missing or holds more than numbers; ``target`` exists or cannot be written.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such file, or no plain one; give a pickle of the model zoo")
    if target.suffix != ".pth" or target.exists() or not target.parent.is_dir():
        raise UserError(f"{target}: expected a new file *.pth in a folder that exists")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            written = Path(folder, "weights.pth")
            command = [sys.executable, __file__, "--read", str(source), str(written)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            if done.returncode == 2:
                raise UserError(f"{source}: {done.stdout.strip() or done.stderr.strip()}")
            if done.returncode or not written.is_file():
                raise UserError(f"{source}: the process that reads it ended with code {done.returncode}")
            os.replace(written, target)
    except subprocess.TimeoutExpired:
        raise UserError(f"{source}: not read within {SECONDS} s") from None
    except OSError as error:
        raise UserError(f"{target}: cannot write: {error.strerror or error}") from error
    print(f"{target}: {done.stdout.strip()}; use it with MODEL.WEIGHTS {target}")


def read(source: str, target: str) -> None:
    """In a process of its own: read the pickle, write the checkpoint, say what it holds."""
    import torch

    from auto_panoptic.training.archive import bounded_memory
    from auto_panoptic.training.zoo import read_numbers, zoo_content

    try:
        with bounded_memory(source):
            content = zoo_content(read_numbers(source))
        torch.save(content, target)
    except Exception as error:  # of any kind: see read_numbers
        print(f"not converted: {first_line(error)}")
        sys.exit(2)
    print(f"{len(content['model'])} arrays by {content['__author__']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("source", type=Path, metavar="IN.pkl")
    parser.add_argument("target", type=Path, metavar="OUT.pth")
    args = parser.parse_args()
    if args.read:
        return read(str(args.source), str(args.target))
    convert(args.source, args.target)


if __name__ == "__main__":
    run_command(main)
