"""A few images of each data set, to measure on: nothing is written but to a temporary folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from detectron2.data import DatasetCatalog

from ..errors import UserError
from ..files import write_json
from .drawn.shapes import SIZES, ensure_shapes
from .formats.panoptic_json import read_panoptic_json, read_segments
from .labels import data_set_for, data_set_names
from .register import find_source, register_source
from .sets.imagenet import find_image_folder
from .source import PanopticSource


@contextlib.contextmanager
def few_images(cfg, number: int) -> Iterator[dict[str, int]]:
    """Within the block each panoptic set that a config names has at most ``number`` images.

    What is derived of them goes to a temporary folder, also where the whole set has not been drawn or derived
    yet. Sets that somebody else registered, and classified images, stay whole.

    Yields:
        {name: number of images of the whole set}.

    Raises:
        UserError: a set of classified images that has not been drawn yet; files are missing or damaged.
    """
    whole, counts = [], {}
    with tempfile.TemporaryDirectory(prefix="auto_panoptic-") as folder:
        try:
            for name in data_set_names(cfg):
                chosen = data_set_for(cfg, name)
                source = find_source(chosen)
                if source is None:
                    counts[name] = _whole_set(chosen)
                    continue
                small, counts[name] = _few(source, number, Path(folder, f"{len(counts)}"))
                whole.append(source)
                _exchange(source, small)
            yield counts
        finally:
            for source in whole:
                _exchange(source, source)


def _exchange(old: PanopticSource, new: PanopticSource) -> None:
    for name in old.names.values():
        DatasetCatalog.remove(name)
    register_source(new)


def _few(source: PanopticSource, number: int, folder: Path) -> tuple[PanopticSource, int]:
    """A source of some of the images, evenly spread, and the number of all."""
    total = None
    if source.prepare is not None and not os.path.exists(source.panoptic_json):
        split = Path(source.panoptic_json).stem.removeprefix("panoptic_")
        total = {**SIZES, "train": SIZES["nas_train"] + SIZES["nas_val"]}[split]
        root = Path(source.panoptic_json).parents[1]
        drawn = ensure_shapes(folder / "drawn", sizes=dict.fromkeys(SIZES, number), processes=1)
        keys = ("panoptic_json", "panoptic_root", "image_root", "sem_seg_root")
        moved = {key: str(drawn / Path(getattr(source, key)).relative_to(root)) for key in keys}
        source = dataclasses.replace(source, **moved)
    entries = list(read_segments(source.panoptic_json, source.effective_categories).values())
    chosen = entries[:: max(len(entries) // number, 1)][:number]
    content = {key: [pair[i] for pair in chosen] for i, key in enumerate(("images", "annotations"))}
    content["categories"] = read_panoptic_json(source.panoptic_json)["categories"]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path := folder / "panoptic.json", content)
    own = {"prepare": None, "label_folders": None, "derived_name": None, "derived_root": str(folder)}
    small = dataclasses.replace(source, panoptic_json=str(path), instances_json=None, **own)
    return small, total or len(entries)


def _whole_set(name: str) -> int:
    """Number of images of a set that stays whole."""
    folder = find_image_folder(name)
    if folder is not None and folder.prepare is not None and not os.path.isdir(folder.root):
        raise UserError(f"data set {name} is drawn when it is first used: nothing can be measured before")
    return len(folder.load() if folder is not None else DatasetCatalog.get(name))
