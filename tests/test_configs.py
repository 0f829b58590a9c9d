"""Every config parses and builds, and its numbers are those of the paper."""

import functools

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from toy import ROOT

import auto_panoptic.systems  # noqa: F401  registers the components
from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.data import data_set_for
from auto_panoptic.modeling import choice_blocks, space_of
from auto_panoptic.space import Architecture, SearchSpace, resolve_architecture_path

FOLDER = ROOT / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
RUNNABLE = [path for path in CONFIGS if not path.name.startswith("Base-")]
# Those of the paper's experiments; the others serve small machines, own data and the ImageNet stage.
EXPERIMENTS = [path for path in RUNNABLE if path.parent.name not in ("own", "quick", "bench", "pretrain")]
PANOPTIC_FPN = [path for path in EXPERIMENTS if path.parent.name not in ("unified", "panoptic_deeplab")]
OF_THE_TRAINER = {"MODEL.CHANNELS_LAST"}
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
    ("d8fa9f7be1f5", 26): "own/cpu_retrain own/cpu_supernet quick/whole quick/whole_supernet",
    ("202c3ea9f553", 56): "own/retrain own/supernet",
    ("478ee6d4f0ff", 10): "bench/shapes4096 bench/shapes4096_trained quick/retrain quick/supernet",
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
        quick/panoptic_fpn_narrow quick/panoptic_fpn_quarter panoptic_deeplab/detectron2_cityscapes_R52
        panoptic_deeplab/detectron2_coco_R52""",
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
        least = max if cfg.NAS.SPACE.SITES else min  # which may fix some sites
        assert least(len(ops) for ops in found.values()) > 1
    else:
        assert {len(ops) for ops in found.values()} <= {1}
    keys = {key for file in (path, *bases(path)[1:]) for key in stated(file) if key.startswith("MODEL.")}
    assert keys - recorder.read <= OF_THE_DATA | OF_THE_TRAINER


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
