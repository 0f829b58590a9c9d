"""Check the data sets a config names, before anything else runs, and size the model for them."""

import difflib
import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from .consistency import check_metadata
from .formats.panoptic_json import read_categories
from .id_table import id_rows, id_table, is_main_process
from .register import find_source, register_coco_panoptic
from .sets.imagenet import check_classification_input, find_image_folder, is_classifier, register_image_folder

logger = logging.getLogger(__name__)

_METADATA_PATHS = {
    "panoptic_json": "the panoptic JSON",
    "panoptic_root": "a folder of panoptic PNGs",
    "image_root": "a folder of images",
    "json_file": "the instances JSON",
    "sem_seg_root": "a folder of semantic PNGs",
}


def _register_entries(key: str, entries: list, register: Callable) -> None:
    parameters = inspect.signature(register).parameters
    required = [p.name for p in parameters.values() if p.default is p.empty]
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise UserError(f"{key}: {entry!r} is not a mapping with keys {', '.join(required)}.")
        unknown = sorted(set(entry) - set(parameters))
        missing = [key for key in required if key not in entry]
        if unknown or missing:
            raise UserError(
                f"{key}: entry {entry.get('name', '?')!r} has unknown keys {unknown} and "
                f"lacks {missing}; allowed: {', '.join(parameters)}."
            )
        register(**entry)


def _check_data_set(name: str) -> None:
    known = DatasetCatalog.list()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or [n for n in known if n.startswith("shapes_")]
        raise UserError(
            f"unknown data set {name!r} in DATASETS; did you mean {', '.join(close)}? Register your own "
            "under DATASETS.COCO_PANOPTIC or DATASETS.IMAGE_FOLDERS (see datasets/README.md)."
        )
    if find_image_folder(name) is not None:
        return
    source = find_source(name)
    if source is not None:
        if source.prepare is None:  # else part of it is made on its first use
            source.check_files()
        elif source.check is not None:
            source.check()
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


def _check_kind(cfg, name: str) -> None:
    """Raise UserError where a classifier meets a panoptic data set, or the reverse."""
    model = f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
    if is_classifier(cfg) and find_image_folder(name) is None:
        raise UserError(
            f"data set {name} is no folder of classified images, which {model} needs; use imagenet_train and "
            "imagenet_val, or register your own under DATASETS.IMAGE_FOLDERS"
        )
    if not is_classifier(cfg) and find_image_folder(name) is not None:
        raise UserError(
            f"data set {name} holds classified images, which only MODEL.META_ARCHITECTURE BackboneClassifier "
            f"reads; {model} needs a panoptic data set (see datasets/README.md)"
        )


def _set_up_classification(cfg, names: list) -> None:
    """Derive MODEL.CLASSIFIER.NUM_CLASSES from data sets of ImageFolder layout."""
    check_classification_input(cfg)
    classes = find_image_folder(names[0]).classes
    for name in names[1:]:
        others = find_image_folder(name).classes
        if others != classes:
            differing = sorted(set(classes) ^ set(others))[:5]
            raise UserError(
                f"data sets {names[0]} and {name} have different classes ({len(classes)} and {len(others)} "
                f"folders; e.g. {differing}); give both the same class folders"
            )
    _derive(cfg.MODEL.CLASSIFIER, "MODEL.CLASSIFIER.NUM_CLASSES", len(classes), f"folders of {names[0]}")


def _derive(node, key: str, count: int, what: str) -> None:
    """Set NUM_CLASSES of a node; the data decide, and a config that says otherwise is told so."""
    if node.NUM_CLASSES != count and is_main_process():
        logger.warning("%s is %d, not %d as in the config: the %s", key, count, node.NUM_CLASSES, what)
    node.NUM_CLASSES = count


def _check_metadata(name: str, evaluated: bool) -> None:
    """Check the metadata of a panoptic data set, against its JSON where that is there already."""
    metadata = MetadataCatalog.get(name).as_dict()
    path = metadata.get("panoptic_json")
    there = path is not None and os.path.isfile(path)
    check_metadata(name, metadata, read_categories(path) if there else None, evaluated)


def _set_up_panoptic(cfg, names: list) -> None:
    """Derive the class counts of the heads from panoptic data sets."""
    things, stuff = _classes(names[0])
    evaluated = {*cfg.DATASETS.TEST, *cfg.DATASETS.SEARCH}
    for name in names:
        _classes(name)
        _check_metadata(name, name in evaluated)
    for name in names[1:]:
        for kind, expected, classes in zip(("thing", "stuff"), (things, stuff), _classes(name), strict=True):
            if classes != expected:
                differing = sorted(set(classes) ^ set(expected))[:5]
                raise UserError(
                    f"data sets {names[0]} and {name} have different {kind} classes ({len(expected)} and "
                    f"{len(classes)}; e.g. {differing}); register both with the same 'categories'."
                )
    _derive(cfg.MODEL.ROI_HEADS, "MODEL.ROI_HEADS.NUM_CLASSES", len(things), f"things of {names[0]}")
    what = f"stuff classes of {names[0]} and 'things'"
    _derive(cfg.MODEL.SEM_SEG_HEAD, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(stuff), what)


def data_set_names(cfg) -> list:
    """All data sets named in the config, once each: TRAIN, TEST, SEARCH."""
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *cfg.DATASETS.get("SEARCH", ()))
    return list(dict.fromkeys(names))


def setup_datasets(cfg) -> None:
    """Register and check the config's data sets, and derive the class counts from them, in place.

    Registers ``cfg.DATASETS.COCO_PANOPTIC`` and ``cfg.DATASETS.IMAGE_FOLDERS``, and sets
    ``MODEL.ROI_HEADS.NUM_CLASSES`` (things) and ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` (stuff and "things"), or
    ``MODEL.CLASSIFIER.NUM_CLASSES`` in the ImageNet stage; a count that differs from the config's is logged.
    The built-in panoptic set is drawn on its first use, not here.

    Args:
        cfg: a config, frozen or not; it stays so.

    Raises:
        UserError: an unknown name, a missing file, metadata that is incomplete or contradicts itself or the
            JSON, sets whose classes differ or do not suit the model.
    """
    register = functools.partial(register_coco_panoptic, show_ids=False)  # log_ids does it at the start
    _register_entries("DATASETS.COCO_PANOPTIC", cfg.DATASETS.COCO_PANOPTIC, register)
    _register_entries("DATASETS.IMAGE_FOLDERS", cfg.DATASETS.IMAGE_FOLDERS, register_image_folder)
    names = data_set_names(cfg)
    if not names:
        raise UserError("DATASETS.TRAIN and DATASETS.TEST are empty; name at least one data set.")
    for name in names:
        _check_data_set(name)
        _check_kind(cfg, name)
    frozen = cfg.is_frozen()
    cfg.defrost()
    try:
        (_set_up_classification if is_classifier(cfg) else _set_up_panoptic)(cfg, names)
    finally:
        if frozen:
            cfg.freeze()


def log_ids(cfg) -> None:
    """Log which id stands for which class in the config's panoptic data sets, once for those that agree."""
    if is_classifier(cfg):
        return
    tables: dict = {}
    for name in data_set_names(cfg):
        tables.setdefault(tuple(id_rows(name)), []).append(name)
    for names in tables.values():
        logger.info("%s", id_table(*names))
