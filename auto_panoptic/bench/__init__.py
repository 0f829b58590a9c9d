"""Benchmarks of panoptic architectures: all paths of a small space, and what many are worth when trained.

    from auto_panoptic.bench import load

    bench = load("shapes4096")
    bench.supernet["PQ"]  # (supernet seeds, paths)
    bench.trained["PQ"]  # (trained paths, seeds)

``tools/nas_bench/build.py --table FILE`` makes one; "provenance" says with what. The shipped one has all
paths' scores in supernets, and 128 trained paths.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..errors import UserError
from ..evaluation.panoptic_quality import PanopticQuality
from ..files import replacing
from ..space import Architecture, SearchSpace

FOLDER = Path(__file__).parent
SUFFIX = ".npz"
IOU_UNITS = 4096


@dataclass(frozen=True)
class Benchmark:
    """One table. Qualities are percentages.

    Attributes:
        space: the search space, sites that are fixed included; path ``n`` is its ``n``-th architecture.
        macs, params: (paths,) of the whole network, for one image of the size in "provenance".
        supernet: {"PQ", "SQ", ..., "PQ_se"}: (supernet seeds, paths), what paths score in supernets.
        paths: (n,) numbers of the paths that were trained on their own.
        trained: {"PQ", "SQ", ...}: (n, seeds), means over the data sets of "images_of".
        seconds: (n, seeds) of one thread.
        counts: TP, FP and FN, (3, images, classes, networks); network is ``path's place * seeds + seed``,
            image and class are the places among "images" and "categories".
        iou: (images, classes, networks) sums of the IoU of what matched, in units of 1 / :data:`IOU_UNITS`.
        provenance: configs, versions, categories, images; "search" are the data sets that score supernets,
            "images_of" the images of each that scores trained paths.
    """

    space: SearchSpace
    macs: np.ndarray
    params: np.ndarray
    supernet: Mapping[str, np.ndarray]
    paths: np.ndarray
    trained: Mapping[str, np.ndarray]
    seconds: np.ndarray
    counts: np.ndarray
    iou: np.ndarray
    provenance: Mapping

    def path(self, number: int) -> Architecture:
        """The architecture of a number; the last site runs fastest."""
        return path_of(self.space, number)

    def number(self, architecture: Architecture) -> int:
        """Inverse of :meth:`path`."""
        value = 0
        for site, name in zip(self.space.sites, architecture.choices, strict=True):
            value = value * len(site.ops) + site.index(name)
        return value

    @cached_property
    def choices(self) -> np.ndarray:
        """(paths, searched sites) operator indices of all paths."""
        sizes = [len(site.ops) for site in self.space.sites if len(site.ops) > 1]
        return np.stack(np.unravel_index(np.arange(self.space.cardinality), sizes), axis=1)

    def quality(self, place: int, seed: int) -> PanopticQuality:
        """The counts of every image of one trained network, to be resampled."""
        network = place * self.trained["PQ"].shape[1] + seed
        rows = [*self.counts[..., network], self.iou[..., network] / IOU_UNITS]
        images = []
        for key, found in zip(self.provenance["images"], np.stack(rows, axis=-1), strict=True):
            classes = np.flatnonzero(found.any(axis=1))
            images.append([key, classes.tolist(), found[classes].tolist()])
        return PanopticQuality.of_record({"categories": self.provenance["categories"], "images": images})

    def save(self, path: str | os.PathLike) -> None:
        """Write the table; :func:`load` reads it."""
        arrays = {f"supernet/{name}": values for name, values in self.supernet.items()}
        arrays |= {f"trained/{name}": values for name, values in self.trained.items()}
        for name in ("macs", "params", "paths", "seconds", "counts", "iou"):
            arrays[name] = getattr(self, name)
        about = json.dumps({"space": self.space.to_dict(), "provenance": self.provenance})
        with replacing(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, about=np.array(about), **arrays)


def path_of(space: SearchSpace, number: int) -> Architecture:
    """The architecture whose operators are the digits of ``number``; the last site runs fastest."""
    indices = []
    for site in reversed(space.sites):
        number, index = divmod(number, len(site.ops))
        indices.append(index)
    return space.architecture(indices[::-1])


def names() -> list[str]:
    """The benchmarks of this package."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def load(name: str | os.PathLike) -> Benchmark:
    """A benchmark by its name, or from a file.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = FOLDER / f"{name}{SUFFIX}" if str(name) in names() else Path(name)
    if not path.is_file():
        known = f"one of {', '.join(names())}, or a file" if names() else "a file of tools/nas_bench/build.py"
        raise UserError(f"no benchmark {str(name)!r}: expected {known}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        about = json.loads(str(arrays.pop("about")))
        groups: dict[str, dict] = {"supernet": {}, "trained": {}}
        for key in [key for key in arrays if "/" in key]:
            group, _, metric = key.partition("/")
            groups[group][metric] = arrays.pop(key)
        space = SearchSpace.from_dict(about["space"])
        return Benchmark(space=space, provenance=about["provenance"], **groups, **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: no table of a benchmark, or damaged: {error}") from error
