"""What the optimizer sees of a cycle: means, sums, divided learning rates, the reference code's biases."""

import pytest
import torch
from modeling_util import make_cfg, make_model
from torch import nn
from toy import Scale, toy_space
from training_util import LOSSES, PASSES, Additive, run_cycles, summed_losses

from auto_panoptic.errors import Diverged, UserError
from auto_panoptic.explore import fair_cycle
from auto_panoptic.modeling import ChoiceBlock, choice_blocks
from auto_panoptic.training import FairCycleTrainer, build_optimizer, model_space
from auto_panoptic.training.gradients import passes_by_parameter


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


def solver(mode, momentum=0.0, weight_decay=0.0, **options):
    """A config whose optimizer takes steps of 1 in gradient mode ``mode``."""
    cfg = make_cfg("NAS.GRADIENTS", mode, "SOLVER.BASE_LR", 1.0, small=False)
    cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = momentum, weight_decay
    cfg.SOLVER.update(options)
    return cfg


def train_additive(mode, **options):
    """Three cycles with other losses each; the weights after each."""
    space = toy_space(backbone=3, head=2, inter=2)
    model = Additive(space)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    optimizer = build_optimizer(solver(mode, **options), model)
    cycles = [fair_cycle(space, 0, i) for i in range(3)]
    run_cycles(model, LOSSES + LOSSES[::-1] + LOSSES, cycles, optimizer=optimizer, gradients=mode)
    return torch.stack([parameter.detach() for parameter in model.parameters()])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_divided_learning_rates_step_like_mean_gradients(momentum):
    """Both are linear in the gradient; momentum holds gradients, which both modes scale alike in the step."""
    mean, scaled = (train_additive(mode, momentum=momentum) for mode in ("mean", "lr_scale"))
    torch.testing.assert_close(scaled, mean, rtol=1e-12, atol=1e-12)
    assert (mean - train_additive("sum", momentum=momentum)).abs().min() > 1


def test_divided_learning_rates_divide_the_weight_decay_too():
    """Decay of 0.1 at a gradient of 0: the shared weight shrinks by 0.1 with mean, by 0.1 / 12 otherwise."""
    for mode, rate in (("mean", 1.0), ("lr_scale", 1 / 12)):
        space = toy_space()
        model = Additive(space)
        nn.init.ones_(model.shared)
        optimizer = build_optimizer(solver(mode, weight_decay=0.1), model)
        run_cycles(model, [0.0] * 12, [fair_cycle(space, 0, 0)], optimizer=optimizer, gradients=mode)
        assert model.shared.item() == pytest.approx(1 - 0.1 * rate, rel=1e-12)


# ------------------------------------------------------------------ parameter groups of the real model

BIAS_LR, DECAY = 0.04, 1e-4
RATES = {"backbone": 0.02 / 3, "mask": 0.01, "sem_seg": 0.01, "attention": 0.005}


@pytest.fixture(scope="module")
def supernet():
    return make_model(make_cfg())


