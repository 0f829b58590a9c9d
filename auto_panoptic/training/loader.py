"""Training batches as a pure function of (seed, position): any resume continues with the exact next batch."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.data import (
    DatasetFromList,
    MapDataset,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler
from detectron2.utils import comm

from ..data import build_mapper, data_set_for, holds_classes
from ..data.labels import SUFFIX
from ..errors import UserError
from ..validate import RULES

# Classified images, all of one size, in a batch of the evaluation; others come one by one.
TEST_BATCH = 64


class PositionalBatchSampler:
    """Endless batches of ``(position, index)`` pairs for this rank.

    The stream is ``shuffle(range(size)) + shuffle(range(size)) + ...``; rank r of R takes every R-th
    element from r on. Batches depend on nothing but the arguments: ``start`` skips some exactly.

    Args:
        size: number of images; ``batch_size`` of them make a batch on this rank.
        seed: of the shuffles.
        start: batches to skip.
        sizes: (width, height) of each image: a batch then holds only landscape or only portrait images.
        repeats: (size,) how often each shuffle holds each image, at least 1; fractions are rounded at random.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        sizes: Sequence[tuple[int, int]] | None = None,
        repeats: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.size, self.batch_size, self.seed, self.start = size, batch_size, seed, start
        self.portrait = None if sizes is None else [height > width for width, height in sizes]
        self.repeats, self.rank, self.world_size = repeats, rank, world_size

    def _shuffle(self, epoch: int) -> list[int]:
        rng = np.random.default_rng([self.seed, epoch])
        if self.repeats is None:
            return rng.permutation(self.size).tolist()
        whole = np.floor(self.repeats).astype(int)
        times = whole + (rng.random(self.size) < self.repeats - whole)
        return rng.permutation(np.repeat(np.arange(self.size), times)).tolist()

    def _stream(self, skip: int) -> Iterator[tuple[int, int]]:
        """This rank's elements, without the first ``skip``."""
        position = self.rank + skip * self.world_size
        first = 0 if self.repeats is not None else position // self.size
        begin = first * self.size  # position at which the epoch begins
        for epoch in itertools.count(first):
            order = self._shuffle(epoch)
            while position < begin + len(order):
                yield position, order[position - begin]
                position += self.world_size
            begin += len(order)

    def _batches(self, skip: int = 0) -> Iterator[list[tuple[int, int]]]:
        groups = ([], [])
        for position, index in self._stream(skip):
            group = groups[0 if self.portrait is None else self.portrait[index]]
            group.append((position, index))
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()

    def __iter__(self):
        if self.portrait is None:
            return self._batches(self.start * self.batch_size)
        return itertools.islice(self._batches(), self.start, None)


class MappedDataset(torch.utils.data.Dataset):
    """``(position, index)`` -> mapped sample; its augmentation depends on (seed, position) only."""

    def __init__(self, dicts: list[dict], mapper, seed: int):
        # Serialised, as Detectron2 does: workers share the memory, and every access gives a new dict.
        self.dicts, self.mapper, self.seed = DatasetFromList(dicts, copy=False), mapper, seed

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        sample = self.dicts[index]
        sample["sample_seed"] = int(np.random.SeedSequence([self.seed, position]).generate_state(1)[0])
        return self.mapper(sample)


class PositionalLoader(torch.utils.data.DataLoader):
    """A loader of :class:`PositionalBatchSampler` that can be read from any batch on."""

    def starting_at(self, number: int) -> Iterator[list[dict]]:
        """Batches from the ``number``-th of the run on."""
        self.batch_sampler.start = number
        return iter(self)


def _no_collation(batch: list) -> list:
    return batch


def _records(names: list[str], filter_empty: bool) -> list[dict]:
    """Those of data sets; Detectron2 counts the objects of each class, which needs one."""
    check = MetadataCatalog.get(names[0]).get("thing_classes", None) != []
    return get_detection_dataset_dicts(names, filter_empty, check_consistency=check)


def _training_images(cfg, names: list[str]) -> list[dict]:
    try:
        return _records(names, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    except AssertionError as error:
        if not str(error).startswith("No valid data found"):
            raise
        shown = list(cfg.DATASETS.TRAIN)
        logging.getLogger(__name__).warning(
            "%s: no image has objects that are no crowds; all are used, for the stuff", shown
        )
        return _records(names, False)


def _repeats(cfg, dicts: list[dict]) -> np.ndarray | None:
    """How often DATALOADER.SAMPLER_TRAIN draws each image, by Detectron2's factors; None for once."""
    RULES["DATALOADER.SAMPLER_TRAIN"].check("DATALOADER.SAMPLER_TRAIN", cfg.DATALOADER.SAMPLER_TRAIN)
    if cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler":
        return None
    if any("annotations" not in d for d in dicts):
        raise UserError(
            "DATALOADER.SAMPLER_TRAIN is RepeatFactorTrainingSampler, which counts the objects of images, "
            "and DATASETS.TRAIN has none; use TrainingSampler"
        )
    threshold = cfg.DATALOADER.REPEAT_THRESHOLD
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, threshold)
    return factors.double().numpy()


def build_train_loader(cfg, seed: int | None = None, start: int = 0, mapper=None) -> PositionalLoader:
    """Build the loader of ``cfg.DATASETS.TRAIN``; each item is a list of samples for this rank.

    ``seed`` of order and augmentation is ``cfg.SEED`` by default, or a drawn one if that is -1; ``mapper``
    (record -> sample) is :func:`build_mapper`'s; ``start`` batches are skipped.

    Raises:
        UserError: no usable image, an unknown sampler, or SOLVER.IMS_PER_BATCH is not a multiple of the
            number of processes.
    """
    if seed is None:
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    names = [data_set_for(cfg, name) for name in cfg.DATASETS.TRAIN]
    dicts = _training_images(cfg, names)
    # Random crops of one size need no grouping, and listing them read no sizes.
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING and not holds_classes(names[0])
    shown = [name.removesuffix(SUFFIX) for name in names]  # labels aside, as log_ids says them
    logging.getLogger(__name__).info("Training on %s images of %s", f"{len(dicts):,}", shown)
    images, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if images < 1 or images % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {images}; expected a positive multiple of the {processes} processes"
        )
    sizes = [(d["width"], d["height"]) for d in dicts] if grouped else None
    own = seed, start, sizes, _repeats(cfg, dicts), comm.get_rank(), processes
    return PositionalLoader(
        MappedDataset(dicts, mapper or build_mapper(cfg, is_train=True), seed),
        batch_sampler=PositionalBatchSampler(len(dicts), images // processes, *own),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_no_collation,
        persistent_workers=False,
        # Opening the loader must not draw from the global generator: a resumed run opens it elsewhere.
        generator=torch.Generator(),
    )


def build_test_loader(cfg, dataset_name: str) -> torch.utils.data.DataLoader:
    """Build the loader of a data set to evaluate on: each process sees its share of the images once."""
    mapper = build_mapper(cfg, is_train=False)
    dataset_name = data_set_for(cfg, dataset_name)
    dicts = _records([dataset_name], filter_empty=False)
    sampler, workers = InferenceSampler(len(dicts)), cfg.DATALOADER.NUM_WORKERS
    if not holds_classes(dataset_name):
        return build_detection_test_loader(dicts, mapper=mapper, sampler=sampler, num_workers=workers)
    return torch.utils.data.DataLoader(
        MapDataset(DatasetFromList(dicts, copy=False), mapper),
        batch_size=TEST_BATCH,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_no_collation,
    )
