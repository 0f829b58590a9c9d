"""Speed of panoptic quality: ours against panopticapi and Detectron2's evaluator, in turns, in CPU seconds.

(a) PanopticQuality on maps in memory over panopticapi's pq_compute_single_core on PNG files; writing the
    files does not count.
(b) PanopticQualityEvaluator over COCOPanopticEvaluator, end to end from the model's output to the result;
    both read the ground truth from files. panopticapi runs in this process, so that starting its pool does
    not count against it.
(c) As (b) with the decoded ground truth kept, as in a search.
(d) What intervals and IoU of stuff add to (b).

Data: drawn maps of 640 x 480 pixels with about 15 segments, 133 categories; with --coco-panoptic also the
true maps of a data set. Predictions are shifted copies. All sides must find the same quality. The last line
is one JSON object with the ratios.

    python tools/benchmarks/panoptic_quality.py [--images 40] [--coco-panoptic FOLDER]

FOLDER holds panoptic.json and panoptic/*.png.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from panopticapi import evaluation as panopticapi

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from auto_panoptic.data.formats.panoptic_png import read_panoptic, write_panoptic  # noqa: E402
from auto_panoptic.evaluation import PanopticQuality, PanopticQualityEvaluator  # noqa: E402

HEIGHT, WIDTH, SEGMENTS = 480, 640, 15
CATEGORIES = [{"id": i, "name": str(i), "isthing": int(i <= 80)} for i in range(1, 134)]


def draw_truth(folder: Path, images: int) -> None:
    """Write maps of wavy regions, one of ten void, in COCO-panoptic format."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    wavy = y + 6 * np.sin(x / 9.0), x + 6 * np.sin(y / 7.0)
    (folder / "panoptic").mkdir()
    annotations = []
    for image_id in range(images):
        centres = rng.uniform(0, 1, (SEGMENTS, 2)) * (HEIGHT, WIDTH)
        regions = np.argmin([(wavy[0] - a) ** 2 + (wavy[1] - b) ** 2 for a, b in centres], axis=0)
        ids = rng.choice(2**24 - 1, SEGMENTS, replace=False) + 1
        ids[rng.uniform(size=SEGMENTS) < 0.1] = 0
        ids = ids[regions]
        segments = [
            {"id": i, "category_id": int(rng.integers(1, 134)), "iscrowd": 0, "area": n}
            for i, n in zip(*(a.tolist() for a in np.unique(ids, return_counts=True)), strict=True)
            if i
        ]
        name = f"{image_id:06d}.png"
        write_panoptic(str(folder / "panoptic" / name), ids)
        annotations.append({"image_id": image_id, "file_name": name, "segments_info": segments})
    size = {"height": HEIGHT, "width": WIDTH}
    listed = [{"id": i, "file_name": f"{i:06d}.jpg", **size} for i in range(images)]
    content = {"images": listed, "annotations": annotations}
    (folder / "panoptic.json").write_text(json.dumps(content | {"categories": CATEGORIES}))


