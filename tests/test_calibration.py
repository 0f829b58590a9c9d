"""BatchNorm statistics of a path: exact, independent of the past, and gone afterwards."""

import copy

import pytest
import torch
from detectron2.data import get_detection_dataset_dicts
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats
from torch import nn
from toy import answer_strongly, make_config

from auto_panoptic.data import PanopticMapper, with_data_sets
from auto_panoptic.explore import fair_cycle
from auto_panoptic.modeling import ChoiceBlock, apply_architecture
from auto_panoptic.modeling.calibration import active_batch_norms, calibrated
from auto_panoptic.modeling.extract import extract
from auto_panoptic.modeling.searchable import panoptic_only
from auto_panoptic.search import candidate as evaluate_module
from auto_panoptic.search.candidate import CandidateEvaluator
from auto_panoptic.space import SearchSpace


@pytest.fixture(scope="module")
def cfg(tmp_path_factory, shapes):
    return make_config(tmp_path_factory.mktemp("bn"), shapes)


@pytest.fixture(scope="module")
def cycle(cfg):
    return fair_cycle(SearchSpace.from_config(cfg), seed=2, cycle=0)


@pytest.fixture
def model(cfg, cycle):
    """A supernet on one path, its statistics far from those of its data."""
    torch.manual_seed(0)
    model = build_model(cfg)
    scramble(model, seed=1)
    apply_architecture(model, cycle[0])
    return model.eval()


def scramble(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)


@pytest.fixture(scope="module")
def batches(cfg):
    """Ten images in batches of four, four and two."""
    dicts = get_detection_dataset_dicts(with_data_sets(cfg).DATASETS.TRAIN, filter_empty=False)[:10]
    mapper = PanopticMapper(cfg, is_train=True)
    samples = [mapper({**d, "sample_seed": 3}) for d in copy.deepcopy(dicts)]
    return [samples[:4], samples[4:8], samples[8:]]


def with_momentum(cfg, momentum):
    changed = cfg.clone()
    changed.defrost()
    changed.NAS.BN_RECALIBRATION.MOMENTUM = momentum
    return changed


def statistics(model):
    return {k: v.clone() for k, v in model.named_buffers() if "running" in k or "tracked" in k}


def active_statistics(model):
    active = {id(layer) for layer in active_batch_norms(model.backbone.bottom_up)}
    names = [name for name, module in model.named_modules() if id(module) in active]
    return {k: v for k, v in statistics(model).items() if k.rpartition(".")[0] in names}


def assert_identical(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0, msg=key)


def full_state(model):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    layers = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    return state, modes, [(m.momentum, len(m._forward_pre_hooks)) for m in layers]


def test_statistics_equal_a_one_shot_computation(model, batches):
    """Mean and biased variance of all values that reached each layer, gathered by hooks, over all images."""
    layers = active_batch_norms(model.backbone.bottom_up)
    inputs = [[] for _ in layers]
    reference = copy.deepcopy(model)
    reference_layers = active_batch_norms(reference.backbone.bottom_up)
    for layer, values in zip(reference_layers, inputs, strict=True):
        layer.train()
        layer.register_forward_pre_hook(lambda _, x, values=values: values.append(x[0].detach().double()))
    with torch.no_grad():
        for batch in batches:
            reference.backbone.bottom_up(reference.preprocess_image(batch).tensor)
    with calibrated(model, batches):
        for layer, values in zip(layers, inputs, strict=True):
            rows = torch.cat([x.transpose(0, 1).flatten(1) for x in values], dim=1)
            torch.testing.assert_close(layer.running_mean.double(), rows.mean(1), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                layer.running_var.double(), rows.var(1, correction=0), rtol=1e-4, atol=1e-5
            )
            assert not layer.training


def test_earlier_statistics_do_not_matter(model, batches):
    with calibrated(model, batches):
        first = active_statistics(model)
    scramble(model, seed=8)
    with calibrated(model, batches):
        second = active_statistics(model)
    running = {k: v for k, v in first.items() if "running" in k}
    assert len(running) > 10
    assert_identical({k: v for k, v in second.items() if "running" in k}, running)


