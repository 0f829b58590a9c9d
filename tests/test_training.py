"""One iteration is one fair cycle: gradients, alignment, schedule, and resuming as if nothing was."""

import json

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn
from toy import TOY_NET, Scale, make_config, toy_space

from auto_panoptic.errors import UserError
from auto_panoptic.explore import fair_cycle
from auto_panoptic.modeling import ChoiceBlock, choice_blocks
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AutoPanopticTrainer, FairCycleTrainer, fair_trainer, model_space

ITERATIONS = 5
SCHEDULE = ("SOLVER.MAX_ITER", ITERATIONS, "SOLVER.WARMUP_ITERS", 2, "SOLVER.STEPS", (4,))


# ------------------------------------------------------------------ gradients, with losses known by hand


class Additive(nn.Module):
    """loss(c) = c * (shared + the active weight of every site): a pass adds c to each gradient it touches."""

    def __init__(self, space):
        super().__init__()
        self.shared = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.blocks = nn.ModuleList(
            ChoiceBlock(site.name, {name: Scale(0).double() for name in site.names}) for site in space.sites
        )

    def forward(self, value):
        value = torch.tensor(float(value), dtype=torch.float64)
        return {"loss": value * self.shared + sum(block(value) for block in self.blocks)}


def run_cycles(model, losses, cycles, **options):
    """Train with SGD and learning rate 1 on batches that are the numbers ``losses``."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=options.pop("momentum", 0.0))
    trainer = FairCycleTrainer(model, lambda start: losses[start:], optimizer, **options)
    with EventStorage():
        for trainer.iter, cycle in enumerate(cycles):
            trainer.cycle = cycle
            trainer.run_step()
    return trainer


def summed_losses(space, cycle, losses):
    """By hand: the losses of the passes that use each operator of each site."""
    sums = {(site.name, name): 0.0 for site in space.sites for name in site.names}
    for architecture, loss in zip(cycle, losses, strict=True):
        for place in architecture.names().items():
            sums[place] += loss
    return sums


LOSSES = [float(x) for x in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8)]
PASSES = {"backbone": 3, "mask": 2, "attention": 4}


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_gradients_are_divided_by_the_passes_that_made_them(mode):
    """Shared: sum / 12; backbone path: its sum / 3; head path: / 2; attention path: / 4. "sum": nothing."""
    space = toy_space(backbone=3, head=2, inter=2)
    model, cycle = Additive(space), fair_cycle(space, seed=3, cycle=0)
    run_cycles(model, LOSSES, [cycle], gradients=mode)
    assert -model.shared.item() == pytest.approx(52 / 12 if mode == "mean" else 52, rel=1e-12)
    sums = summed_losses(space, cycle, LOSSES)
    assert len(set(sums.values())) > 10  # the paths really got different gradients
    for site, block in choice_blocks(model).items():
        for name, candidate in block.candidates.items():
            divisor = PASSES[site.partition(".")[0]] if mode == "mean" else 1
            assert -candidate.weight.item() == pytest.approx(sums[site, name] / divisor, rel=1e-12)


def test_gradients_start_from_zero_in_every_cycle():
    space = toy_space()
    model = Additive(space)
    cycles = [fair_cycle(space, 0, i) for i in range(2)]
    run_cycles(model, LOSSES + [0.0] * 12, cycles)
    assert -model.shared.item() == pytest.approx(52 / 12, rel=1e-12)


def test_a_fixed_model_is_plain_sgd():
    """One operator per site: the cycle has one pass, and the weights are those of a hand-written SGD loop."""

    def network():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 4), ChoiceBlock("backbone.0", {"shuffle_3x3": nn.Linear(4, 4)}), nn.Linear(4, 1)
        )

    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, batch):
            return {"a": self.net(batch).square().mean(), "b": self.net(batch).mean()}

    batches = list(torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(1)))
    model, plain = Regression(), network()
    space = model_space(model)
    assert space.cycle_length == 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    trainer = FairCycleTrainer(model, lambda start: batches[start:], optimizer)
    with EventStorage():
        for trainer.iter in range(6):
            trainer.cycle = fair_cycle(space, 0, trainer.iter)
            trainer.run_step()

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for batch in batches:
        optimizer.zero_grad()
        (plain(batch).square().mean() + plain(batch).mean()).backward()
        optimizer.step()
    for ours, theirs in zip(model.net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_the_space_is_read_from_the_model():
    space = toy_space(2, 2, 3)
    assert model_space(Additive(space)) == space


def test_losses_that_are_no_numbers_stop_before_the_step():
    space = toy_space()
    model = Additive(space)
    with pytest.raises(FloatingPointError, match="iteration 0"):
        run_cycles(model, [*LOSSES[:7], float("nan"), *LOSSES[8:]], [fair_cycle(space, 0, 0)])
    assert all(parameter.item() == 0 for parameter in model.parameters())


def test_unknown_gradient_mode_is_named():
    with pytest.raises(UserError, match="NAS.GRADIENTS is 'median'; expected one of"):
        FairCycleTrainer(Additive(toy_space()), lambda start: [], None, gradients="median")


# ------------------------------------------------------------------ a whole run of the trainer


class Recorder:
    """What a run did: the batch and path of every pass, every optimizer step and its learning rate."""

    def __init__(self, monkeypatch, trainer):
        self.events = []
        self.uses = {}
        apply_architecture, batch = fair_trainer.apply_architecture, FairCycleTrainer.batch

        def record_path(model, architecture):
            self.events.append(("pass", architecture.choices))
            apply_architecture(model, architecture)

        def record_batch(trainer, number):
            self.events.append(("batch", number))
            return batch(trainer, number)

        def record_step(optimizer, *_):
            self.events.append(("step", [group["lr"] for group in optimizer.param_groups]))

        monkeypatch.setattr(fair_trainer, "apply_architecture", record_path)
        monkeypatch.setattr(FairCycleTrainer, "batch", record_batch)
        trainer.optimizer.register_step_pre_hook(record_step)
        for site, block in choice_blocks(trainer.model).items():
            for name, candidate in block.candidates.items():
                self.uses[site, name] = 0
                candidate.register_forward_hook(lambda *_, key=(site, name): self._used(key))

    def _used(self, key):
        self.uses[key] += 1

    def of(self, kind):
        return [value for what, value in self.events if what == kind]


def make_trainer(folder, shapes, *options, resume=False):
    cfg = make_config(folder, shapes, *TOY_NET, *SCHEDULE, *options)
    (folder / "output").mkdir(exist_ok=True)
    torch.manual_seed(0)
    trainer = AutoPanopticTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


class Killed(Exception):
    pass


def kill_in_pass(monkeypatch, trainer, number):
    """Make the run die in its ``number``-th pass, counted from the start of the schedule."""
    batch = trainer._trainer.batch

    def dying(n):
        if n == number:
            raise Killed
        return batch(n)

    monkeypatch.setattr(trainer._trainer, "batch", dying)
    with pytest.raises(Killed):
        trainer.train()


def expected_events(space):
    """Each step is preceded by rows 0..11 of one fair cycle, on the batches in their order."""
    events = []
    for iteration in range(ITERATIONS):
        for row, architecture in enumerate(fair_cycle(space, 0, iteration)):
            events += [("batch", 12 * iteration + row), ("pass", architecture.choices)]
        events.append("step")
    return events


def without_rates(events):
    return ["step" if event[0] == "step" else event for event in events]


# Warm-up over two iterations from a tenth of the rate, then a tenth of it from iteration 4 on.
RATES = [0.001, 0.0055, 0.01, 0.01, 0.001]


def test_every_step_consumes_exactly_one_fair_cycle(tmp_path, shapes, monkeypatch):
    trainer = make_trainer(tmp_path, shapes)
    recorder = Recorder(monkeypatch, trainer)
    space = trainer._trainer.space
    trainer.train()
    assert without_rates(recorder.events) == expected_events(space)
    # Activation counts: 12 N / P.
    images = trainer.cfg.SOLVER.IMS_PER_BATCH
    assert recorder.uses == {
        (site.name, name): images * 12 * ITERATIONS // len(site.ops)
        for site in space.sites
        for name in site.names
    }
    # The schedule moves once per iteration, not once per pass.
    steps = recorder.of("step")
    assert all(set(rates) == {rates[0]} for rates in steps)
    assert [rates[0] for rates in steps] == pytest.approx(RATES, rel=1e-9)


def test_metrics_report_the_mean_of_the_passes(tmp_path, shapes, monkeypatch):
    trainer = make_trainer(tmp_path, shapes, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    seen = []
    forward = trainer.model.forward

    def recording(batch):
        losses = forward(batch)
        seen.append({name: float(value.detach()) for name, value in losses.items()})
        return losses

    monkeypatch.setattr(trainer.model, "forward", recording)
    trainer.train()
    (line,) = map(json.loads, (tmp_path / "output/metrics.json").read_text().splitlines())
    for name in ("loss_fit", "loss_noise"):
        assert line[name] == pytest.approx(sum(losses[name] for losses in seen) / 12, rel=1e-5)
    assert line["total_loss"] == pytest.approx(line["loss_fit"] + line["loss_noise"], rel=1e-6)
    assert line["passes"] == 12


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, shapes):
    """The final checkpoint and the losses of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    make_trainer(folder, shapes).train()
    return torch.load(folder / "output/model_final.pth", weights_only=True)


