"""Predicting with a trained network: ``auto_panoptic.load(path)`` -> a predictor, and what a bundle holds.

``python -m auto_panoptic.bundle FILE`` shows a bundle; with ``--config-file`` it makes one of a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer

from . import systems  # noqa: F401  registers their parts
from .errors import UserError, run_command
from .files import BUNDLE
from .modeling import buildable, choice_blocks, meta_model
from .modeling.finite import finite_outputs
from .read_config import config_of_text
from .search.bundle import bundle_weights
from .training import AutoPanopticTrainer, build_config
from .training.archive import read_checkpoint
from .training.bundle import FORMAT
from .training.weights import select_weights

LEAST = 480  # pixels that a drawn picture has at least in width


class Predictor:
    """A network with its classes: an image -> what is in it.

    Attributes:
        cfg: its config; what it says of data sets does not count.
        model: the network, in evaluation mode.
        metadata: Detectron2's metadata of the classes: names, colours and ids.
        drawn_metadata: the same with a colour for every class of stuff; visualizers take it.
        provenance: how the network was made; empty where it does not come from a bundle.
    """

    def __init__(
        self, cfg: CfgNode, model: torch.nn.Module, metadata: Metadata, provenance: dict | None = None
    ):
        self.cfg, self.model, self.metadata = cfg, model.eval(), metadata
        self.drawn_metadata = with_stuff_colors(metadata)
        self.provenance = provenance or {}
        self.resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def inputs(self, image: np.ndarray, name: str = "image") -> dict:
        """What the network takes, of (H, W, 3) BGR; ``name`` is for messages."""
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            found = f"{image.dtype} of shape {image.shape}"
            raise UserError(f"{name}: {found}; expected uint8 (H, W, 3) in BGR, as cv2.imread gives it")
        height, width = image.shape[:2]
        if self.cfg.INPUT.FORMAT == "RGB":
            image = image[:, :, ::-1]
        resized = self.resize.get_transform(image).apply_image(np.ascontiguousarray(image))
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": tensor, "file_name": name, "height": height, "width": width}

    @torch.no_grad()
    def __call__(self, image: np.ndarray, name: str = "image") -> dict:
        """Segment an image.

        Args:
            image: (H, W, 3) uint8 in BGR, as ``cv2.imread`` gives it, of any size.
            name: of the image, for messages.

        Returns:
            Detectron2's output for an image, on the CPU: "panoptic_seg", an (H, W) map of segment ids (0 is
            void) and the list of segments {"id", "isthing", "category_id" (contiguous), "name", ...};
            "instances", where the network finds any apart; "sem_seg", (K, H, W).

        Raises:
            UserError: it is no such image.
            Diverged: the network gives NaN or infinity.
        """
        with finite_outputs(self.model):
            output = self.model([self.inputs(image, name)])[0]
        output = {key: value.to("cpu") if hasattr(value, "to") else value for key, value in output.items()}
        if "panoptic_seg" in output:
            ids, segments = output["panoptic_seg"]
            output["panoptic_seg"] = ids.cpu(), [{**s, "name": self.name_of(s)} for s in segments]
        return output

    def name_of(self, segment: dict) -> str:
        """Class name of a segment."""
        kind = "thing_classes" if segment["isthing"] else "stuff_classes"
        return self.metadata.get(kind)[segment["category_id"]]

    def draw(self, image: np.ndarray, output: dict) -> np.ndarray:
        """The image, (H, W, 3) uint8 in BGR, with the segments of its output and their names, likewise.

        A narrow one is drawn a whole number of times as large: names need room.
        """
        if "panoptic_seg" not in output:
            raise UserError(f"a {type(self.model).__name__} predicts no panoptic segments")
        rgb, scale = np.asarray(image)[:, :, ::-1], drawing_scale(image)
        visualizer = Visualizer(rgb, self.drawn_metadata, scale=scale)
        return visualizer.draw_panoptic_seg(*output["panoptic_seg"]).get_image()[:, :, ::-1]


def with_stuff_colors(metadata: Metadata) -> Metadata:
    """A copy in which stuff has colours: Detectron2's visualizers draw them anew for every picture, else."""
    content, colors = metadata.as_dict(), colormap(rgb=True)
    if "stuff_colors" not in content:
        content["stuff_colors"] = [colors[i % len(colors)] for i in range(len(content["stuff_classes"]))]
    return Metadata(**content)


