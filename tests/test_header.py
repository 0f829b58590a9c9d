"""What identifies a search, and which changes a resumed search notices."""

import json
from pathlib import Path

import pytest
from data_util import write_own
from toy import make_config

from auto_panoptic.data import register_coco_panoptic, register_shapes
from auto_panoptic.data.formats.panoptic_json import read_segments
from auto_panoptic.data.register import find_source
from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger
from auto_panoptic.search.arguments import ACCEPTABLE
from auto_panoptic.search.header import comparable, search_header, search_policy
from auto_panoptic.space import SearchSpace


def header_of(cfg, weights, metrics=("pq",)):
    return search_header(cfg, search_policy(cfg, SearchSpace.from_config(cfg)), str(weights), metrics)


def test_the_header_changes_with_everything_that_scores_depend_on(tmp_path, shapes):
    cfg = make_config(tmp_path, shapes)
    weights, other = tmp_path / "a.pth", tmp_path / "b.pth"
    weights.write_bytes(b"a")
    other.write_bytes(b"b")

    def header(*options, path=weights, metrics=("pq",)):
        changed = cfg.clone()
        changed.defrost()
        changed.merge_from_list(list(options))
        return header_of(changed, path, metrics)

    base = header()
    assert json.loads(json.dumps(base)) == base
    assert "scoreboard" not in base  # as in ledgers of before the key
    assert header("NAS.SCOREBOARD", "reference")["scoreboard"] == "reference"
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
    assert header(metrics=("pq", "ap", "miou")) == header(metrics=("pq", "miou", "ap")) != base
    assert header(metrics=("miou", "pq")) == {**header(metrics=("pq", "miou")), "fitness": "mIoU"}
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
        return header_of(cfg, weights)["data"]

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
    first = header_of(cfg, tmp_path / "a.pth")["data"]
    assert (tmp_path / "set/annotations/panoptic_nas_val.json").is_file()
    assert first == header_of(cfg, tmp_path / "a.pth")["data"] and len(set(first.values())) == 2


def test_a_missing_part_of_a_set_is_named(tmp_path, shapes, forget_data_sets):
    own = write_own(tmp_path)
    register_coco_panoptic("own", **own, show_ids=False)
    (tmp_path / "panoptic.json").rename(tmp_path / "elsewhere.json")
    (tmp_path / "a.pth").write_bytes(b"a")
    cfg = make_config(tmp_path, shapes)
    cfg.defrost()
    cfg.DATASETS.SEARCH = ("own",)
    with pytest.raises(UserError, match="data set own: .*panoptic.json does not exist; expected there"):
        header_of(cfg, tmp_path / "a.pth")


def test_another_set_of_metrics_is_refused_where_it_was_recorded(tmp_path):
    """Records with and without AP would mix; a ledger of before the key was recorded resumes."""
    header, now = ({"seed": 0, "weights": "1234", "metrics": m} for m in (["pq"], ["ap", "pq"]))
    before = {"seed": 0, "weights": "1234"}
    for name, first in (("old", before), ("new", header)):
        with Ledger.open(tmp_path / name, first) as ledger:
            ledger.append({"status": "ok"})
    with Ledger.open(tmp_path / "old", header, resume=True) as ledger:
        assert ledger.header == before
    with pytest.raises(UserError, match=r"metrics: \['pq'\] -> \['ap', 'pq'\]; restore"):
        Ledger.open(tmp_path / "new", now, resume=True)
    assert {"metrics", "libraries", "content"} <= set(ACCEPTABLE)
    with Ledger.open(tmp_path / "new", now, resume=True, allow_changed=["metrics"]) as ledger:
        assert ledger.header == header


def test_of_the_config_only_what_scores_follow_from_must_be_the_same(tmp_path, shapes):
    """Also keys of a user's own; a key that came later counts with its default."""
    cfg = make_config(tmp_path, shapes)
    weights = tmp_path / "a.pth"
    weights.write_bytes(b"a")
    path = tmp_path / "ledger.jsonl"
    recorded = header_of(cfg, weights)
    del recorded["config"]["TEST"]["STUFF_AREA"], recorded["config"]["IMPORTS"]
    recorded["config"]["MINE"] = {"WIDTH": 3}
    with Ledger.open(path, recorded) as ledger:
        ledger.append({"cycle": 0, "index": 0, "status": "ok"})

    def resumes(**own):
        now = header_of(cfg, weights)
        now["config"] |= {"MINE": {"WIDTH": 3}} | own
        try:
            Ledger.open(path, now, resume=True, comparable=comparable).close()
            return True
        except UserError as error:
            return str(error)

    cfg.defrost()
    harmless = ["SOLVER.BASE_LR", 0.5, "DATALOADER.NUM_WORKERS", 7, "NAS.GRADIENTS", "sum", "VIS_PERIOD", 3]
    cfg.merge_from_list([*harmless, "DATASETS.TEST", (), "DATASETS.COCO_PANOPTIC", []])
    assert resumes() is True
    assert "config.MINE.WIDTH: 3 -> 4;" in resumes(MINE={"WIDTH": 4})
    for key, value in (
        ("TEST.STUFF_AREA", 7),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3),
        ("NAS.BN_RECALIBRATION.BATCH_SIZE", 3),
        ("DATASETS.SEARCH", ("toy_panoptic_val",)),
        ("INPUT.MAX_SIZE_TEST", 77),
    ):
        changed, cfg = cfg, cfg.clone()
        cfg.merge_from_list([key, value])
        assert f"config.{key}: " in resumes()
        cfg = changed


def test_the_header_changes_with_the_content_of_the_pngs(tmp_path, shapes):
    """Not only with the JSON: a repainted PNG scores differently."""
    cfg = make_config(tmp_path, shapes)
    (tmp_path / "a.pth").write_bytes(b"a")
    base = header_of(cfg, tmp_path / "a.pth")["content"]
    source = find_source(cfg.DATASETS.SEARCH[0])
    _, annotation = next(iter(read_segments(source.panoptic_json).values()))
    path = Path(source.panoptic_root, annotation["file_name"])
    original = path.read_bytes()
    try:
        path.write_bytes(original + b" ")
        now = header_of(cfg, tmp_path / "a.pth")["content"]
    finally:
        path.write_bytes(original)
    (search,), (training,) = cfg.DATASETS.SEARCH, cfg.DATASETS.TRAIN
    assert now[training] == base[training] and now[search]["PNGs"] != base[search]["PNGs"]