def settings_by_name(optimizer, model):
    """{parameter name: (learning rate, weight decay)}."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def expected_rates(model):
    rates = {name: 0.02 / 12 for name, _ in model.named_parameters()}
    ids = {parameter: name for name, parameter in model.named_parameters()}
    for site, block in choice_blocks(model).items():
        for parameter in block.candidates.parameters():
            rates[ids[parameter]] = RATES[site.partition(".")[0]]
    return rates


def norm_weights(model):
    kinds = (nn.BatchNorm2d, nn.GroupNorm)
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("reference_bias", [False, True])
@pytest.mark.parametrize("norm_decay", [0.0, 1e-4])
def test_reference_learning_rates(supernet, reference_bias, norm_decay):
    """Base 0.02: 0.0066667 backbone paths, 0.01 head, 0.005 attention, 0.0016667 shared; biases 0.04."""
    options = ("NAS.GRADIENTS", "lr_scale", "NAS.REFERENCE_BIAS_LR", reference_bias)
    cfg = make_cfg(*options, "SOLVER.WEIGHT_DECAY_NORM", norm_decay)
    found = settings_by_name(build_optimizer(cfg, supernet), supernet)
    rates, norms = expected_rates(supernet), norm_weights(supernet)
    assert found.keys() == rates.keys()
    assert {round(rate, 7) for rate in rates.values()} == {0.0066667, 0.01, 0.005, 0.0016667}
    norm_biases = {name.replace("weight", "bias") for name in norms}
    assert len(norms) > 50 and norm_biases < found.keys()
    for name, (rate, decay) in found.items():
        if reference_bias and "bias" in name:
            assert (rate, decay) == (BIAS_LR, 0)
        else:
            assert rate == pytest.approx(rates[name], rel=1e-12)
            assert decay == (norm_decay if name in norms | norm_biases else DECAY)


def test_reference_biases_with_mean_gradients(supernet):
    cfg = make_cfg("NAS.REFERENCE_BIAS_LR", True)
    for name, (rate, _) in settings_by_name(build_optimizer(cfg, supernet), supernet).items():
        assert rate == (0.04 if "bias" in name else 0.02)


def test_passes_of_a_cycle_by_parameter(supernet):
    passes = passes_by_parameter(supernet, model_space(supernet).cycle_length)
    rates = expected_rates(supernet)
    for name, parameter in supernet.named_parameters():
        assert passes[parameter] == round(0.02 / rates[name])


def test_uniform_sampling_divides_nothing(supernet):
    """One pass per step: no gradient is a sum of several."""
    cfg = make_cfg("NAS.GRADIENTS", "lr_scale", "NAS.SAMPLING", "uniform")
    found = settings_by_name(build_optimizer(cfg, supernet), supernet)
    assert {rate for rate, _ in found.values()} == {0.02}


@pytest.mark.parametrize("mode", ["mean", "lr_scale"])
def test_gradient_clipping_stays(mode):
    cfg = solver(mode, momentum=0.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.25
    space = toy_space()
    model = Additive(space)
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD)
    cycle = fair_cycle(space, 0, 0)
    run_cycles(model, LOSSES, [cycle], optimizer=optimizer, gradients=mode)
    assert -model.shared.item() == pytest.approx(0.25 if mode == "mean" else 0.25 / 12, rel=1e-12)


# ------------------------------------------------------------------ fixed models and mistakes


@pytest.mark.parametrize("with_block", [True, False])
def test_a_model_without_choice_is_plain_sgd(with_block):
    """One operator per site, or no site: one pass per cycle, and the weights of a hand-written SGD loop."""

    def network():
        torch.manual_seed(0)
        middle = nn.Linear(4, 4)
        if with_block:
            middle = ChoiceBlock("backbone.0", {"shuffle_3x3": middle})
        return nn.Sequential(nn.Linear(4, 4), middle, nn.Linear(4, 1))

    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, batch):
            return {"a": self.net(batch).square().mean(), "b": self.net(batch).mean()}

    batches = list(torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(1)))
    model, plain = Regression(), network()
    space = model_space(model)
    assert space.cycle_length == 1 and len(space.sites) == with_block
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    run_cycles(model, batches, [fair_cycle(space, 0, i) for i in range(6)], optimizer=optimizer)

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for batch in batches:
        optimizer.zero_grad()
        (plain(batch).square().mean() + plain(batch).mean()).backward()
        optimizer.step()
    for ours, theirs in zip(model.net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_clipping_where_a_path_leaves_no_gradient(kind):
    cfg = solver("mean", momentum=0.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = True, kind
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.25
    model = nn.ModuleList([Scale(1.0), Scale(1.0)])
    optimizer = build_optimizer(cfg, model)
    (8 * model[0](torch.ones(()))).backward()
    optimizer.step()
    assert model[0].weight.item() == pytest.approx(0.75, abs=1e-3) and model[1].weight.item() == 1


@pytest.mark.parametrize("norm", [1.0, 2.0, float("inf")])
def test_clipping_by_norm_is_that_of_torch_to_the_last_bit(norm):
    cfg = solver("mean", momentum=0.0)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE = True, "norm", 2.0, norm
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 4), nn.Conv2d(8, 8, 3), nn.Linear(50, 50)])
    gradients = {
        p: torch.randn(p.shape) * s for p, s in zip(model.parameters(), [1, 0.1, 2, 9, 0.01, 1], strict=True)
    }
    expected = []
    for parameter, gradient in gradients.items():
        parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(parameter, 2.0, norm)
        expected.append(parameter.grad)
        parameter.grad = gradient.clone()
    build_optimizer(cfg, model).step()
    changed = [not torch.equal(p.grad, gradients[p]) for p in model.parameters()]
    assert any(changed) and not all(changed)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_the_space_is_read_from_the_model():
    space = toy_space(2, 2, 3)
    assert model_space(Additive(space)) == space


def test_losses_that_are_no_numbers_stop_before_the_step():
    space = toy_space()
    model = Additive(space)
    with pytest.raises(Diverged, match="iteration 0: losses loss nan in pass 8 of 12 .*no step was taken"):
        run_cycles(model, [*LOSSES[:7], float("nan"), *LOSSES[8:]], [fair_cycle(space, 0, 0)])
    assert all(parameter.item() == 0 for parameter in model.parameters())


def test_unknown_modes_are_named():
    with pytest.raises(UserError, match="NAS.GRADIENTS is 'median'; expected one of"):
        FairCycleTrainer(Additive(toy_space()), [], None, gradients="median")
    with pytest.raises(UserError, match="NAS.SAMPLING is 'greedy'; expected one of"):
        FairCycleTrainer(Additive(toy_space()), [], None, sampling="greedy")
