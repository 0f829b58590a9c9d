"""16-bit passes, loss scaling and channels-last order: close to float32, and nothing else changes."""

import contextlib
import json
import logging

import pytest
import torch
from detectron2.layers import Conv2d
from detectron2.utils.events import EventStorage
from modeling_util import assert_same_outputs, inference, make_cfg, make_input, make_model
from torch import nn
from toy import TOY_NET, Scale, make_config, own_messages, toy_space
from training_util import LOSSES, Additive, run_cycles

from auto_panoptic.errors import UserError
from auto_panoptic.explore import fair_cycle
from auto_panoptic.modeling import apply_architecture
from auto_panoptic.modeling.layers.deform import deform_conv2d
from auto_panoptic.systems.panoptic_fpn.attention import upsampled_mean
from auto_panoptic.training import AutoPanopticTrainer, FairCycleTrainer, check_training, model_space
from auto_panoptic.training.precision import Precision, log_first_convolution, use_channels_last

BF16 = Precision("cpu", torch.bfloat16)
FP16 = Precision("cpu", torch.float16)


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "options, message",
    [
        (("SOLVER.AMP.ENABLED", True), "SOLVER.AMP.DTYPE is 'float16', which needs a GPU.*use 'bfloat16'"),
        (
            ("SOLVER.AMP.DTYPE", "float8"),
            "SOLVER.AMP.DTYPE is 'float8'; expected one of float16, bfloat16",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, shapes, options, message):
    with pytest.raises(UserError, match=message):
        check_training(make_config(tmp_path, shapes, *TOY_NET, *options))


def test_formats_by_config():
    def precision(*options, device="cpu"):
        cfg = make_cfg(*options, small=False)
        cfg.MODEL.DEVICE = device
        return Precision.from_config(cfg)

    enabled = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE")
    assert precision() == precision("SOLVER.AMP.DTYPE", "bfloat16") == Precision("cpu", None)
    assert precision(*enabled, "bfloat16") == BF16
    assert precision(*enabled, "float16", device="cuda:1") == Precision("cuda", torch.float16)
    assert not precision().scaler().is_enabled() and not BF16.scaler().is_enabled()
    assert FP16.scaler().is_enabled()


# ------------------------------------------------------------------ passes of the panoptic model


@pytest.fixture(scope="module")
def supernet():
    return make_model(make_cfg())


INPUTS = [make_input(seed=0), make_input(seed=1, boxes=())]


def losses_and_gradients(model, architecture, context, keys=None):
    """Losses of one pass, and the gradients of the sum of those named ``keys``."""
    apply_architecture(model.train(), architecture)
    model.zero_grad()
    torch.manual_seed(0)
    with EventStorage(), context:
        losses = model(INPUTS)
    sum(losses[key] for key in keys or losses).backward()
    return losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("row", [0, 1, 5])
def test_bfloat16_losses_are_float32_and_close(supernet, row):
    """bfloat16 has 8 bits: each product is off by up to 2^-9, the losses by a few times 2^-8 = 0.4 %.

    The box losses are left out: proposals that change places in the ranking change which are sampled.
    """
    architecture = fair_cycle(model_space(supernet), 0, 0)[row]
    exact, _ = losses_and_gradients(supernet, architecture, contextlib.nullcontext())
    half, gradients = losses_and_gradients(supernet, architecture, BF16.autocast())
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in half.values())
    for name in ("loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc", "loss_mask"):
        torch.testing.assert_close(half[name], exact[name], rtol=0.02, atol=1e-4)
    torch.testing.assert_close(half["loss_cls"], exact["loss_cls"], rtol=0.1, atol=0)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())


def test_bfloat16_gradients_point_the_same_way(supernet):
    """Of the losses that no choice of proposals comes between; at depth the errors of 8 bits add up."""
    architecture = fair_cycle(model_space(supernet), 0, 0)[0]
    keys = ("loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc")
    _, exact = losses_and_gradients(supernet, architecture, contextlib.nullcontext(), keys)
    _, half = losses_and_gradients(supernet, architecture, BF16.autocast(), keys)
    assert exact.keys() == half.keys()
    ours, theirs = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (half, exact))
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.9
    assert ours.norm() / theirs.norm() == pytest.approx(1, abs=0.1)
    assert not torch.equal(ours, theirs)