def drawing_scale(image: np.ndarray) -> int:
    """How many times as large a picture is drawn."""
    return math.ceil(LEAST / image.shape[1])


def load(path: str | os.PathLike, options: Sequence = (), device: str = "") -> Predictor:
    """The predictor of a bundle, which training and search leave in their folders.

    No code in the file is run, and nothing else is read: not the data sets, nor the run.

    Args:
        path: the file, or the OUTPUT_DIR that it lies in.
        options: ``KEY, VALUE`` pairs for its config, such as INPUT.MIN_SIZE_TEST, 480.
        device: where it runs; by default a GPU, if torch sees one.

    Raises:
        UserError: no such file, no bundle, or one of an incompatible version.
    """
    path = bundle_path(path)
    data, subject = read_bundle(path), f"bundle {str(path)!r}"
    bundle = data["bundle"]
    cfg = config_of_text(bundle["config"], subject, [str(option) for option in options])
    cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cfg.freeze()
    with buildable(f"the model of {subject}"):
        model = AutoPanopticTrainer.build_model(cfg)
    selected = select_weights(model, data, str(path), classes=data["classes"], key="bundle")
    model.load_state_dict(selected, strict=False)
    return Predictor(cfg, model, metadata_of(data["classes"]), bundle["provenance"])


def bundle_path(path: str | os.PathLike) -> Path:
    """The bundle ``path`` itself, or in the folder of that name; UserError if there is none."""
    path = Path(path)
    found = path / BUNDLE if path.is_dir() else path
    if not found.is_file():
        remedy = "a training ends by writing OUTPUT_DIR/bundle.pth, a search OUTPUT_DIR/search/bundle.pth"
        raise UserError(f"{found}: there is no such bundle; {remedy}")
    return found


def read_bundle(path: str | os.PathLike) -> dict:
    """The content of a bundle, as :func:`.write_bundle` describes it; UserError if it is none."""
    data = read_checkpoint(str(path), key="bundle")
    bundle, classes = data.get("bundle"), data.get("classes")
    if bundle is None:
        remedy = "python -m auto_panoptic.bundle --config-file FILE ... makes one of it (--help)"
        raise UserError(f"{path}: holds weights, but is no bundle; {remedy}")
    parts = {"format": int, "config": str, "provenance": dict}
    sound = isinstance(bundle, dict) and all(isinstance(bundle.get(k), t) for k, t in parts.items())
    parts = ("space", "meta", "versions", "classes")
    sound = sound and all(isinstance(data.get(key), dict) for key in parts) and _are_sound(classes)
    if not sound or not _is_text(bundle["provenance"]):
        raise UserError(f"{path}: is damaged, or no bundle; give an intact copy")
    if bundle["format"] > FORMAT:
        made = data["versions"].get("auto_panoptic", "a later version")
        raise UserError(f"{path}: was made by auto_panoptic {made}, which is newer; install that one")
    return data


def _is_text(provenance: dict) -> bool:
    """Whether JSON can hold it."""
    try:
        return bool(json.dumps(provenance))
    except (TypeError, ValueError, RecursionError):
        return False


def _are_sound(classes: dict) -> bool:
    """Whether a record of classes, whose names were looked at, has ids and colours that can be used."""

    def colour(value) -> bool:
        return value is None or (
            isinstance(value, list) and len(value) == 3 and all(v in range(256) for v in value)
        )

    rows = [row for key in ("things", "stuff") for row in classes.get(key, [])]
    ids = all(i is None or isinstance(i, int) for i, *_ in rows)
    return bool(classes.get("stuff")) and ids and all(colour(value) for *_, value in rows)


