"""The configs of Panoptic-DeepLab: the supplement's networks, their sizes, and its tables in MODEL_ZOO.md."""

import runpy
import shlex

import pytest
from deeplab_util import HEADS
from test_configs import FOLDER, needs_timm, read, stated
from test_model_zoo import ROWS, linked

from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.space import SearchSpace

NODE = "MODEL.PANOPTIC_DEEPLAB"
CONFIGS = sorted(FOLDER.glob("panoptic_deeplab/[!B]*.yaml"))
CLASSES = {"cityscapes": (8, 19), "coco": (80, 133), "mapillary": (37, 65)}
SIZES = {"detectron2_cityscapes": (1024, 2048), "detectron2_coco": (640, 640)}
SIZES |= {"cityscapes": (1025, 2049), "coco": (641, 641), "mapillary": (1633, 2177)}
V3PLUS = (f"{NODE}.DECODER", "deeplabv3plus")


def cost_of(cfg, size):
    """(parameters, multiply-adds) of a network without a choice, at its published size.

    Detectron2's class is counted as ours, whose counting needs no values.
    """
    if cfg.MODEL.META_ARCHITECTURE == "PanopticDeepLab":
        cfg.MODEL.META_ARCHITECTURE = "AutoPanopticDeepLab"
        for node, head in HEADS.items():
            cfg.MODEL[node].NAME = head
    space = SearchSpace.from_config(cfg)
    cost = configured_costs(cfg, size).cost(space.architecture([0] * len(space.sites)))
    return cost.params, cost.macs


def size_of(path):
    return next(size for name, size in SIZES.items() if path.name.startswith(name))


def named(pattern):
    found = [path for path in CONFIGS if pattern in path.name]
    assert found
    return pytest.mark.parametrize("path", found, ids=lambda path: path.stem)


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    "options, params, macs",
    [((), 46745486, 546022803064), (V3PLUS, 46648806, 553434105328)],
)
def test_the_totals_of_both_decoders(options, params, macs):
    """With Xception-71 at 1025 x 2049; published are 46.72 M, 547.49 G and 46.61 M, 553.41 G."""
    pytest.importorskip("timm")
    assert cost_of(read("panoptic_deeplab/cityscapes_X71.yaml", *options), (1025, 2049)) == (params, macs)


def test_detectron2s_heads_are_larger():
    """A dense centre head and the same projections in both branches."""
    pytest.importorskip("timm")
    options = (f"{NODE}.CENTER_SEPARABLE", False, "MODEL.INS_EMBED_HEAD.PROJECT_CHANNELS", [32, 64])
    cfg = read("panoptic_deeplab/cityscapes_X71.yaml", *options)
    assert cost_of(cfg, (1025, 2049)) == (46957438, 571159241128)


def test_a_decoder_changes_one_line():
    """The sign of the published differences: Panoptic-DeepLab has fewer multiply-adds, more parameters."""
    path = FOLDER / "panoptic_deeplab/cityscapes_X71_deeplabv3plus.yaml"
    assert stated(path).keys() - {"OUTPUT_DIR"} == {f"{NODE}.DECODER"}
    for path in CONFIGS:
        if path.stem in ("cityscapes_X71_objectness", "cityscapes_X71_class"):
            assert stated(path).keys() - {"OUTPUT_DIR"} == {f"{NODE}.INSTANCE_SCORE"}
    path = FOLDER / "panoptic_deeplab/coco_X71_instance_annotation.yaml"
    assert stated(path).keys() - {"OUTPUT_DIR"} == {f"{NODE}.GT_SOURCE"}


def test_the_benchmark_compares_systems_of_equal_cost():
    """One operator at each place, widths as the study has them; within 5 %."""
    networks = runpy.run_path(str(FOLDER.parent / "tools/benchmarks/systems.py"))["NETWORKS"]
    macs = {}
    for name, network in networks.items():
        config, *options = shlex.split(network)
        cfg = read(config.removeprefix("configs/"), *options)
        macs[name] = cost_of(cfg, (128, 160))[1]
    assert macs.keys() == {"auto_panoptic", "unified", "panoptic_deeplab"}
    assert max(macs.values()) < 1.05 * min(macs.values())