def test_a_deformable_convolution_samples_in_float32():
    """A float32 input with bfloat16 offsets, as autocast makes them: positions beyond 256 stay exact."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 3, 700, generator=generator)
    offset = torch.randint(-2, 3, (1, 18, 3, 700), generator=generator) * 0.5
    mask = torch.randint(0, 5, (1, 9, 3, 700), generator=generator) * 0.25
    weight = torch.randn(4, 2, 3, 3, generator=generator)
    exact = deform_conv2d(x, offset, weight, padding=1, mask=mask)
    with BF16.autocast():
        half = deform_conv2d(x, offset.bfloat16(), weight, padding=1, mask=mask.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=1e-5, atol=1e-5)


def test_the_attentions_averages_are_float32():
    """The weights of a 200 x 300 map are about 1 / 60000, where float16 has few digits."""
    x = torch.full((1, 3, 200, 300), 100.0) + torch.arange(3.0)[:, None, None]
    for precision in (BF16, FP16):
        with precision.autocast():
            mean = upsampled_mean(x, (400, 600))
            from_half = upsampled_mean(x.to(precision.dtype), (400, 600))
        torch.testing.assert_close(mean, upsampled_mean(x, (400, 600)), rtol=0, atol=0)
        assert from_half.dtype == torch.float32
        exact = upsampled_mean(x.to(precision.dtype).float(), (400, 600))
        torch.testing.assert_close(from_half, exact, rtol=0, atol=0)


# ------------------------------------------------------------------ whole runs


def make_trainer(folder, shapes, *options, resume=False):
    folder.mkdir(exist_ok=True)
    (folder / "output").mkdir(exist_ok=True)
    options += ("SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0)
    trainer = AutoPanopticTrainer(make_config(folder, shapes, *options))
    trainer.resume_or_load(resume=resume)
    return trainer


def final_line(folder):
    return json.loads((folder / "output/metrics.json").read_text().splitlines()[-1])


BFLOAT16 = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16")


def test_a_bfloat16_cycle_of_the_panoptic_supernet(tmp_path, shapes, caplog):
    """Whether it runs in 16 bits is said in the log, taken from what a convolution put out."""
    logging.getLogger("auto_panoptic").propagate = True
    trainer = make_trainer(tmp_path, shapes, *BFLOAT16, "SOLVER.MAX_ITER", 1)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="auto_panoptic"):
        trainer.train()
    (message,) = [text for text in own_messages(caplog) if "Passes run in" in text]
    assert message == "Passes run in bfloat16, channels first, on cpu; weights and losses in float32"
    state = trainer.model.state_dict()
    assert all(value.isfinite().all() and value.dtype == start[name].dtype for name, value in state.items())
    moved = [name for name in state if not torch.equal(state[name], start[name])]
    assert len(moved) > 0.8 * len(state)
    assert all("skipped" not in key for key in final_line(tmp_path))


def test_float32_is_logged_too(caplog):
    logging.getLogger("auto_panoptic").propagate = True
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    log_first_convolution(model)
    with caplog.at_level(logging.INFO, logger="auto_panoptic"):
        for _ in range(2):
            model(torch.zeros(1, 3, 8, 8))
    assert own_messages(caplog) == [
        "Passes run in float32, channels first, on cpu; weights and losses in float32"
    ]


class InFloat32(nn.Module):
    """As GroupNorm under autocast on a GPU."""

    def forward(self, x):
        return x.float()


def test_the_log_is_not_deceived_by_a_norm(caplog):
    logging.getLogger("auto_panoptic").propagate = True
    model = nn.Sequential(Conv2d(3, 4, 3, norm=InFloat32()), Conv2d(4, 4, 3))
    log_first_convolution(model)
    with caplog.at_level(logging.INFO, logger="auto_panoptic"), BF16.autocast():
        model(torch.zeros(1, 3, 8, 8))
    (message,) = own_messages(caplog)
    assert message.startswith("Passes run in bfloat16")


def test_evaluation_is_float32(tmp_path, shapes, monkeypatch):
    cfg = make_config(tmp_path, shapes, *TOY_NET, *BFLOAT16)
    model = AutoPanopticTrainer.build_model(cfg)
    seen = []
    monkeypatch.setattr(model, "forward", lambda batch: seen.append(torch.is_autocast_enabled("cpu")) or [{}])
    AutoPanopticTrainer.test(cfg, model, evaluators=[Ignore()])
    assert seen == [False] * 4


class Ignore:
    def reset(self): ...
    def process(self, inputs, outputs): ...
    def evaluate(self):
        return {}


# ------------------------------------------------------------------ loss scaling (on CPU, with small models)


class Half(nn.Module):
    """loss = batch * sum(w), the sum in float16 inside autocast; w starts at 0."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, batch):
        return {"loss": self.linear(torch.ones(1, 4)).float().sum() * batch}


