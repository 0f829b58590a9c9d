"""A panoptic data set on disk: where its files lie, what is derived of them, its records and metadata."""

import collections
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from .derive.engine import Derivation, derive
from .derive.once import datasets_root
from .formats import panoptic_png as coco
from .formats.categories import check_categories
from .formats.instances_json import detectron2_instance, read_instances
from .formats.json_file import load_object, no_collection
from .formats.names import png_name
from .formats.panoptic_json import read_categories, read_index, read_panoptic_json, read_segments
from .labels import ALL, PANOPTIC, SEPARATED, SUFFIX
from .metadata import panoptic_metadata

LABEL_DIVISOR = 1000
EXPECTED = {  # where the metadata say that files are
    "panoptic_json": "the panoptic JSON",
    "panoptic_root": "a folder of panoptic PNGs",
    "image_root": "a folder of images",
    "json_file": "the instances JSON",
    "sem_seg_root": "a folder of semantic PNGs",
}
FOLDER = {"panoptic_json": "panoptic.json", "panoptic_root": "panoptic", "image_root": "images"}
WHERE = "or set DETECTRON2_DATASETS to the folder that holds your data sets (see datasets/README.md)"


def paths_in(folder: str | os.PathLike) -> dict[str, str]:
    """{key: path} of the parts of a set that lies in one folder, as the converters write it."""
    return {key: os.path.join(folder, name) for key, name in FOLDER.items()}


def check_paths(name: str, paths: Mapping, remedy: str = "") -> None:
    """Raise UserError for the first path, of {key of :data:`EXPECTED`: path or None}, that is not there."""
    for key, what in EXPECTED.items():
        path, exists = paths.get(key), os.path.isdir if key.endswith("_root") else os.path.isfile
        if path and "://" not in path and not exists(path):
            remedy = remedy or "Put it there, correct the path"
            problem = f"{path} does not exist; expected there: {what}"
            raise UserError(f"data set {name}: {problem}. {remedy}, {WHERE}.")