class Images:
    """A data set and predictions on it, as maps, as files, and as a model's output."""

    def __init__(self, source: Path, folder: Path, repeat: int):
        truth = json.loads((source / "panoptic.json").read_text())
        self.categories, self.truth, self.source = truth["categories"], truth["annotations"], source
        self.json_file, self.root = str(source / "panoptic.json"), str(source / "panoptic")
        self.maps, self.outputs, self.inputs, self.predicted = [], [], [], []
        self.folder = folder / "predicted"
        self.folder.mkdir()
        for annotation in self.truth:
            gt = read_panoptic(source / "panoptic" / annotation["file_name"])
            pred, segments = np.zeros_like(gt), []
            for i, segment in enumerate(annotation["segments_info"], start=1):
                pred[np.roll(gt == segment["id"], (4, 5), (0, 1))] = i
                segments.append({"id": i, "category_id": segment["category_id"]})
            present = set(np.unique(pred).tolist())
            segments = [s for s in segments if s["id"] in present]
            write_panoptic(self.folder / annotation["file_name"], pred)
            self.maps.append((pred, segments, gt, annotation["segments_info"]))
            copies = [dict(s) for s in segments]  # panopticapi adds areas to its records
            self.predicted.append({"file_name": annotation["file_name"], "segments_info": copies})
            name = annotation["file_name"].replace(".png", ".jpg")
            self.inputs.append({"image_id": annotation["image_id"], "file_name": name})
            self.outputs.append({"panoptic_seg": (torch.as_tensor(pred), segments)})
        self.repeat = max(1, repeat // len(self.truth))

    def ours_in_memory(self) -> float:
        quality = PanopticQuality(self.categories)
        for _ in range(self.repeat):
            for maps in self.maps:
                quality.update(*maps)
        return quality.compute()["PQ"]

    def theirs_on_files(self) -> float:
        by_id = {c["id"]: c for c in self.categories}
        pairs = list(zip(self.truth, self.predicted, strict=True)) * self.repeat
        statistics_ = panopticapi.pq_compute_single_core(0, pairs, self.root, str(self.folder), by_id)
        return 100 * statistics_.pq_average(by_id, isthing=None)[0]["pq"]

    def register(self, name: str) -> str:
        """Register with data set ids for contiguous ones; the predictions carry no "isthing"."""
        ids = {c["id"]: c["id"] for c in self.categories}
        MetadataCatalog.get(name).set(
            panoptic_json=self.json_file,
            panoptic_root=self.root,
            thing_dataset_id_to_contiguous_id=ids,
            stuff_dataset_id_to_contiguous_id=ids,
        )
        DatasetCatalog.register(name, lambda: self.inputs)
        return name

    def evaluate(self, evaluator) -> float:
        evaluator.reset()
        for entry, output in zip(self.inputs, self.outputs, strict=True):
            evaluator.process([entry], [output])
        return evaluator.evaluate()["panoptic_seg"]["PQ"]


def compare(images: Images, name: str, rounds: int) -> dict:
    """Median CPU milliseconds per image of every side, in turns; their panoptic qualities must agree."""
    images.register(name)
    with tempfile.TemporaryDirectory() as folder:
        coco = COCOPanopticEvaluator(name, folder)
        plain, detailed = PanopticQualityEvaluator(name), PanopticQualityEvaluator(name, details=True)
        cached = PanopticQualityEvaluator(name, cache_ground_truth=True)
        images.evaluate(cached)
        count, all_count = len(images.inputs), len(images.inputs) * images.repeat
        sides = {
            "PanopticQuality, maps": (images.ours_in_memory, all_count),
            "panopticapi, files": (images.theirs_on_files, all_count),
            "PanopticQualityEvaluator": (lambda: images.evaluate(plain), count),
            "... with kept truth": (lambda: images.evaluate(cached), count),
            "... with details": (lambda: images.evaluate(detailed), count),
            "COCOPanopticEvaluator": (lambda: images.evaluate(coco), count),
        }
        times, found = {side: [] for side in sides}, {}
        for _ in range(rounds):
            for side, (function, images_seen) in sides.items():
                start = time.process_time()
                with contextlib.redirect_stdout(io.StringIO()):
                    found[side] = function()
                times[side].append(1e3 * (time.process_time() - start) / images_seen)
    median = {side: statistics.median(values) for side, values in times.items()}
    for side, value in median.items():
        print(f"  {side:26s} {value:8.3f} ms/image   PQ {found[side]:.9f}")
    assert max(found.values()) - min(found.values()) < 1e-9, "the sides disagree"
    ours = median["PanopticQualityEvaluator"]
    return {
        "panopticapi_over_maps": median["panopticapi, files"] / median["PanopticQuality, maps"],
        "coco_evaluator_over_ours": median["COCOPanopticEvaluator"] / ours,
        "coco_evaluator_over_kept_truth": median["COCOPanopticEvaluator"] / median["... with kept truth"],
        "details_over_plain": median["... with details"] / ours,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--coco-panoptic", type=Path, metavar="FOLDER", help="a data set of real maps")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    panopticapi.pq_compute_multi_core = lambda *arguments: panopticapi.pq_compute_single_core(0, *arguments)

    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder, "drawn")
        drawn.mkdir()
        draw_truth(drawn, args.images)
        sources = {"drawn": drawn} | ({"real": args.coco_panoptic} if args.coco_panoptic else {})
        for name, source in sources.items():
            work = Path(folder, name + "_predicted")
            work.mkdir()
            print(f"{name} maps ({source})" if name == "real" else f"{name} maps, {WIDTH} x {HEIGHT}")
            ratios = compare(Images(source, work, args.images), f"benchmark_{name}", args.rounds)
            figures |= {f"{name}_{key}": round(value, 2) for key, value in ratios.items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
