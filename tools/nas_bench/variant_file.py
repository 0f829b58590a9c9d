"""What tools/nas_bench/variants.py measures, in a file beside the table of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from auto_panoptic.errors import UserError
from auto_panoptic.files import read_json, write_json

FORMAT = "auto_panoptic.bench_variants/1"


class Measured(NamedTuple):
    """What tells what paths are worth.

    Attributes:
        name: what was done; of several measurements of one name, each has another seed.
        minutes: of one thread that prepared it, a supernet's training, say; None where that is not known.
        values: {path: score}.
    """

    name: str
    seed: int
    minutes: float | None
    values: dict[int, float]


def variants_beside(table: str | Path) -> Path:
    """The file that belongs to a table."""
    return Path(table).with_name(f"{Path(table).stem}_variants.json")


def write_variants(path: Path, measured: Sequence[Measured]) -> None:
    """Write the file; paths that a measurement has not are null."""
    paths = list(dict.fromkeys(number for m in measured for number in m.values))
    rows = [{**m._asdict(), "values": [m.values.get(number) for number in paths]} for m in measured]
    write_json(path, {"format": FORMAT, "paths": paths, "measured": rows})


def read_variants(path: Path) -> list[Measured]:
    """Inverse of :func:`write_variants`.

    Raises:
        UserError: it is something else.
    """
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        paths, measured = content["paths"], []
        for row in content["measured"]:
            values = {p: float(v) for p, v in zip(paths, row["values"], strict=True) if v is not None}
            measured.append(Measured(row["name"], row["seed"], row["minutes"], values))
        return measured
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no file of tools/nas_bench/variants.py, or damaged: {error}") from error
