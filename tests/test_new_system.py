"""A system of two files outside the package goes through every command; a new operator costs a few lines."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from toy import PREFIX, dataset_entries, run_script

from auto_panoptic.explore import Ledger
from auto_panoptic.modeling import apply_architecture, meta_model, space_of
from auto_panoptic.modeling.calibration import calibrated
from auto_panoptic.modeling.counting import count
from auto_panoptic.modeling.extract import extract
from auto_panoptic.space import Architecture
from auto_panoptic.training import build_config

CONFIG = Path(__file__).parent / "toy_system" / "supernet.yaml"
SITES = {
    "encoder.0": ["square_3x3", "square_5x5", "cross_3x3"],
    "decoder.0": ["square_3x3", "square_5x5", "cross_3x3"],
}
CHANNELS, PIXELS = 16, 16 * 16  # at stride 4 of the 64 x 64 pixels that limits count
MACS = {"square_3x3": 9, "square_5x5": 25, "cross_3x3": 6}  # per pair of channels and position
LIMIT = 20  # of the two sites together, in the same unit: no 5x5


def options(shapes, folder, *more):
    """KEY VALUE pairs of a command on the tiny data set that writes to ``folder``."""
    data = {
        "COCO_PANOPTIC": dataset_entries(shapes),
        "TRAIN": ["nas_train"],
        "TEST": ["val"],
        "SEARCH": ["nas_val"],
    }
    for key in ("TRAIN", "TEST", "SEARCH"):
        data[key] = tuple(f"{PREFIX}_{split}" for split in data[key])
    pairs = [word for key, value in data.items() for word in (f"DATASETS.{key}", value)]
    return [str(word) for word in (*pairs, "OUTPUT_DIR", folder, *more)]


def fixed_macs(cfg):
    """Multiply-adds of what is not searched."""
    tables = count(meta_model(cfg), (64, 64))
    return sum(cost.macs for cost in tables.fixed.values())


@pytest.fixture(scope="module")
def cfg(tmp_path_factory, shapes):
    return build_config(str(CONFIG), options(shapes, tmp_path_factory.mktemp("unused")))


@pytest.fixture(scope="module")
def root(tmp_path_factory, shapes, cfg):
    """What the commands left: whole, supernet (stopped, resumed), search, retrained, evaluated."""
    root = tmp_path_factory.mktemp("new_system")

    def run(script, out, *arguments, settings=()):
        more = options(shapes, root / out, *settings)
        run_script(script, "--config-file", CONFIG, *arguments, *more)

    run("train_net", "whole")
    run("train_net", "supernet")
    for file in ("model_final.pth", "model_0000011.pth"):  # as a kill after iteration 7 leaves it
        (root / "supernet" / file).unlink()
    run("train_net", "supernet", "--resume")
    weights = root / "supernet/model_final.pth"
    limit = fixed_macs(cfg) + LIMIT * CHANNELS**2 * PIXELS
    run("search_net", "search", "--weights", weights, "--metrics", "miou", "--max-macs", limit)
    fixed = ("NAS.ARCHITECTURE", root / "search/search/architecture.json", "MODEL.WEIGHTS")
    run("train_net", "retrained", settings=(*fixed, weights))
    run("train_net", "evaluated", "--eval-only", settings=(*fixed, root / "retrained/model_final.pth"))
    return root


def metrics(folder):
    """The lines of metrics.json."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_the_model_is_the_space(cfg):
    assert space_of(meta_model(cfg)).to_dict() == SITES


def test_costs_are_counted_on_the_model(cfg):
    tables = count(meta_model(cfg), (64, 64))
    for row in tables.sites:
        for name, cost in row.items():
            assert cost.macs == MACS[name] * CHANNELS**2 * PIXELS
            assert cost.params == MACS[name] * CHANNELS**2 + 2 * CHANNELS
    stem, classifier = 3 * 49 * CHANNELS, CHANNELS * cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert fixed_macs(cfg) == (stem + classifier) * PIXELS


def test_every_class_has_a_label(cfg, shapes):
    categories = json.loads((shapes / "annotations/panoptic_val.json").read_text())["categories"]
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == len(categories)


def test_a_resumed_supernet_is_the_one_trained_at_once(root):
    whole, resumed = (
        torch.load(root / run / "model_final.pth", weights_only=True)["model"]
        for run in ("whole", "supernet")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_search_scores_paths_and_keeps_the_limit(root):
    ledger = Ledger(root / "search/search/ledger.jsonl").records
    assert [record["status"] for record in ledger] == ["ok"] * 6
    assert len({record["metrics"]["mIoU"] for record in ledger}) > 1
    selected = Architecture.load(root / "search/search/architecture.json").names()
    assert selected.keys() == SITES.keys()
    assert sum(MACS[name] for name in selected.values()) <= LIMIT


def test_batch_norm_of_the_decoder_is_calibrated(root, cfg):
    """A path that the supernet trained together with others scores by statistics of its own."""
    model = build_model(cfg)
    state = torch.load(root / "supernet/model_final.pth", weights_only=True)["model"]
    model.load_state_dict(state)
    apply_architecture(model, space_of(model).architecture(["square_3x3", "cross_3x3"]))
    batches = [[{"image": torch.rand(3, 64, 64) * 255} for _ in range(2)] for _ in range(3)]
    before = model.decoder[1].running_mean.clone()
    with calibrated(model, batches):
        inside = model.decoder[1].running_mean.clone()
    assert not torch.allclose(inside, before)
    assert torch.equal(model.decoder[1].running_mean, before)


def test_the_extracted_network_is_the_path(root, cfg):
    model = build_model(cfg).eval()
    architecture = Architecture.load(root / "search/search/architecture.json")
    apply_architecture(model, architecture)
    image = [{"image": torch.rand(3, 64, 64) * 255}]
    alone = extract(model, architecture).eval()
    with torch.no_grad():
        assert torch.equal(alone(image)[0]["sem_seg"], model(image)[0]["sem_seg"])
    assert sum(p.numel() for p in alone.parameters()) < sum(p.numel() for p in model.parameters())


def test_the_retrained_network_is_evaluated_as_after_its_training(root):
    trained, evaluated = (
        {key: value for line in metrics(root / run) for key, value in line.items() if "sem_seg/" in key}
        for run in ("retrained", "evaluated")
    )
    assert 0 < evaluated["sem_seg/mIoU"] <= 100
    assert trained["sem_seg/mIoU"] == evaluated["sem_seg/mIoU"]


def test_it_lives_outside_the_package():
    files = sorted(path.name for path in CONFIG.parent.iterdir() if path.is_file())
    assert files == ["segmentor.py", "supernet.yaml"]
