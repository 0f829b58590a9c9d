"""The pictures that a search and the training of its result have left, for the page."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import read_bytes, read_json
from ..pictures import PANELS, RECORD, picture_name
from ..pictures.colours import MISTAKES, mistake_swatch, swatch
from ..space import Architecture
from .facts import Search
from .finals import read_finals

logger = logging.getLogger(__name__)

TITLES = {"photo": "Photo", "truth": "Ground truth", "prediction": "Prediction", "differences": "Differences"}
MOST_BYTES = 450_000  # of the files of all pictures of a page, which is a third larger
_KINDS = {".jpg": ("jpeg", b"\xff\xd8\xff"), ".png": ("png", b"\x89PNG\r\n\x1a\n")}


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures of one evaluation.

    Attributes:
        title: what was evaluated, and on which data set.
        trained: whether it was a trained network, not a path of the supernet.
        quality: its PQ in percent; None where it is not known.
        folder: where the files are.
        rows: [{"rank", "image", "PQ", "panels": [(title, data URI)]}].
        classes: [(name, data URI of its colour)].
    """

    title: str
    trained: bool
    quality: float | None
    folder: Path
    rows: Sequence[Mapping]
    classes: Sequence[tuple[str, str]]


def read_pictures(search: Search, trained: Iterable[Path] = ()) -> list[Pictures]:
    """The pictures of the selected architecture: of networks trained from it, then of its path.

    Where there were finals, those of their winner, too.

    Args:
        trained: OUTPUT_DIRs of trainings; those below the search's OUTPUT_DIR are found by themselves.

    Raises:
        UserError: a folder of ``trained`` has no pictures, or those of another architecture.
    """
    if search.selected is None:
        return []
    finals = read_finals(search)
    answers, found = [search.selected, *([finals.winner] if finals else [])], []
    for folder in trained:
        own = [p for path in _records(folder) if (p := _read(path, answers, folder.name))]
        if not own:
            raise UserError(
                f"--trained {folder}: no evaluation of the selected architecture has left pictures in "
                f"{folder / 'inference'}; run train_net.py --eval-only there, with TEST.PICTURES above 0"
            )
        found += own
    named = {folder.resolve() for folder in trained}
    below = sorted(p for p in search.directory.parent.glob("*/inference") if p.parent.resolve() not in named)
    for path in (path for folder in below for path in _records(folder.parent)):
        found += filter(None, [_read(path, answers, path.parents[2].name)])
    for path in sorted(search.directory.glob(f"pictures_*/{RECORD}")):
        found += filter(None, [_read(path, answers, "")])
    return _within(found, MOST_BYTES)


def _records(folder: Path) -> list[Path]:
    return sorted((folder / "inference").glob(f"pictures_*/{RECORD}"))


def _read(path: Path, answers: Sequence[Architecture], trained: str) -> Pictures | None:
    """The pictures of a record; None if it is of none of the architectures, or damaged."""
    try:
        record = read_json(path)
        operators = record["operators"] or {}
        if not any(_agrees(operators, architecture) for architecture in answers):
            return None
        rows = [
            {
                "rank": str(row["rank"]),
                "image": str(row["image"]),
                "PQ": float(row["PQ"]),
                "panels": [(TITLES[p], _embedded(path.parent, picture_name(row["rank"], p))) for p in PANELS],
            }
            for row in record["images"]
        ]
        classes = [(name, _sample(swatch(int(number)))) for name, number in record["classes"].items()]
        quality = (record["metrics"] or {}).get("PQ")
        quality = None if quality is None else float(quality)
        what = f"The network trained in {trained}" if trained else "The path of the supernet"
        return Pictures(
            f"{what}, on {record['data_set']}", bool(trained), quality, path.parent, rows, classes
        )
    except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        logger.warning("%s: its pictures are left out (%s)", path, error)
        return None


def _agrees(operators: Mapping[str, str], architecture: Architecture) -> bool:
    """Whether a network has the operators of an architecture; it may have sites of other models, too."""
    return all(operators.get(site) == name for site, name in architecture.names().items())


def _embedded(folder: Path, name: str) -> str:
    """A picture of ``folder`` as data URI; ValueError if it is none."""
    kind, beginning = _KINDS[Path(name).suffix]
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no name of a picture")
    content = read_bytes(folder / name)
    if not content.startswith(beginning):
        raise ValueError(f"{name} is no {kind}")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _sample(colours: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(colours).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def mistake_legend() -> list[tuple[str, str]]:
    """[(kind of mistake, data URI of its colour)]."""
    return [(name, _sample(mistake_swatch(name))) for name in MISTAKES]


def _within(found: list[Pictures], limit: int) -> list[Pictures]:
    """The sets with as many rows as fit into ``limit`` bytes: the first of each kind of each set first."""
    rows = sorted((row for p in found for row in p.rows), key=lambda row: row["rank"].partition(" ")[2])
    sizes = [sum(len(uri) for _, uri in row["panels"]) * 3 // 4 for row in rows]
    totals = itertools.accumulate(sizes)
    kept = {id(row) for row, total in zip(rows, totals, strict=True) if total <= limit}
    return [dataclasses.replace(p, rows=[row for row in p.rows if id(row) in kept]) for p in found]
