"""Every shipped config of a panoptic supernet: trained, searched, rescored and evaluated on tiny data."""

import json

import pytest
from toy import PREFIX, ROOT, SMALL, dataset_entries, merged, run_script

from auto_panoptic.explore import Ledger

CONFIGS = sorted(p for p in (ROOT / "configs").rglob("supernet*.yaml") if p.parent.name != "pretrain")

# Two operators per site: a fair cycle is two passes, a search cycle two candidates.
TINY = merged(
    SMALL,
    {
        "MODEL": {"CROSS_ATTENTION": {"RATIOS": [4, 8]}, "SHUFFLENET": {"STAGE_REPEATS": [1, 1, 1, 1]}},
        "SOLVER": {"MAX_ITER": 1, "STEPS": [], "WARMUP_ITERS": 0, "CHECKPOINT_PERIOD": 1000},
        "NAS": {
            "POLICY": "path_priority",
            "MODELS_PER_CYCLE": 2,
            "SPACE": {
                "BACKBONE_OPS": ["shuffle_3x3", "xception_3x3"],
                "HEAD_OPS": ["dwconv_3x3", "atconv_3x3"],
                "DEEPLAB_OPS": ["sep_5x5", "dwconv_3x3"],
            },
            "BN_RECALIBRATION": {"NUM_IMAGES": 8, "BATCH_SIZE": 2},
        },
    },
)


# What the unified network reads instead.
UNIFIED = {"UNIFIED": {"DECODER_DIMS": [32], "AFFINITY": {"DIM": 8}}}
OTHERS = ("CROSS_ATTENTION", "PANOPTIC_FPN", "SEM_SEG_HEAD")
# What Panoptic-DeepLab reads.
BRANCH = {"CONVS_DIM": 16, "ASPP_CHANNELS": 16, "HEAD_CHANNELS": 16, "NORM": "BN"}
DEEPLAB = {"SEM_SEG_HEAD": BRANCH, "INS_EMBED_HEAD": BRANCH}


def tiny(config):
    """The settings as far as the config's network reads them."""
    model = TINY["MODEL"]
    if config.parent.name == "unified":
        model = {key: node for key, node in model.items() if key not in OTHERS} | UNIFIED
    if config.parent.name == "panoptic_deeplab":
        model = {key: model[key] for key in ("DEVICE", "SHUFFLENET")} | DEEPLAB
    if config.parent.name == "quick":  # no attention, and second blocks that may be skipped
        model = {key: node for key, node in model.items() if key != "CROSS_ATTENTION"}
        model = merged(model, {"SHUFFLENET": {"STAGE_REPEATS": [2, 2, 2, 1]}})
        sites = "(('backbone.[135]', ('skip', 'shuffle_3x3')),)"
        return merged(TINY | {"MODEL": model}, {"NAS": {"SPACE": {"SITES": sites}}})
    return {**TINY, "MODEL": model}


def flat(node, prefix=""):
    """KEY VALUE ... of a nested mapping."""
    options = []
    for key, value in node.items():
        options += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key, value]
    return options


@pytest.mark.parametrize("config", CONFIGS, ids=[str(p.relative_to(ROOT / "configs")) for p in CONFIGS])
def test_train_search_rescore_evaluate(config, tmp_path, shapes):
    data = {
        "COCO_PANOPTIC": dataset_entries(shapes),
        "TRAIN": f"('{PREFIX}_nas_train',)",
        "TEST": f"('{PREFIX}_val',)",
        "SEARCH": f"('{PREFIX}_nas_val',)",
    }
    options = (*flat({**tiny(config), "DATASETS": data}), "OUTPUT_DIR", tmp_path)
    run_script("train_net", "--config-file", config, *options)
    run_script("search_net", "--config-file", config, *options)
    records = Ledger(tmp_path / "search/ledger.jsonl").records
    assert [record["status"] for record in records] == ["ok", "ok"]
    architecture = tmp_path / "search/architecture.json"
    for estimator in ("ridge", "ranks"):  # the second reads what the first stored
        run_script("search_net", "--config-file", config, "--rescore", "--estimator", estimator, *options)
        assert json.loads(architecture.read_text())["provenance"]["estimator"] == estimator
    weights = ("MODEL.WEIGHTS", tmp_path / "model_final.pth", "NAS.ARCHITECTURE", architecture)
    run_script("train_net", "--config-file", config, "--eval-only", *options, *weights)
    metrics = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert {"panoptic_seg/PQ", "sem_seg/mIoU"} <= metrics.keys()