def assert_same_state(ours, theirs):
    """Equal to the last bit, through all nested containers."""
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same_state(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same_state(a, b)
    else:
        assert ours == theirs


@pytest.mark.parametrize("period, kill", [(1, 12 + 5), (2, 3 * 12 + 1), (3, 4 * 12 + 11)])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, shapes, monkeypatch, uninterrupted, period, kill):
    """Weights, statistics, momentum and schedule; and the cycles after the resume are aligned again."""
    options = ("SOLVER.CHECKPOINT_PERIOD", period)
    first = make_trainer(tmp_path, shapes, *options)
    kill_in_pass(monkeypatch, first, kill)
    torch.manual_seed(12345)  # a new process starts with another generator
    second = make_trainer(tmp_path, shapes, *options, resume=True)
    done = kill // 12 // period * period
    assert second.start_iter == done
    recorder = Recorder(monkeypatch, second)
    second.train()
    assert without_rates(recorder.events) == expected_events(second._trainer.space)[25 * done :]
    assert [rates[0] for rates in recorder.of("step")] == pytest.approx(RATES[done:], rel=1e-9)
    assert_same_state(torch.load(tmp_path / "output/model_final.pth", weights_only=True), uninterrupted)


def test_killed_before_the_first_checkpoint_starts_anew(tmp_path, shapes, monkeypatch, uninterrupted):
    kill_in_pass(monkeypatch, make_trainer(tmp_path, shapes), 30)
    second = make_trainer(tmp_path, shapes, resume=True)
    assert second.start_iter == 0
    second.train()
    assert_same_state(torch.load(tmp_path / "output/model_final.pth", weights_only=True), uninterrupted)


