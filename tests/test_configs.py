"""Every config parses and builds, and its numbers are those of the paper."""

import functools

import numpy as np
import pytest
import torch
import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_anchor_generator
from toy import ROOT

import auto_panoptic.systems  # noqa: F401  registers the components
from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.data import data_set_for
from auto_panoptic.modeling import choice_blocks, space_of
from auto_panoptic.space import Architecture, SearchSpace, resolve_architecture_path
from auto_panoptic.training.schedule import build_lr_scheduler

FOLDER = ROOT / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
RUNNABLE = [path for path in CONFIGS if not path.name.startswith("Base-")]
# Those of the paper's experiments; the others serve small machines, own data and the ImageNet stage.
EXPERIMENTS = [path for path in RUNNABLE if path.parent.name not in ("own", "quick", "pretrain")]
PANOPTIC_FPN = [path for path in EXPERIMENTS if path.parent.name not in ("unified", "panoptic_deeplab")]
OF_THE_DATA = {"MODEL.WEIGHTS", "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.PANOPTIC_DEEPLAB.GT_SOURCE"}


# Fingerprint (operators and order) and number of sites: ledgers and fair cycles of older runs depend on them.
SPACES = {
    ("346a4725bed1", 56): """auto_panoptic_ade20k auto_panoptic_ade20k_from_coco auto_panoptic_coco
        auto_panoptic_coco_from_ade20k baselines/hand_crafted_coco baselines/random_coco supernet_ade20k
        supernet_coco reference/auto_panoptic_ade20k reference/auto_panoptic_coco reference/supernet_ade20k
        reference/supernet_coco""",
    ("6b8455cf6a01", 40): """ablations/auto_panoptic_coco_backbone pretrain/searched_imagenet
        pretrain/supernet_imagenet""",
    ("0744f2db8782", 47): "ablations/auto_panoptic_coco_backbone_heads",
    ("559b02f63cd0", 16): "ablations/auto_panoptic_coco_heads_attention",
    ("7ab47a450d3f", 56): "baselines/auto_panoptic_plain_coco",
    ("ab1b93f0dab4", 3): "baselines/panoptic_fpn_d_ade20k baselines/panoptic_fpn_d_coco",
    ("36efe382d45f", 10): "pretrain/quick_imagenet",
    ("d8fa9f7be1f5", 26): "quick/retrain quick/supernet own/cpu_retrain own/cpu_supernet",
    ("202c3ea9f553", 56): "own/retrain own/supernet",
    ("65865f02a8c9", 50): "unified/searched_coco unified/supernet_coco",
    ("b598b2431756", 6): "unified/coco_R50 unified/coco_R50_variant_B",
    ("57b6c4d547cc", 4): """unified/cityscapes_R50 unified/cityscapes_R50_maskfree
        unified/cityscapes_R50_maskfree_ground_truth unified/cityscapes_R50_variant_C""",
    ("6dd9118f305b", 4): "quick/unified_R18",
    ("5df741e18af1", 18): "quick/unified quick/unified_supernet",
    ("25e135b07254", 7): """panoptic_deeplab/cityscapes_X71 panoptic_deeplab/cityscapes_X71_class
        panoptic_deeplab/cityscapes_X71_objectness panoptic_deeplab/coco_X71 panoptic_deeplab/mapillary_X71
        panoptic_deeplab/coco_X71_instance_annotation panoptic_deeplab/mapillary_auto_deeplab
        panoptic_deeplab/mapillary_auto_deeplab_plus""",
    ("516b16c96136", 5): "panoptic_deeplab/cityscapes_X71_deeplabv3plus",
    ("8ea80eebb231", 9): """panoptic_deeplab/cityscapes_HRNet_W48_plus
        panoptic_deeplab/cityscapes_HRNet_wider_plus panoptic_deeplab/mapillary_HRNet_W48_plus
        panoptic_deeplab/mapillary_HRNet_W48_plus_atrous panoptic_deeplab/mapillary_HRNet_wider_plus""",
    ("fafb8d966df3", 2): "panoptic_deeplab/mapillary_HRNet_W48",
    ("201025013b0f", 49): "panoptic_deeplab/searched_coco panoptic_deeplab/supernet_coco",
    ("ee27f4778585", 19): "quick/panoptic_deeplab",
    ("c8cfefc6d60f", 19): "quick/panoptic_deeplab_searched quick/panoptic_deeplab_supernet",
    ("4f53cda18c2b", 0): """baselines/panoptic_fpn_ade20k baselines/panoptic_fpn_coco quick/panoptic_fpn
        panoptic_deeplab/detectron2_cityscapes_R52 panoptic_deeplab/detectron2_coco_R52""",
}
SPACES = {name: space for space, names in SPACES.items() for name in names.split()}


