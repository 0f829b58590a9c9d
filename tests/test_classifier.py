"""The classifier of the ImageNet stage: names, sizes, initialisation, loss, and what decays."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from modeling_util import make_cfg, make_model

from auto_panoptic.errors import UserError
from auto_panoptic.modeling import apply_architecture
from auto_panoptic.space import Architecture, SearchSpace, resolve_architecture_path
from auto_panoptic.space.cost import backbone_cost
from auto_panoptic.training import AutoPanopticTrainer
from auto_panoptic.validate import validate

SUPERNET, SEARCHED = "pretrain/supernet_imagenet.yaml", "pretrain/searched_imagenet.yaml"
CLASSES = ("MODEL.CLASSIFIER.NUM_CLASSES", 5, "MODEL.CLASSIFIER.CONV_DIM", 16)


def empty_model(cfg):
    """The model on the meta device."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def small(*options, config=SUPERNET):
    return make_model(make_cfg(*CLASSES, *options, config=config))


def batch(count=3, side=64, labels=True):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return [{"image": image, **({"label": i % 5} if labels else {})} for i, image in enumerate(images)]


def recorded(module):
    """List that receives the outputs of ``module``."""
    outputs = []
    module.register_forward_hook(lambda _, __, output: outputs.append(output.detach().clone()))
    return outputs


@pytest.mark.parametrize(
    "width, architecture, params",
    [
        ("1.3G", "auto_panoptic_coco", 8836952),
        ("1.3G", "auto_panoptic_ade20k", 9856472),
        ("1.3G", "detnas_coco", 10426328),
        ("3.8G", "auto_panoptic_coco", 26347294),
        ("3.8G", "auto_panoptic_ade20k", 29672100),
        ("3.8G", "detnas_coco", 31444596),
    ],
)
def test_parameters_of_the_published_networks(width, architecture, params):
    """8.84, 9.86, 10.43, 26.35, 29.67 and 31.44 million with 1000 classes."""
    options = ("MODEL.SHUFFLENET.WIDTH", width, "NAS.ARCHITECTURE", architecture)
    cfg = make_cfg(*options, config=SEARCHED, small=False)
    model = empty_model(cfg)
    assert sum(p.numel() for p in model.parameters()) == params
    counted = Architecture.load(resolve_architecture_path(architecture))
    assert backbone_cost(counted, width, classifier=True).params == params


@pytest.mark.parametrize("dim, width, expected", [(0, "1.3G", 1024), (0, "3.8G", 1728), (96, "1.3G", 96)])
def test_channels_before_the_pooling(dim, width, expected):
    options = ("MODEL.SHUFFLENET.WIDTH", width, "MODEL.CLASSIFIER.CONV_DIM", dim)
    model = empty_model(make_cfg(*options, config=SEARCHED, small=False))
    assert model.classifier.conv.out_channels == expected
    assert (model.classifier.fc.in_features, model.classifier.fc.out_features) == (expected, 1000)


@pytest.mark.parametrize("architecture", ["", "auto_panoptic_coco"])
def test_backbone_weights_are_called_as_in_detection(architecture):
    options = ("MODEL.SHUFFLENET.WIDTH", "1.3G", "NAS.ARCHITECTURE", architecture)
    models = [
        empty_model(make_cfg(*options, config=c, small=False)) for c in (SUPERNET, "supernet_coco.yaml")
    ]
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in models]
    ours, theirs = ({k: v for k, v in d.items() if k.startswith("backbone.bottom_up.")} for d in shapes)
    assert ours == theirs and len(ours) > 500
    rest = set(shapes[0]) - set(ours)
    assert rest and all(key.startswith("classifier.") for key in rest)


def test_order_of_the_layers():
    layers = [type(layer).__name__ for layer in small().classifier]
    names = ["Conv2d", "BatchNorm2d", "ReLU", "Dropout2d", "AdaptiveAvgPool2d", "Flatten", "Linear"]
    assert layers == names