def test_without_resume_old_checkpoints_are_ignored(tmp_path, shapes):
    make_trainer(tmp_path, shapes).train()
    again = make_trainer(tmp_path, shapes, resume=False)
    assert again.start_iter == 0
    torch.manual_seed(0)
    fresh = AutoPanopticTrainer.build_model(again.cfg)
    assert_same_state(again.model.state_dict(), fresh.state_dict())


def test_a_finished_run_can_be_resumed_for_longer(tmp_path, shapes, uninterrupted):
    """Stopping after iteration 3 of a schedule and going on is the same as never stopping."""
    make_trainer(tmp_path, shapes, "SOLVER.MAX_ITER", 3).train()
    longer = make_trainer(tmp_path, shapes, resume=True)
    assert longer.start_iter == 3
    longer.train()
    assert_same_state(torch.load(tmp_path / "output/model_final.pth", weights_only=True), uninterrupted)


def test_the_panoptic_supernet_resumes_bit_for_bit(tmp_path, shapes, monkeypatch):
    """The same with the real model: sampled proposals and augmentation continue, too."""
    options = ("MODEL.META_ARCHITECTURE", "AutoPanopticFPN", "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ())
    options += ("SOLVER.CHECKPOINT_PERIOD", 1)
    final = []
    for name, kill in (("straight", None), ("killed", 12 + 7)):
        folder = tmp_path / name
        folder.mkdir()
        trainer = make_trainer(folder, shapes, *options)
        if kill is None:
            trainer.train()
        else:
            kill_in_pass(monkeypatch, trainer, kill)
            torch.manual_seed(777)
            make_trainer(folder, shapes, *options, resume=True).train()
        final.append(torch.load(folder / "output/model_final.pth", weights_only=True))
    assert_same_state(*final)


def test_other_seeds_train_other_weights(tmp_path, shapes, uninterrupted):
    """The comparisons above would notice: another seed of the data or of the cycles changes the weights."""
    for number, option in enumerate((("SEED", 1), ("NAS.SEED", 1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        make_trainer(folder, shapes, *option).train()
        other = torch.load(folder / "output/model_final.pth", weights_only=True)["model"]
        assert not torch.equal(other["stem.weight"], uninterrupted["model"]["stem.weight"])


def test_mixed_precision_is_refused(tmp_path, shapes):
    with pytest.raises(UserError, match="SOLVER.AMP.ENABLED is True"):
        AutoPanopticTrainer(make_config(tmp_path, shapes, *TOY_NET, "SOLVER.AMP.ENABLED", True))


def test_a_supernet_is_not_evaluated_but_a_fixed_model_is(tmp_path, shapes):
    names = [type(hook).__name__ for hook in make_trainer(tmp_path, shapes)._hooks]
    assert "EvalHook" not in names and names[0] == "FairSamplingHook"
    cfg = make_config(tmp_path, shapes, *TOY_NET)
    path = tmp_path / "architecture.json"
    space = SearchSpace.from_config(cfg)
    space.architecture([0] * len(space.sites)).save(path)
    fixed = make_trainer(tmp_path, shapes, "NAS.ARCHITECTURE", path)
    assert not fixed.is_supernet
    assert "EvalHook" in [type(hook).__name__ for hook in fixed._hooks]
