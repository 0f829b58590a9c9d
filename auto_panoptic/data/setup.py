"""Check the data sets a config names, before anything else runs, and size the model for them."""

import difflib
import inspect
import os
from collections.abc import Mapping

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from .register import find_source, register_coco_panoptic

_METADATA_PATHS = {
    "panoptic_json": "the panoptic JSON",
    "panoptic_root": "a folder of panoptic PNGs",
    "image_root": "a folder of images",
    "json_file": "the instances JSON",
    "sem_seg_root": "a folder of semantic PNGs",
}


def _register_from_config(cfg) -> None:
    parameters = inspect.signature(register_coco_panoptic).parameters
    required = [p.name for p in parameters.values() if p.default is p.empty]
    for entry in cfg.DATASETS.COCO_PANOPTIC:
        if not isinstance(entry, Mapping):
            raise UserError(
                f"DATASETS.COCO_PANOPTIC: {entry!r} is not a mapping with keys {', '.join(required)}."
            )
        unknown = sorted(set(entry) - set(parameters))
        missing = [key for key in required if key not in entry]
        if unknown or missing:
            raise UserError(
                f"DATASETS.COCO_PANOPTIC: entry {entry.get('name', '?')!r} has unknown keys {unknown} and "
                f"lacks {missing}; allowed: {', '.join(parameters)}."
            )
        register_coco_panoptic(**entry)


def _check_data_set(name: str) -> None:
    known = DatasetCatalog.list()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or [n for n in known if n.startswith("shapes_")]
        raise UserError(
            f"unknown data set {name!r} in DATASETS; did you mean {', '.join(close)}? Register your own "
            "under DATASETS.COCO_PANOPTIC (see datasets/README.md)."
        )
    source = find_source(name)
    if source is not None:
        if source.prepare is None:  # the built-in set is drawn on its first use
            source.check_files()
        return
    metadata = MetadataCatalog.get(name)
    for key, what in _METADATA_PATHS.items():
        path = metadata.get(key, None)
        if path and "://" not in path and not os.path.exists(path):
            raise UserError(
                f"data set {name}: {path} does not exist; expected there: {what}. Put it there, or set "
                "DETECTRON2_DATASETS to the folder that holds your data sets (see datasets/README.md)."
            )


def _classes(name: str) -> tuple:
    """Thing and stuff classes of a data set."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes", None) is None or metadata.get("stuff_classes", None) is None:
        DatasetCatalog.get(name)  # some loaders set the metadata
    found = []
    for key in ("thing_classes", "stuff_classes"):
        classes = metadata.get(key, None)
        if not classes:
            raise UserError(
                f"data set {name} has no {key} in its metadata; panoptic segmentation needs both. Register "
                "it with auto_panoptic.data.register_coco_panoptic."
            )
        found.append(list(classes))
    return tuple(found)


def data_set_names(cfg) -> list:
    """All data sets named in the config, once each: TRAIN, TEST, SEARCH."""
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *cfg.DATASETS.get("SEARCH", ()))
    return list(dict.fromkeys(names))


def setup_datasets(cfg) -> None:
    """Register and check the config's data sets, and derive the class counts from them, in place.

    Registers ``cfg.DATASETS.COCO_PANOPTIC`` and sets
    ``MODEL.ROI_HEADS.NUM_CLASSES`` (things) and ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` (stuff and "things").
    The built-in set is drawn on its first use, not here.

    Args:
        cfg: a config, frozen or not; it stays so.

    Raises:
        UserError: an unknown name, a missing file, or sets whose classes differ.
    """
    _register_from_config(cfg)
    names = data_set_names(cfg)
    if not names:
        raise UserError("DATASETS.TRAIN and DATASETS.TEST are empty; name at least one data set.")
    for name in names:
        _check_data_set(name)
    things, stuff = _classes(names[0])
    for name in names[1:]:
        for kind, expected, classes in zip(("thing", "stuff"), (things, stuff), _classes(name), strict=True):
            if classes != expected:
                differing = sorted(set(classes) ^ set(expected))[:5]
                raise UserError(
                    f"data sets {names[0]} and {name} have different {kind} classes ({len(expected)} and "
                    f"{len(classes)}; e.g. {differing}); register both with the same 'categories'."
                )
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(things)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(stuff)
    if frozen:
        cfg.freeze()
