"""Data sets of classified images: one folder of images per class, as ImageNet."""

import functools
import os
from collections.abc import Callable

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import UserError
from ..derive.once import datasets_root
from ..labels import CLASSIFIED
from ..register import check_name, owner_of

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


class ImageFolder:
    """A registered data set ``root/<class>/<image>``; classes are the folder names in sorted order.

    Nothing is read before the first use, when ``prepare`` is called, which makes a built-in set. Class and
    file names stay in memory from then on.
    """

    def __init__(self, name: str, root: str, prepare: Callable | None = None):
        self.name, self.root, self.prepare = name, root, prepare

    @functools.cached_property
    def classes(self) -> list[str]:
        """Class names in the order of their labels; raises UserError where the folder holds none."""
        if self.prepare is not None:
            self.prepare()
        try:
            with os.scandir(self.root) as entries:
                names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        except OSError as error:
            raise UserError(f"{self._expected()} ({error.strerror})") from None
        if not names:
            raise UserError(f"{self._expected()} (it holds no folder)")
        return names

    def _expected(self) -> str:
        return (
            f"data set {self.name}: {self.root} must hold one folder of images per class, "
            f"{os.path.join(self.root, '<class>', '<image>.jpg')}; put it there, or set DETECTRON2_DATASETS "
            "to the folder that holds your data sets (see datasets/README.md)"
        )

    @functools.cached_property
    def _files(self) -> list[list[str]]:
        """File names of each class, sorted."""
        files = []
        for name in self.classes:
            folder = os.path.join(self.root, name)
            with os.scandir(folder) as entries:
                # What the directory itself tells is enough: no file is touched.
                found = [e.name for e in entries if e.name.lower().endswith(EXTENSIONS) and e.is_file()]
            if not found:
                raise UserError(
                    f"data set {self.name}: {folder} holds no image ({', '.join(EXTENSIONS)}); add images of "
                    "this class, or remove the folder"
                )
            files.append(sorted(found))
        return files

    def load(self) -> list[dict]:
        """One {"file_name", "label"} per image, by class and file name."""
        return [
            {"file_name": os.path.join(self.root, name, file), "label": label}
            for label, (name, files) in enumerate(zip(self.classes, self._files, strict=True))
            for file in files
        ]


def register_folder(folder: ImageFolder) -> None:
    """Register ``folder`` in Detectron2's catalogs; again with the same root, its files are read anew.

    Raises:
        UserError: the name is taken by something else.
    """
    name = folder.name
    check_name(name)
    if name in DatasetCatalog.list():
        known = find_image_folder(name)
        if known is None or known.root != folder.root:
            raise UserError(f"data set name {name!r} is already registered; choose another")
        if known.prepare is not None:
            return
        DatasetCatalog.remove(name)
    known = MetadataCatalog.get(name).as_dict()
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(**{**known, "evaluator_type": CLASSIFIED, "image_root": folder.root})
    DatasetCatalog.register(name, folder.load)


def register_image_folder(name: str, root: str) -> None:
    """Register a folder with one folder of images per class; nothing is read before its first use.

    Raises:
        UserError: the name is taken by something else.
    """
    register_folder(ImageFolder(name, os.path.expanduser(str(root))))


def register_imagenet() -> None:
    """Register ``imagenet_{train,val}`` in ``$DETECTRON2_DATASETS/imagenet/{train,val}/<class>/``."""
    for split in ("train", "val"):
        register_image_folder(f"imagenet_{split}", datasets_root() / "imagenet" / split)


def find_image_folder(name: str) -> ImageFolder | None:
    """The data set registered by :func:`register_image_folder` under ``name``, or None."""
    return owner_of(name, ImageFolder)