def test_initialisation():
    """Convolution N(0, 1 / inputs), linear N(0, 0.01), biases 0, BN bias 1e-4."""
    model = small("MODEL.CLASSIFIER.CONV_DIM", 512, "MODEL.CLASSIFIER.NUM_CLASSES", 1000).classifier
    inputs = model.conv.in_channels
    assert model.conv.weight.std().item() == pytest.approx(1 / inputs, rel=0.02)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    for layer in (model.conv, model.fc):
        torch.testing.assert_close(layer.bias, torch.zeros_like(layer.bias), rtol=0, atol=0)
    torch.testing.assert_close(model.norm.bias, torch.full((512,), 1e-4))
    torch.testing.assert_close(model.norm.weight, torch.ones(512), rtol=0, atol=0)


def test_images_are_normalised_as_configured():
    options = ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0], "MODEL.PIXEL_STD", [2.0, 4.0, 8.0])
    model, inputs = small(*options), batch(2)
    result = model.preprocess_image(inputs)
    for image, x in zip(result.tensor, inputs, strict=True):
        for channel, (mean, std) in enumerate([(1, 2), (2, 4), (3, 8)]):
            torch.testing.assert_close(image[channel], (x["image"][channel].float() - mean) / std)
    assert list(result.image_sizes) == [(64, 64)] * 2


def test_both_stages_share_one_normalisation():
    stages = [make_cfg(config=config, small=False) for config in (SUPERNET, SEARCHED, "supernet_coco.yaml")]
    assert len({(tuple(c.MODEL.PIXEL_MEAN), tuple(c.MODEL.PIXEL_STD), c.INPUT.FORMAT) for c in stages}) == 1
    assert stages[0].INPUT.FORMAT == "BGR"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_cross_entropy_with_smoothed_labels(smoothing):
    model = small("MODEL.CLASSIFIER.LABEL_SMOOTHING", smoothing).train()
    logits = recorded(model.classifier.fc)
    losses = model(batch())
    assert list(losses) == ["loss_cls"]
    logs = torch.log(torch.softmax(logits[0].double(), dim=1))
    expected = -sum((1 - smoothing) * row[label] + smoothing * row.mean() for label, row in enumerate(logs))
    torch.testing.assert_close(losses["loss_cls"].double(), expected / 3, rtol=1e-5, atol=1e-6)


def test_dropout_removes_whole_channels_in_training_only():
    """At 3 x 3 positions, so that a channel and a position differ."""
    model = small("MODEL.CLASSIFIER.DROPOUT", 0.5, "MODEL.CLASSIFIER.CONV_DIM", 64)
    before, after = recorded(model.classifier.relu), recorded(model.classifier.dropout)
    torch.manual_seed(0)
    model.train()(batch(side=96))
    model.eval()(batch(side=96))
    assert before[0].shape == (3, 64, 3, 3)
    kept = after[0].abs().amax((2, 3)) > 0
    assert 0.3 < kept.float().mean().item() < 0.7
    torch.testing.assert_close(after[0], before[0] * 2 * kept[..., None, None])
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)


def test_inference_averages_the_whole_image():
    model = small().eval()
    features, logits = recorded(model.classifier.relu), recorded(model.classifier.fc)
    outputs = model(batch(side=96, labels=False))
    assert [list(output) for output in outputs] == [["logits"]] * 3
    expected = model.classifier.fc(features[0].mean((2, 3)))
    torch.testing.assert_close(torch.stack([o["logits"] for o in outputs]), expected.detach())
    torch.testing.assert_close(logits[0], expected.detach())
    assert outputs[0]["logits"].shape == (5,)


