"""A trained network as one TorchScript or ONNX file, which is compared with the network before it is kept.

    python -m auto_panoptic.export --config-file FILE --output network.onnx [KEY VALUE ...]

The stored network takes one image, (3, height, width) uint8 of any size, resized as INPUT.MIN_SIZE_TEST says
and in the channel order of INPUT.FORMAT, and gives the tensors of :mod:`auto_panoptic.modeling.exportable`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from torch.nn import functional as F

from . import systems  # noqa: F401  registers their parts
from .data import data_set_for
from .errors import UserError, first_line, hold_warnings, run_command
from .files import replacing
from .modeling import choice_blocks, meta_model
from .modeling.exportable import Exportable
from .search.candidate import path_statistics
from .training import AutoPanopticTrainer, build_config, check_unread, check_weights, load_weights

FORMATS = {"torchscript": ".pt", "onnx": ".onnx"}
INFO = "auto_panoptic.json"  # what a stored network says of itself
OPSET = 17
# Heights and widths that stored networks are compared at, in units of INPUT.MIN_SIZE_TEST, and odd.
SHAPES = ((1, 1), (1, 4 / 3), (4 / 3, 1), (0.8, 1.1), (1.1, 0.7), (0.6, 1.5))
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
PIXELS = 0.999  # of a panoptic map that agree, at least
Run = Callable[[torch.Tensor], dict[str, torch.Tensor]]


def export(network: Exportable, image: torch.Tensor, path: Path, form: str, info: Mapping) -> None:
    """Write a network as ``form``, one of :data:`FORMATS`, with ``info`` in it.

    Args:
        network: in evaluation mode, on the CPU.
        image: (3, H, W) uint8, in which it finds something: what runs for no object at all is not stored.
    """
    text = json.dumps(info)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what depends on values, which the comparison judges
        if form == "torchscript":
            traced = torch.jit.trace(network, (image,), check_trace=False, strict=False)
            torch.jit.save(traced, path, _extra_files={INFO: text})
            return
        import onnx

        axes = {"image": {1: "height", 2: "width"}}
        names = {"input_names": ["image"], "output_names": list(network(image))}
        options = {"opset_version": OPSET, "dynamo": False, "dynamic_axes": axes}
        torch.onnx.export(network, (image,), str(path), **names, **options)
        stored = onnx.load(path)
        onnx.helper.set_model_props(stored, {INFO: text})
        onnx.save(stored, path)


def opened(path: Path, form: str) -> Run:
    """The stored network as a function: (3, H, W) uint8 -> {name: tensor}."""
    if form == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(path)
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]

    def run(image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = session.run(None, {"image": image.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return run


def check_onnx(option: str) -> None:
    """Raise UserError if what ``option`` needs for ONNX is not installed."""
    for name in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            text = f"{option} needs {name}: pip install onnx onnxruntime, or write TorchScript instead"
            raise UserError(f"{text} (python -m auto_panoptic.export --format torchscript)") from None


# ------------------------------------------------------------------ comparing


@torch.no_grad()
def expected(model: torch.nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """What ``model`` itself says of an image, under the names of a stored network's outputs."""
    output = dict(model([{"image": image}])[0])
    if "instances" in output:
        fields = output.pop("instances").get_fields()
        if "pred_boxes" in fields:
            output |= {k: fields[k] for k in ("scores", "pred_classes")}
            output["pred_boxes"] = fields["pred_boxes"].tensor
    if "panoptic_seg" in output:
        output["panoptic_seg"], segments = output["panoptic_seg"]
        rows = [[s["id"], s["category_id"], int(s["isthing"])] for s in segments]
        output["segments"] = torch.tensor(rows, dtype=torch.int64).view(-1, 3)
    return output


