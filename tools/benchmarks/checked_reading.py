"""What it costs to compare panoptic PNGs with the JSON while they are read, in CPU seconds, in turns.

Both sides derive label maps and instances of one set, and score predictions on it. One reads PNGs as they
are: OpenCV decodes a file, and that is all. The other one is the code as it is: headers, checksums, sizes and
photos are looked at, areas counted, ids and areas compared with the records. Both must find the same.

Data: drawn maps of 640 x 480 pixels with about 30 segments, 133 categories; predictions are shifted copies.
The last line is one JSON object with the additional cost in percent: the median over the rounds of the ratio
of neighbours.

    python tools/benchmarks/checked_reading.py [--images 16] [--rounds 15]
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from auto_panoptic.data import register_coco_panoptic  # noqa: E402
from auto_panoptic.data.derive import engine  # noqa: E402
from auto_panoptic.data.formats import panoptic_png as coco  # noqa: E402
from auto_panoptic.data.register import find_source  # noqa: E402
from auto_panoptic.evaluation import PanopticQualityEvaluator, panoptic_evaluator  # noqa: E402

HEIGHT, WIDTH, SEGMENTS, CLASSES = 480, 640, 30, 133
COST = 5  # percent that it may be


def draw(folder: Path, images: int) -> dict:
    """Write maps of wavy regions, one of ten void; arguments of register_coco_panoptic."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    wavy = y + 6 * np.sin(x / 9.0), x + 6 * np.sin(y / 7.0)
    content = {"images": [], "annotations": []}
    for part in ("images", "panoptic"):
        (folder / part).mkdir()
    for number in range(1, images + 1):
        centres = rng.uniform(0, 1, (SEGMENTS, 2)) * (HEIGHT, WIDTH)
        regions = np.argmin([(wavy[0] - a) ** 2 + (wavy[1] - b) ** 2 for a, b in centres], axis=0)
        ids = rng.choice(2**24 - 1, SEGMENTS, replace=False) + 1
        ids[rng.uniform(size=SEGMENTS) < 0.1] = 0
        ids = ids[regions]
        classes = {i: int(rng.integers(1, CLASSES + 1)) for i in np.unique(ids).tolist()}
        name = f"{number:06d}"
        coco.write_panoptic(str(folder / f"panoptic/{name}.png"), ids)
        noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"images/{name}.jpg")
        content["images"].append({"id": number, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH})
        segments = coco.segment_records(ids, classes, set())
        annotation = {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
        content["annotations"].append(annotation)
    content["categories"] = [
        {"id": i, "name": str(i), "isthing": int(i <= 80)} for i in range(1, CLASSES + 1)
    ]
    (folder / "panoptic.json").write_text(json.dumps(content))
    paths = {"panoptic_json": "panoptic.json", "panoptic_root": "panoptic", "image_root": "images"}
    return {key: str(folder / path) for key, path in paths.items()} | {
        "derived_root": str(folder / "derived")
    }


def plain_ids(path: str, *_) -> np.ndarray:
    """The ids of a PNG that nobody looks at."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGBA).view("<i4")[..., 0].astype(np.int32, copy=False) & 0xFFFFFF


@contextlib.contextmanager
def unchecked():
    """The code without its checks."""
    with (
        mock.patch.object(coco, "read_truth", lambda path, *_: (plain_ids(path), None)),
        mock.patch.object(engine, "check_photo", lambda *_, **__: (None, [])),
        mock.patch.object(panoptic_evaluator, "read_ids", lambda path, *_: (plain_ids(path), [])),
        mock.patch.object(panoptic_evaluator, "check_areas", lambda *_: None),
    ):
        yield


def derive(source) -> list:
    """Label maps of both kinds and instances, made anew."""
    for name in ("semantic", "semantic_all"):
        for path in (source.derived / name).glob("*.png"):
            path.unlink()
    return [sorted(engine.derive(source.derivation(labels), 1, thorough=True)) for labels in source.names]


def evaluate(evaluator, records: list, outputs: list) -> float:
    evaluator.reset()
    for record, output in zip(records, outputs, strict=True):
        evaluator.process([record], [output])
    return evaluator.evaluate()["panoptic_seg"]["PQ"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        register_coco_panoptic("benchmark", **draw(Path(folder), args.images), show_ids=False)
        records, source, outputs = DatasetCatalog.get("benchmark"), find_source("benchmark"), []
        for record in records:
            ids = np.roll(coco.read_panoptic(record["pan_seg_file_name"]), (4, 5), (0, 1))
            segments = [{k: s[k] for k in ("id", "category_id", "isthing")} for s in record["segments_info"]]
            outputs.append({"panoptic_seg": (torch.as_tensor(ids), segments)})
        evaluator = PanopticQualityEvaluator("benchmark")
        jobs = {
            "deriving": lambda: derive(source),
            "evaluating": lambda: evaluate(evaluator, records, outputs),
        }
        cost = {}
        for name, job in jobs.items():
            times, found = {"checked": [], "unchecked": []}, {}
            for turn in range(2 * args.rounds):
                side = ("checked", "unchecked")[(turn + turn // 2) % 2]
                with unchecked() if side == "unchecked" else contextlib.nullcontext():
                    start = time.process_time()
                    found[side] = job()
                    times[side].append(1e3 * (time.process_time() - start) / args.images)
            assert found["checked"] == found["unchecked"], "the sides disagree"
            ratios = [a / b for a, b in zip(times["checked"], times["unchecked"], strict=True)]
            cost[name] = round(100 * (statistics.median(ratios) - 1), 2)
            shown = "   ".join(f"{side} {statistics.median(t):7.3f} ms/image" for side, t in times.items())
            print(f"{name:10s}   {shown}   {cost[name]:+.2f} %")
    print(json.dumps({f"{name}_percent": value for name, value in cost.items()} | {"allowed_percent": COST}))


if __name__ == "__main__":
    main()