def test_small_gradients_survive_float16():
    """1e-9 is below the smallest number of float16, 6e-8; scaled by 2^16 it is not."""

    def gradient(precision):
        model = Half()
        run_cycles(model, [1e-9], [fair_cycle(model_space(model), 0, 0)], precision=precision)
        return -model.linear.weight.detach()

    torch.testing.assert_close(gradient(FP16), torch.full((1, 4), 1e-9), rtol=1e-2, atol=0)

    class Unscaled(Precision):
        def scaler(self):
            return torch.amp.GradScaler("cpu", enabled=False)

    assert (gradient(Unscaled("cpu", torch.float16)) == 0).all()


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_loss_scaling_changes_no_step(mode):
    """One scale for the twelve passes of the cycle, taken away once: the weights of float32, to the bit."""
    space = toy_space()
    results = []
    for precision in (None, FP16):
        model = Additive(space)
        cycles = [fair_cycle(space, 0, i) for i in range(2)]
        trainer = run_cycles(model, LOSSES + LOSSES, cycles, gradients=mode, precision=precision)
        results.append(torch.stack([p.detach() for p in model.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)
    assert trainer.scaler.get_scale() == 2.0**16 and trainer.skipped_steps == 0


def test_clipping_sees_unscaled_gradients():
    cfg = make_cfg("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.BASE_LR", 1.0, small=False)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = "value", 4.0
    cfg.SOLVER.MOMENTUM = cfg.SOLVER.WEIGHT_DECAY = 0.0
    space, model = toy_space(), Additive(toy_space())
    optimizer = AutoPanopticTrainer.build_optimizer(cfg, model)
    losses = [1.0] * 6 + [20.0] * 6
    run_cycles(model, losses, [fair_cycle(space, 0, 0)], optimizer=optimizer, precision=FP16)
    assert -model.shared.item() == pytest.approx(4.0, rel=1e-9)  # the mean, 10.5, clipped
    run_cycles(model, [1.0] * 12, [fair_cycle(space, 0, 0)], optimizer=optimizer, precision=FP16)
    assert -model.shared.item() == pytest.approx(5.0, rel=1e-9)  # not clipped, though 65536 before unscaling


class Steep(nn.Module):
    """A finite loss whose gradient is infinite if the batch is "overflow"."""

    def __init__(self):
        super().__init__()
        self.scale = Scale(1.0)

    def forward(self, batch):
        loss = self.scale(torch.ones(()))
        if batch == "overflow":
            loss = loss + (self.scale.weight - self.scale.weight.detach()).sqrt()
        return {"loss": loss if batch != "nan" else loss * float("nan")}


def run_steep(batches, trainer=None):
    model = Steep()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    trainer = FairCycleTrainer(model, batches, optimizer, precision=FP16)
    with EventStorage() as storage:
        for trainer.iter in range(len(batches)):
            trainer.run_step()
    return trainer, storage.latest()


def test_an_overflow_skips_the_step_and_is_counted():
    trainer, written = run_steep(["fine", "overflow", "overflow", "fine"])
    assert trainer.model.scale.weight.item() == 1 - 2 * 0.125
    assert trainer.skipped_steps == 2 and trainer.scaler.get_scale() == 2.0**14
    assert written["skipped_steps"][0] == 2 and written["loss_scale"][0] == 2.0**14


def test_a_loss_that_is_no_number_stops_under_loss_scaling_too():
    with pytest.raises(FloatingPointError, match="iteration 1"):
        run_steep(["fine", "nan"])


def test_the_loss_scale_is_part_of_the_checkpoint():
    before, _ = run_steep(["fine", "overflow", "fine"])
    state = before.state_dict()
    model = Steep()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    after = FairCycleTrainer(model, [], optimizer, precision=FP16)
    after.load_state_dict(state)
    assert after.scaler.state_dict() == before.scaler.state_dict()
    assert after.scaler.get_scale() == 2.0**15 and after.skipped_steps == 1
    # Float32 runs carry no scale, and each takes up the other's checkpoint.
    plain = FairCycleTrainer(model, [], optimizer)
    plain.load_state_dict(state)
    assert set(plain.state_dict()) == {"optimizer", "seed"}
    fresh = FairCycleTrainer(model, [], optimizer, precision=FP16)
    fresh.load_state_dict(plain.state_dict())
    assert fresh.scaler.get_scale() == 2.0**16


# ------------------------------------------------------------------ channels last


def convolutions(model):
    """Memory order of the outputs of all 2-D convolutions that run and have several channels and pixels."""
    orders = []

    def record(_, inputs, output):
        if min(output.shape[1:]) > 1 and output.numel():
            orders.append(output.is_contiguous(memory_format=torch.channels_last))

    handles = [m.register_forward_hook(record) for m in model.backbone.modules() if isinstance(m, nn.Conv2d)]
    return orders, handles


def test_channels_last_computes_the_same():
    """Training losses, gradients and inference; and the order holds throughout the backbone."""
    plain, reordered = make_model(make_cfg()), make_model(make_cfg())
    use_channels_last(reordered)
    for ours, theirs in zip(reordered.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    architecture = fair_cycle(model_space(plain), 0, 0)[2]
    orders, handles = convolutions(reordered)
    ours, our_gradients = losses_and_gradients(reordered, architecture, contextlib.nullcontext())
    for handle in handles:
        handle.remove()
    assert len(orders) > 20 and sum(orders) > 0.8 * len(orders)
    theirs, their_gradients = losses_and_gradients(plain, architecture, contextlib.nullcontext())
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    for name, gradient in their_gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(our_gradients[name], gradient, rtol=0, atol=0.01 * scale + 1e-6)
    assert_same_outputs(inference(reordered, INPUTS), inference(plain, INPUTS), tolerance=1e-4)


def test_channels_last_from_the_config(tmp_path, shapes):
    """Checkpoints of both orders are interchangeable."""
    options = (*TOY_NET, "SOLVER.MAX_ITER", 1)
    trainer = make_trainer(tmp_path / "last", shapes, *options, "MODEL.CHANNELS_LAST", True)
    trainer.train()
    weight = trainer.model.stem.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    weights = ("MODEL.WEIGHTS", tmp_path / "last/output/model_final.pth")
    plain = make_trainer(tmp_path / "first", shapes, *options, *weights)
    assert plain.model.stem.weight.is_contiguous()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(plain.model.state_dict()[name], value, rtol=0, atol=0)


# ------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("last", [False, True])
def test_gpu_cycle(tmp_path, shapes, caplog, dtype, last):
    """Two fair cycles of the panoptic supernet; float16 may skip steps until its loss scale fits."""
    logging.getLogger("auto_panoptic").propagate = True
    options = ("MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype)
    trainer = make_trainer(tmp_path, shapes, *options, "MODEL.CHANNELS_LAST", last, "SOLVER.MAX_ITER", 2)
    with caplog.at_level(logging.INFO, logger="auto_panoptic"):
        trainer.train()
    (message,) = [text for text in own_messages(caplog) if "Passes run in" in text]
    order = "last" if last else "first"
    assert message == f"Passes run in {dtype}, channels {order}, on cuda; weights and losses in float32"
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert ("skipped_steps" in final_line(tmp_path)) == (dtype == "float16")
    assert trainer._trainer.counter.passes == 24


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gpu_losses_are_close(dtype):
    model = make_model(make_cfg()).to("cuda")
    for architecture in fair_cycle(model_space(model), 0, 0)[:3]:
        exact, _ = losses_and_gradients(model, architecture, contextlib.nullcontext())
        half, _ = losses_and_gradients(model, architecture, Precision("cuda", dtype).autocast())
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in half.values())
        for name in ("loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc", "loss_mask"):
            torch.testing.assert_close(half[name], exact[name], rtol=0.02, atol=1e-3)
