"""A drawn data set in many copies, for tests to damage: one image each."""

import copy
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from auto_panoptic.data.formats.findings import NOTE


class Item:
    """One image of a corpus, with everything that belongs to it, to be damaged.

    Args:
        corpus: the whole.
        index: position in it.
    """

    def __init__(self, corpus, index):
        self.corpus = corpus
        self.entry = corpus.panoptic["images"][index]
        self.id = self.entry["id"]
        self.ids = {self.id}  # ids of images that are made in the course of the damage, too
        self.annotation = corpus.panoptic["annotations"][index]
        self.instances = [a for a in corpus.instances["annotations"] if a["image_id"] == self.id]
        self.listed = corpus.instances["images"][index]
        self.image = corpus.folder / "images" / self.entry["file_name"]
        self.png = corpus.folder / "panoptic" / self.annotation["file_name"]
        self.semantic = corpus.folder / "semantic" / self.annotation["file_name"]

    @property
    def segments(self) -> list:
        return self.annotation["segments_info"]

    @property
    def size(self) -> tuple:
        return self.entry["width"], self.entry["height"]

    def segment(self, thing=True) -> dict:
        """The largest thing or stuff segment without crowd."""
        found = [s for s in self.segments if (s["category_id"] < 100) == thing and not s["iscrowd"]]
        return max(found, key=lambda s: s["area"])

    @property
    def instance(self) -> dict:
        """The instance of ``segment()``."""
        segment = self.segment()
        found = [i for i in self.instances if i["category_id"] == segment["category_id"]]
        return next(i for i in found if i["area"] == segment["area"])

    def pixels(self) -> np.ndarray:
        return cv2.imread(str(self.png), cv2.IMREAD_COLOR)[..., ::-1]

    def ids_map(self) -> np.ndarray:
        return self.pixels().astype(np.int32) @ [1, 256, 65536]

    def write_ids(self, ids) -> None:
        ids = np.asarray(ids)
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
        Image.fromarray(rgb).save(self.png)

    def labels(self) -> np.ndarray:
        return np.array(Image.open(self.semantic))

    def new_id(self) -> int:
        number = 900_000 + len(self.corpus.made)
        self.corpus.made.append(number)
        self.ids.add(number)
        return number

    def remove_instances(self, instances) -> None:
        gone = {id(i) for i in instances}
        kept = [i for i in self.corpus.instances["annotations"] if id(i) not in gone]
        self.corpus.instances["annotations"][:] = kept


class Corpus:
    """The train part of the drawn set, ``copies`` times under other names, in ``folder``."""

    def __init__(self, folder: Path, shapes: Path, copies: int, images: int = 20):
        self.folder, self.made = folder, []
        for name in ("images", "panoptic", "semantic"):
            (folder / name).mkdir(parents=True)
        panoptic = json.loads((shapes / "annotations/panoptic_train.json").read_text())
        instances = json.loads((shapes / "annotations/instances_train.json").read_text())
        content = {"images": [], "annotations": []}
        self.panoptic = {**copy.deepcopy(content), "categories": panoptic["categories"]}
        self.instances = {**copy.deepcopy(content), "categories": instances["categories"]}
        pairs = {a["image_id"]: a for a in panoptic["annotations"]}
        for number in range(copies):
            for position, entry in enumerate(panoptic["images"][:images]):
                new = 1000 * number + position + 1
                stem, old = f"{new:06d}", Path(entry["file_name"]).stem
                for source, target, suffix in (
                    ("train", "images", "jpg"),
                    ("panoptic_train", "panoptic", "png"),
                    ("panoptic_stuff_train", "semantic", "png"),
                ):
                    shutil.copyfile(shapes / source / f"{old}.{suffix}", folder / target / f"{stem}.{suffix}")
                image = {**entry, "id": new, "file_name": f"{stem}.jpg"}
                self.panoptic["images"].append(image)
                self.instances["images"].append(dict(image))
                annotation = copy.deepcopy(pairs[entry["id"]])
                annotation |= {"image_id": new, "file_name": f"{stem}.png"}
                self.panoptic["annotations"].append(annotation)
                for instance in instances["annotations"]:
                    if instance["image_id"] == entry["id"]:
                        changed = {"id": len(self.instances["annotations"]) + 1, "image_id": new}
                        self.instances["annotations"].append({**copy.deepcopy(instance), **changed})
        self.items = [Item(self, index) for index in range(len(self.panoptic["images"]))]

    @property
    def paths(self) -> dict:
        return {
            "panoptic_json": str(self.folder / "panoptic.json"),
            "panoptic_root": str(self.folder / "panoptic"),
            "image_root": str(self.folder / "images"),
            "instances_json": str(self.folder / "instances.json"),
            "sem_seg_root": str(self.folder / "semantic"),
        }

    def write(self) -> dict:
        """Write the JSON files; returns the paths."""
        Path(self.paths["panoptic_json"]).write_text(json.dumps(self.panoptic))
        Path(self.paths["instances_json"]).write_text(json.dumps(self.instances))
        return self.paths


def flags(paths: dict) -> list:
    """Command line of ``Corpus.paths``."""
    return [part for key, value in paths.items() for part in (f"--{key.replace('_', '-')}", value)]


def serious(findings) -> list:
    return [f for f in findings if f.severity != NOTE]
