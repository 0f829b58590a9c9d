"""Class names, colours and id maps of a COCO-panoptic category list, in Detectron2's conventions.

Three kinds of ids occur; confusing them is the most common way to lose a day:

- the *data set id* of a category, as in the JSON (may have gaps);
- the *thing* contiguous id, 0..T-1, predicted by the box and mask heads;
- the *label*, predicted by the semantic head, see :mod:`.labels`; void is 255.
"""

import colorsys

from .labels import ALL, SEPARATED, THINGS_LABEL, label_map

THINGS_COLOR = [82, 18, 128]  # as in Detectron2's "coco_2017_*_panoptic_separated"


def _color(category: dict, index: int) -> list:
    if category.get("color") is not None:
        return [int(value) for value in category["color"]]
    rgb = colorsys.hsv_to_rgb(index * 0.618 % 1, 0.55 + 0.15 * (index % 4), 0.95 - 0.2 * (index % 3))
    return [round(255 * value) for value in rgb]


def _short_names(names: list) -> list:
    """COCO's "wall-other-merged" becomes "wall", as in Detectron2, unless two names would become equal."""
    short = [name.replace("-other", "").replace("-merged", "") for name in names]
    return short if len(set(short)) == len(short) else names


def panoptic_metadata(categories: list, labels: str = SEPARATED) -> dict:
    """Metadata in Detectron2's conventions, for any category list.

    Classes are numbered by ascending data set id (supplement: COCO's 53 stuff classes become 1..53).

    Args:
        categories: COCO-panoptic categories ("id", "name", "isthing", optionally "color").
        labels: "separated", as ``coco_2017_val_panoptic_separated``: the first of the stuff classes is
            "things"; "all", as ``coco_2017_val_panoptic``: the stuff classes are all classes. (There
            Detectron2's thing classes are all of them too; here they are the things, which lead the labels.)

    Returns:
        dict with ``thing_classes``, ``thing_colors``, ``thing_dataset_id_to_contiguous_id``,
        ``stuff_classes``, ``stuff_colors``, ``stuff_dataset_id_to_contiguous_id``.
    """
    ordered = sorted(categories, key=lambda category: category["id"])
    by_id = {c["id"]: {**c, "color": _color(c, i)} for i, c in enumerate(ordered)}
    label_of = label_map(categories, labels)
    things = [i for i in label_of if by_id[i]["isthing"]]
    stuff = [i for i in label_of if labels == ALL or not by_id[i]["isthing"]]
    names, colors = [by_id[i]["name"] for i in stuff], [by_id[i]["color"] for i in stuff]
    stuff_ids = {i: label_of[i] for i in stuff}
    if labels == SEPARATED:
        names, colors = ["things", *_short_names(names)], [THINGS_COLOR, *colors]
        # Detectron2 files "things" under data set id 0; a stuff class with that id would be lost to it.
        stuff_ids[0 if 0 not in stuff_ids else -1] = THINGS_LABEL
    return {
        "thing_classes": [by_id[i]["name"] for i in things],
        "thing_colors": [by_id[i]["color"] for i in things],
        "thing_dataset_id_to_contiguous_id": {i: n for n, i in enumerate(things)},
        "stuff_classes": names,
        "stuff_colors": colors,
        "stuff_dataset_id_to_contiguous_id": stuff_ids,
    }
