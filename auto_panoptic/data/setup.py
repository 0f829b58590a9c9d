"""Check the data sets a config names, before anything else runs, and size the model for them."""

import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from ..screen import LOG_ONLY
from .classes import KINDS, class_difference, class_record
from .derive.engine import derive
from .formats.panoptic_json import read_categories
from .id_table import id_rows, id_table, is_main_process
from .labels import ALL, SEMANTIC, SEPARATED, check_kind, data_set_for, data_set_names, inputs_of
from .mapper import build_mapper, mapper_name
from .metadata import check_metadata
from .register import find_source, foreign_source, register_coco_panoptic, unknown_data_set
from .sets.imagenet import find_image_folder, register_image_folder
from .source import WHERE, check_paths

logger = logging.getLogger(__name__)

# What is counted -> the head below MODEL whose NUM_CLASSES it is.
HEADS = {"things": "ROI_HEADS", "stuff": "SEM_SEG_HEAD", "classes": "CLASSIFIER"}


def _register_entries(key: str, entries: list, register: Callable) -> None:
    parameters = inspect.signature(register).parameters
    required = [p.name for p in parameters.values() if p.default is p.empty]
    names: dict = {}
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise UserError(f"{key}: {entry!r} is not a mapping with keys {', '.join(required)}.")
        if names.setdefault(str(entry.get("name")), entry) != entry:
            raise UserError(f"{key}: two different entries are named {entry.get('name')!r}; rename one.")
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
        raise unknown_data_set(name, known, "Register your own under DATASETS.COCO_PANOPTIC or IMAGE_FOLDERS")
    if find_image_folder(name) is not None:
        return
    source = find_source(name)
    if source is None:
        check_paths(name, MetadataCatalog.get(name).as_dict())
    elif source.prepare is None:  # else it is made on its first use
        source.check_files()


def _classes(name: str) -> dict[str, list]:
    """{what is counted: class names}: "classes" of a folder, "stuff" of label maps, else "things" too."""
    folder = find_image_folder(name)
    if folder is not None:
        return {"classes": folder.classes}
    metadata = MetadataCatalog.get(name)
    keys = {"things": "thing_classes", "stuff": "stuff_classes"}
    if metadata.get("evaluator_type", None) == SEMANTIC:
        del keys["things"]
    if any(metadata.get(key, None) is None for key in keys.values()):
        try:
            DatasetCatalog.get(name)  # some loaders set the metadata
        except OSError as error:
            raise UserError(f"data set {name} cannot be read: {error}. Put it there, {WHERE}.") from error
    found = {}
    for what, key in keys.items():
        classes = metadata.get(key, None)
        if classes is None or (what == "stuff" and not classes):
            raise UserError(
                f"data set {name} has no {key} in its metadata; panoptic segmentation needs both. Register "
                "it with auto_panoptic.data.register_coco_panoptic."
            )
        found[what] = list(classes)
    return found


def _check_same_classes(cfg, classes: dict[str, dict]) -> None:
    """Raise UserError where the data sets of a config have different classes; {name: :func:`_classes`}."""
    (first, expected), *others = classes.items()
    for name, found in others:
        if set(found) != set(expected):
            raise UserError(
                f"data sets {first} and {name} are of different kinds (classified images, label maps, "
                "panoptic images); name sets of one kind"
            )
        records = (class_record(data_set_for(cfg, n)) for n in (first, name))
        if difference := class_difference(*records):
            what = "class folders" if "classes" in found else "'categories'"
            remedy = f"give both the same {what}"
            raise UserError(f"data sets {first} and {name} have different {difference}; {remedy}")


def setup_datasets(cfg) -> None:
    """Register and check the data sets of a config, frozen or not, and derive the class counts, in place.

    Registers ``cfg.DATASETS.COCO_PANOPTIC`` and ``cfg.DATASETS.IMAGE_FOLDERS``, and sets the ``NUM_CLASSES``
    of the heads (:data:`HEADS`); a count that differs from the config's is logged. The config keeps the names
    of its data sets, those that :func:`.data_set_for` gives are read. Built-in sets are not drawn here.

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
        _check_data_set(data_set_for(cfg, name))
        check_kind(cfg, name)
    classes = {name: _classes(data_set_for(cfg, name)) for name in names}
    evaluated = {*cfg.DATASETS.TEST, *cfg.DATASETS.SEARCH}
    for name in names:
        if "things" in classes[name]:
            metadata = MetadataCatalog.get(data_set_for(cfg, name)).as_dict()
            path = metadata.get("panoptic_json") or ""
            categories = read_categories(path) if os.path.isfile(path) else None
            check_metadata(name, metadata, categories, name in evaluated, inputs_of(cfg).labels)
    _check_same_classes(cfg, classes)
    mapper_name(cfg)
    if "classes" in classes[names[0]]:
        build_mapper(cfg, is_train=True)  # checks its settings
    frozen = cfg.is_frozen()
    cfg.defrost()
    for what, found in classes[names[0]].items():
        node, count = cfg.MODEL.get(HEADS[what], {}), len(found)
        if node.get("NUM_CLASSES", count) != count and is_main_process():
            text = "MODEL.%s.NUM_CLASSES is %d, not %d as in the config: the %s of %s"
            logger.warning(text, HEADS[what], count, node.NUM_CLASSES, KINDS[what], names[0])
        if "NUM_CLASSES" in node:
            node.NUM_CLASSES = count
    if frozen:
        cfg.freeze()


def log_ids(cfg) -> None:
    """Log which id stands for which class in the config's panoptic data sets, once for those that agree."""
    tables: dict = {}
    for name in data_set_names(cfg):
        chosen = data_set_for(cfg, name)
        if "things" in _classes(chosen):
            tables.setdefault(tuple(id_rows(chosen)), []).append((name, chosen))
    for pairs in tables.values():
        other = [chosen for name, chosen in pairs if chosen != name]
        if other:
            model = f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
            text = "Read as %s, which has the labels that %s needs"
            logger.info(text, ", ".join(other), model, extra=LOG_ONLY)
        table = id_table(pairs[0][1], title=", ".join(name for name, _ in pairs))
        logger.info("%s", table, extra=LOG_ONLY)


def check_ground_truth(cfg) -> None:
    """Compare the files of the panoptic sets to score on, and of foreign ones, before anything takes time.

    What was compared once is only read again where it has changed. Our sets to train on are compared as they
    are loaded. Raises UserError for the first error, with file, image and remedy.
    """
    for name in data_set_names(cfg):
        chosen = data_set_for(cfg, name)
        source = find_source(chosen)
        if source is not None and name in (*cfg.DATASETS.TEST, *cfg.DATASETS.get("SEARCH", ())):
            source.ready(SEPARATED if chosen == source.names[SEPARATED] else ALL)
        foreign = foreign_source(chosen) if source is None and is_main_process() else None
        if foreign and foreign.instances_json and foreign.sem_seg_root:
            derive(foreign.derivation(SEPARATED))
