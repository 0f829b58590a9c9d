"""Values that no run can mean, and keys that nothing obeys: refused in one line, in every command."""

import functools
import math
import re
import time

import pytest
from detectron2.config import CfgNode, get_cfg
from test_cli import refused, toy  # noqa: F401
from toy import ROOT

from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.data import check
from auto_panoptic.errors import UserError
from auto_panoptic.modeling import check_size, meta_model
from auto_panoptic.read_config import read_config
from auto_panoptic.validate import (
    CONDITIONS,
    REFUSED,
    RULES,
    choice,
    defaults,
    number,
    several,
    validate,
    whole,
)

NAN, INF = math.nan, math.inf
MEANINGLESS = {
    "SOLVER.BASE_LR": [NAN, INF, -0.1, 0.0],
    "SOLVER.MOMENTUM": [NAN, 5.0, -1.0],
    "SOLVER.WEIGHT_DECAY": [NAN, -1.0],
    "SOLVER.WEIGHT_DECAY_NORM": [NAN, -1.0],
    "SOLVER.WEIGHT_DECAY_BIAS": [NAN, -1.0],
    "SOLVER.BIAS_LR_FACTOR": [NAN, -1.0],
    "SOLVER.GAMMA": [NAN, -1.0],
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": [NAN, -1.0, 0.0],
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ["median"],
    "SOLVER.WARMUP_FACTOR": [NAN],
    "SOLVER.WARMUP_ITERS": [-5, 10**12],
    "SOLVER.CHECKPOINT_PERIOD": [0, -1],
    "SOLVER.CHECKPOINTS_KEPT": [-1],
    "SOLVER.STEPS": [(5, 3), (-1,), (1.5,), ("x",), (3, 3)],
    "SOLVER.MAX_ITER": [0, -1],
    "SOLVER.IMS_PER_BATCH": [0, -2, 10**9],
    "SOLVER.AMP.DTYPE": ["float32", "half"],
    "MODEL.PIXEL_STD": [[0, 0, 0], [NAN] * 3, [1, 1]],
    "MODEL.PIXEL_MEAN": [[1], [INF] * 3],
    "INPUT.FORMAT": ["NaN", "YUV-BT.601"],
    "INPUT.MIN_SIZE_TRAIN": [(), (0,), (-5,), ("x",)],
    "INPUT.MIN_SIZE_TEST": [-1, 10**7],
    "INPUT.MAX_SIZE_TRAIN": [0, -1],
    "INPUT.RANDOM_FLIP": ["diagonal"],
    "NAS.SEED": [-1],
    "NAS.GRADIENTS": ["median", ""],
    "NAS.SAMPLING": ["unfair"],
    "NAS.BN_RECALIBRATION.BATCH_SIZE": [-1, 0],
    "NAS.BN_RECALIBRATION.NUM_IMAGES": [0, -1],
    "NAS.BN_RECALIBRATION.MOMENTUM": [NAN, 2.0, -0.1],
    "NAS.CYCLES": [0, -1, 10**9],
    "NAS.MODELS_PER_CYCLE": [-4, 0],
    "NAS.EVOLUTION.CROSSOVER": [NAN, 1.5],
    "TEST.DETECTIONS_PER_IMAGE": [-1],
    "TEST.STUFF_AREA": [-1],
    "TEST.TRIM_AREAS": [[], [0, -1], ["x"]],
    "TEST.PICTURES": [-1, 101, 1.5],
    "TEST.METRICS": [[], ["pg"], "pq"],
    "TEST.PANOPTIC_EVALUATOR": ["guess"],
    "TEST.PRECISE_BN.NUM_ITER": [0],
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": [1],
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": [NAN, -1.0],
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": [NAN, 5.0],
    "MODEL.SHUFFLENET.NORM_MOMENTUM": [NAN, -1.0, 5.0, 0.0],
    "MODEL.SHUFFLENET.STAGE_REPEATS": [[0, 0, 0, 0], [10**6, 1, 1, 1], [1, 1]],
    "MODEL.SHUFFLENET.STAGE_CHANNELS": [[7, 7, 7, 7], [10**7, 1, 1, 1]],
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": [NAN, INF],
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": [NAN, 2.0],
    "DATALOADER.NUM_WORKERS": [-1, 100000],
    "SEED": [-2, 2**70],
    "OUTPUT_DIR": ["", " "],
    "INPUT.CLASSIFICATION.TRAIN_SIZE": [0],
    "INPUT.CLASSIFICATION.TEST_SIZE": [300],
    "INPUT.CLASSIFICATION.COLOR_JITTER": [[0.4, 0.4], [0.4, 0.4, -1.0]],
    "MODEL.PANOPTIC_FPN.COMBINE.METHOD": ["upsnet"],
}  # fmt: skip


@pytest.fixture
def cfg():
    made = get_cfg()
    add_auto_panoptic_config(made)
    return made


