"""Check the metadata of a panoptic data set, whoever registered it, before anything runs on it.

Models and evaluators read class names and id maps from Detectron2's MetadataCatalog. A mistake there costs
the scores of some classes without a word, or stops a run hours later; here it is a line at the start.
"""

from collections.abc import Callable, Mapping, Sequence

from ..errors import UserError
from .formats.panoptic_png import IGNORE
from .labels import ALL, PANOPTIC, SEPARATED, THINGS_LABEL

GROUND_TRUTH = ("panoptic_json", "panoptic_root", "evaluator_type")
REMEDY = "register its JSON with auto_panoptic.data.register_coco_panoptic, which derives it"


def check_metadata(
    name: str,
    metadata: Mapping,
    categories: Sequence[Mapping] | None = None,
    evaluated: bool = True,
    labels: str | None = SEPARATED,
) -> None:
    """Check that the metadata is complete and agrees with itself and with the categories of the JSON.

    The conventions are those of Detectron2's ``coco_2017_val_panoptic_separated`` or, for labels "all", of
    ``coco_2017_val_panoptic``.

    Args:
        name: of the data set.
        metadata: its metadata, e.g. ``MetadataCatalog.get(name).as_dict()``.
        categories: of its panoptic JSON; None if there is none to compare with.
        evaluated: whether it is evaluated on; then it also needs its ground truth, and every class is one of
            the categories.
        labels: those that the model needs, see :mod:`.labels`; None takes them as the metadata have them.

    Raises:
        UserError: names the key and the remedy.
    """

    def fail(key: str, problem: str, remedy: str = REMEDY):
        raise UserError(f"data set {name}: {key} in its metadata {problem}; {remedy}")

    def value(key: str):
        found = metadata.get(key)
        if found is None:
            fail(key, "is missing")
        return found

    for kind in ("thing", "stuff"):
        value(f"{kind}_classes")
        _check_map(f"{kind}_dataset_id_to_contiguous_id", value, fail)
    if labels is None:
        labels = SEPARATED if list(metadata["stuff_classes"][:1]) == ["things"] else ALL
    if labels == SEPARATED:
        things = metadata["thing_dataset_id_to_contiguous_id"]
        _check_positions("thing", " the values {}", things.values(), 0, metadata, fail)
        _check_stuff(metadata, fail)
    else:
        _check_all(metadata, fail)
    for kind in ("thing", "stuff"):
        classes, colors = metadata[f"{kind}_classes"], metadata.get(f"{kind}_colors")
        if colors is not None and len(colors) != len(classes):
            fail(f"{kind}_colors", f"has {len(colors)} entries for {len(classes)} {kind}_classes")
    if value("ignore_label") != IGNORE:
        fail("ignore_label", f"is {metadata['ignore_label']!r}, expected {IGNORE}")
    divisor = metadata.get("label_divisor")  # Detectron2 does not set it for its "separated" data sets
    if divisor is not None and (type(divisor) is not int or divisor < 1):
        fail("label_divisor", f"is {divisor!r}, expected an integer >= 1, e.g. 1000")
    if evaluated:
        for key in GROUND_TRUTH:
            value(key)
        if metadata["evaluator_type"] != PANOPTIC:
            fail("evaluator_type", f"is {metadata['evaluator_type']!r}, expected {PANOPTIC!r}")
    if categories is not None:
        for kind in ("thing", "stuff"):
            _compare(kind, metadata, categories, evaluated, fail)


def _check_map(key: str, value: Callable, fail: Callable) -> None:
    ids = value(key)
    wrong = [item for item in ids.items() if not all(isinstance(i, int) for i in item)]
    if wrong:
        fail(key, f"maps {wrong[0][0]!r} to {wrong[0][1]!r}, expected integers")


def _check_positions(kind: str, has: str, numbers, first: int, metadata: Mapping, fail: Callable) -> None:
    """Check that ``numbers`` are the positions in the classes of a kind, from ``first`` on."""
    last = len(metadata[f"{kind}_classes"]) - 1
    if sorted(numbers) != list(range(first, last + 1)):
        what = f"expected each of {first}..{last} once, the positions in {kind}_classes"
        fail(f"{kind}_dataset_id_to_contiguous_id", f"has{has.format(_few(numbers))}, {what}")


def _check_stuff(metadata: Mapping, fail: Callable) -> None:
    key, classes = "stuff_dataset_id_to_contiguous_id", metadata["stuff_classes"]
    if not classes or classes[THINGS_LABEL] != "things":
        fail(
            "stuff_classes", f"starts with {list(classes[:1])}; label 0 of the semantic head must be 'things'"
        )
    stuff = {i: label for i, label in metadata[key].items() if label != THINGS_LABEL}
    _check_positions("stuff", " the values {} beside 0", stuff.values(), 1, metadata, fail)
    if both := set(stuff) & set(metadata["thing_dataset_id_to_contiguous_id"]):
        fail(key, f"holds {_few(both)}, which thing_dataset_id_to_contiguous_id holds too")


def _check_all(metadata: Mapping, fail: Callable) -> None:
    """Every class has one label; that of a thing is also its contiguous id."""
    key = "stuff_dataset_id_to_contiguous_id"
    things, labels = metadata["thing_dataset_id_to_contiguous_id"], metadata[key]
    if list(metadata["stuff_classes"][:1]) == ["things"]:
        fail("stuff_classes", "starts with 'things'; this model needs a label of its own for every class")
    differing = [i for i in things if labels.get(i, things[i]) != things[i]]
    if differing:
        fail(key, f"gives things {_few(differing)} other labels than thing_dataset_id_to_contiguous_id")
    has, numbers = ", with those of the things, the labels {}", (labels | things).values()
    _check_positions("stuff", has, numbers, 0, metadata, fail)


def _compare(kind: str, metadata: Mapping, categories: Sequence, evaluated: bool, fail: Callable) -> None:
    """Check one of the two maps against the categories of the JSON."""
    key, names = f"{kind}_dataset_id_to_contiguous_id", metadata[f"{kind}_classes"]
    ids = metadata[key]
    if kind == "stuff":
        things = metadata["thing_dataset_id_to_contiguous_id"]
        first = [THINGS_LABEL] if list(names[:1]) == ["things"] else []
        ids = {i: label for i, label in ids.items() if i not in things and label not in first}
    given = {c["id"]: c["name"] for c in categories if bool(c["isthing"]) == (kind == "thing")}
    missing = set(given) - set(ids)
    if missing:
        fail(key, f"lacks {_few(missing)}, {kind} categories of its panoptic_json")
    unknown = set(ids) - set(given)
    if unknown and evaluated:
        fail(key, f"holds {_few(unknown)}, which are no {kind} categories of its panoptic_json")
    for i, label in ids.items():
        # A class may be called something else here, but not by the name of another one.
        if i in given and names[label] != given[i] and given[i] in names:
            fail(
                f"{kind}_classes",
                f"calls category {i} {names[label]!r}, in its panoptic_json it is {given[i]!r}, which stands "
                f"at position {list(names).index(given[i])}",
            )


def _few(values, limit: int = 5) -> str:
    ordered = sorted(values)
    return f"{ordered[:limit]}{' ...' if len(ordered) > limit else ''}"
