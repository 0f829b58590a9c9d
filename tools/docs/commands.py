"""The commands that users type, and what their parsers say of a command line; nothing of it is run."""

from __future__ import annotations

import argparse
import contextlib
import re
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]  # what is documented is what lies here

# Folders whose scripts are commands. Benchmarks, drills and studies are for those who work on the project.
FOLDERS = (".", "datasets", "tools", "auto_panoptic")
MAIN = ("train_net.py", "search_net.py")  # the latter's parser lies elsewhere
FORWARDS = "auto-panoptic"  # the command that starts the others


class Parsed(BaseException):
    """Ends a command where its arguments are parsed. No Exception: no command may catch it."""

    def __init__(self, parser: argparse.ArgumentParser, arguments: argparse.Namespace | None):
        super().__init__("parsed")
        self.parser, self.arguments = parser, arguments


@contextlib.contextmanager
def _ending(parse: bool, words: Sequence[str]) -> Iterator[None]:
    """Let every parser raise Parsed, after parsing or instead of it; the command line is ``words``."""
    original, before = argparse.ArgumentParser.parse_args, (sys.argv, list(sys.path))

    def parse_args(self, args=None, namespace=None):
        if parse and self.prog == FORWARDS:
            return original(self, args, namespace)
        raise Parsed(self, original(self, args, namespace) if parse else None)

    argparse.ArgumentParser.parse_args = parse_args
    sys.argv = [str(word) for word in words]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, of a module that was imported before
            yield
    finally:
        argparse.ArgumentParser.parse_args = original
        sys.argv, sys.path[:] = before


def _stopped(words: Sequence[str], parse: bool) -> Parsed:
    words = list(words)
    module = words[0] == "-m"
    try:
        with _ending(parse, words[1:] if module else words):
            if module:
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.path.insert(0, str((ROOT / words[0]).parent))
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except Parsed as parsed:
        return parsed
    raise RuntimeError(f"{' '.join(words)} parses no arguments")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What a command's parser makes of its arguments.

    Args:
        words: those after "python": ("train_net.py", ...) or ("-m", "auto_panoptic.report", ...).

    Raises:
        SystemExit, UserError: it does not take them.
    """
    return _stopped(words, True).arguments


def parser_of(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command: ``words`` as in :func:`parse`, without arguments."""
    return _stopped(words, False).parser


def commands() -> list[tuple[str, ...]]:
    """Every command with arguments, as words after "python", the two main ones first."""
    scripts = [path for folder in FOLDERS[:-1] for path in sorted((ROOT / folder).glob("*.py"))]
    package = ROOT / FOLDERS[-1]
    modules = [path for path in sorted(package.rglob("*.py")) if _is_command(path)]
    found = [(path.relative_to(ROOT).as_posix(),) for path in scripts if _is_command(path)]
    found = [(name,) for name in MAIN] + [words for words in found if words[0] not in MAIN]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules]
    return found + [("-m", name.removesuffix(".__main__")) for name in names]


def _is_command(path: Path) -> bool:
    """Whether a file is run, and takes arguments; a package's ``__main__.py`` hands them on."""
    text = path.read_text(encoding="utf-8")
    runs = '__name__ == "__main__"' in text
    return runs and (path.name == "__main__.py" or re.search(r"pars|prepare_splits", text) is not None)