@functools.cache
def _read(path):
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    cfg.merge_from_file(path)
    return cfg


def read(path, *options):
    """The config of a file, merged as the commands do; a key that does not exist is an error."""
    cfg = _read(str(FOLDER / path)).clone()
    cfg.merge_from_list([*options])
    return cfg


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=[str(p.relative_to(FOLDER)) for p in paths])


def stated(path):
    """{full key: value} of what a file itself states, without its bases."""

    def flat(node, prefix=""):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            elif key != "_BASE_":
                yield prefix + key, value

    return dict(flat(yaml.safe_load(path.read_text())))


def bases(path):
    """The files that ``path`` inherits from, directly."""
    found = yaml.safe_load(path.read_text()).get("_BASE_", [])
    return [(path.parent / base).resolve() for base in ([found] if isinstance(found, str) else found)]


def needs_timm(cfg):
    """Skip the test of a config whose backbone is made of timm's layers, where timm is missing."""
    if cfg.MODEL.BACKBONE.NAME in ("build_hrnet_backbone", "build_xception71_backbone"):
        pytest.importorskip("timm")
    return cfg


def is_supernet(cfg):
    return not cfg.NAS.ARCHITECTURE and SearchSpace.from_config(cfg).cardinality > 1


def build_on_meta(cfg):
    """The model of a config, without memory."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def with_architecture(cfg, folder):
    """Stand in for the architecture file that an earlier command writes."""
    if cfg.NAS.ARCHITECTURE.endswith(".json"):
        architecture = SearchSpace.from_config(cfg).random(np.random.default_rng(0))
        architecture.save(folder / "architecture.json")
        cfg.NAS.ARCHITECTURE = str(folder / "architecture.json")
    return cfg


def test_there_are_configs():
    names = {str(path.relative_to(FOLDER)) for path in CONFIGS}
    expected = {f"{prefix}{stage}_{data}.yaml" for prefix in ("", "reference/") for stage in ("supernet",
        "auto_panoptic") for data in ("coco", "ade20k")}  # fmt: skip
    assert expected | {"quick/supernet.yaml", "quick/retrain.yaml"} <= names


def test_an_unknown_key_would_be_noticed(tmp_path):
    (tmp_path / "bad.yaml").write_text(f"_BASE_: {RUNNABLE[0]}\nSOLVER:\n  MAX_ITERS: 3\n")
    with pytest.raises(KeyError, match="SOLVER.MAX_ITERS"):
        read(tmp_path / "bad.yaml")


@named(CONFIGS)
def test_it_parses_and_so_do_its_bases(path):
    read(path)
    for base in bases(path):
        assert base in CONFIGS and base != path


@named([*EXPERIMENTS, *FOLDER.glob("[!p]*/Base-*.yaml")])
def test_it_states_only_what_differs(path):
    """No key repeats the value that the file inherits from its bases."""
    inherited = {}
    for base in reversed([*ancestors(path)]):
        inherited.update(stated(base))
    repeated = [key for key, value in stated(path).items() if inherited.get(key, ...) == value]
    assert repeated == []


def ancestors(path):
    """All bases of a file, the nearest first; the later of two bases lies over the earlier one."""
    for base in reversed(bases(path)):
        yield base
        yield from ancestors(base)


class Recorder:
    """Which keys of a config are read, by attribute."""

    def __init__(self, cfg, monkeypatch):
        self.read, paths = set(), {}

        def walk(node, prefix):
            paths[id(node)] = prefix
            for key, value in node.items():
                if isinstance(value, CfgNode):
                    walk(value, f"{prefix}{key}.")

        def getattr_and_note(node, name):
            if id(node) in paths:
                self.read.add(paths[id(node)] + name)
            return original(node, name)

        walk(cfg, "")
        original = CfgNode.__getattr__
        monkeypatch.setattr(CfgNode, "__getattr__", getattr_and_note)


def test_an_unused_key_would_be_noticed(monkeypatch):
    cfg = read("baselines/panoptic_fpn_coco.yaml")
    recorder = Recorder(cfg, monkeypatch)
    build_on_meta(cfg)
    assert {"MODEL.RESNETS.DEPTH", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT"} <= recorder.read
    assert not {"MODEL.SHUFFLENET.STEM_CHANNELS", "MODEL.CROSS_ATTENTION.F2B_LEVELS"} & recorder.read


@named(RUNNABLE)
def test_its_model_builds_and_uses_what_it_states(path, tmp_path, monkeypatch):
    """The choice blocks are those of the config's space, one operator each if it is fixed.

    Every MODEL key that the file states, or a file laid over its first base, is read.
    """
    cfg = with_architecture(needs_timm(read(path)), tmp_path)
    recorder = Recorder(cfg, monkeypatch)
    model = build_on_meta(cfg)
    found = {site: tuple(block.candidates) for site, block in choice_blocks(model).items()}
    space = SearchSpace.from_config(cfg)
    assert space_of(model) == space  # of a fixed model too
    assert (space.fingerprint, len(space.sites)) == SPACES[str(path.relative_to(FOLDER))[:-5]]
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0 or "backbone" not in space.parts
    if cfg.NAS.ARCHITECTURE:
        architecture = Architecture.load(resolve_architecture_path(cfg.NAS.ARCHITECTURE), space)
        assert found == {site: (name,) for site, name in architecture.names().items()}
    else:
        assert found == {site.name: site.names for site in space.sites}
    if is_supernet(cfg):
        assert min(len(ops) for ops in found.values()) > 1
    else:
        assert {len(ops) for ops in found.values()} <= {1}
    keys = {key for file in (path, *bases(path)[1:]) for key in stated(file) if key.startswith("MODEL.")}
    assert keys - recorder.read <= OF_THE_DATA


@named(RUNNABLE)
def test_its_data_sets_are_known(path):
    cfg = needs_timm(read(path))
    names = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *cfg.DATASETS.SEARCH}
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST and names <= set(DatasetCatalog.list())
    assert not set(cfg.DATASETS.TRAIN) & set(cfg.DATASETS.TEST)
    if cfg.MODEL.META_ARCHITECTURE == "BackboneClassifier":
        assert not cfg.DATASETS.SEARCH
        return
    assert bool(cfg.DATASETS.SEARCH) == is_supernet(cfg)
    # Candidates are ranked neither on what trained them nor on what the result is reported on.
    assert not set(cfg.DATASETS.SEARCH) & {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    for name in names:
        metadata = MetadataCatalog.get(data_set_for(cfg, name))
        assert len(metadata.thing_classes) == cfg.MODEL.ROI_HEADS.NUM_CLASSES
        assert len(metadata.stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


@pytest.mark.parametrize("data, things, labels", [("coco_2017", 80, 54), ("ade20k_panoptic", 100, 51)])
def test_class_counts(data, things, labels):
    """COCO: 80 things, 53 stuff classes and "things"; ADE20K: 100 things, 50 stuff classes and "things"."""
    cfgs = [read(path) for path in PANOPTIC_FPN]
    cfgs = [cfg for cfg in cfgs if cfg.DATASETS.TRAIN[0].startswith(data)]
    assert len(cfgs) >= 6
    for cfg in cfgs:
        assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (things, labels)
        assert all(name.startswith(data) for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.SEARCH))
        assert all(name.endswith("_separated") for name in cfg.DATASETS.TRAIN)


@named(RUNNABLE)
def test_its_schedule_is_sound(path):
    cfg = needs_timm(read(path))
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = list(solver.STEPS)
        assert steps == sorted(steps) and steps[-1] < solver.MAX_ITER
        assert 0 < solver.WARMUP_ITERS < steps[0]
    else:
        assert 0 <= solver.WARMUP_ITERS < solver.MAX_ITER
    if is_supernet(cfg):
        assert cfg.NAS.MODELS_PER_CYCLE % SearchSpace.from_config(cfg).cycle_length == 0
    assert cfg.OUTPUT_DIR.startswith("output/")


def test_output_folders_differ():
    folders = [read(path).OUTPUT_DIR for path in RUNNABLE]
    assert len(set(folders)) == len(folders)


# ------------------------------------------------------------------ the paper's settings

COCO, ADE20K = 118287, 20210  # training images; 5000 and 2000 of them are set aside for the search


def test_the_published_schedule_of_the_supernet():
    """90000 mini-batches in fair cycles of 12; learning rate / 10 at epochs 8 and 11 of 12."""
    cfg = read("supernet_coco.yaml")
    assert cfg.SOLVER.MAX_ITER * SearchSpace.from_config(cfg).cycle_length == 90000
    assert [step * 12 / cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS] == [8, 11]
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MOMENTUM) == (16, 0.02, 0.9)
    assert solver.WEIGHT_DECAY == 1e-4
    assert SearchSpace.from_config(cfg) == SearchSpace.default()
    settings = cfg.NAS.BN_RECALIBRATION
    assert (cfg.NAS.CYCLES, cfg.NAS.MODELS_PER_CYCLE, settings.NUM_IMAGES) == (5, 12, 500)
    assert (settings.MOMENTUM, cfg.MODEL.SHUFFLENET.WIDTH) == (0, "1.3G")
    assert 90000 * 16 / (COCO - 5000) == pytest.approx(12.7, abs=0.02)


def test_the_schedule_of_the_supernet_on_ade20k():
    """24 epochs of 18210 images, learning rate / 10 at epochs 16 and 22, in fair cycles of 12."""
    cfg = read("supernet_ade20k.yaml")
    mini_batches = 24 * (ADE20K - 2000) / 16
    assert mini_batches == 27315
    assert cfg.SOLVER.MAX_ITER == mini_batches // 12 and mini_batches - 12 * cfg.SOLVER.MAX_ITER == 3
    for step, epoch in zip(cfg.SOLVER.STEPS, (16, 22), strict=True):
        assert abs(step - epoch * (ADE20K - 2000) / 16 / 12) <= 0.5
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.02)


def test_the_schedules_of_retraining():
    coco, ade20k = read("auto_panoptic_coco.yaml").SOLVER, read("auto_panoptic_ade20k.yaml").SOLVER
    assert (coco.MAX_ITER, tuple(coco.STEPS), coco.WARMUP_ITERS) == (90000, (60000, 80000), 500)
    assert 24 * ADE20K / 16 == ade20k.MAX_ITER == 30315
    assert [16 * ADE20K / 16, round(22 * ADE20K / 16)] == list(ade20k.STEPS) == [20210, 27789]
    for path in PANOPTIC_FPN:
        cfg = read(path)
        if not is_supernet(cfg):
            expected = ade20k if "ade20k_panoptic_train_separated" in cfg.DATASETS.TRAIN else coco
            assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (expected.MAX_ITER, expected.STEPS)
            assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.02)


@pytest.mark.parametrize("data", ["coco", "ade20k"])
def test_transfer_changes_the_architecture_only(data):
    other = {"coco": "ade20k", "ade20k": "coco"}[data]
    assert stated(FOLDER / f"auto_panoptic_{data}_from_{other}.yaml") == {
        "NAS.ARCHITECTURE": f"auto_panoptic_{other}",
        "OUTPUT_DIR": f"output/auto_panoptic_{data}_from_{other}",
    }
    assert read(f"auto_panoptic_{data}.yaml").NAS.ARCHITECTURE == f"auto_panoptic_{data}"


def test_the_components_of_the_ablation():
    """What is searched in each row of the paper's table, and that nothing else changes between them."""
    expected = {
        "ablations/auto_panoptic_coco_backbone.yaml": ("backbone",),
        "ablations/auto_panoptic_coco_backbone_heads.yaml": ("backbone", "mask", "sem_seg"),
        "ablations/auto_panoptic_coco_heads_attention.yaml": ("mask", "sem_seg", "attention"),
        "auto_panoptic_coco.yaml": ("backbone", "mask", "sem_seg", "attention"),
    }
    cfgs = {path: read(path) for path in expected}
    assert {path: SearchSpace.from_config(cfg).parts for path, cfg in cfgs.items()} == expected
    assert {cfg.NAS.ARCHITECTURE for cfg in cfgs.values()} == {"auto_panoptic_coco"}
    assert len({(str(cfg.SOLVER), str(cfg.INPUT), str(cfg.DATASETS)) for cfg in cfgs.values()}) == 1


