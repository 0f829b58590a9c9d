"""What identifies a search, and which changes a resumed search notices."""

import json

import pytest
from data_util import write_own
from toy import make_config

from auto_panoptic.data import register_coco_panoptic, register_shapes
from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger
from auto_panoptic.search import ACCEPTABLE, search_header
from auto_panoptic.space import SearchSpace


def test_the_header_changes_with_everything_that_scores_depend_on(tmp_path, shapes):
    cfg = make_config(tmp_path, shapes)
    weights, other = tmp_path / "a.pth", tmp_path / "b.pth"
    weights.write_bytes(b"a")
    other.write_bytes(b"b")
    space = SearchSpace.from_config(cfg)

    def header(*options, path=weights, metrics=("pq",)):
        changed = cfg.clone()
        changed.defrost()
        changed.merge_from_list(list(options))
        return search_header(changed, space, str(path), metrics)

    base = header()
    assert json.loads(json.dumps(base)) == base
    moved = tmp_path / "moved.pth"
    moved.write_bytes(b"a")
    for same in (("OUTPUT_DIR", "elsewhere"), ("NAS.CYCLES", 9), ("MODEL.WEIGHTS", "x")):
        assert header(*same) == base
    assert header(path=moved) == base
    for different in (
        ("NAS.SEED", 5),
        ("NAS.MODELS_PER_CYCLE", 24),
        ("NAS.POLICY", "random"),
        ("NAS.POLICY", "evolution"),
        ("INPUT.MIN_SIZE_TEST", 96),
        ("NAS.BN_RECALIBRATION.NUM_IMAGES", 4),
        ("MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH", 0.4),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.2),
    ):
        assert header(*different) != base
    with Ledger.open(tmp_path / "ledger.jsonl", base) as ledger:
        ledger.append({"cycle": 0, "index": 0, "status": "ok"})
    recalibration = header("NAS.BN_RECALIBRATION.NUM_IMAGES", 4, "NAS.SEED", 5)
    with pytest.raises(UserError) as error:
        Ledger.open(tmp_path / "ledger.jsonl", recalibration, resume=True)
    number = cfg.NAS.BN_RECALIBRATION.NUM_IMAGES
    changes = f"seed: 0 -> 5; config.NAS.BN_RECALIBRATION.NUM_IMAGES: {number} -> 4; restore"
    assert f"(recorded -> now): {changes}" in str(error.value)
    assert header(metrics=("pq", "miou", "ap"))["metrics"] == ["ap", "miou", "pq"]
    assert header(metrics=("miou", "pq")) == header(metrics=("pq", "miou")) != base
    assert {"detectron2", "numpy", "PIL"} == set(base["libraries"])
    assert header(path=other)["weights"] != base["weights"]
    # Settings of policies that are not in use do not count; those of the one in use are stated.
    assert header("NAS.EVOLUTION.POPULATION", 12, "NAS.RANDOM.MODELS_PER_CYCLE", 12) == base
    evolution = header("NAS.POLICY", "evolution", "NAS.EVOLUTION.POPULATION", 20)
    assert evolution["policy"] == "evolution" and evolution["config"] == base["config"]
    assert {k: evolution["policy_settings"][k] for k in ("population", "mutation", "crossover")} == {
        "population": 20,
        "mutation": 8,
        "crossover": 8,
    }
    assert header("NAS.POLICY", "evolution", "NAS.EVOLUTION.POPULATION", 20, "NAS.CYCLES", 2) == evolution


def test_the_header_changes_with_the_data(tmp_path, shapes):
    """The annotations of the search and calibration sets count; those of other sets do not."""
    cfg = make_config(tmp_path, shapes)
    weights = tmp_path / "a.pth"
    weights.write_bytes(b"a")

    def data():
        return search_header(cfg, SearchSpace.from_config(cfg), str(weights))["data"]

    base = data()
    assert set(base) == {"search", "calibration"} and base["search"] != base["calibration"]
    for split, changed in (("val", set()), ("nas_train", {"calibration"}), ("nas_val", {"search"})):
        path = shapes / f"annotations/panoptic_{split}.json"
        original = path.read_bytes()
        try:
            path.write_bytes(original + b" ")
            assert {key for key, digest in data().items() if digest != base[key]} == changed
        finally:
            path.write_bytes(original)
    cfg.defrost()
    cfg.NAS.BN_RECALIBRATION.MOMENTUM = 0.1  # whose batches were not shuffled once
    assert data() == {**base, "calibration": f"{base['calibration']} shuffled"}
    cfg.NAS.BN_RECALIBRATION.ENABLED = False
    assert data()["calibration"] != base["calibration"] and data()["search"] == base["search"]


def test_a_built_in_set_that_is_not_drawn_yet_is_drawn(tmp_path, shapes, forget_data_sets):
    sizes = {"nas_train": 2, "nas_val": 2, "val": 1}
    register_shapes(tmp_path / "set", prefix="undrawn", sizes=sizes)
    (tmp_path / "a.pth").write_bytes(b"a")
    cfg = make_config(tmp_path, shapes)
    cfg.defrost()
    cfg.DATASETS.SEARCH, cfg.DATASETS.TRAIN = ("undrawn_nas_val",), ("undrawn_nas_train",)
    arguments = (cfg, SearchSpace.from_config(cfg), str(tmp_path / "a.pth"))
    first = search_header(*arguments)["data"]
    assert (tmp_path / "set/annotations/panoptic_nas_val.json").is_file()
    assert first == search_header(*arguments)["data"] and len(set(first.values())) == 2


def test_a_missing_part_of_a_set_is_named(tmp_path, shapes, forget_data_sets):
    own = write_own(tmp_path)
    register_coco_panoptic("own", **own, show_ids=False)
    (tmp_path / "panoptic.json").rename(tmp_path / "elsewhere.json")
    (tmp_path / "a.pth").write_bytes(b"a")
    cfg = make_config(tmp_path, shapes)
    cfg.defrost()
    cfg.DATASETS.SEARCH = ("own",)
    with pytest.raises(UserError, match="data set own: .*panoptic.json does not exist; expected there"):
        search_header(cfg, SearchSpace.from_config(cfg), str(tmp_path / "a.pth"))


def test_another_set_of_metrics_is_refused_where_it_was_recorded(tmp_path):
    """Records with and without AP would mix; a ledger of before the key was recorded resumes."""
    header, now = ({"seed": 0, "weights": "1234", "metrics": m} for m in (["pq"], ["ap", "pq"]))
    before = {"seed": 0, "weights": "1234"}
    for name, first in (("old", before), ("new", header)):
        with Ledger.open(tmp_path / name, first) as ledger:
            ledger.append({"status": "ok"})
    with Ledger.open(tmp_path / "old", header, resume=True) as ledger:
        assert ledger.header == before
    with pytest.raises(UserError, match=r'metrics: \["pq"\] -> \["ap", "pq"\]; restore'):
        Ledger.open(tmp_path / "new", now, resume=True)
    assert {"metrics", "libraries"} <= set(ACCEPTABLE)
    with Ledger.open(tmp_path / "new", now, resume=True, allow_changed=["metrics"]) as ledger:
        assert ledger.header == header
