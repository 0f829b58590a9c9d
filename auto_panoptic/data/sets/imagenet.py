"""The ImageNet stage: data sets with one folder of images per class, and the mapper of the classifier."""

import functools
import os
from collections.abc import Callable

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image
from torchvision import transforms

from ...errors import UserError
from ..derive.once import datasets_root
from ..formats.names import name_problem
from ..mapper import seeded

# ``evaluator_type`` in the metadata of these data sets.
EVALUATOR_TYPE = "image_classification"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
_FOLDERS: dict = {}  # registered name -> ImageFolder


class ImageFolder:
    """A registered data set ``root/<class>/<image>``; classes are the folder names in sorted order.

    Nothing is read before the first use. Class and file names stay in memory from then on.

    Args:
        name: registered name.
        root: the folder.
        prepare: called before anything is read (makes a built-in data set).
    """

    def __init__(self, name: str, root: str, prepare: Callable | None = None):
        self.name, self.root, self.prepare = name, root, prepare

    @functools.cached_property
    def classes(self) -> list[str]:
        """Class names in the order of their labels.

        Raises:
            UserError: the folder is missing or holds no folder.
        """
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
    """Register ``folder`` in Detectron2's catalogs; doing it twice with the same root is allowed.

    Raises:
        UserError: the name is taken by something else.
    """
    name = folder.name
    problem = name_problem(name)  # folders of results are named after it
    if problem:
        raise UserError(f"data set name {name!r} {problem}; choose another name")
    if name in DatasetCatalog.list():
        if name in _FOLDERS and _FOLDERS[name].root == folder.root:
            return
        raise UserError(f"data set name {name!r} is already registered for something else; choose another")
    MetadataCatalog.get(name).set(evaluator_type=EVALUATOR_TYPE, image_root=folder.root)
    DatasetCatalog.register(name, folder.load)
    _FOLDERS[name] = folder


def register_image_folder(name: str, root: str) -> None:
    """Register a data set of ImageFolder layout; nothing is read before its first use.

    Args:
        name: name for ``cfg.DATASETS.TRAIN`` and ``TEST``.
        root: folder with one folder of images per class.

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
    if name not in MetadataCatalog.list():  # never registered, or removed since
        return None
    return _FOLDERS.get(name) if MetadataCatalog.get(name).get("evaluator_type") == EVALUATOR_TYPE else None


def is_classifier(cfg) -> bool:
    """Whether ``cfg`` describes the ImageNet stage."""
    return cfg.MODEL.META_ARCHITECTURE == "BackboneClassifier"


def check_classification_input(cfg) -> None:
    """Raise UserError for sizes, jitter or a format that :class:`ClassificationMapper` cannot follow."""
    options = cfg.INPUT.CLASSIFICATION
    if options.TRAIN_SIZE < 1 or not 1 <= options.TEST_SIZE <= options.TEST_RESIZE:
        raise UserError(
            f"INPUT.CLASSIFICATION: TRAIN_SIZE {options.TRAIN_SIZE}, TEST_RESIZE {options.TEST_RESIZE}, "
            f"TEST_SIZE {options.TEST_SIZE}; expected positive sides with TEST_SIZE <= TEST_RESIZE"
        )
    jitter = list(options.COLOR_JITTER)
    if len(jitter) != 3 or not all(value >= 0 for value in jitter):
        raise UserError(
            f"INPUT.CLASSIFICATION.COLOR_JITTER is {jitter}; expected three numbers >= 0, the strengths of "
            "brightness, contrast and saturation"
        )
    if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
        raise UserError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; expected 'BGR' or 'RGB'")


class ClassificationMapper:
    """From a record {"file_name", "label"} to the same with "image": uint8 (3, S, S) in ``INPUT.FORMAT``.

    Training: a random crop of 8 to 100 % of the area and aspect ratio 3/4 to 4/3, resized to TRAIN_SIZE;
    brightness, contrast and saturation scaled at random; a horizontal flip in half of the cases (reference
    code, SPOS). A record with "sample_seed" is augmented by that seed alone. Evaluation: short side to
    TEST_RESIZE, centre crop of TEST_SIZE.

    Args:
        cfg: reads INPUT.CLASSIFICATION and INPUT.FORMAT.
        is_train: augment.
    """

    def __init__(self, cfg, is_train: bool):
        options = cfg.INPUT.CLASSIFICATION
        self.bgr = cfg.INPUT.FORMAT == "BGR"
        if is_train:
            steps = [
                transforms.RandomResizedCrop(options.TRAIN_SIZE),
                transforms.ColorJitter(*options.COLOR_JITTER),
                transforms.RandomHorizontalFlip(),
            ]
        else:
            steps = [transforms.Resize(options.TEST_RESIZE), transforms.CenterCrop(options.TEST_SIZE)]
        self.transform = transforms.Compose(steps)

    def __call__(self, record: dict) -> dict:
        """
        Raises:
            UserError: the image cannot be read; names the file.
        """
        path = record["file_name"]
        try:
            image = Image.fromarray(read_image(path, format="RGB"))
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise UserError(
                f"image {path} cannot be read ({type(error).__name__}: {error}); restore or remove it"
            ) from error
        with seeded(record.get("sample_seed")):
            pixels = np.asarray(self.transform(image))
        if self.bgr:
            pixels = pixels[:, :, ::-1]
        return {**record, "image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))}