def metadata_of(classes: dict) -> Metadata:
    """Detectron2's metadata of a record of classes, see :func:`.class_record`."""
    found = {}
    for key, kind in (("things", "thing"), ("stuff", "stuff")):
        rows = classes.get(key, [])
        found[f"{kind}_classes"] = [name for _, name, _ in rows]
        if all(color is not None for *_, color in rows):  # else the visualizer chooses
            found[f"{kind}_colors"] = [color for *_, color in rows]
        ids = {n if i is None else i: n for n, (i, *_) in enumerate(rows)}
        found[f"{kind}_dataset_id_to_contiguous_id"] = ids
    return Metadata(name="bundle", **found)


def categories_of(metadata: Metadata) -> list[dict]:
    """COCO-panoptic categories, by id: {"id", "name", "isthing", "color"}."""
    things, stuff = (getattr(metadata, f"{kind}_dataset_id_to_contiguous_id") for kind in ("thing", "stuff"))
    first = 1 if metadata.stuff_classes[:1] == ["things"] else 0
    rows = [(i, n, "thing") for i, n in things.items()]
    rows += [(i, n, "stuff") for i, n in stuff.items() if i not in things and n >= first]
    found = []
    for i, number, kind in sorted(rows):
        name, colors = metadata.get(f"{kind}_classes")[number], metadata.get(f"{kind}_colors", None)
        color = {"color": [int(v) for v in colors[number]]} if colors else {}
        found.append({"id": i, "name": name, "isthing": int(kind == "thing"), **color})
    return found


# ------------------------------------------------------------------ the command


def summary(path: Path) -> str:
    """What a bundle holds, for a person."""
    data = read_bundle(path)
    made, classes = data["bundle"]["provenance"], metadata_of(data["classes"])
    rows = categories_of(classes)
    names = {kind: [c["name"] for c in rows if c["isthing"] == kind] for kind in (1, 0)}
    count = sum(value.numel() for value in data["model"].values())
    kind, sites = data["meta"].get("meta_architecture"), len(data["space"])
    lines = [
        ("bundle", f"{path}, {path.stat().st_size / 1e6:.1f} MB"),
        ("network", f"{kind}, {count / 1e6:.2f} M numbers, {sites} sites"),
        ("things", ", ".join(names[1]) or "none"),
        ("stuff", ", ".join(names[0]) or "none"),
        ("versions", ", ".join(f"{name} {version}" for name, version in data["versions"].items())),
        *((name.replace("_", " "), json.dumps(value)) for name, value in made.items() if value),
    ]
    return "\n".join(f"{name:<13} {value}" for name, value in lines)


def make(config_file: str, opts: Sequence[str], output: str) -> None:
    """Write the bundle of a config's fixed network with MODEL.WEIGHTS, as a training would."""
    cfg = build_config(config_file, opts)
    if any(len(block.candidates) > 1 for block in choice_blocks(meta_model(cfg)).values()):
        raise UserError("a bundle holds one network, this config builds a supernet: add NAS.ARCHITECTURE")
    if not cfg.MODEL.WEIGHTS:
        raise UserError("a bundle needs weights; add MODEL.WEIGHTS path/to/model_final.pth")
    provenance = {"made_by": "auto_panoptic.bundle", "started_from": {"file": Path(cfg.MODEL.WEIGHTS).name}}
    if not bundle_weights(output, cfg, cfg.MODEL.WEIGHTS, provenance):
        raise UserError(f"{config_file} is of classified images; a bundle holds what finds segments")


def main(arguments: Sequence[str] | None = None) -> None:
    """Show a bundle, or make one."""
    usage = "python -m auto_panoptic.bundle FILE\n       python -m auto_panoptic.bundle --config-file FILE "
    usage += "[--output FILE] [KEY VALUE ...]"
    what = "Show what a bundle holds, or make one of a checkpoint."
    parser = argparse.ArgumentParser(usage=usage, description=what)
    parser.add_argument("--config-file", metavar="FILE", help="make the bundle of its network")
    parser.add_argument("--output", default=BUNDLE, metavar="FILE", help="where (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="a bundle; or KEY VALUE pairs of the config")
    args = parser.parse_args(arguments)
    if args.config_file:
        make(args.config_file, args.opts, args.output)
    elif len(args.opts) != 1:
        parser.error("expected one bundle, or --config-file")
    print(summary(bundle_path(args.output if args.config_file else args.opts[0])))


if __name__ == "__main__":
    run_command(main)
