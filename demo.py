#!/usr/bin/env python
r"""Segment photos and videos that nobody has labelled, with the arguments of Detectron2's demo.

python demo.py --bundle output/quickstart/retrain --input photos/ --output drawn
python demo.py --bundle bundle.pth --video-input film.mp4 --output drawn
python demo.py --bundle bundle.pth --webcam --output drawn          # until Ctrl-C
python demo.py --config-file configs/quick/retrain.yaml --input photo.jpg --output drawn \
    --opts NAS.ARCHITECTURE architecture.json MODEL.WEIGHTS model_final.pth

It writes each photo with its segments and their names drawn over it to --output, under its own name (small
ones enlarged, so that names have room); of a video an .mp4 with the frames drawn so. With --json also
OUTPUT/panoptic_demo.json and OUTPUT/panoptic_demo/*.png in COCO's panoptic results format.
"""

# ruff: noqa: E402
from auto_panoptic.errors import UserError, hold_warnings, need_detectron2, run_command

if __name__ == "__main__":
    need_detectron2()
    hold_warnings()  # also those of the imports below

import argparse
import contextlib
import glob
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.video_visualizer import VideoVisualizer
from tqdm import tqdm

from auto_panoptic.bundle import Predictor, categories_of, drawing_scale, load
from auto_panoptic.data import data_set_for, holds_classes
from auto_panoptic.data.formats.names import png_name
from auto_panoptic.data.formats.panoptic_json import read_panoptic_json
from auto_panoptic.evaluation.predictions import PredictionWriter
from auto_panoptic.files import replacing
from auto_panoptic.pictures.colours import PALETTE
from auto_panoptic.pictures.overlay import overlay, stacked
from auto_panoptic.search.candidate import path_statistics
from auto_panoptic.training import build_config, check_unread, load_weights
from train_net import Trainer, check_evaluation

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


# ------------------------------------------------------------------ the network


def with_thresholds(opts: list[str], threshold: float) -> list[str]:
    """Detections below it are neither drawn nor merged, as in Detectron2's demo."""
    keys = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH")
    return [*opts, *(text for key in keys for text in (key, str(threshold)))]


def checked_config(args: argparse.Namespace):
    """The config that the arguments name, with everything that can be wrong with it found."""
    cfg = build_config(args.config_file, with_thresholds(args.opts, args.confidence_threshold))
    check_evaluation(cfg)
    check_unread(cfg, args.config_file, args.opts, Trainer)
    if holds_classes(cfg.DATASETS.TEST[0]):
        raise UserError(
            f"DATASETS.TEST {list(cfg.DATASETS.TEST)} holds classified images; name a panoptic set"
        )
    return cfg


def predictor_of(cfg, metadata) -> tuple[Predictor, contextlib.AbstractContextManager]:
    """The predictor of a config with its weights, and the context in which it predicts."""
    model = Trainer.build_model(cfg)
    space = load_weights(model, cfg.MODEL.WEIGHTS)
    return Predictor(cfg, model, metadata), path_statistics(cfg, model, space)


def predictor_and_classes(args: argparse.Namespace) -> tuple:
    """:func:`predictor_of` a bundle, or of a config with its test set; and COCO-panoptic categories."""
    if args.bundle:
        predictor = load(args.bundle, with_thresholds(args.opts, args.confidence_threshold))
        return predictor, contextlib.nullcontext(), categories_of(predictor.metadata)
    cfg = checked_config(args)
    metadata = MetadataCatalog.get(name := data_set_for(cfg, cfg.DATASETS.TEST[0]))
    if not Path(metadata.panoptic_json).is_file():
        DatasetCatalog.get(name)  # makes it
    return *predictor_of(cfg, metadata), read_panoptic_json(metadata.panoptic_json)["categories"]


# ------------------------------------------------------------------ photos


def find_photos(inputs: list[str], output: Path) -> list[Path]:
    """The photos of files, folders and patterns, with different results, none in the place of a photo."""
    photos = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"--input: folder {path} holds no photo ({', '.join(sorted(SUFFIXES))})")
            photos += inside
        elif path.is_file():
            photos.append(path)
        elif found := [p for p in map(Path, sorted(glob.glob(text))) if p.is_file()]:  # as Detectron2's
            photos += found
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


