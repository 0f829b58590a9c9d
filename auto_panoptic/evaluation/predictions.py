"""Saving panoptic predictions in COCO's results format, which panopticapi and other tools read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..data.formats.names import png_name
from ..data.formats.panoptic_png import write_panoptic
from ..errors import UserError
from ..files import write_text


class PredictionWriter:
    """Writes ``FOLDER/panoptic_NAME/*.png`` as the images come, and ``FOLDER/panoptic_NAME.json`` at the end.

    Every process writes the PNGs of its own images, whose annotations are ``records``; the main process alone
    finishes. An interrupted run leaves no JSON, not even that of an earlier run.
    """

    def __init__(self, folder: str, name: str):
        self.root = Path(folder) / f"panoptic_{name.replace('/', '_')}"
        self.json_file = self.root.with_name(self.root.name + ".json")
        self.records = []

    def add(self, image_id, file_name: str, ids: np.ndarray, segments: list) -> None:
        """Write one image: ``ids`` (H, W), 0 where void.

        Args:
            image_id, file_name: of the ground truth; subfolders are kept.
            segments: [{"id", "category_id" (of the data set), "area" (pixels)}], no more than ``ids`` holds.

        Raises:
            UserError: an id that does not fit into a PNG, or the folder cannot be written.
        """
        if ids.size and int(ids.max()) >= 1 << 24:
            raise UserError(f"predicted id {int(ids.max())} does not fit into a PNG; keep ids below 2**24.")
        name = png_name(file_name)
        try:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            if not self.records:
                self.json_file.unlink(missing_ok=True)  # of an earlier run; its PNGs are about to change
            (self.root / name).unlink(missing_ok=True)  # it may be a link
            write_panoptic(self.root / name, ids)
        except OSError as error:
            remedy = "free space or choose another OUTPUT_DIR"
            raise UserError(f"cannot save predictions: {error}; {remedy}") from error
        self.records.append({"image_id": image_id, "file_name": name, "segments_info": segments})

    def finish(self, records: list, truth: dict) -> None:
        """Write the JSON from the records of all processes, and images and categories of the truth's JSON."""
        content = {key: truth[key] for key in ("images", "categories")}
        content["annotations"] = sorted(records, key=lambda record: str(record["image_id"]))
        write_text(self.json_file, json.dumps(content))
