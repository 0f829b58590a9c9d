"""Labels of the semantic head: how a data set numbers its classes, and which numbering a model needs.

A panoptic set ``X`` is registered twice, as Detectron2 registers COCO; both share images and annotations:

- ``X``, labels "all": every class has a label of its own, things 0..T-1, then stuff T..T+S-1;
- ``X_separated``, labels "separated": 0 is any thing, stuff classes are 1..S.

Within things and within stuff the order is that of the data set ids; 255 is void in both. So the label of a
thing in the first is also its contiguous id, which box and mask heads predict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError

LABELS = ALL, SEPARATED = "all", "separated"
CLASSES = "classes"  # of images
SUFFIX = "_separated"  # of the names of data sets, as in Detectron2
WITH_LABELS = "_with_sem_seg"  # of those with labels "all", where the set without it has no label maps
THINGS_LABEL = 0  # of any thing, in "separated"
# ``evaluator_type`` in the metadata of a data set says what it holds; the last one, label maps alone.
PANOPTIC, CLASSIFIED, SEMANTIC = "coco_panoptic_seg", "image_classification", "sem_seg"


def label_map(categories: Iterable[Mapping], labels: str = SEPARATED) -> dict[int, int]:
    """{data set id: label} of COCO-panoptic categories, things first, each kind by ascending id."""
    ids = {c["id"]: bool(c["isthing"]) for c in categories}
    things, stuff = (sorted(i for i, isthing in ids.items() if isthing is kind) for kind in (True, False))
    first = {i: THINGS_LABEL for i in things} if labels == SEPARATED else {i: n for n, i in enumerate(things)}
    return first | {i: n for n, i in enumerate(stuff, start=1 if labels == SEPARATED else len(things))}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a meta-architecture reads, see :func:`declare_inputs`."""

    labels: str | None = None
    mapper: str = ""
    masks: bool = False


_DECLARED: dict[str, Inputs] = {}


def declare_inputs(
    meta_architecture: str, *, labels: str | None = None, mapper: str = "", masks: bool = False
) -> None:
    """State what a registered meta-architecture reads; beside its definition, once.

    Args:
        meta_architecture: its name in Detectron2's registry.
        labels: "separated" or "all", the labels of its semantic head: of a data set registered with both, it
            gets these, whichever of the two names the config has. "classes": classified images. None takes
            the data set that is named.
        mapper: name in ``DATASET_MAPPER_REGISTRY`` of its mapper, where INPUT.DATASET_MAPPER_NAME is empty.
        masks: its training needs the masks of the instances, whatever MODEL.MASK_ON says.

    Raises:
        ValueError: other labels.
    """
    if labels not in (None, ALL, SEPARATED, CLASSES):
        raise ValueError(f"labels {labels!r}; expected {ALL!r}, {SEPARATED!r}, {CLASSES!r} or None")
    _DECLARED[meta_architecture] = Inputs(labels, mapper, masks)


def inputs_of(cfg) -> Inputs:
    """What the config's meta-architecture has declared, or nothing."""
    return _DECLARED.get(cfg.MODEL.META_ARCHITECTURE, Inputs())


def data_set_for(cfg, name: str) -> str:
    """The data set to read where the config names ``name``: itself or its sibling with the model's labels."""
    labels, registered = inputs_of(cfg).labels, DatasetCatalog.list()
    if labels == SEPARATED and name + SUFFIX in registered:
        return name + SUFFIX
    if labels == ALL:
        both = name.removesuffix(SUFFIX)
        return next((n for n in (both + WITH_LABELS, both) if n in registered), name)
    return name


def with_data_sets(cfg):
    """The config with the names that :func:`data_set_for` gives, for code that reads them by itself."""
    changed = cfg.clone()
    changed.defrost()
    for key in ("TRAIN", "TEST", "SEARCH"):
        changed.DATASETS[key] = tuple(data_set_for(cfg, name) for name in cfg.DATASETS.get(key, ()))
    if cfg.is_frozen():
        changed.freeze()
    return changed


def data_set_names(cfg) -> list[str]:
    """All data sets named in the config, once each: TRAIN, TEST, SEARCH."""
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *cfg.DATASETS.get("SEARCH", ()))
    return list(dict.fromkeys(names))


def holds_classes(name: str) -> bool:
    """Whether a registered data set holds classified images."""
    return name in MetadataCatalog.list() and MetadataCatalog.get(name).get("evaluator_type") == CLASSIFIED


def check_kind(cfg, name: str) -> None:
    """Raise UserError where a model for panoptic images meets a set of classified ones, or the reverse."""
    model = f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
    labels = inputs_of(cfg).labels
    if labels == CLASSES and not holds_classes(name):
        raise UserError(
            f"data set {name} is no folder of classified images, which {model} needs; use imagenet_train and "
            "imagenet_val, or register your own under DATASETS.IMAGE_FOLDERS"
        )
    kind = MetadataCatalog.get(name).get("evaluator_type", None)
    if (labels in (ALL, SEPARATED) and kind == CLASSIFIED) or (labels == SEPARATED and kind == SEMANTIC):
        held = "classified images" if kind == CLASSIFIED else "label maps alone"
        raise UserError(
            f"data set {name} holds {held}; {model} needs a panoptic data set (see datasets/README.md)"
        )
