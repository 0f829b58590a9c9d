"""Show which id stands for which class: in the JSON, in the box and mask heads, in the semantic head."""

import math
import os
from collections.abc import Sequence

from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from .formats.panoptic_png import IGNORE
from .labels import THINGS_LABEL

WIDTH = 110  # characters of a line


def is_main_process() -> bool:
    """Whether this process speaks for the run; under torchrun also before the processes have met."""
    return comm.is_main_process() and os.environ.get("RANK", "0") == "0"


def _block(title: str, ids: dict, classes: Sequence[str]) -> list[str]:
    pairs = sorted(ids.items(), key=lambda item: item[1])
    if not pairs:
        return [f"{title}: none"]
    widths = [max(len(str(pair[i])) for pair in pairs) for i in (0, 1)]
    cells = [f"{i:>{widths[0]}} -> {c:>{widths[1]}} {classes[c]}" for i, c in pairs]
    width = max(map(len, cells))
    height = math.ceil(len(cells) / max(1, (WIDTH - 2) // (width + 3)))  # read from top to bottom
    rows = ["   ".join(cell.ljust(width) for cell in cells[i::height]) for i in range(height)]
    return [f"{title}:", *(f"  {row.rstrip()}" for row in rows)]


def id_rows(name: str) -> list[str]:
    """Lines of the table of a registered data set, without its name."""
    metadata = MetadataCatalog.get(name)
    things, stuff = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    what = f"label, of the semantic head ({IGNORE} void)"
    if list(metadata.stuff_classes[:1]) == ["things"]:  # the labels "separated"
        stuff = {i: label for i, label in stuff.items() if label != THINGS_LABEL}
        what = f"stuff label, of the semantic head ({THINGS_LABEL} is any thing, {IGNORE} void)"
    return [
        *_block("data set id -> thing id, of the box and mask heads", things, metadata.thing_classes),
        *_block(f"data set id -> {what}", stuff, metadata.stuff_classes),
    ]


def id_table(*names: str, title: str = "") -> str:
    """The classes of registered panoptic data sets, by the first of them, with their ids, as text.

    Columns of cells "data set id -> thing id or label, name"; ``title`` stands for the names of the sets.
    """
    return "\n".join([f"Ids of {title or ', '.join(names)}", *id_rows(names[0])])
