"""From the journal to the file that ``auto_panoptic.bench.load`` reads, and back."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from scoring import METRICS

from auto_panoptic.bench import IOU_UNITS, Benchmark
from auto_panoptic.data.formats.panoptic_json import read_panoptic_json
from auto_panoptic.errors import UserError
from auto_panoptic.space import SearchSpace

LIBRARIES = ("torch", "torchvision", "numpy", "detectron2")


def scored_by(data_sets: Sequence[str]) -> dict[str, Any]:
    """Provenance of data sets that have the same categories: those, and the images of each."""
    read = {name: read_panoptic_json(MetadataCatalog.get(name).panoptic_json) for name in data_sets}
    categories = read[data_sets[0]]["categories"]
    return {
        "categories": [{key: c[key] for key in ("id", "isthing", "name")} for c in categories],
        "images_of": {name: [image["id"] for image in r["images"]] for name, r in read.items()},
    }


def make_table(
    space: SearchSpace,
    costs: tuple[np.ndarray, np.ndarray],
    scores: Sequence[dict[str, np.ndarray]],
    paths: Sequence[int],
    trained: Sequence[Sequence[dict]],
    about: dict,
) -> Benchmark:
    """The table.

    Args:
        space: the search space.
        costs: (multiply-adds, parameters), (paths,) each.
        scores: of each supernet {metric: (paths,)}.
        paths: numbers of those that were trained, if any.
        trained: [path][seed], what the jobs returned.
        about: goes into "provenance"; has what :func:`scored_by` gives.
    """
    names = [name for name in METRICS if name in trained[0][0]] if trained else METRICS[:-1]
    shape = (len(trained), len(trained[0]) if trained else 0)
    images = sorted({key for row in trained for result in row for key, _, _ in result["counts"]})
    place = {key: i for i, key in enumerate(images)}
    counts = np.zeros((3, len(images), len(about["categories"]), shape[0] * shape[1]), int)
    iou = np.zeros(counts.shape[1:])
    for network, result in enumerate(result for row in trained for result in row):
        for key, classes, found in result["counts"]:
            *numbers, total = np.reshape(found, (-1, 4)).T
            counts[:, place[key], classes, network] = numbers
            iou[place[key], classes, network] = total

    def array(name: str) -> np.ndarray:
        return np.array([[result[name] for result in row] for row in trained], np.float32).reshape(shape)

    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return Benchmark(
        space=space,
        macs=costs[0],
        params=costs[1],
        supernet={n: np.array([s[n] for s in scores], np.float32) for n in METRICS},
        paths=np.array(paths, np.int32),
        trained={n: array(n) for n in names},
        seconds=array("seconds"),
        counts=_fitting(counts, np.uint8),
        iou=_fitting(np.rint(iou * IOU_UNITS), np.uint16),
        provenance={
            **about,
            "images": images,
            "versions": {**versions, "python": platform.python_version()},
        },
    )


def _fitting(values: np.ndarray, kind: type) -> np.ndarray:
    if values.size and values.max() > np.iinfo(kind).max:
        raise UserError(f"an image has too many segments of a class for a table: {values.max():.0f}")
    return values.astype(kind)


def trained_results(bench: Benchmark) -> Iterator[tuple[int, int, dict, float]]:
    """(path, seed, what the job returned, seconds) of every training in a table."""
    for place, path in enumerate(bench.paths.tolist()):
        for seed in range(bench.trained["PQ"].shape[1]):
            metrics = {name: float(values[place, seed]) for name, values in bench.trained.items()}
            metrics["counts"] = bench.quality(place, seed).record()["images"]
            yield path, seed, metrics, float(bench.seconds[place, seed])