def test_moving_average_of_the_reference_code(model, batches):
    """From mean 0 and variance 1, each batch with weight 0.2; the variance of a batch is the unbiased one."""
    layers = active_batch_norms(model.backbone.bottom_up)
    inputs = [[] for _ in layers]
    handles = [
        layer.register_forward_pre_hook(lambda _, x, values=values: values.append(x[0].detach().double()))
        for layer, values in zip(layers, inputs, strict=True)
    ]
    with calibrated(model, batches, momentum=0.2):
        for handle in handles:
            handle.remove()
        for layer, values in zip(layers, inputs, strict=True):
            mean, var = torch.zeros_like(layer.running_mean), torch.ones_like(layer.running_var)
            mean, var = mean.double(), var.double()
            assert len(values) == 1 + 3  # one image shows which layer is the last
            for x in values[1:]:
                rows = x.transpose(0, 1).flatten(1)
                mean, var = 0.8 * mean + 0.2 * rows.mean(1), 0.8 * var + 0.2 * rows.var(1, correction=1)
            torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-4, atol=1e-5)
            assert not layer.training
        ours = active_statistics(model)
    scramble(model, seed=8)
    with calibrated(model, batches, momentum=0.2):
        again = active_statistics(model)
    assert_identical(again, ours)


@pytest.mark.parametrize("momentum", [0.0, 0.1])
def test_only_the_path_and_only_within_the_block(model, batches, momentum):
    """Within: only the path's statistics change, no weight and no other path. Afterwards: all as before."""
    before = full_state(model)
    with calibrated(model, batches, momentum):
        within = full_state(model)[0]
        changed = {k for k in within if not torch.equal(within[k], before[0][k])}
        expected = {k for k in active_statistics(model)}
        assert changed == expected
        assert not any(module.training for module in model.modules())
    state, modes, layers = full_state(model)
    assert_identical(state, before[0])
    assert (modes, layers) == before[1:]


def test_the_active_layers_are_those_that_run(model, batches, cycle):
    """The list is right for every path: it is what forward hooks see."""
    for architecture in cycle[:3]:
        apply_architecture(model, architecture)
        ran = set()
        handles = [
            module.register_forward_hook(lambda m, *_, ran=ran: ran.add(id(m)))
            for module in model.modules()
            if isinstance(module, torch.nn.BatchNorm2d)
        ]
        with torch.no_grad():
            model.backbone.bottom_up(model.preprocess_image(batches[2]).tensor)
        for handle in handles:
            handle.remove()
        assert {id(layer) for layer in active_batch_norms(model.backbone.bottom_up)} == ran


def test_backbone_alone_equals_the_full_model(model, batches, cycle):
    """fvcore on the whole stand-alone model, in training mode with labels, finds the same statistics."""
    alone = extract(model, cycle[0]).train()
    torch.manual_seed(0)
    with EventStorage():
        update_bn_stats(alone, batches, len(batches))
    expected = {k: v for k, v in statistics(alone).items() if "running" in k}
    with calibrated(model, batches):
        ours = {k: v for k, v in active_statistics(model).items() if "running" in k}
    assert_identical(ours, expected)


def test_a_failure_restores_everything(model, batches):
    before = full_state(model)
    broken = [batches[0], [{**batches[1][0], "image": torch.zeros(4, 32, 32)}]]
    with pytest.raises(RuntimeError):
        with calibrated(model, broken):
            raise AssertionError("not reached")
    state, modes, layers = full_state(model)
    assert_identical(state, before[0])
    assert (modes, layers) == before[1:]
    with pytest.raises(ZeroDivisionError):
        with calibrated(model, batches):
            raise ZeroDivisionError
    assert_identical(full_state(model)[0], before[0])


