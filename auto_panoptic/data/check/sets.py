"""From a name, a config or paths to a data set that can be checked, without trusting any of its files."""

import dataclasses
import os
from collections.abc import Callable, Mapping

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import UserError
from ..formats.json_file import read_object
from ..labels import SEPARATED
from ..metadata import IDS
from ..register import find_source, foreign_source, unknown_data_set
from ..sets.imagenet import find_image_folder
from ..source import paths_in


@dataclasses.dataclass
class DataSet:
    """What is known of a data set before any of its files is read.

    Args:
        name: for messages.
        panoptic_json, panoptic_root, image_root: None for a folder of classified images.
        categories: category list or path of a JSON with one, which replaces the JSON's.
        instances_json, sem_seg_root: None if they are derived, and then not checked.
        classes: ({thing ids}, {stuff ids}) that the JSON's categories must be of, or None.
        derives: whether a missing ``sem_seg_root`` is made on the first use.
        problem: why the set cannot be prepared, or None.
        locate: as for :class:`.PanopticSource`.
        folder: root of a folder of classified images.
    """

    name: str
    panoptic_json: str | None = None
    panoptic_root: str | None = None
    image_root: str | None = None
    categories: list | str | None = None
    instances_json: str | None = None
    sem_seg_root: str | None = None
    classes: tuple | None = None
    derives: bool = False
    problem: str | None = None
    locate: Callable | None = None
    folder: str | None = None

    def read_categories(self) -> tuple[list | None, list]:
        """The list that replaces the JSON's, or None, and findings about its file."""
        if not isinstance(self.categories, (str, os.PathLike)):
            return self.categories, []
        content, findings = read_object(str(self.categories), "category file", {"categories": list})
        return (content or {}).get("categories"), findings


_PATHS = ("panoptic_json", "panoptic_root", "image_root", "instances_json", "sem_seg_root")


def from_paths(name: str, entry: Mapping) -> DataSet:
    """A set by its paths, as in an entry of DATASETS.COCO_PANOPTIC; nothing is registered.

    Raises:
        UserError: a path is missing.
    """
    paths = {key: os.path.expanduser(str(entry[key])) for key in _PATHS if entry.get(key) is not None}
    missing = [key for key in _PATHS[:3] if key not in paths]
    if missing:
        raise UserError(f"data set {name} lacks {', '.join(missing)}; give all of {', '.join(_PATHS[:3])}.")
    categories = entry.get("categories")
    if isinstance(categories, (str, os.PathLike)):
        categories = os.path.expanduser(str(categories))
    return DataSet(name=name, categories=categories, **paths)


def _from_source(name: str, source) -> DataSet:
    problem = None
    if not os.path.exists(source.panoptic_json):
        try:  # draws the built-in set; says which script makes a part of COCO or ADE20K
            source.check_files()
        except UserError as error:
            problem = source.remedy or str(error)
    paths = {key: getattr(source, key) for key in _PATHS}
    paths["sem_seg_root"] = paths["sem_seg_root"] or (source.label_folders or {}).get(SEPARATED)
    return DataSet(
        name=name,
        **paths,
        categories=None if source.categories is None else list(source.categories),
        derives=source.prepare is not None or source.label_folders is not None,
        problem=problem,
        locate=source.locate,
    )


def _from_metadata(name: str) -> DataSet:
    """One of Detectron2's own, or of somebody else, with Detectron2's keys in the metadata."""
    metadata, source = MetadataCatalog.get(name), foreign_source(name)
    if source is None:
        raise UserError(
            f"data set {name} names no panoptic_json, panoptic_root and image_root in its metadata; only "
            "panoptic data sets and folders of classified images can be checked."
        )
    ids = [set(metadata.get(key, None) or ()) for key in IDS.values()]
    return dataclasses.replace(_from_source(name, source), classes=tuple(ids) if any(ids) else None)


def _entries(cfg, key: str) -> dict:
    entries = cfg.DATASETS.get(key, []) if cfg is not None else []
    for entry in entries:
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise UserError(f"DATASETS.{key}: {entry!r} is not a mapping with a name.")
    return {entry["name"]: entry for entry in entries}


def find_data_set(name: str, cfg=None) -> DataSet:
    """The set called ``name`` in the config ``cfg``, else the registered one, else that in the folder.

    Raises:
        UserError: an unknown name, or a set of another kind.
    """
    own, folders = _entries(cfg, "COCO_PANOPTIC"), _entries(cfg, "IMAGE_FOLDERS")
    if name in own:
        return from_paths(name, own[name])
    if name in folders:
        return DataSet(name=name, folder=os.path.expanduser(str(folders[name].get("root"))))
    if name not in DatasetCatalog.list() and os.path.isdir(name):
        return from_paths(name, paths_in(name))
    if name not in DatasetCatalog.list():
        known = [*own, *folders, *DatasetCatalog.list()]
        own = "No folder has that name; name that of a set of your own, or --config-file, or --panoptic-json"
        raise unknown_data_set(name, known, own)
    folder = find_image_folder(name)
    if folder is not None:
        if folder.prepare is not None and not os.path.isdir(folder.root):
            folder.prepare()
        return DataSet(name=name, folder=os.fspath(folder.root))
    source = find_source(name)
    return _from_source(name, source) if source is not None else _from_metadata(name)