def problem(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str:
    """In what a stored network's outputs are not the network's own; "" if they are equal but for rounding."""
    for name in [name for name in found if name in wanted and name not in ("panoptic_seg", "segments")]:
        a, b = found[name], wanted[name]
        if a.shape != b.shape:
            return f"{name} has the shape {tuple(a.shape)}, not {tuple(b.shape)}"
        if not torch.allclose(a.float(), b.float(), **CLOSE):
            return f"{name} differs by up to {(a.float() - b.float()).abs().max():.3g}"
    if "panoptic_seg" in found and (share := same_pixels(found, wanted)) < PIXELS:
        return f"only {100 * share:.2f} % of the pixels are in the same segments"
    return ""


def same_pixels(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> float:
    """Share of the pixels of two panoptic maps in segments that are the same, whatever their ids."""
    maps, kinds = [], []
    for outputs in (found, wanted):
        maps.append(outputs["panoptic_seg"].long())
        kinds.append([(0, -1), *((c, t) for _, c, t in outputs["segments"].tolist())])
    if maps[0].shape != maps[1].shape:
        return 0.0
    pairs, counts = torch.unique(maps[0] * len(kinds[1]) + maps[1], return_counts=True)
    best: dict[int, int] = {}  # by segment wanted: pixels of the segment found that covers it best
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        a, b = divmod(pair, len(kinds[1]))
        if kinds[0][a] == kinds[1][b]:
            best[b] = max(best.get(b, 0), count)
    return sum(best.values()) / maps[0].numel()


def images_of(photos: Sequence[np.ndarray], side: int) -> list[torch.Tensor]:
    """(3, H, W) uint8 images of all :data:`SHAPES`, in turn of the ``photos``, (h, w, 3)."""
    images = []
    for k, shape in enumerate(SHAPES):
        size = [max(int(side * part) | (k > 0), 32) for part in shape]
        photo = torch.from_numpy(np.ascontiguousarray(photos[k % len(photos)])).permute(2, 0, 1)
        resized = F.interpolate(photo[None].float(), size=size, mode="bilinear", antialias=True)[0]
        images.append(resized.round().clamp(0, 255).to(torch.uint8))
    return images


# ------------------------------------------------------------------ the command


@contextlib.contextmanager
def network_of(args: argparse.Namespace) -> Iterator[tuple[CfgNode, torch.nn.Module, object]]:
    """Config, network with its weights and metadata of its classes, of the config or bundle asked for."""
    if args.bundle:
        from .bundle import load

        predictor = load(args.bundle, args.opts, device="cpu")
        yield predictor.cfg, predictor.model, predictor.metadata
        return
    opts = [*args.opts, "MODEL.DEVICE", "cpu"]
    cfg = build_config(args.config_file, opts)
    if not cfg.MODEL.WEIGHTS:
        raise UserError(
            "a network without weights is not exported; add MODEL.WEIGHTS path/to/model_final.pth"
        )
    model = meta_model(cfg)
    if any(len(block.candidates) > 1 for block in choice_blocks(model).values()):
        raise UserError("one network is exported, this config builds a supernet; add NAS.ARCHITECTURE FILE")
    check_weights(cfg, cfg.MODEL.WEIGHTS, model=model)
    check_unread(cfg, args.config_file, opts, AutoPanopticTrainer)
    model = AutoPanopticTrainer.build_model(cfg)
    space = load_weights(model, cfg.MODEL.WEIGHTS)
    metadata = MetadataCatalog.get(data_set_for(cfg, cfg.DATASETS.TEST[0])) if cfg.DATASETS.TEST else None
    with path_statistics(cfg, model.eval(), space):
        yield cfg, model, metadata


def photos_for(args: argparse.Namespace, cfg: CfgNode) -> list[np.ndarray]:
    """(H, W, 3) uint8: those of --input, or of DATASETS.TEST; without either noise."""
    files = args.input
    if not files and args.config_file and cfg.DATASETS.TEST:
        samples = DatasetCatalog.get(data_set_for(cfg, cfg.DATASETS.TEST[0]))
        files = [sample["file_name"] for sample in samples[: len(SHAPES)]]
    photos = []
    for file in files:
        try:
            photos.append(read_image(file, format=cfg.INPUT.FORMAT))
        except Exception as error:  # Pillow's are of many kinds
            raise UserError(f"--input: {file} cannot be read as a photo: {first_line(error)}") from None
    rng = np.random.default_rng(0)
    return photos or [rng.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in SHAPES]


def info_of(cfg: CfgNode, metadata, names: Sequence[str]) -> dict:
    """What a stored network says of itself: its input, its outputs, its classes."""
    classes = {key: list(getattr(metadata, key, ())) for key in ("thing_classes", "stuff_classes")}
    sizes = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
    return {"channels": cfg.INPUT.FORMAT, **sizes, "outputs": list(names), **classes}


def run(args: argparse.Namespace) -> None:
    """Export, compare, and keep the file if it is the network."""
    form, output = args.format, args.output
    if form is None:
        form = {suffix: name for name, suffix in FORMATS.items()}.get(output.suffix)
    if form is None:
        raise UserError(
            f"--output {output}: add --format torchscript or onnx, or end the name in .pt or .onnx"
        )
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; make it, or name another")
    if form == "onnx":
        check_onnx("--format onnx")
    with network_of(args) as (cfg, model, metadata):
        network = Exportable(model, not args.no_merging).eval().requires_grad_(False)
        images = images_of(photos_for(args, cfg), cfg.INPUT.MIN_SIZE_TEST)
        wanted = [expected(model, image) for image in images]
        found = [len(outputs["scores"]) if "scores" in outputs else 1 for outputs in wanted]
        if not any(found):
            raise UserError("the network finds nothing in these images; add --input PHOTO with what it knows")
        info = info_of(cfg, metadata, network(images[0]))
        with replacing(output) as partial:
            export(network, images[int(np.argmax(found))], partial, form, info)
            stored = opened(partial, form)
            for image, outputs in zip(images, wanted, strict=True):
                size = f"{image.shape[1]:5} x {image.shape[2]:<5}"
                got = stored(image)
                if difference := problem(got, outputs):
                    other = "torchscript" if form == "onnx" else "onnx"
                    raise UserError(
                        f"{size.strip()}: {difference}; the file is not the network and was not kept: try "
                        f"--format {other}, or other photos (--input)"
                    )
                print(f"{size} equal{_counted(got)}", flush=True)
    size = output.stat().st_size / 1e6
    print(f"{output}: {form}, {size:.1f} MB; image (3, height, width) uint8 {info['channels']} -> ", end="")
    print(", ".join(info["outputs"]))


def _counted(found: Mapping[str, torch.Tensor]) -> str:
    names = {"scores": "detections", "segments": "segments"}
    return "".join(f", {len(found[key])} {what}" for key, what in names.items() if key in found)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m auto_panoptic.export``."""
    parser = argparse.ArgumentParser(
        prog="python -m auto_panoptic.export",
        description="Write a trained network as a TorchScript or ONNX file and compare it with the network.",
    )
    parser.error = _refuse
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="FILE", help="config; its MODEL.WEIGHTS are exported")
    source.add_argument("--bundle", metavar="FILE", help="bundle of a training or search instead of a config")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="NAME.onnx or NAME.pt")
    parser.add_argument("--format", choices=FORMATS, help="by default as --output ends")
    parser.add_argument("--no-merging", action="store_true", help="leave out the panoptic map")
    what = "photo to compare on (default: those of DATASETS.TEST); may be repeated"
    parser.add_argument("--input", action="append", default=[], metavar="PHOTO", help=what)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    args = parser.parse_args(arguments)
    hold_warnings()
    run(args)


def _refuse(message: str) -> None:
    raise UserError(f"{message}; --help shows the options")


if __name__ == "__main__":
    run_command(main)