def place(cfg, key, value):
    *nodes, last = key.split(".")
    for node in nodes:
        cfg = cfg[node]
    assert last in cfg
    cfg[last] = value


@pytest.mark.parametrize("key", MEANINGLESS)
def test_values_that_mean_nothing(cfg, key):
    for value in MEANINGLESS[key]:
        made = cfg.clone()
        place(made, key, value)
        with pytest.raises(UserError) as error:
            validate(made)
        assert str(error.value).startswith(f"{key} is {value!r}; expected ") and "\n" not in str(error.value)


def keys_of(rule):
    """The keys that a rule, named by a key or its last part, is for."""
    return [key for key in defaults() if rule in (key, key.rpartition(".")[2])]


def test_every_rule_has_a_key():
    assert all(map(keys_of, RULES))


@pytest.mark.parametrize("key", [keys_of(rule)[0] for rule in RULES])
def test_rules_refuse_other_types(cfg, key):
    for value in ({}, [object()], object(), NAN, [[NAN]]):
        place(cfg, key, value)
        with pytest.raises(UserError, match=f"^{re.escape(key)} is .*; expected "):
            validate(cfg)


NUMBERS = [NAN, INF, -INF, -(10**12), 10**12, 0.5, True, None]
TEXTS = ["a\nb", "a\0b", "x" * 300, "x", "", b"x", object(), {}]
LISTS = [[object()], [[[[[1]]]]], [NAN], [INF], (None,), [[NAN]], [b"x"], [], ()]
# Looked at where they are read.
ANY = {"DATASETS.COCO_PANOPTIC", "DATASETS.IMAGE_FOLDERS", "IMPORTS", "TEST.EXPECTED_RESULTS"}
ANY |= {"MODEL.FPN.IN_FEATURES"}


@pytest.mark.parametrize("key", sorted(defaults()))
def test_every_key_refuses_what_is_absurd(cfg, key):
    """What is accepted is a finite number of a sensible size, a text, a choice, or a list of them."""
    usual = defaults()[key]
    for value in [*NUMBERS, *TEXTS, *LISTS]:
        place(cfg, key, value)
        try:
            validate(cfg)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 700
            continue
        if key in ANY and isinstance(value, list | tuple):
            continue
        kinds = {type(item) for item in (value if isinstance(value, list | tuple) else [value])}
        alike = usual if not isinstance(usual, list | tuple) else usual[0] if usual else ""
        if isinstance(value, list | tuple) or isinstance(usual, list | tuple):
            assert isinstance(value, list | tuple) and isinstance(usual, list | tuple)
        if value in ("", [], ()) or value is usual:
            continue
        if isinstance(alike, bool):
            assert kinds == {bool}
        elif isinstance(alike, float) or usual is None:
            assert kinds <= {float, int}
            assert math.isfinite(value) or key == "SOLVER.CLIP_GRADIENTS.NORM_TYPE"
        elif isinstance(alike, int):
            assert kinds <= {int, float} and abs(value) <= 10**12
            assert (
                kinds == {int}
                and value < 10**10
                or isinstance(usual, list | tuple)
                or key.endswith("AREA_LIMIT")
            )
        else:
            assert kinds == {str} and value == "x"


@pytest.mark.parametrize("key", sorted(defaults()))
def test_the_defaults_are_right_with_lists_of_either_kind(cfg, key):
    if isinstance(defaults()[key], list | tuple):
        for kind in (list, tuple):
            place(cfg, key, kind(defaults()[key]))
            validate(cfg)


@pytest.mark.parametrize("options", [
    ("INPUT.MAX_SIZE_TRAIN", 10**5, "INPUT.MIN_SIZE_TRAIN", "(100000,)"),
    ("INPUT.MAX_SIZE_TEST", 10**5, "INPUT.MIN_SIZE_TEST", 10**5),
    ("SOLVER.IMS_PER_BATCH", 10**6, "INPUT.MAX_SIZE_TRAIN", 4000, "INPUT.MIN_SIZE_TRAIN", "(4000,)"),
])  # fmt: skip
def test_images_beyond_the_memory(options):
    with pytest.raises(
        UserError, match=r"INPUT.MIN_SIZE_T\w+ makes .* need \d+ GiB or more; this machine has"
    ):
        read_config(str(ROOT / "configs/quick/supernet.yaml"), [str(option) for option in options])


def test_a_longest_side_may_mean_any(cfg):
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = 10**5
    validate(cfg)