def test_what_reports_the_papers_numbers_merges_as_the_reference_code():
    methods = {
        str(path.relative_to(FOLDER)): cfg.MODEL.PANOPTIC_FPN.COMBINE.METHOD
        for path in RUNNABLE
        if (cfg := read(path)).MODEL.META_ARCHITECTURE == "AutoPanopticFPN"
    }
    detectron2 = {path for path, method in methods.items() if method == "detectron2"}
    assert detectron2 == {
        "supernet_coco.yaml",
        "supernet_ade20k.yaml",
        *(p for p in methods if p.startswith(("quick/", "own/"))),
    }
    assert set(methods.values()) == {"detectron2", "reference"}


# ------------------------------------------------------------------ Detectron2 and the reference code


def test_panoptic_fpn_is_the_model_zoos():
    """Key for key, beside the output folder."""
    ours = read("baselines/panoptic_fpn_coco.yaml")
    theirs = model_zoo.get_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml")
    ours.OUTPUT_DIR = theirs.OUTPUT_DIR
    ours.MODEL.WEIGHTS = ours.MODEL.WEIGHTS.replace("detectron2://", "")
    theirs.MODEL.WEIGHTS = theirs.MODEL.WEIGHTS.replace("detectron2://", "")

    def differences(a, b, prefix=""):
        for key, value in b.items():
            if isinstance(value, CfgNode):
                yield from differences(a[key], value, f"{prefix}{key}.")
            elif a[key] != value:
                yield prefix + key, a[key], value

    assert list(differences(ours, theirs)) == []