def test_without_effect_is_an_error(model, batches, monkeypatch):
    """Should the images never reach a layer (a wrapped backbone), no score is given out."""
    monkeypatch.setattr(type(model), "inference", lambda self, batch: [{} for _ in batch])
    with pytest.raises(RuntimeError, match="did not change any statistics"):
        with calibrated(model, batches):
            raise AssertionError("not reached")
    with pytest.raises(ValueError, match="at least one batch"):
        with calibrated(model, []):
            raise AssertionError("not reached")


# ------------------------------------------------------------------ any model


class Decoder(nn.Module):
    """BatchNorm in the backbone, in a searched decoder that takes two levels, and in a layer for training."""

    def __init__(self, per_image=False):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU())
        ops = {
            name: nn.Sequential(nn.Conv2d(4, 4, kernel, padding=kernel // 2), nn.BatchNorm2d(4))
            for name, kernel in (("conv_3x3", 3), ("dwconv_3x3", 1))
        }
        self.decoder, self.auxiliary = ChoiceBlock("decoder.0", ops), nn.BatchNorm2d(4)
        self.head, self.per_image, self.classified = nn.Conv2d(4, 2, 1), per_image, 0

    def features(self, batch):
        x = self.backbone(torch.stack([sample["image"] for sample in batch]))
        return [self.decoder(x), self.decoder(x[:, :, ::2, ::2])]

    def forward(self, batch):
        parts = [[sample] for sample in batch] if self.per_image else [batch]
        features = [level for part in parts for level in self.features(part)]
        self.classified += len(batch)
        return [self.head(level) for level in features]


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("op", ["conv_3x3", "dwconv_3x3"])
def test_batch_norm_in_a_decoder(op, per_image):
    """All values of all calls that reached each active layer; nothing runs after the last of them."""
    generator = torch.Generator().manual_seed(0)
    samples = [{"image": 3 * torch.randn(3, 17, 21, generator=generator) + 1} for _ in range(7)]
    batches = [samples[:3], samples[3:6], samples[6:]]
    torch.manual_seed(0)
    model = Decoder(per_image).eval()
    model.decoder.select(op)
    scramble(model, seed=4)
    before = full_state(model)
    active = [model.backbone[1], model.decoder.candidates[op][1]]
    values = {layer: [] for layer in active}
    with calibrated(model, batches):
        # Where a layer runs once for each image, a pass of several is not known to be over before its end.
        assert model.classified == (1 + 6 if per_image else 1)
        means = {layer: (layer.running_mean.clone(), layer.running_var.clone()) for layer in active}
        changed = {k for k, v in full_state(model)[0].items() if not torch.equal(v, before[0][k])}
    assert {k.rpartition(".")[0] for k in changed} == {"backbone.1", f"decoder.candidates.{op}.1"}
    assert_identical(full_state(model)[0], before[0])
    for layer in active:
        layer.train()
        layer.register_forward_pre_hook(lambda layer, x: values[layer].append(x[0].detach().double()))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for layer, (mean, var) in means.items():
        rows = torch.cat([x.transpose(0, 1).flatten(1) for x in values[layer]], dim=1)
        torch.testing.assert_close(mean.double(), rows.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(var.double(), rows.var(1, correction=0), rtol=1e-4, atol=1e-5)


def test_a_model_without_batch_norm():
    model = nn.Conv2d(3, 3, 1)
    with calibrated(model, [[{"image": torch.zeros(3, 4, 4)}]]):
        assert not model.training


# ------------------------------------------------------------------ scores of candidates


@pytest.fixture
def trained(cfg):
    """A supernet whose candidates get different PQ: its box classifier answers strongly, at random."""
    torch.manual_seed(0)
    model = build_model(cfg)
    answer_strongly(model)
    return model


def test_a_moving_average_weighs_both_orientations_by_their_number(cfg, monkeypatch):
    """A quarter of the images are portraits; so is their weight. A plain average keeps its order."""

    def mapper(image):
        return {"image": torch.zeros(3, *((2, 1) if image["number"] % 4 == 0 else (1, 2))), **image}

    dicts = [{"number": number} for number in range(2000)]
    monkeypatch.setattr(evaluate_module, "get_detection_dataset_dicts", lambda *_, **__: dicts)

    def batches(momentum, seed):
        changed = with_momentum(cfg, momentum)
        changed.NAS.SEED, changed.NAS.BN_RECALIBRATION.NUM_IMAGES = seed, len(dicts)
        return evaluate_module.calibration_batches(changed, mapper)

    weights = []
    for seed in range(30):
        portraits = [batch[0]["image"].shape[1] == 2 for batch in batches(0.1, seed)]
        newest_first = [0.1 * 0.9**age for age in range(len(portraits))]
        weights.append(sum(w for w, p in zip(newest_first, portraits[::-1], strict=True) if p))
    assert 0.2 < sum(weights) / len(weights) < 0.3 and max(weights) < 0.6
    numbers = [[sample["number"] for batch in batches(0.1, s) for sample in batch] for s in (3, 3, 4)]
    assert numbers[0] == numbers[1] != numbers[2] and sorted(numbers[0]) == list(range(2000))
    portraits = [batch[0]["image"].shape[1] == 2 for batch in batches(0.0, 0)]
    assert portraits in (sorted(portraits), sorted(portraits)[::-1])


def test_the_configured_momentum_is_used(cfg, trained, cycle):
    """Another average, other scores; the same one, the same scores."""
    scores = []
    for momentum in (0.0, 0.1, 0.1):
        evaluate = CandidateEvaluator(with_momentum(cfg, momentum), trained, ("pq", "miou"))
        scores.append(evaluate(cycle[0])[0]["mIoU"])
    assert scores[0] != scores[1] == scores[2]


def test_a_score_does_not_depend_on_the_order(cfg, trained, cycle):
    """Alone, first, last, and between others: the same numbers to the last bit."""
    evaluate = CandidateEvaluator(cfg, trained, ("pq", "miou"))
    before = copy.deepcopy(trained.state_dict())
    orders = ([0], [0, 1, 2], [2, 1, 0], [1, 0, 2])
    found = [{i: evaluate(cycle[i])[0] for i in order} for order in orders]
    for other in found:
        assert all(metrics == found[1][index] for index, metrics in other.items())
    assert len({metrics["mIoU"] for metrics in found[1].values()}) == 3  # the candidates do differ
    assert_identical(trained.state_dict(), before)
    again = CandidateEvaluator(cfg, trained, ("pq", "miou"))
    assert again(cycle[2])[0] == found[1][2]


def test_dropping_unconfident_detections_leaves_pq_alone(cfg, trained, cycle):
    """The shortcut of a search by PQ alone: same panoptic maps, same PQ, fewer masks computed."""
    plain, quick = copy.deepcopy(trained), copy.deepcopy(trained)
    everything = CandidateEvaluator(cfg, plain, ("pq", "miou"))
    shortcut = CandidateEvaluator(cfg, quick, ("pq",))
    things, masks = [], {"plain": 0, "quick": 0}
    for name, model in (("plain", plain), ("quick", quick)):
        model.roi_heads.mask_head.register_forward_hook(
            lambda _, args, __, name=name: masks.__setitem__(name, masks[name] + len(args[0]))
        )
    for architecture in cycle[:3]:
        full, fast = everything(architecture)[0], shortcut(architecture)[0]
        full.pop("mIoU")
        assert full == fast
        for batch in shortcut.data[0][0]:
            with torch.no_grad(), panoptic_only(quick):
                ours, theirs = quick(batch), plain(batch)
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a["panoptic_seg"][0], b["panoptic_seg"][0])
                assert a["panoptic_seg"][1] == b["panoptic_seg"][1]
                things += [s for s in a["panoptic_seg"][1] if s["isthing"]]
    assert things  # the comparison covers maps with instances
    assert 0 < masks["quick"] < masks["plain"]
    thresholds = [model.roi_heads.box_predictor.test_score_thresh for model in (quick, plain)]
    assert thresholds == [trained.roi_heads.box_predictor.test_score_thresh] * 2  # as before
    with panoptic_only(torch.nn.Identity()):
        pass
