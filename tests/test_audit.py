"""The count of what ran: exact over a million passes and across kills; what is wrong is noticed."""

import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import TOY_NET, make_config, toy_space

from auto_panoptic.errors import UserError
from auto_panoptic.explore import cycle_indices, uniform_path
from auto_panoptic.modeling import choice_blocks
from auto_panoptic.space import ChoiceSite, SearchSpace
from auto_panoptic.training import AutoPanopticTrainer
from auto_panoptic.training.hooks import PassCounter

SPACE = SearchSpace.default()
SIZES = np.array([len(site.ops) for site in SPACE.sites])


def reloaded(counter):
    """A new counter with the state of ``counter``, as a checkpoint carries it."""
    other = PassCounter(counter.space, counter.sampling)
    other.load_state_dict(counter.state_dict())
    return other


def test_a_million_passes_of_the_default_space_are_strictly_fair():
    """1000008 passes, killed 100 times at a random pass and resumed from the last of irregular checkpoints.

    At every cycle boundary each of the 40 * 4 + 7 * 6 + 9 * 3 operators has run exactly 12 N / P times.
    """
    cycles, rng = 83334, np.random.default_rng(0)
    kills = {int(k): int(rng.integers(0, 12)) for k in rng.choice(cycles, 100, replace=False)}
    counter = PassCounter(SPACE)
    saved, done, next_save, passes_run = counter.state_dict(), 0, 50, 0
    while done < cycles:
        drawn = cycle_indices(SPACE, 0, done)
        if done in kills:
            passes = kills.pop(done)
            counter.add(drawn[:passes])  # they ran, but their step never came
            passes_run += passes
            counter = PassCounter(SPACE)
            counter.load_state_dict(saved)
            done = counter.passes // 12
            continue
        counter.add(drawn)
        passes_run += 12
        done += 1
        counter.check(done)
        if done == next_save:
            saved, next_save = counter.state_dict(), done + int(rng.integers(1, 200))
    assert not kills and passes_run > counter.passes == 12 * cycles >= 10**6
    for row, size in zip(counter.counts, SIZES, strict=True):
        assert row.tolist() == [12 * cycles // size] * size + [0] * (6 - size)


def test_counts_are_those_of_a_plain_loop():
    """Pass by pass, or all at once."""
    drawn = np.concatenate([cycle_indices(SPACE, 1, cycle) for cycle in range(3)])[:31]
    expected = np.zeros((56, 6), dtype=int)
    for row in drawn:
        for site, index in enumerate(row):
            expected[site, index] += 1
    at_once, one_by_one = PassCounter(SPACE), PassCounter(SPACE)
    at_once.add(drawn)
    for row in drawn:
        one_by_one.add(row.tolist())
    for counter in (at_once, one_by_one, reloaded(one_by_one)):
        assert counter.counts.tolist() == expected.tolist() and counter.passes == 31


def test_an_unfair_pass_is_named():
    counter = PassCounter(SPACE)
    drawn = cycle_indices(SPACE, 0, 0).copy()
    drawn[4, 3] = (drawn[4, 3] + 1) % 4
    counter.add(drawn)
    name = SPACE.sites[3].names[min(np.flatnonzero(counter.counts[3, :4] != 3))]
    message = f"by the end of iteration 0 the operator '{name}' of site 'backbone.3' was active [24] times, "
    with pytest.raises(RuntimeError, match=message + r"expected 3 \(2 operators differ\)"):
        counter.check(1)


@pytest.mark.parametrize("passes", [11, 13, 24])
def test_missing_and_repeated_passes_are_noticed(passes):
    counter = PassCounter(SPACE)
    counter.add(np.concatenate([cycle_indices(SPACE, 0, 0), cycle_indices(SPACE, 0, 1)])[:passes])
    with pytest.raises(RuntimeError, match=f"{passes} passes ran by the end of iteration 0, expected 12"):
        counter.check(1)


def test_uniform_paths_are_counted_but_promise_no_shares():
    counter = PassCounter(SPACE, "uniform")
    for iteration in range(40):
        names = uniform_path(SPACE, 0, iteration).choices
        counter.add([site.index(name) for site, name in zip(SPACE.sites, names, strict=True)])
        counter.check(iteration + 1)
    summary = counter.summary()
    assert 0 <= summary["fairness/backbone_least"] < 1 < summary["fairness/backbone_most"]
    with pytest.raises(RuntimeError, match="40 passes"):
        counter.check(41)


def test_shares_by_hand():
    """Two sites with 2 and 3 operators after 6 passes: expected are 3 and 2 activations."""
    head = ChoiceSite("mask.0", ("dwconv_3x3", "dwconv_5x5"))
    counter = PassCounter(SearchSpace((head, ChoiceSite("attention.f2b.0", ("r4", "r8", "r16")))))
    counter.add([[0, 0], [0, 0], [0, 0], [0, 0], [1, 1], [0, 2]])
    assert counter.summary() == {
        "fairness/head_least": 1 / 3,
        "fairness/head_most": 5 / 3,
        "fairness/inter_least": 1 / 2,
        "fairness/inter_most": 2,
    }


def test_counts_of_another_space_are_refused():
    with pytest.raises(UserError, match="another search space"):
        PassCounter(toy_space()).load_state_dict(PassCounter(SPACE).state_dict())


def test_after_another_sampling_counting_begins_anew():
    uniform = PassCounter(SPACE, "uniform")
    uniform.add([0] * 56)
    fair = PassCounter(SPACE, "fair")
    fair.load_state_dict(uniform.state_dict())
    assert fair.passes == 0 and fair.since is None and not fair.counts.any()


def test_without_a_site_there_is_nothing_to_count():
    counter = PassCounter(SearchSpace(()))
    counter.add([])
    counter.check(1)
    assert counter.passes == 1 and counter.summary() == {}


# ------------------------------------------------------------------ in the trainer


def make_trainer(folder, shapes, *options, resume=False):
    options += ("SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0)
    (folder / "output").mkdir(exist_ok=True)
    trainer = AutoPanopticTrainer(make_config(folder, shapes, *TOY_NET, *options))
    trainer.resume_or_load(resume=resume)
    return trainer


def lines(folder):
    found = {}
    for line in map(json.loads, (folder / "output/metrics.json").read_text().splitlines()):
        found.setdefault(line["iteration"], {}).update(line)
    return found


FAIR = {
    f"fairness/{group}_{end}": 1.0 for group in ("backbone", "head", "inter") for end in ("least", "most")
}


def test_the_audit_is_written_periodically_and_at_the_end(tmp_path, shapes):
    """Detectron2 writes metrics.json every 20 iterations and at the end, each time the newest values."""
    two = ("NAS.SPACE.BACKBONE_OPS", ["shuffle_3x3", "shuffle_5x5"], "MODEL.CROSS_ATTENTION.RATIOS", [4, 8])
    two += ("NAS.SPACE.HEAD_OPS", ["dwconv_3x3", "atconv_3x3"])
    trainer = make_trainer(tmp_path, shapes, *two, "SOLVER.MAX_ITER", 22, "NAS.AUDIT_PERIOD", 10)
    trainer.train()
    histories = trainer.storage.histories()
    for name in FAIR:
        assert histories[name].values() == [(1.0, 9), (1.0, 19), (1.0, 21)]
    audited = {k: {key: v for key, v in x.items() if "fairness" in key} for k, x in lines(tmp_path).items()}
    assert audited == {19: FAIR, 21: FAIR}
    assert [line["passes"] for line in lines(tmp_path).values()] == [40, 44]
    board = EventAccumulator(str(tmp_path / "output"), {"images": 0})
    board.Reload()
    assert [event.step for event in board.Images("fairness/passes")] == [9, 19, 21]
    assert {"total_loss", "lr", "passes", *FAIR} <= set(board.Tags()["scalars"])


def test_the_picture_of_the_counts_shows_an_unequal_row():
    """Cells of equal counts have one colour; in the second row the first operator ran twice as often."""
    counter = PassCounter(SearchSpace((ChoiceSite("a.0", ("r4", "r8")), ChoiceSite("a.1", ("r4", "r8")))))
    counter.add([[0, 0], [1, 0], [0, 1]] * 2 + [[1, 0], [1, 1]] * 1)
    assert counter.counts.tolist() == [[4, 4], [5, 3]]
    picture = counter.picture().permute(1, 2, 0).numpy()
    rows = [picture[start + 1] for start in (3, 21)]
    grounds = [{tuple(c) for c in row.tolist() if tuple(c) != (255, 255, 255)} for row in rows]
    assert [len(colours) for colours in grounds] == [1, 2] and grounds[0] < grounds[1]


def test_counts_go_on_after_a_resume(tmp_path, shapes):
    """And they are the operators that were active, not those that were planned."""
    make_trainer(tmp_path, shapes, "SOLVER.MAX_ITER", 2).train()
    trainer = make_trainer(tmp_path, shapes, "SOLVER.MAX_ITER", 4, resume=True)
    counter = trainer._trainer.counter
    assert counter.passes == 24 and trainer.start_iter == 2
    active = {site: [] for site in choice_blocks(trainer.model)}
    for site, block in choice_blocks(trainer.model).items():
        block.register_forward_hook(lambda block, *_, site=site: active[site].append(block.active))
    before = counter.counts.copy()
    trainer.train()
    images = trainer.cfg.SOLVER.IMS_PER_BATCH
    for site, row in zip(trainer._trainer.space.sites, counter.counts - before, strict=True):
        ran = [active[site.name].count(name) // images for name in site.names]
        assert ran == [24 // len(site.ops)] * len(site.ops) == row[: len(site.ops)].tolist()
    state = torch.load(tmp_path / "output/model_final.pth", weights_only=True)["trainer"]
    assert state["hooks"]["FairnessAudit"]["passes"] == 48
    assert lines(tmp_path)[3]["passes"] == 48 and lines(tmp_path)[3]["fairness/backbone_most"] == 1


def test_an_unfair_run_stops(tmp_path, shapes, monkeypatch):
    """A path that is switched behind the trainer's back."""
    trainer = make_trainer(tmp_path, shapes, "SOLVER.MAX_ITER", 3)
    forward, calls = trainer.model.forward, []

    def meddling(batch):
        calls.append(0)
        if len(calls) == 15:
            block = next(iter(choice_blocks(trainer.model).values()))
            block.select(next(name for name in block.candidates if name != block.active))
        return forward(batch)

    monkeypatch.setattr(trainer.model, "forward", meddling)
    with pytest.raises(RuntimeError, match="fairness audit: by the end of iteration 1 .*'backbone.0'"):
        trainer.train()
    assert trainer.iter == 1 and not (tmp_path / "output/model_final.pth").exists()


def test_uniform_sampling_trains_one_mini_batch_per_step(tmp_path, shapes):
    options = ("NAS.SAMPLING", "uniform", "SOLVER.MAX_ITER", 4, "NAS.SEED", 5)
    trainer = make_trainer(tmp_path, shapes, *options)
    assert trainer.is_supernet and trainer._trainer.space.cycle_length == 12
    ran, run_step = [], trainer._trainer.run_step

    def recording():
        run_step()
        ran.extend(trainer._trainer.cycle)

    trainer._trainer.run_step = recording
    untouched = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert ran == [uniform_path(trainer._trainer.space, 5, iteration) for iteration in range(4)]
    assert lines(tmp_path)[3]["passes"] == 4
    used = {(site, name) for architecture in ran for site, name in architecture.names().items()}
    for site, block in choice_blocks(trainer.model).items():
        for name, candidate in block.candidates.items():
            key = next(k for k, v in trainer.model.named_parameters() if v is candidate.weight)
            assert (candidate.weight != untouched[key]) == ((site, name) in used)


def test_detectron2s_own_panoptic_fpn_trains_through_the_same_loop(tmp_path, shapes):
    """A model without a choice block: one mini-batch per iteration, no audit line."""
    options = ("MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    options += ("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16)
    options += ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.RESNETS.DEPTH", 50)
    options += ("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")
    options += ("MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead", "SOLVER.MAX_ITER", 2, "DATASETS.TEST", ())
    options += ("SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0)
    (tmp_path / "output").mkdir()
    trainer = AutoPanopticTrainer(make_config(tmp_path, shapes, *options))
    trainer.resume_or_load(resume=False)
    assert not trainer.is_supernet and not trainer._trainer.space.sites
    before = trainer.model.proposal_generator.rpn_head.conv.weight.detach().clone()
    trainer.train()
    last = lines(tmp_path)[1]
    assert last["passes"] == 2 and not any("fairness" in key for key in last)
    assert not torch.equal(before, trainer.model.proposal_generator.rpn_head.conv.weight)
