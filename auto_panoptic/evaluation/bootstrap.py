"""Sampling noise over images without keeping the images: the Poisson bootstrap."""

from __future__ import annotations

import zlib

import numpy as np

_BUFFERED = 32  # images that are added with one matrix product


class PoissonBootstrap:
    """Sums of per-class contributions on resampled data sets, in memory that does not grow with the images.

    A bootstrap sample draws each of n images Binomial(n, 1/n) times, which tends to Poisson(1); drawing that
    number for each image by itself (Chamandy et al., "Estimating Uncertainty for Massive Data Streams")
    needs neither n nor a second look. The draws depend on the seed and the image's id only: images may come
    in any order, in any process, and two models on the same images are resampled alike.

    Args:
        num_classes: C.
        samples: resampled data sets, B.
        seed: of the draws.

    Attributes:
        totals: (B, C, 4) sums, 32 B C bytes: 4.3 MB for 1000 samples of 133 classes.
    """

    def __init__(self, num_classes: int, samples: int = 1000, seed: int = 0):
        self.samples, self.seed = samples, seed
        self._totals = np.zeros((samples, num_classes, 4))
        self._buffer = []

    def add(self, image_id, classes: list, contributions: list) -> None:
        """Add one image.

        Args:
            image_id: an integer or a string.
            classes: indices of the n classes to which it contributes, each once.
            contributions: n lists of 4 numbers.
        """
        if not classes:
            return
        self._buffer.append((image_id, classes, contributions))
        if len(self._buffer) >= _BUFFERED:
            self._flush()

    def _weights(self, image_id) -> np.ndarray:
        key = zlib.crc32(str(image_id).encode())
        return np.random.Generator(np.random.PCG64([self.seed, key])).poisson(1.0, self.samples)

    def _flush(self) -> None:
        if not self._buffer:
            return
        occurring = sorted({c for _, classes, _ in self._buffer for c in classes})
        column = {c: i for i, c in enumerate(occurring)}
        table = np.zeros((len(self._buffer), len(occurring), 4))
        weights = np.empty((self.samples, len(self._buffer)))
        for i, (image_id, classes, contributions) in enumerate(self._buffer):
            table[i, [column[c] for c in classes]] = contributions
            weights[:, i] = self._weights(image_id)
        sums = weights @ table.reshape(len(table), -1)
        self._totals[:, occurring] += sums.reshape(self.samples, len(occurring), 4)
        self._buffer.clear()

    @property
    def totals(self) -> np.ndarray:
        self._flush()
        return self._totals

    def merge(self, other: PoissonBootstrap) -> None:
        """Add the images of ``other``, made with the same arguments."""
        self._totals += other.totals


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> dict:
    """Spread of bootstrap values (n,); nan are left out.

    Returns:
        {"std" (standard error), "low", "high"}; nan with fewer than two values.
    """
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return {"std": float("nan"), "low": float("nan"), "high": float("nan")}
    low, high = np.percentile(values, [50 * (1 - confidence), 50 * (1 + confidence)])
    return {"std": float(values.std(ddof=1)), "low": float(low), "high": float(high)}