def read_photo(path: Path) -> np.ndarray:
    """(H, W, 3) BGR as the photo is to be looked at."""
    try:
        return read_image(str(path), format="BGR")
    except Exception as error:  # Pillow's are of many kinds
        raise UserError(f"--input: {path} cannot be read as a photo: {error}") from None


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


def panoptic(predictor: Predictor, image: np.ndarray, name: str, also: str = "panoptic_seg") -> dict:
    """The output for an image, with panoptic segments and what is needed ``also``; ``name``: for messages."""
    output = predictor(image, name)
    for needed, what in (("panoptic_seg", "panoptic segments"), (also, f"{also}: leave --rows out")):
        if needed not in output:
            raise UserError(f"a {type(predictor.model).__name__} predicts no {what}")
    return output


def two_rows(photo: np.ndarray, output: dict, metadata) -> np.ndarray:
    """(H, W, 3) BGR: the panoptic map above, the instances below.

    As Figures 5 to 7 of Panoptic-DeepLab's supplement; instances without masks are boxes.
    """
    rgb, (ids, segments) = photo[:, :, ::-1], output["panoptic_seg"]
    names = [s["name"] for s in segments]
    every = [n for n in dict.fromkeys([*metadata.thing_classes, *metadata.stuff_classes]) if n != "things"]
    shown = every if len(every) <= len(PALETTE) else sorted(set(names), key=every.index)
    masks = [(ids == s["id"]).numpy() for s in segments]
    upper = overlay(rgb, masks, [shown.index(name) for name in names], names)

    instances = output["instances"]  # of detectors those above the threshold; other scores only rank
    names = [metadata.thing_classes[c] for c in instances.pred_classes.tolist()]
    names = [f"{name} {score:.0%}" for name, score in zip(names, instances.scores.tolist(), strict=True)]
    if instances.has("pred_masks"):
        masks = instances.pred_masks.numpy().astype(bool)
    else:
        masks = np.zeros((len(instances), *photo.shape[:2]), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, instances.pred_boxes.tensor.int().tolist(), strict=True):
            mask[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = True
    lower = overlay(rgb, masks, range(len(masks)), names)
    return stacked([upper, lower], ["panoptic prediction", "instance prediction"])[:, :, ::-1]


def segment_photos(
    predictor: Predictor, photos: list[Path], output: Path, categories: list | None, rows: bool = False
) -> None:
    """Write the photos with their segments to ``output``; with ``categories`` also COCO's format.

    With ``rows`` they are drawn as by :func:`two_rows`.
    """
    writer, images = PredictionWriter(str(output), "demo"), []
    for number, path in enumerate(photos, 1):
        photo = read_photo(path)
        found = panoptic(predictor, photo, str(path), "instances" if rows else "panoptic_seg")
        ids, segments = found["panoptic_seg"]
        drawn = two_rows(photo, found, predictor.metadata) if rows else predictor.draw(photo, found)
        target = output / (path.name if path.suffix.lower() in SUFFIXES else png_name(path.name))
        if not cv2.imwrite(str(target), drawn):
            raise UserError(f"--output: {target} cannot be written; make room, or choose another")
        if categories is not None:
            size = {"height": photo.shape[0], "width": photo.shape[1]}
            images.append({"id": number, "file_name": path.name, **size})
            writer.add(number, path.name, ids.numpy(), as_records(ids.numpy(), segments, predictor.metadata))
        print(f"{path}: {len(segments)} segments ({', '.join(dict.fromkeys(s['name'] for s in segments))})")
    if categories is not None:
        writer.finish(writer.records, {"images": images, "categories": categories})


# ------------------------------------------------------------------ videos


def video_file(output: Path, source: Path | None) -> Path:
    """Where the result of a video, or of the camera (None), goes: ``output`` itself if it ends in .mp4."""
    path = output if output.suffix == ".mp4" else output / f"{source.stem if source else 'webcam'}.mp4"
    if source is not None and source.resolve() == path.resolve():
        raise UserError(f"--output: {path} is the video itself, which would be overwritten; name another")
    return path


def open_video(source: Path | None) -> cv2.VideoCapture:
    """A video, or the first camera."""
    if source is not None and not source.is_file():
        raise UserError(f"--video-input: there is no file {source}")
    capture = cv2.VideoCapture(0 if source is None else str(source))
    if not capture.isOpened():
        what = f"--video-input: {source} cannot be read as a video" if source else "--webcam: no camera found"
        raise UserError(f"{what}; give --video-input FILE, a video that OpenCV reads, or photos to --input")
    return capture


def segment_video(predictor: Predictor, capture: cv2.VideoCapture, path: Path, live: bool) -> None:
    """Write the frames with their segments to ``path``, an .mp4, whole or not at all.

    An object keeps its colour from frame to frame, stuff has that of its class. ``live``: until Ctrl-C, which
    leaves a whole file.
    """
    visualizer, writer, count = VideoVisualizer(predictor.drawn_metadata), None, 0
    rate = capture.get(cv2.CAP_PROP_FPS)
    total = None if live else max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None
    with replacing(path, sync=False) as partial, tqdm(total=total, unit="frame", disable=None) as bar:
        try:
            while (frame := capture.read()[1]) is not None:
                ids, segments = panoptic(predictor, frame, f"frame {count}")["panoptic_seg"]
                times = drawing_scale(frame)  # Detectron2's visualizer of videos has no scale
                rgb = cv2.resize(frame, None, fx=times, fy=times)[:, :, ::-1]
                ids = ids.repeat_interleave(times, 0).repeat_interleave(times, 1)
                drawn = visualizer.draw_panoptic_seg_predictions(rgb, ids, segments).get_image()
                if writer is None:
                    size = drawn.shape[1], drawn.shape[0]
                    kind = cv2.VideoWriter_fourcc(*"mp4v")
                    writer = cv2.VideoWriter(str(partial), kind, rate if 0 < rate <= 240 else 25.0, size)
                writer.write(np.ascontiguousarray(drawn[:, :, ::-1]))
                count += 1
                bar.update()
        except KeyboardInterrupt:
            if not live:
                raise
        finally:
            capture.release()
            if writer is not None:
                writer.release()
        if not partial.exists() or not partial.stat().st_size:
            raise UserError(f"{path}: no frame could be read or written; give a video that OpenCV can read")
    print(f"{path}: {count} frames")


# ------------------------------------------------------------------ the command


def parser() -> argparse.ArgumentParser:
    """Detectron2's arguments, and ours."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    network = p.add_mutually_exclusive_group(required=True)
    network.add_argument("--bundle", metavar="FILE", help="a bundle.pth, or the OUTPUT_DIR it lies in")
    network.add_argument("--config-file", metavar="FILE", help="or a config, with its weights in --opts")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="photos, or folders of them, or a pattern")
    source.add_argument("--video-input", metavar="FILE", type=Path, help="a video")
    source.add_argument("--webcam", action="store_true", help="what the first camera sees, until Ctrl-C")
    p.add_argument("--output", required=True, metavar="FOLDER", type=Path, help="of a video also a name.mp4")
    least = "least score of an object (default: %(default)s)"
    p.add_argument("--confidence-threshold", type=float, default=0.5, help=least)
    p.add_argument(
        "--rows", action="store_true", help="two rows: the panoptic map, and below it the instances"
    )
    p.add_argument("--json", action="store_true", help="also write COCO's panoptic results format")
    p.add_argument("--opts", default=[], nargs=argparse.REMAINDER, help="KEY VALUE ... of the config; last")
    return p


def run() -> None:
    args = parser().parse_args()
    if args.json and not args.input:
        raise UserError("--json is of photos: give them to --input, or leave --json out")
    if args.rows and not args.input:
        raise UserError("--rows is of photos: give them to --input, or leave --rows out")
    photos = find_photos(args.input, args.output) if args.input else []
    path = None if args.input else video_file(args.output, args.video_input)
    capture = None if args.input else open_video(args.video_input)
    predictor, ready, categories = predictor_and_classes(args)
    (path.parent if path else args.output).mkdir(parents=True, exist_ok=True)
    with ready:
        if path:
            segment_video(predictor, capture, path, live=args.webcam)
        else:
            segment_photos(predictor, photos, args.output, categories if args.json else None, args.rows)


if __name__ == "__main__":
    run_command(run)
