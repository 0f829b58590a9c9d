"""Training batches are a pure function of (seed, position), whatever the workers, processes and resumes."""

import itertools

import numpy as np
import pytest
import torch
from toy import make_config

from auto_panoptic.errors import UserError
from auto_panoptic.training import build_train_loader
from auto_panoptic.training.loader import PositionalBatchSampler


def take(sampler, n):
    return list(itertools.islice(sampler, n))


def indices(batches):
    return [[index for _, index in batch] for batch in batches]


# ------------------------------------------------------------------ the sampler


def test_stream_is_one_shuffle_after_the_other():
    batches = take(PositionalBatchSampler(10, 4, seed=7), 10)  # 40 elements: four epochs
    flat = [element for batch in batches for element in batch]
    assert [position for position, _ in flat] == list(range(40))
    epochs = [[index for _, index in flat[i : i + 10]] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    expected = [np.random.default_rng([7, epoch]).permutation(10).tolist() for epoch in range(4)]
    assert epochs == expected


def test_seeds_differ():
    assert take(PositionalBatchSampler(50, 4, seed=1), 5) != take(PositionalBatchSampler(50, 4, seed=2), 5)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("start", [1, 4, 13])
def test_start_skips_exactly_that_many_batches(start, grouped):
    sizes = [(10, 20 - (i % 3) * 7) for i in range(11)] if grouped else None
    whole = take(PositionalBatchSampler(11, 3, seed=5, sizes=sizes), 30)
    assert take(PositionalBatchSampler(11, 3, seed=5, start=start, sizes=sizes), 30 - start) == whole[start:]


def test_iterating_twice_gives_the_same():
    sampler = PositionalBatchSampler(9, 2, seed=0, start=2)
    assert take(sampler, 6) == take(sampler, 6)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_processes_share_out_the_batches_of_one(world_size):
    """Batch b of all processes together is batch b of a single process with the same total batch size."""
    single = take(PositionalBatchSampler(13, 4 * world_size, seed=3), 12)
    parts = [
        take(PositionalBatchSampler(13, 4, seed=3, rank=rank, world_size=world_size), 12)
        for rank in range(world_size)
    ]
    for number, batch in enumerate(single):
        assert sorted(sum((part[number] for part in parts), [])) == batch


def test_orientations_never_mix():
    portrait = [i % 3 == 0 for i in range(17)]
    sizes = [(10, 20) if p else (20, 10) for p in portrait]
    sizes[1] = (15, 15)  # a square counts as landscape
    for rank in range(2):
        batches = take(PositionalBatchSampler(17, 3, 11, sizes=sizes, rank=rank, world_size=2), 40)
        assert all(len({portrait[index] for index in batch}) == 1 for batch in indices(batches))
        assert {portrait[batch[0]] for batch in indices(batches)} == {False, True}
        positions = [position for batch in batches for position, _ in batch]
        assert len(set(positions)) == len(positions)
        assert {position % 2 for position in positions} == {rank}


def test_grouping_loses_no_image():
    """An image waits until its group fills a batch; none is dropped."""
    sizes = [(10, 20)] * 3 + [(20, 10)] * 10
    batches = take(PositionalBatchSampler(13, 4, 0, sizes=sizes), 200)
    counts = np.bincount(sum(indices(batches), []))
    assert counts.max() - counts.min() <= 4 and len(counts) == 13


# ------------------------------------------------------------------ the loader


@pytest.fixture
def cfg(tmp_path, shapes):
    return make_config(tmp_path, shapes)


def load(cfg, n, **arguments):
    return take(build_train_loader(cfg, **{"seed": 4, **arguments}), n)


def assert_same_batches(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert [x["image_id"] for x in a] == [x["image_id"] for x in b]
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x["image"], y["image"], rtol=0, atol=0)
            torch.testing.assert_close(x["sem_seg"], y["sem_seg"], rtol=0, atol=0)
            boxes = (x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
            torch.testing.assert_close(*boxes, rtol=0, atol=0)


def with_options(cfg, *options):
    cfg = cfg.clone()
    cfg.merge_from_list(list(options))
    return cfg


@pytest.fixture(scope="module")
def batches(tmp_path_factory, shapes):
    """The first ten batches: more than one epoch of the 14 images."""
    return load(make_config(tmp_path_factory.mktemp("cfg"), shapes), 10)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(cfg, batches, workers):
    assert_same_batches(load(with_options(cfg, "DATALOADER.NUM_WORKERS", workers), 10), batches)


def test_batches_are_augmented_differently_each_time(batches):
    """The comparisons are not between constants: both sizes occur, and an image looks different later."""
    assert {min(x["image"].shape[1:]) for batch in batches for x in batch} == {48, 64}
    seen = {}
    for x in sum(batches, []):
        seen.setdefault(x["image_id"], []).append(x["image"])
    assert any(len(v) > 1 and not torch.equal(v[0], v[1]) for v in seen.values())


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_later_continues_exactly(cfg, batches, workers):
    np.random.seed(99)
    torch.manual_seed(99)
    resumed = load(with_options(cfg, "DATALOADER.NUM_WORKERS", workers), 6, start=4)
    assert_same_batches(resumed, batches[4:])


def test_opening_the_loader_leaves_the_global_generators_alone(cfg):
    """A resumed run opens it at another moment; what the model draws afterwards must not depend on that."""
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    load(cfg, 2)
    torch.testing.assert_close(torch.rand(3), expected[0], rtol=0, atol=0)
    assert np.random.rand(3).tolist() == expected[1].tolist()


def test_two_processes_see_what_one_would(cfg, monkeypatch):
    from auto_panoptic.training import loader as data_loader

    options = ("DATALOADER.ASPECT_RATIO_GROUPING", False, "SOLVER.IMS_PER_BATCH", 4)
    cfg = with_options(cfg, *options)
    single = load(cfg, 5)
    monkeypatch.setattr(data_loader.comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(data_loader.comm, "get_rank", lambda rank=rank: rank)
        parts.append(load(cfg, 5))
        assert all(len(batch) == 2 for batch in parts[-1])
    together = [[x for pair in zip(*pairs, strict=True) for x in pair] for pairs in zip(*parts, strict=True)]
    assert_same_batches(together, single)


@pytest.mark.parametrize("images", [0, 3])
def test_batch_size_must_suit_the_processes(cfg, monkeypatch, images):
    from auto_panoptic.training import loader as data_loader

    monkeypatch.setattr(data_loader.comm, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match=f"SOLVER.IMS_PER_BATCH is {images}; .*multiple of the 2 processes"):
        build_train_loader(with_options(cfg, "SOLVER.IMS_PER_BATCH", images), seed=0)
