"""The classes of a data set, as a checkpoint records them, and how two records differ."""

from __future__ import annotations

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from .labels import ALL, CLASSES, SEPARATED, data_set_for, data_set_names
from .sets.imagenet import find_image_folder

KINDS = {"things": "thing classes", "stuff": "stuff classes", "classes": "classes"}


def class_record(name: str) -> dict:
    """The classes of a registered data set whose metadata is complete.

    Returns:
        {"labels": "all", "separated" (:mod:`.labels`) or "classes"} and, of what the set has, "things",
        "stuff" (the labels of the semantic head, so in "all" the things too) and "classes" (of images): lists
        of [id in the data set or None, name, colour or None] in the order in which a model numbers them.
    """
    if folder := find_image_folder(name):
        return {"labels": CLASSES, "classes": [[i, c, None] for i, c in enumerate(folder.classes)]}
    metadata = MetadataCatalog.get(name).as_dict()
    names, record = {kind: list(metadata.get(f"{kind}_classes") or ()) for kind in ("thing", "stuff")}, {}
    ids = {kind: metadata.get(f"{kind}_dataset_id_to_contiguous_id") for kind in names}
    record["labels"] = SEPARATED if names["stuff"][:1] == ["things"] else ALL
    for key, kind in (("things", "thing"), ("stuff", "stuff")):
        by_number = {number: i for i, number in (ids[kind] or {}).items()}
        # Detectron2's thing classes of "coco_2017_*_panoptic" go on with the stuff.
        numbers = sorted(by_number) if kind == "thing" else range(len(names[kind]))
        colors = metadata.get(f"{kind}_colors") or [None] * len(names[kind])
        if ids[kind] is not None or names[kind]:
            plain = [None if color is None else [int(value) for value in color] for color in colors]
            record[key] = [[by_number.get(n), names[kind][n], plain[n]] for n in numbers]
    return record


def config_classes(cfg) -> dict | None:
    """The classes of a config's data sets, which :func:`.setup_datasets` found to be the same; or None."""
    names = [data_set_for(cfg, name) for name in data_set_names(cfg)]
    return class_record(names[0]) if names and names[0] in DatasetCatalog.list() else None


def class_difference(first: dict, second: dict) -> str:
    """How two records differ for a model, such as "thing classes (2 and 3; e.g. ['car'])"; "" if they agree.

    Ids of the data sets do not count, only the order: a model numbers the classes.
    """
    for key, what in KINDS.items():
        if key not in first or key not in second:
            continue
        a, b = ([name for _, name, *_ in record[key]] for record in (first, second))
        if a == b:
            continue
        differing = sorted(set(a) ^ set(b))
        if differing:
            example = f"e.g. {differing[:5]}"
            other = _names(first) & _names(second) & set(differing)
            example += ", a thing in one and stuff in the other" if other else ""
        else:
            moved = [f"{n} is {x!r} / {y!r}" for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
            example = f"in another order, by their ids: {', '.join(moved[:3])}"
        return f"{what} ({len(a)} and {len(b)}; {example})"
    if first["labels"] != second["labels"]:
        return f"labels ({first['labels']!r} and {second['labels']!r})"
    return ""


def check_classes(subject: str, theirs: dict | None, ours: dict | None) -> None:
    """Raise UserError if weights, ``subject``, were trained on other classes than ``ours``; None: unknown."""
    try:
        difference = class_difference(theirs, ours) if theirs and ours else ""
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{subject} has a malformed record 'classes'; give an intact copy") from None
    if not difference:
        return
    remedy = "give weights that were trained on the classes of the data sets"
    if CLASSES in ours:
        remedy += ", or data sets with the class folders that those were trained on"
    elif _names(ours) <= _names(theirs):
        remedy = (
            "register the data sets with the 'categories' of the set that those were trained on, the path of "
            "its panoptic JSON: classes are then found by name"
        )
    raise UserError(f"{subject} and the data sets have different {difference}; {remedy}")


def _names(record: dict) -> set[str]:
    return {name for key in KINDS for _, name, *_ in record.get(key, ())}
