"""``python -m auto_panoptic.report``: the report of a search, or drawings of architectures."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..files import write_text
from ..space import Architecture, resolve_architecture_path
from .architecture_figure import architecture_figure
from .facts import with_operators
from .page import NARROW, WIDE, _inline, template, write_figure, write_report

USAGE = """python -m auto_panoptic.report OUTPUT_DIR [--compare LEDGER ...] [--trained FOLDER ...]
       python -m auto_panoptic.report architecture FILE ... [--output STEM]"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what the command line asks for, and print where it is."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["architecture"]:
        return draw_architectures(_architecture_parser().parse_args(words[1:]))
    args = _report_parser().parse_args(words)
    _import(args.imports)
    print(write_report(args.output_dir, args.compare, args.trained))


def draw_architectures(args: argparse.Namespace) -> None:
    """Write STEM.html, STEM.svg and STEM.png with the architectures below one another."""
    _import(args.imports)
    drawn = [(Path(name).stem, _load(name), None) for name in args.files]
    if len({title for title, *_ in drawn}) < len(drawn):
        drawn = [
            (name, architecture, None) for name, (_, architecture, _) in zip(args.files, drawn, strict=True)
        ]
    wide, narrow = (architecture_figure(drawn, width) for width in (WIDE, NARROW))
    stem = Path(args.output)
    if not stem.parent.is_dir():
        raise UserError(f"--output {stem}: there is no folder {stem.parent}; make it, or name another place")
    write_figure(stem, wide)
    page = stem.with_name(stem.name + ".html")
    titles = [title for title, *_ in drawn]
    write_text(page, template("architecture.html").render(titles=titles, figure=_inline(wide, narrow)))
    print(page)


def _load(name: str) -> Architecture:
    try:
        path = resolve_architecture_path(name)
    except UserError as error:
        raise UserError(str(error).removeprefix("NAS.ARCHITECTURE: ")) from None
    return with_operators(lambda: Architecture.load(path))


def _import(modules: Sequence[str]) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--import {name}: {error}; name a module that Python finds") from error


def _report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage=USAGE,
        description="Write search/report.html and search/figures/ of a search, done or under way.",
    )
    parser.error = _refuse
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="of the search; or its ledger")
    help_compare = "ledger of another search, shown beside this one; may be repeated"
    parser.add_argument(
        "--compare", nargs="+", action="extend", default=[], metavar="LEDGER", help=help_compare
    )
    help_trained = (
        "OUTPUT_DIR of a training of the selected architecture: show the pictures of its evaluation"
    )
    parser.add_argument(
        "--trained", nargs="+", action="extend", default=[], metavar="FOLDER", help=help_trained
    )
    _add_import(parser)
    return parser


def _architecture_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage=USAGE, description="Draw architectures layer by layer.")
    parser.error = _refuse
    names = "architecture.json, or a name under configs/architectures"
    parser.add_argument("files", nargs="+", metavar="FILE", help=names)
    help_output = "write STEM.html, STEM.svg and STEM.png (default: %(default)s)"
    parser.add_argument("--output", default="architecture", metavar="STEM", help=help_output)
    _add_import(parser)
    return parser


def _add_import(parser: argparse.ArgumentParser) -> None:
    what = "module that registers operators of your own, as in IMPORTS of a config; it is run"
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE", help=what)


def _refuse(message: str) -> None:
    raise UserError(f"{message}; --help shows the options")
