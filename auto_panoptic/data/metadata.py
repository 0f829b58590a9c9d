"""Class names, colours and id maps of a data set, in Detectron2's conventions: made, and checked.

Three kinds of ids occur; confusing them is the most common way to lose a day:

- the *data set id* of a category, as in the JSON (may have gaps);
- the *thing* contiguous id, 0..T-1, predicted by the box and mask heads;
- the *label*, predicted by the semantic head, see :mod:`.labels`; void is 255.
"""

import colorsys
from collections.abc import Iterable, Mapping, Sequence

from ..errors import UserError
from .formats.panoptic_png import IGNORE
from .labels import ALL, PANOPTIC, SEPARATED, THINGS_LABEL, label_map

CLASSES = {"thing": "thing_classes", "stuff": "stuff_classes"}
IDS = {kind: f"{kind}_dataset_id_to_contiguous_id" for kind in CLASSES}
GROUND_TRUTH = ("panoptic_json", "panoptic_root", "evaluator_type")
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


def check_metadata(
    name: str,
    metadata: Mapping,
    categories: Sequence[Mapping] | None = None,
    evaluated: bool = True,
    labels: str | None = SEPARATED,
) -> None:
    """Check that metadata, whoever registered them, are complete and agree with themselves and the JSON.

    A mistake there would cost the scores of some classes without a word, or stop a run hours later.

    Args:
        name: of the data set.
        metadata: its metadata, e.g. ``MetadataCatalog.get(name).as_dict()``.
        categories: of its panoptic JSON; None if there is none to compare with.
        evaluated: it also needs its ground truth, and every class is one of the categories.
        labels: those that the model needs, see :mod:`.labels`; None takes them as the metadata have them.

    Raises:
        UserError: names the key and the remedy.
    """

    def fail(key: str, problem: str) -> None:
        remedy = "register its JSON with auto_panoptic.data.register_coco_panoptic, which derives it"
        raise UserError(f"data set {name}: {key} in its metadata {problem}; {remedy}")

    def check_positions(kind: str, has: str, numbers: Iterable[int], first: int = 0) -> None:
        last = len(metadata[CLASSES[kind]]) - 1
        if sorted(numbers) != list(range(first, last + 1)):
            what = f"expected each of {first}..{last} once, the positions in {CLASSES[kind]}"
            fail(IDS[kind], f"has{has.format(_few(numbers))}, {what}")

    for key in (*CLASSES.values(), *IDS.values(), "ignore_label", *(GROUND_TRUTH if evaluated else ())):
        if metadata.get(key) is None:
            fail(key, "is missing")
    for key in IDS.values():
        for i, label in metadata[key].items():
            if not (isinstance(i, int) and isinstance(label, int)):
                fail(key, f"maps {i!r} to {label!r}, expected integers")
    things, every = (metadata[key] for key in IDS.values())
    first = list(metadata["stuff_classes"][:1])
    if labels == SEPARATED or (labels is None and first == ["things"]):
        check_positions("thing", " the values {}", things.values())
        if first != ["things"]:
            fail("stuff_classes", f"starts with {first}; label 0 of the semantic head must be 'things'")
        stuff = {i: label for i, label in every.items() if label != THINGS_LABEL}
        check_positions("stuff", " the values {} beside 0", stuff.values(), 1)
        if both := set(stuff) & set(things):
            fail(IDS["stuff"], f"holds {_few(both)}, which {IDS['thing']} holds too")
    else:  # every class has one label; that of a thing is also its contiguous id
        if first == ["things"]:
            fail("stuff_classes", "starts with 'things'; this model needs a label of its own for every class")
        if differing := [i for i in things if every.get(i, things[i]) != things[i]]:
            fail(IDS["stuff"], f"gives things {_few(differing)} other labels than {IDS['thing']}")
        check_positions("stuff", ", with those of the things, the labels {}", (every | things).values())
        stuff = {i: label for i, label in every.items() if i not in things}
    for kind, key in CLASSES.items():
        colors = metadata.get(f"{kind}_colors")
        if colors is not None and len(colors) != len(metadata[key]):
            fail(f"{kind}_colors", f"has {len(colors)} entries for {len(metadata[key])} {key}")
    if metadata["ignore_label"] != IGNORE:
        fail("ignore_label", f"is {metadata['ignore_label']!r}, expected {IGNORE}")
    divisor = metadata.get("label_divisor")  # Detectron2 does not set it for its "separated" data sets
    if divisor is not None and (type(divisor) is not int or divisor < 1):
        fail("label_divisor", f"is {divisor!r}, expected an integer >= 1, e.g. 1000")
    if evaluated and metadata["evaluator_type"] != PANOPTIC:
        fail("evaluator_type", f"is {metadata['evaluator_type']!r}, expected {PANOPTIC!r}")
    for kind, ids in {"thing": things, "stuff": stuff}.items() if categories is not None else ():
        names, listed = metadata[CLASSES[kind]], "categories of its panoptic_json"
        given = {c["id"]: c["name"] for c in categories if bool(c["isthing"]) == (kind == "thing")}
        if missing := set(given) - set(ids):
            fail(IDS[kind], f"lacks {_few(missing)}, {kind} {listed}")
        if evaluated and (unknown := set(ids) - set(given)):
            fail(IDS[kind], f"holds {_few(unknown)}, which are no {kind} {listed}")
        for i, label in ids.items():
            # A class may be called something else here, but not by the name of another one.
            if i in given and names[label] != given[i] and given[i] in names:
                said = f"calls category {i} {names[label]!r}, in its panoptic_json it is {given[i]!r}"
                fail(CLASSES[kind], f"{said}, which stands at position {list(names).index(given[i])}")


def _few(values: Iterable[int], limit: int = 5) -> str:
    ordered = sorted(values)
    return f"{ordered[:limit]}{' ...' if len(ordered) > limit else ''}"
