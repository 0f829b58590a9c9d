"""Pictures of what the selected path of the supernet predicts, for the report."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.data import MetadataCatalog

from ..data import data_set_for
from ..data.formats.panoptic_json import read_panoptic_json
from ..errors import one_line
from ..evaluation.gallery import Gallery, class_names, write_pictures
from ..space import Architecture
from .executors.in_process import Executor

logger = logging.getLogger(__name__)


def search_pictures(cfg, executor: Executor, architecture: Architecture, folder: Path) -> None:
    """Draw the best and the worst images of a path into ``folder``/pictures_NAME, one for each data set.

    The search has its results by then: a failure is a warning.
    """
    if not cfg.TEST.PICTURES:
        return
    try:
        found = executor.ask("examples", architecture)
        for name, examples in (found or {}).items():
            gallery = Gallery(cfg.TEST.PICTURES)
            gallery.extend(examples)
            metadata = MetadataCatalog.get(data_set_for(cfg, name))
            names = class_names(metadata, read_panoptic_json(metadata.panoptic_json)["categories"])
            facts = {"data_set": name, "metrics": None, "operators": architecture.names()}
            write_pictures(folder / f"pictures_{name.replace('/', '_')}", gallery.chosen(), names, facts)
    except Exception as error:
        logger.warning("no pictures: %s", one_line(error) or f"{type(error).__name__}: {error}")