def test_a_path_of_the_supernet_is_the_fixed_network(tmp_path):
    cfg = make_cfg(*CLASSES, config=SUPERNET)
    space = SearchSpace.from_config(cfg)
    assert {site.part for site in space.sites} == {"backbone"}
    architecture = space.architecture([i % 4 for i in range(1, len(space.sites) + 1)])
    architecture.save(tmp_path / "a.json")
    supernet = make_model(cfg).eval()
    fixed = small("NAS.ARCHITECTURE", str(tmp_path / "a.json")).eval()
    weights = supernet.state_dict()
    fixed.load_state_dict({key: weights[key] for key in fixed.state_dict()})
    default = supernet(batch())[0]["logits"]
    apply_architecture(supernet, architecture)
    torch.testing.assert_close(fixed(batch())[0]["logits"], supernet(batch())[0]["logits"], rtol=0, atol=0)
    assert not torch.equal(default, supernet(batch())[0]["logits"])


def test_a_backbone_of_detectron2_has_the_stage_too():
    options = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 50)
    options += ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"])
    model = empty_model(make_cfg(*options, config=SUPERNET, small=False))
    assert model.feature == "res5" and model.classifier.conv.in_channels == 2048
    assert all(key.startswith(("backbone.bottom_up.", "classifier.")) for key in model.state_dict())


def test_exactly_weights_of_several_dimensions_decay():
    cfg = make_cfg(*CLASSES, config=SUPERNET)
    model = make_model(cfg)
    optimizer = AutoPanopticTrainer.build_optimizer(cfg, model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert found == {name: 4e-5 if p.dim() > 1 else 0 for name, p in model.named_parameters()}
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


@pytest.mark.parametrize(
    "config, images, iterations, rate, width, architecture",
    [
        (SUPERNET, 1024, 300000, 0.5, "1.3G", ""),
        (SEARCHED, 512, 600000, 0.25, "3.8G", "auto_panoptic_coco"),
    ],
)
def test_the_published_settings(config, images, iterations, rate, width, architecture):
    cfg = make_cfg(config=config, small=False)
    solver, options = cfg.SOLVER, cfg.MODEL.CLASSIFIER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.BASE_LR) == (images, iterations, rate)
    assert (solver.MOMENTUM, solver.NESTEROV, solver.CLIP_GRADIENTS.ENABLED) == (0.9, False, False)
    assert (cfg.MODEL.SHUFFLENET.WIDTH, cfg.NAS.ARCHITECTURE) == (width, architecture)
    assert (options.NUM_CLASSES, options.DROPOUT, options.LABEL_SMOOTHING) == (1000, 0.2, 0.1)
    assert cfg.DATASETS.TRAIN == ("imagenet_train",) and cfg.DATASETS.TEST == ("imagenet_val",)
    if not architecture:
        assert cfg.NAS.SAMPLING == "uniform"
    rates = learning_rates(cfg, (0, 1, iterations // 2, iterations - 1))
    expected = [rate, rate * (1 - 1 / iterations), rate / 2, rate / iterations]
    assert rates == pytest.approx(expected, rel=1e-9)


def learning_rates(cfg, iterations):
    """Of these iterations, without running the others."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    scheduler = AutoPanopticTrainer.build_lr_scheduler(cfg, optimizer)
    rates = []
    for iteration in iterations:
        scheduler.last_epoch = iteration
        rates.extend(scheduler.get_lr())
    return rates


@pytest.mark.parametrize(
    "key, value",
    [("NUM_CLASSES", 0), ("CONV_DIM", -1), ("DROPOUT", 1.0), ("DROPOUT", -0.1), ("LABEL_SMOOTHING", 1.0)],
)
def test_impossible_settings_are_refused(key, value):
    cfg = make_cfg(f"MODEL.CLASSIFIER.{key}", value, config=SUPERNET)
    with pytest.raises(UserError, match=f"MODEL.CLASSIFIER.{key} is {value}; expected "):
        validate(cfg)


def test_a_training_image_without_label_is_refused():
    with pytest.raises(UserError, match="without 'label'.*ImageFolder"):
        small().train()(batch(labels=False))
