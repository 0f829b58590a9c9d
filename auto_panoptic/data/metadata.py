"""Class names, colours and id maps of a COCO-panoptic category list, in Detectron2's conventions.

Three kinds of ids occur; confusing them is the most common way to lose a day:

- the *data set id* of a category, as in the JSON (may have gaps);
- the *thing* contiguous id, 0..T-1, predicted by the box and mask heads;
- the *stuff* label, predicted by the semantic head: 0 means "any thing", stuff classes are 1..S, void is 255.
"""

import colorsys

from .formats.categories import label_map

THINGS_LABEL = 0
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


def panoptic_metadata(categories: list) -> dict:
    """Metadata as of Detectron2's ``coco_2017_val_panoptic_separated``, for any category list.

    Classes are numbered by ascending data set id (supplement: COCO's 53 stuff classes become 1..53).

    Args:
        categories: COCO-panoptic categories ("id", "name", "isthing", optionally "color").

    Returns:
        dict with ``thing_classes``, ``thing_colors``, ``thing_dataset_id_to_contiguous_id``,
        ``stuff_classes`` (the first is "things"), ``stuff_colors``, ``stuff_dataset_id_to_contiguous_id``.
    """
    ordered = sorted(categories, key=lambda category: category["id"])
    colors = {c["id"]: _color(c, i) for i, c in enumerate(ordered)}
    things = [c for c in ordered if c["isthing"]]
    stuff = [c for c in ordered if not c["isthing"]]
    stuff_ids = {c["id"]: i for i, c in enumerate(stuff, start=1)}
    # Detectron2 files "things" under data set id 0; a stuff class with that id would be lost to it.
    stuff_ids[0 if 0 not in stuff_ids else -1] = THINGS_LABEL
    return {
        "thing_classes": [c["name"] for c in things],
        "thing_colors": [colors[c["id"]] for c in things],
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(things)},
        "stuff_classes": ["things", *_short_names([c["name"] for c in stuff])],
        "stuff_colors": [THINGS_COLOR, *(colors[c["id"]] for c in stuff)],
        "stuff_dataset_id_to_contiguous_id": stuff_ids,
    }


def semantic_label_map(categories: list) -> dict:
    """{data set id: semantic label}: every thing 0, stuff 1..S by ascending id."""
    return label_map({category["id"]: category["isthing"] for category in categories})
