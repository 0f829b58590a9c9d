"""Register a data set in COCO-panoptic format: one call, whatever the set."""

import copy
import difflib
import functools
import os
from collections.abc import Iterable, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from .formats.categories import check_categories
from .formats.json_file import load_object
from .formats.names import name_problem
from .id_table import id_table, is_main_process
from .labels import SEPARATED
from .source import EXPECTED, PanopticSource


def owner_of(name: str, kind: type):
    """The object of class ``kind`` whose loader is registered under ``name``, or None."""
    loader = DatasetCatalog[name] if name in DatasetCatalog.list() else None
    owner = getattr(getattr(loader, "func", loader), "__self__", None)  # of a method, or of its partial
    return owner if isinstance(owner, kind) else None


def find_source(name: str) -> PanopticSource | None:
    """The source registered here under ``name``, with either labels, or None."""
    return owner_of(name, PanopticSource)


def foreign_source(name: str) -> PanopticSource | None:
    """Where the metadata of a set that somebody else registered say that it lies; None if they do not."""
    metadata = MetadataCatalog.get(name)
    *needed, instances, maps = (metadata.get(key, None) for key in EXPECTED)
    known = all(needed)
    return PanopticSource(name, *needed, instances_json=instances, sem_seg_root=maps) if known else None


def unknown_data_set(name: str, known: Sequence[str], remedy: str) -> UserError:
    """The error of a name that is none of ``known``, with those like it."""
    near = ", ".join(difflib.get_close_matches(name, known, n=3))
    hint = f"did you mean {near}?" if near else "there is, for example, shapes_panoptic_train."
    return UserError(f"unknown data set {name!r}; {hint} {remedy} (see datasets/README.md)")


def check_name(name: str) -> None:
    """Raise UserError for a name of a data set that leads out of the folders that are named after it."""
    problem = name_problem(name)
    if problem:
        raise UserError(f"data set name {name!r} {problem}; choose another name.")


def register_source(source: PanopticSource) -> bool:
    """Register a source in Detectron2's catalogs, with both kinds of labels; whether there is anything new.

    Doing it again is allowed with the same JSON and folders: classes are read anew, and the other arguments
    may be corrected.

    Raises:
        UserError: a name is taken by something else, or leads out of the folders that are named after it.
    """
    check_name(source.name)
    removed = source.name not in DatasetCatalog.list()  # then its sibling is forgotten too
    for name in source.names.values():
        found = find_source(name)
        if removed and found and found.name == source.name:
            DatasetCatalog.remove(name)
        elif name in DatasetCatalog.list() and (found is None or found.places != source.places):
            whom = "with other arguments" if found else "by somebody else"
            raise UserError(f"data set name {name!r} is already registered {whom}; choose another name.")
    new = False
    for labels, name in source.names.items():
        metadata, known = source.metadata(labels), MetadataCatalog.get(name).as_dict()
        if name in DatasetCatalog.list():
            if find_source(name) == source and all(known.get(key) == v for key, v in metadata.items()):
                continue
            DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        MetadataCatalog.get(name).set(**{**known, **metadata})
        DatasetCatalog.register(name, functools.partial(source.load, labels))
        new = True
    return new


def register_coco_panoptic(
    name: str,
    panoptic_json: str,
    panoptic_root: str,
    image_root: str,
    *,
    categories: Sequence | str | None = None,
    instances_json: str | None = None,
    sem_seg_root: str | None = None,
    derived_root: str | None = None,
    show_ids: bool = True,
) -> None:
    """Register a data set in COCO-panoptic format for training, search and evaluation.

    Sets the complete metadata and a loader, once as ``name`` (every class has a label of its own) and once as
    ``name_separated`` (things are label 0, stuff 1..S), in the conventions of Detectron2's
    ``coco_2017_val_panoptic`` and ``coco_2017_val_panoptic_separated``. A config may name either: a model
    gets the labels that it needs, and its class counts (:func:`.setup_datasets`). What is not given is
    derived from the panoptic PNGs when the data set is first loaded; the sources may be read-only.

    Args:
        name: name for ``cfg.DATASETS.TRAIN`` and so on.
        panoptic_json: JSON with "images", "annotations" (with segments_info) and "categories".
        panoptic_root: folder of the panoptic PNGs.
        image_root: folder of the images.
        categories: replaces the JSON's categories: a list of category dicts, or the path of a JSON file
            that has "categories". Gives several sets the same classes, also where one lists only a part, or
            gives them other ids: classes are found by name where a name of the JSON has another id there.
        instances_json: COCO instances JSON of the same images. Derived masks are the visible regions.
        sem_seg_root: folder of semantic PNGs of ``name_separated``, named like the panoptic PNGs.
        derived_root: folder for derived files, ``$DETECTRON2_DATASETS/derived`` by default. It follows the
            JSON and the PNGs: whatever changes is derived anew on the next load.
        show_ids: print the table of its ids (:func:`.id_table`), in the main process.

    Raises:
        UserError: unreadable JSON, broken categories, or a name that is taken.
    """

    def expand(path):
        return None if path is None else os.path.expanduser(str(path))

    if isinstance(categories, (str, os.PathLike)):
        path = expand(categories)
        categories = load_object(path, "category file", {"categories": list})["categories"]
        check_categories(categories, path)
    if categories is not None:
        check_categories(list(categories) if isinstance(categories, Iterable) else categories, "categories")
        # A copy that JSON can hold: "isthing" may be a bool of Python or numpy.
        categories = tuple({**copy.deepcopy(c), "isthing": int(c["isthing"])} for c in categories)
    source = PanopticSource(
        name=name,
        panoptic_json=expand(str(panoptic_json)),
        panoptic_root=expand(str(panoptic_root)),
        image_root=expand(str(image_root)),
        categories=categories,
        instances_json=expand(instances_json),
        sem_seg_root=expand(sem_seg_root),
        derived_root=expand(derived_root),
    )
    if register_source(source) and show_ids and is_main_process():
        print(id_table(source.names[SEPARATED], title=name))