@pytest.mark.parametrize("data", ["coco", "ade20k"])
def test_the_reference_settings(data):
    """As read in the reference code's configs, scripts and defaults."""
    supernet, retrain = read(f"reference/supernet_{data}.yaml"), read(f"reference/auto_panoptic_{data}.yaml")
    for cfg in (supernet, retrain):
        assert cfg.MODEL.CROSS_ATTENTION.F2B_LEVELS == ["p3", "p4", "p5", "p6"]
        assert cfg.MODEL.CROSS_ATTENTION.LEGACY_RATIO
        assert (cfg.NAS.GRADIENTS, cfg.NAS.REFERENCE_BIAS_LR) == ("lr_scale", True)
        assert (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM) == (1e-4, 1e-4)
        assert (cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN, cfg.MODEL.RPN.BOUNDARY_THRESH) == (2000, 0)
        assert cfg.MODEL.PROPOSAL_GENERATOR.NAME == "BatchTopkRPN"
        anchors = build_anchor_generator(cfg, [ShapeSpec(stride=4 * 2**i) for i in range(5)])
        for level, stride in zip(anchors([torch.empty(1, 1, 2, 2)] * 5), (4, 8, 16, 32, 64), strict=True):
            cell = stride * torch.tensor([[0.5, 0.5], [1.5, 0.5], [0.5, 1.5], [1.5, 1.5]])
            centers = cell.repeat_interleave(3, dim=0)  # three aspect ratios; sides are rounded
            torch.testing.assert_close(level.get_centers(), centers, rtol=0, atol=1e-4)
        assert (cfg.MODEL.RPN.SMOOTH_L1_BETA, cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA) == (1 / 9, 1)
        for head in (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
            assert (head.POOLER_TYPE, head.POOLER_SAMPLING_RATIO) == ("ROIAlign", 2)
        settings = cfg.NAS.BN_RECALIBRATION
        assert (settings.NUM_IMAGES, settings.BATCH_SIZE, settings.MOMENTUM) == (500 * 16, 16, 0.1)
        assert cfg.MODEL.PANOPTIC_FPN.COMBINE.METHOD == "reference"
    assert supernet.SOLVER.LR_SCHEDULER_NAME == "ReferenceCosineLR"
    assert (supernet.SOLVER.WARMUP_ITERS * 12, supernet.SOLVER.WARMUP_FACTOR) == (3000, 0.1)
    assert (retrain.SOLVER.LR_SCHEDULER_NAME, retrain.SOLVER.WARMUP_ITERS) == ("WarmupMultiStepLR", 500)


def test_the_reference_learning_rates_of_the_supernet():
    """After 0, 1500, 3000, 46500 and 90000 mini-batches: 0.002, 0.011, 0.02, 0.01, 0."""
    cfg = read("reference/supernet_coco.yaml")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = [rates[mini_batches // 12] for mini_batches in (0, 1500, 3000, 46500, 90000)]
    assert found == pytest.approx([0.002, 0.011, 0.02, 0.01, 0], abs=1e-9)


def test_the_quick_commands_fit_together():
    """Retraining builds a path of the quick supernet; its statistics move as slowly as the paper's (0.01)."""
    supernet, retrain = read("quick/supernet.yaml"), read("quick/retrain.yaml")
    assert SearchSpace.from_config(supernet) == SearchSpace.from_config(retrain)
    assert (supernet.MODEL.SHUFFLENET.NORM_MOMENTUM, retrain.MODEL.SHUFFLENET.NORM_MOMENTUM) == (0.1, 0.01)
    supernet.MODEL.SHUFFLENET.NORM_MOMENTUM = 0.01
    assert supernet.MODEL.SHUFFLENET == retrain.MODEL.SHUFFLENET
