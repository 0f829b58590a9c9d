#!/usr/bin/env python
"""Segment photos that nobody has labelled, with the arguments of Detectron2's demo.

python demo.py --config-file configs/quick/retrain.yaml --input photos/ --output drawn \
    --opts NAS.ARCHITECTURE architecture.json MODEL.WEIGHTS model_final.pth

It writes each photo with its segments drawn over it to --output, under its own name. With --json also
OUTPUT/panoptic_demo.json and OUTPUT/panoptic_demo/*.png in COCO's panoptic results format.
"""

# ruff: noqa: E402
from auto_panoptic.errors import UserError, hold_warnings, run_command

if __name__ == "__main__":
    hold_warnings()  # also those of the imports below

import argparse
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.utils.visualizer import Visualizer

from auto_panoptic.data import data_set_for, holds_classes
from auto_panoptic.data.formats.names import png_name
from auto_panoptic.data.formats.panoptic_json import read_panoptic_json
from auto_panoptic.evaluation.predictions import PredictionWriter
from auto_panoptic.modeling.finite import finite_outputs
from auto_panoptic.search.candidate import path_statistics
from auto_panoptic.training import build_config, check_unread, load_weights
from train_net import Trainer, check_evaluation

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_photos(inputs: list[str], output: Path) -> list[Path]:
    """The photos of files and folders, which must leave different results, none in the place of a photo."""
    photos = []
    for path in map(Path, inputs):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"--input: folder {path} holds no photo ({', '.join(sorted(SUFFIXES))})")
            photos += inside
        elif path.is_file():
            photos.append(path)
        else:
            raise UserError(f"--input: {path} is no file and no folder")
    names: dict[str, Path] = {}
    for photo in photos:
        other = names.setdefault(png_name(photo.name), photo)
        if other is not photo:
            raise UserError(f"--input: {other} and {photo} would have results of one name; run them apart")
        if photo.resolve().parent == output.resolve():
            raise UserError(f"--output: {output} is the folder of {photo}, which would be overwritten")
    return photos


def read_photo(path: Path, channels: str) -> np.ndarray:
    """(H, W, 3) as the photo is to be looked at; ``channels`` is "RGB" or "BGR"."""
    try:
        return read_image(str(path), format=channels)
    except Exception as error:  # Pillow's are of many kinds
        raise UserError(f"--input: {path} cannot be read as a photo: {error}") from None


def with_thresholds(opts: list[str], threshold: float) -> list[str]:
    """Detections below it are neither drawn nor merged, as in Detectron2's demo."""
    keys = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH")
    return [*opts, *(text for key in keys for text in (key, str(threshold)))]


class Predictor:
    """The network of a config, with its weights: a photo -> its segments."""

    def __init__(self, cfg):
        self.cfg = cfg
        self.model = Trainer.build_model(cfg)
        self.space = load_weights(self.model, cfg.MODEL.WEIGHTS)
        self.model.eval()
        self.resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def inputs(self, photo: np.ndarray, name: str) -> dict:
        """What the network takes; ``name``: for messages."""
        image = self.resize.get_transform(photo).apply_image(photo)
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return {"image": image, "file_name": name, "height": photo.shape[0], "width": photo.shape[1]}

    @torch.no_grad()
    def __call__(self, photo: np.ndarray, name: str) -> tuple[torch.Tensor, list[dict]]:
        """(H, W) ids, 0 where void, and the segments: Detectron2's "panoptic_seg"; ``name``: for messages."""
        output = self.model([self.inputs(photo, name)])[0]
        if "panoptic_seg" not in output:
            raise UserError(f"a {type(self.model).__name__} predicts no panoptic segments")
        ids, segments = output["panoptic_seg"]
        return ids.cpu(), segments


def as_records(ids: np.ndarray, segments: list[dict], metadata) -> list[dict]:
    """Segments with the data set's ids of classes."""
    things = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
    stuff = {v: k for k, v in metadata.stuff_dataset_id_to_contiguous_id.items()}
    areas = dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True)), strict=True))
    records = [
        {"id": int(s["id"]), "category_id": (things if s["isthing"] else stuff)[int(s["category_id"])]}
        for s in segments
    ]
    return [{**record, "area": areas[record["id"]]} for record in records if record["id"] in areas]


def run() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--input", required=True, nargs="+", help="photos, or folders of them")
    parser.add_argument("--output", required=True, metavar="FOLDER", type=Path)
    parser.add_argument("--confidence-threshold", type=float, default=0.5, help="least score of an object")
    parser.add_argument("--json", action="store_true", help="also write COCO's panoptic results format")
    parser.add_argument("--opts", default=[], nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args()
    photos = find_photos(args.input, args.output)
    cfg = build_config(args.config_file, with_thresholds(args.opts, args.confidence_threshold))
    check_evaluation(cfg)
    check_unread(cfg, args.config_file, args.opts, Trainer)
    if holds_classes(cfg.DATASETS.TEST[0]):
        raise UserError(
            f"DATASETS.TEST {list(cfg.DATASETS.TEST)} holds classified images; name a panoptic set"
        )
    metadata = MetadataCatalog.get(name := data_set_for(cfg, cfg.DATASETS.TEST[0]))
    if not Path(metadata.panoptic_json).is_file():
        DatasetCatalog.get(name)  # makes it
    predictor, writer, images = Predictor(cfg), PredictionWriter(str(args.output), "demo"), []
    args.output.mkdir(parents=True, exist_ok=True)
    with path_statistics(cfg, predictor.model, predictor.space), finite_outputs(predictor.model):
        for number, path in enumerate(photos, 1):
            photo = read_photo(path, cfg.INPUT.FORMAT)
            ids, segments = predictor(photo, str(path))
            rgb = photo[:, :, ::-1] if cfg.INPUT.FORMAT == "BGR" else photo
            Visualizer(rgb, metadata).draw_panoptic_seg(ids, segments).save(str(args.output / path.name))
            if args.json:
                size = {"height": photo.shape[0], "width": photo.shape[1]}
                images.append({"id": number, "file_name": path.name, **size})
                writer.add(number, path.name, ids.numpy(), as_records(ids.numpy(), segments, metadata))
            print(f"{path}: {len(segments)} segments")
    if args.json:
        categories = read_panoptic_json(metadata.panoptic_json)["categories"]
        writer.finish(writer.records, {"images": images, "categories": categories})


if __name__ == "__main__":
    run_command(run)