@pytest.mark.parametrize("key, value", [
    ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 256),
    ("MODEL.ROI_BOX_HEAD.FC_DIM", 99968),
    ("MODEL.ROI_HEADS.NUM_CLASSES", 10**5),
    ("MODEL.FPN.OUT_CHANNELS", 99968),
    ("MODEL.SHUFFLENET.STAGE_CHANNELS", "[48, 50000, 70000, 90000]"),
])  # fmt: skip
def test_networks_beyond_the_memory(monkeypatch, key, value):
    """Counted without memory for them, so refused at once."""
    monkeypatch.setattr("auto_panoptic.modeling.choice.machine_memory", lambda: 2**30)
    options = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False", "MODEL.ROI_BOX_HEAD.FC_DIM", "4096"]
    cfg = read_config(str(ROOT / "configs/own/cpu_supernet.yaml"), [*options, key, str(value)])
    begin = time.process_time()
    with pytest.raises(
        UserError, match=r"has \d+\.\d G parameters, which need \d+ GiB or more; this machine"
    ):
        meta_model(cfg)
    assert time.process_time() - begin < 5


def test_networks_within_the_memory(monkeypatch):
    monkeypatch.setattr("auto_panoptic.modeling.choice.machine_memory", lambda: 2**30)
    model = meta_model(read_config(str(ROOT / "configs/supernet_coco.yaml")))
    check_size(model, 12)
    monkeypatch.setattr("auto_panoptic.modeling.choice.machine_memory", lambda: 2**29)
    with pytest.raises(UserError, match="choose fewer layers, channels or classes"):
        check_size(model, 12)


@pytest.mark.parametrize("key, neutral, reason", REFUSED)
def test_keys_that_nothing_obeys(cfg, key, neutral, reason):
    validate(cfg)
    section, _, last = key.rpartition(".")
    node = functools.reduce(CfgNode.__getitem__, section.split("."), cfg)
    node[last] = (
        not neutral
        if isinstance(neutral, bool)
        else ["file.pkl"]
        if not neutral
        else type(neutral)(neutral / 2)
    )
    with pytest.raises(UserError, match=re.escape(f", but {reason}: leave it at {neutral!r}")):
        validate(cfg)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_config_of_the_project_is_right(path):
    validate(read_config(str(path)))


def test_conditions_on_several_keys(cfg):
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    for sizes in ((640,), (800, 640)):
        cfg.INPUT.MIN_SIZE_TRAIN = sizes
        with pytest.raises(UserError, match="INPUT.MIN_SIZE_TRAIN is .* expected .least, most."):
            validate(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (640, 800)
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.1
    with pytest.raises(UserError, match="which only RepeatFactorTrainingSampler obeys"):
        validate(cfg)
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    validate(cfg)


@pytest.mark.parametrize("name", ["PanopticFPN", "AutoPanopticFPN"])
def test_panoptic_networks_need_masks(cfg, name):
    cfg.MODEL.META_ARCHITECTURE = name
    with pytest.raises(UserError, match="MODEL.MASK_ON is False, but a panoptic map is made of masks"):
        validate(cfg)
    cfg.MODEL.MASK_ON = True
    validate(cfg)


def test_a_module_brings_its_own_rules(cfg, monkeypatch):
    cfg.MINE = 3
    monkeypatch.setitem(RULES, "MINE", whole(1, 5))
    monkeypatch.setattr(
        "auto_panoptic.validate.CONDITIONS", [*CONDITIONS, lambda c: "no" if c.MINE == 4 else None]
    )
    validate(cfg)
    for value, message in ((6, "MINE is 6; expected a whole number of at least 1, at most 5"), (4, "^no$")):
        cfg.MINE = value
        with pytest.raises(UserError, match=message):
            validate(cfg)


def test_kinds_of_rules():
    assert choice(1, 2).allows(1) and not choice(1, 2).allows(True) and not choice(1, 2).allows(1.0)
    assert number(0, 1).allows(1) and number(0, 1).allows(0.0) and not number(0, 1, above=True).allows(0)
    assert not number(0).allows(INF) and not number(0).allows(True) and not number(0).allows("1")
    pair = several(whole(0), count=2, rising=True)
    assert pair.allows((0, 1)) and not pair.allows((1, 1)) and not pair.allows((0, 1, 2))
    assert pair.expected == "2 times a whole number of at least 0, each greater than the one before"


@pytest.mark.parametrize("script", ["train_net", "train_net --resume", "train_net --eval-only", "search_net"])
def test_commands_refuse_before_they_start(capfd, tmp_path, toy, script):  # noqa: F811
    script, *more = script.split()
    line = refused(capfd, tmp_path, script, "--config-file", toy, *more, "NAS.BN_RECALIBRATION.NUM_IMAGES", 0)
    assert line == "error: NAS.BN_RECALIBRATION.NUM_IMAGES is 0; expected a whole number of at least 1"
    line = refused(capfd, tmp_path, script, "--config-file", toy, *more, "MODEL.LOAD_PROPOSALS", True)
    assert "files of them are pickles" in line


def test_the_check_refuses_them_too(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("VERSION: 2\nSOLVER:\n  STEPS: (5, 3)\n")
    with pytest.raises(UserError, match=r"SOLVER.STEPS is \(5, 3\); expected a list of a whole number"):
        check.main(["shapes_panoptic_val", "--config-file", str(path)])
