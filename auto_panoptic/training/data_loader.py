"""Training batches as a pure function of (seed, position): any resume continues with the exact next batch."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator

import numpy as np
import torch
from detectron2.data import get_detection_dataset_dicts
from detectron2.utils import comm

from ..data import PanopticMapper
from ..errors import UserError


class PositionalBatchSampler:
    """Endless batches of ``(position, index)`` pairs for this rank.

    The stream is ``shuffle(range(size)) + shuffle(range(size)) + ...``; rank r of R takes every R-th
    element from r on. With ``sizes``, a batch holds only landscape or only portrait images, so that
    padding is small. Batches depend on nothing but the arguments, hence ``start`` skips batches exactly.

    Args:
        size: number of images.
        batch_size: images per batch on this rank.
        seed: seed of the shuffles.
        start: batches to skip.
        sizes: (width, height) of each image to group by orientation, or None for no grouping.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, start: int = 0, sizes=None, rank=0, world_size=1
    ):
        self.size, self.batch_size, self.seed, self.start = size, batch_size, seed, start
        self.portrait = None if sizes is None else [height > width for width, height in sizes]
        self.rank, self.world_size = rank, world_size

    def _stream(self) -> Iterator[tuple[int, int]]:
        position = 0
        for epoch in itertools.count():
            for index in np.random.default_rng([self.seed, epoch]).permutation(self.size).tolist():
                if position % self.world_size == self.rank:
                    yield position, index
                position += 1

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        groups = ([], [])
        for position, index in self._stream():
            group = groups[0 if self.portrait is None else self.portrait[index]]
            group.append((position, index))
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()

    def __iter__(self):
        return itertools.islice(self._batches(), self.start, None)


class MappedDataset(torch.utils.data.Dataset):
    """``(position, index)`` -> mapped sample; its augmentation depends on (seed, position) only."""

    def __init__(self, dicts: list[dict], mapper, seed: int):
        self.dicts, self.mapper, self.seed = dicts, mapper, seed

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        sample = copy.deepcopy(self.dicts[index])
        sample["sample_seed"] = int(np.random.SeedSequence([self.seed, position]).generate_state(1)[0])
        return self.mapper(sample)


def _no_collation(batch: list) -> list:
    return batch


def build_train_loader(cfg, seed: int, start: int = 0, mapper=None) -> torch.utils.data.DataLoader:
    """Build the loader of ``cfg.DATASETS.TRAIN``; each item is a list of samples for this rank.

    Args:
        seed: order and augmentation of the samples.
        start: batches to skip, i.e. batches that a resumed run has already seen.

    Raises:
        UserError: no usable image, or SOLVER.IMS_PER_BATCH is not a multiple of the number of processes.
    """
    dicts = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    if not dicts:
        raise UserError(f"DATASETS.TRAIN {list(cfg.DATASETS.TRAIN)} holds no image with objects")
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; expected a positive multiple of the "
            f"{world_size} processes"
        )
    sizes = [(d["width"], d["height"]) for d in dicts] if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None
    sampler = PositionalBatchSampler(
        len(dicts), cfg.SOLVER.IMS_PER_BATCH // world_size, seed, start, sizes, comm.get_rank(), world_size
    )
    logging.getLogger(__name__).info("Training on %d images of %s", len(dicts), list(cfg.DATASETS.TRAIN))
    return torch.utils.data.DataLoader(
        MappedDataset(dicts, mapper or PanopticMapper(cfg, is_train=True), seed),
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_no_collation,
        persistent_workers=False,
        # Opening the loader must not draw from the global generator: a resumed run opens it elsewhere.
        generator=torch.Generator(),
    )