# ------------------------------------------------------------------ settings


@named("HRNet")
def test_the_learning_rate_of_hrnet(path):
    cfg = read(path)
    assert cfg.SOLVER.BASE_LR == 7.5e-4
    if cfg.MODEL.HRNET.HEAD == "classification":
        heads = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.INS_EMBED_HEAD
        assert [head.PROJECT_CHANNELS for head in heads] == [[32, 64, 96], [16, 32, 48]]
        rates = [6, 12, 18] if cfg.MODEL.HRNET.ATROUS_LAST else [3, 6, 9]
        assert [head.ASPP_DILATIONS for head in heads] == [rates, rates]


@named("")
def test_classes_and_solver(path):
    cfg = read(path)
    things, labels = CLASSES[next(name for name in CLASSES if name in path.name)]
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (things, labels)
    solver = cfg.SOLVER
    assert (solver.OPTIMIZER, solver.LR_SCHEDULER_NAME, solver.WEIGHT_DECAY) == ("ADAM", "WarmupPolyLR", 0)
    assert cfg.MODEL.PANOPTIC_DEEPLAB.INSTANCE_SCORE == next(
        (score for score in ("objectness", "class") if path.stem.endswith(f"_{score}")), "product"
    )
    assert cfg.INPUT.CROP.ENABLED and cfg.MODEL.MASK_ON


def test_xception_on_cityscapes():
    """Batch 32, 60000 iterations, crops of 1025 x 2049 from half to twice the size."""
    cfg = read("panoptic_deeplab/cityscapes_X71.yaml")
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.POLY_LR_POWER) == (32, 60000, 0.9)
    assert cfg.INPUT.CROP.SIZE == [1025, 2049]
    steps = [round(side / 1024, 2) for side in cfg.INPUT.MIN_SIZE_TRAIN]
    assert steps == [round(0.5 + 0.1 * i, 2) for i in range(16)]
    assert (cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT, cfg.MODEL.SEM_SEG_HEAD.LOSS_TOP_K) == (1, 0.2)
    instance = cfg.MODEL.INS_EMBED_HEAD
    assert (instance.CENTER_LOSS_WEIGHT, instance.OFFSET_LOSS_WEIGHT) == (200, 0.01)
    node = cfg.MODEL.PANOPTIC_DEEPLAB
    assert (node.CENTER_THRESHOLD, node.NMS_KERNEL, node.TOP_K_INSTANCE, node.STUFF_AREA) == (
        0.1,
        7,
        200,
        2048,
    )


def test_the_supernets_schedule():
    cfg = read("panoptic_deeplab/supernet_coco.yaml")
    cycle = SearchSpace.from_config(cfg).cycle_length
    assert cycle == 12 and 0 <= cfg.SOLVER.MAX_ITER * cycle - 200000 < cycle


# ------------------------------------------------------------------ MODEL_ZOO.md


def test_costs_of_the_whole_networks():
    checked = set()
    for row in ROWS:
        for path in linked(row.get("config", "")):
            if "panoptic_deeplab" in path.parts and row.get("MACs, whole"):
                params, macs = cost_of(needs_timm(read(path)), size_of(path))
                assert (row["MACs, whole"], row["params, whole"]) == (
                    f"{macs / 1e9:.2f} G",
                    f"{params / 1e6:.2f} M",
                )
                checked.add(path)
    without = {"cityscapes_X71_objectness", "cityscapes_X71_class", "coco_X71_instance_annotation"}
    without |= {"supernet_coco", "searched_coco"}
    assert {path.stem for path in CONFIGS} - {path.stem for path in checked} == without
