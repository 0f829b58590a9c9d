"""The best and the worst images of an evaluation, kept while it runs and drawn at its end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.utils.events import get_event_storage
from PIL import Image

from ..errors import UserError
from ..files import replacing, write_json
from ..pictures import PANELS, RECORD, picture_name
from ..pictures.colours import PALETTE
from ..pictures.drawing import draw_differences, draw_segments, fit, strip
from .overlap import Overlap

logger = logging.getLogger(__name__)

FORMATS = {"jpg": {"format": "JPEG", "quality": 85}, "png": {"format": "PNG", "optimize": True}}


@dataclass(frozen=True)
class Example:
    """One image with its truth and its prediction.

    Attributes:
        score: its quality in percent, see :meth:`PanopticQuality.add`.
        image_id, file_name: of the image.
        predicted, truth: (H, W) int32 ids, 0 where void.
        overlap: how their segments overlap.
    """

    score: float
    image_id: object
    file_name: str
    predicted: np.ndarray
    truth: np.ndarray
    overlap: Overlap

    @property
    def order(self) -> tuple:
        """By score; equal ones by image, whatever process had them."""
        return self.score, str(self.image_id)


class Gallery:
    """The ``count`` best and the ``count`` worst examples of those offered, each image once."""

    def __init__(self, count: int):
        self.count = count
        self.examples: list[Example] = []

    def offer(self, score: float, make: Callable[[], Example]) -> None:
        """Keep the example that ``make`` gives if it may be among the best or the worst."""
        kept, count = self.examples, self.count
        is_full = len(kept) == 2 * count
        if math.isfinite(score) and not (is_full and kept[count - 1].score < score < kept[count].score):
            self.extend([make()])

    def extend(self, examples: Sequence[Example]) -> None:
        """Take examples of another process, too."""
        every = sorted([*self.examples, *examples], key=lambda example: example.order)
        self.examples = every if len(every) <= 2 * self.count else every[: self.count] + every[-self.count :]

    def chosen(self) -> dict[str, Example]:
        """{"best 1": ..., "worst 1": ...}; of few images, the best are shown first."""
        best = self.examples[::-1][: self.count]
        worst = self.examples[: len(self.examples) - len(best)][: self.count]
        named = (("best", best), ("worst", worst))
        return {f"{kind} {i}": example for kind, found in named for i, example in enumerate(found, 1)}


def class_names(metadata: Metadata, categories: Sequence[Mapping]) -> dict[int, str]:
    """{category id: name} of the panoptic categories, in their order; the metadata's names are shorter."""
    names = {c["id"]: c.get("name", str(c["id"])) for c in sorted(categories, key=lambda c: c["id"])}
    for kind in ("thing", "stuff"):
        listed = metadata.get(f"{kind}_classes")
        ids = metadata.get(f"{kind}_dataset_id_to_contiguous_id", {}) if listed else {}
        names |= {i: listed[number] for i, number in ids.items() if i in names}
    return names


def draw(example: Example, numbers: Mapping[int, int], names: Sequence[str]) -> dict[str, np.ndarray]:
    """{panel of PANELS: (H, W, 3) uint8 RGB}.

    Args:
        numbers: {category id: class number}.
        names: of the classes, by their number.
    """
    overlap, size = example.overlap, fit(*example.truth.shape)
    photo = read_image(example.file_name, "RGB")
    segments = {"truth": (example.truth, overlap.truth), "prediction": (example.predicted, overlap.predicted)}
    panels = {"photo": np.asarray(Image.fromarray(photo).resize(size[::-1]))}
    for panel, (ids, records) in segments.items():
        classes = {i: numbers[record["category_id"]] for i, record in records.items()}
        panels[panel] = draw_segments(ids, classes, names, size)
    counted = ({i for i, s in overlap.truth.items() if not s.get("iscrowd", 0)}, set(overlap.predicted))
    maps = (example.predicted, example.truth, overlap.matches(), counted)
    return panels | {"differences": draw_differences(panels["photo"], *maps, size)}


def write_pictures(
    folder: str | Path, chosen: Mapping[str, Example], names: Mapping[int, str], facts: Mapping
) -> None:
    """Draw examples into ``folder``, which gets ``pictures.json`` last; and into TensorBoard in a training.

    What cannot be read or written costs the pictures, not the results of an evaluation.

    Args:
        chosen: {rank: example}.
        names: {category id: name of the class}; numbered in this order, of many only those that occur.
        facts: what the record says beside.
    """
    folder = Path(folder)
    occur = {
        segment["category_id"]
        for example in chosen.values()
        for records in (example.overlap.truth, example.overlap.predicted)
        for segment in records.values()
    }
    few = len(names) <= len(PALETTE)  # then a class has one colour in all pictures of a data set
    numbers = {category: i for i, category in enumerate(c for c in names if few or c in occur)}
    labels = [names[category] for category in numbers]
    images = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).unlink(missing_ok=True)  # its pictures are about to change
        for rank, example in chosen.items():
            panels = draw(example, numbers, labels)
            for panel, suffix in PANELS.items():
                with replacing(folder / picture_name(rank, panel), sync=False) as partial:
                    Image.fromarray(panels[panel]).save(partial, **FORMATS[suffix])
            _show(f"{folder.name}/{rank}", strip(list(panels.values())))
            images.append({"rank": rank, "image": str(example.image_id), "PQ": round(example.score, 2)})
        classes = {names[category]: i for category, i in numbers.items() if category in occur}
        write_json(folder / RECORD, {**facts, "classes": classes, "images": images})
    except (OSError, UserError) as error:
        logger.warning("no pictures of this evaluation: %s", error)


def _show(name: str, picture: np.ndarray) -> None:
    """Give a picture (H, W, 3) to the TensorBoard of the training that runs, if one does."""
    try:
        storage = get_event_storage()
    except AssertionError:
        return
    storage.put_image(name, torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))))