@dataclasses.dataclass(frozen=True)
class PanopticSource:
    """Where a data set lives; loads it in Detectron2's standard format, with either kind of labels.

    Args:
        name: with the labels "all", see :mod:`.labels`; with "separated" it has their suffix.
        panoptic_json, panoptic_root, image_root: the COCO-panoptic data.
        categories: category dicts that replace the JSON's, or None.
        instances_json, sem_seg_root: None to derive them from the panoptic PNGs on the first load. The label
            maps are those of "separated"; those of "all" are always derived.
        derived_root: parent of the derived files; None for ``$DETECTRON2_DATASETS/derived``.
        remedy: of a public set, how missing files are made; its categories are those of the JSON.
        prepare: called before anything is read (makes the built-in data set).
        locate: path of an image below ``image_root``, from its entry in the JSON; None for its file_name.
        derived_name: folder below ``derived_root``; None for one that is named after the set and its paths.
        label_folders: {labels: folder} of derived label maps that several sets share, or None.
    """

    name: str
    panoptic_json: str
    panoptic_root: str
    image_root: str
    categories: Sequence | None = None
    instances_json: str | None = None
    sem_seg_root: str | None = None
    derived_root: str | None = None
    remedy: str = ""
    prepare: Callable | None = dataclasses.field(default=None, compare=False)
    locate: Callable | None = dataclasses.field(default=None, compare=False)
    derived_name: str | None = None
    label_folders: Mapping | None = dataclasses.field(default=None, compare=False)

    @functools.cached_property
    def effective_categories(self) -> list:
        """The given categories, else those of the JSON."""
        if self.categories is not None:
            check_categories(list(self.categories), f"data set {self.name}")
            return list(self.categories)
        return read_panoptic_json(self.panoptic_json)["categories"]

    @property
    def places(self) -> tuple:
        """What stays where a set is registered again with corrections."""
        return self.name, *map(os.path.abspath, (self.panoptic_json, self.panoptic_root, self.image_root))

    @property
    def names(self) -> dict[str, str]:
        """{labels: registered name}."""
        return {ALL: self.name, SEPARATED: self.name + SUFFIX}

    @property
    def _rewrites_json(self) -> bool:
        return self.categories is not None and self.prepare is None and not self.remedy

    @functools.cached_property
    def derived(self) -> Path:
        """Folder of the derived files, where there are any."""
        root = Path(self.derived_root) if self.derived_root else datasets_root() / "derived"
        inputs = [*self.places[1:3], self.categories]  # tell data sets of one name apart
        identity = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12]
        return root / (self.derived_name or f"{self.name}-{identity}")

    def image_path(self, image: dict) -> str:
        """Path of an image, from its entry in the JSON."""
        return os.path.join(self.image_root, self.locate(image) if self.locate else image["file_name"])

    def paths(self, labels: str) -> dict:
        """The paths that go into the metadata, given or derived."""
        folder = self.derived
        made = (self.label_folders or {}).get(labels) or folder / f"semantic{'_all' if labels == ALL else ''}"
        return {
            "panoptic_json": str(folder / "panoptic.json") if self._rewrites_json else self.panoptic_json,
            "panoptic_root": self.panoptic_root,
            "image_root": self.image_root,
            "json_file": self.instances_json or str(folder / "instances.json"),
            "sem_seg_root": (self.sem_seg_root if labels == SEPARATED else None) or str(made),
        }

    def metadata(self, labels: str) -> dict:
        """The metadata in Detectron2's conventions for these labels."""
        return {
            "evaluator_type": PANOPTIC,
            "ignore_label": coco.IGNORE,
            "label_divisor": LABEL_DIVISOR,
            **self.paths(labels),
            **panoptic_metadata(self.effective_categories, labels),
        }

    def check_files(self) -> None:
        """Make what can be made; raises UserError for the first path that is missing even so."""
        if self.prepare is not None:
            self.prepare()
        paths = {**{key: getattr(self, key, None) for key in EXPECTED}, "json_file": self.instances_json}
        check_paths(self.name, paths, self.remedy)
        if not self.remedy:
            return
        lists = self.effective_categories, read_categories(self.panoptic_json)
        kinds, found = ({c["id"]: bool(c["isthing"]) for c in categories} for categories in lists)
        if found != kinds:
            raise UserError(
                f"{self.panoptic_json}: its categories are not those of data set {self.name}, ids "
                f"{min(kinds)} to {max(kinds)}. {self.remedy}, or register it as your own (see "
                "datasets/README.md)"
            )

    def ready(self, labels: str = SEPARATED) -> tuple[dict, dict | None]:
        """Check all that is to be read, and derive what is missing or no longer fresh.

        Returns the entries of the JSON, and the instances if they are given, both by image id; raises
        UserError for the first error, with file, image and remedy.
        """
        self.check_files()
        categories = self.effective_categories
        if self.categories is None and read_panoptic_json(self.panoptic_json)["categories"] != categories:
            raise UserError(
                f"data set {self.name}: the categories in {self.panoptic_json} have changed since it was "
                "registered; register it again"
            )
        entries = read_segments(self.panoptic_json, categories)
        instances = None
        if self.instances_json is not None:
            instances = read_instances(self.instances_json, read_index(self.panoptic_json, categories))
        if labels == ALL and len(categories) >= coco.IGNORE:
            most = f"label maps of 8 bits hold at most {coco.IGNORE - 1}"
            raise UserError(f"data set {self.name}: {len(categories)} classes; {most}.")
        derive(self.derivation(labels))
        return entries, instances

    def load(self, labels: str = SEPARATED) -> list:
        """Load in Detectron2's standard format, as for ``coco_2017_*_panoptic_separated``.

        Args:
            labels: "all" or "separated".

        Returns:
            list of dicts, by image id: file_name, image_id, height, width, annotations (contiguous category
            ids, crowds marked), sem_seg_file_name, pan_seg_file_name, segments_info (contiguous category ids
            and "isthing", for drawing).
        """
        entries, instances = self.ready(labels)
        categories = self.effective_categories
        paths, maps = self.paths(labels), panoptic_metadata(categories, labels)
        things, stuff = maps["thing_dataset_id_to_contiguous_id"], maps["stuff_dataset_id_to_contiguous_id"]
        if instances is None:
            content = load_object(paths["json_file"], "instances JSON", {"annotations": list})
            instances = collections.defaultdict(list)
            for instance in content["annotations"]:
                instances[instance["image_id"]].append(instance)
        with no_collection():
            return [
                {
                    "file_name": self.image_path(image),
                    "image_id": image_id,
                    "height": image["height"],
                    "width": image["width"],
                    "annotations": [detectron2_instance(i, things) for i in instances.get(image_id, [])],
                    "sem_seg_file_name": os.path.join(
                        paths["sem_seg_root"], png_name(annotation["file_name"])
                    ),
                    "pan_seg_file_name": os.path.join(self.panoptic_root, annotation["file_name"]),
                    "segments_info": [_contiguous(s, things, stuff) for s in annotation["segments_info"]],
                }
                for image_id, (image, annotation) in entries.items()
            ]

    def derivation(self, labels: str) -> Derivation:
        """What is derived for these labels."""
        folder, label_maps, given = self.derived, {}, None
        if labels == ALL or self.sem_seg_root is None:
            target = (self.label_folders or {}).get(labels)
            label_maps = {Path(target or self.paths(labels)["sem_seg_root"]): labels}
            folder = Path(target or folder)
        elif self.prepare is None:  # else both were drawn here
            given = Path(self.sem_seg_root)
        return Derivation(
            title=self.name,
            panoptic_json=Path(self.panoptic_json),
            panoptic_root=Path(self.panoptic_root),
            categories=self.effective_categories,
            folder=folder,
            label_maps=label_maps,
            instances_json=None if self.instances_json else folder / "instances.json",
            panoptic_copy=folder / "panoptic.json" if self._rewrites_json else None,
            given_maps=given,
            photo=None if self.prepare else self.image_path,
        )


def _contiguous(segment: dict, things: dict, stuff: dict) -> dict:
    isthing = segment["category_id"] in things
    contiguous = (things if isthing else stuff)[segment["category_id"]]
    return {**segment, "category_id": contiguous, "isthing": isthing}
