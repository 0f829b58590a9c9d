"""``train_net.py --eval-only`` and its flags, from the command line to the files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from toy import PREFIX, make_config, run_script, write_config

from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AtomicCheckpointer, weights

FLAGS = ("--per-class", "--save-predictions", "--trim-study")
VAL, OTHER = f"{PREFIX}_val", f"{PREFIX}_nas_val"
KEYS = [name + block for block in ("", "_th", "_st") for name in ("PQ", "SQ", "RQ")]


@pytest.fixture(scope="module")
def network(tmp_path_factory, shapes):
    """Options that evaluate a fixed network with random weights."""
    folder = tmp_path_factory.mktemp("network")
    file = folder / "architecture.json"
    SearchSpace.from_config(make_config(folder, shapes)).random(np.random.default_rng(0)).save(file)
    cfg = make_config(folder, shapes, "NAS.ARCHITECTURE", file)
    AtomicCheckpointer(build_model(cfg), str(folder)).save("model_final")
    path = write_config(folder / "toy.yaml", shapes)
    return ("--config-file", path), ("NAS.ARCHITECTURE", file, "MODEL.WEIGHTS", folder / "model_final.pth")


def _metrics(folder):
    return json.loads((folder / "metrics.json").read_text().splitlines()[-1])


def _row(out, title):
    return re.search(rf"^\| +{title} \|.*$", out, re.MULTILINE)[0]


def test_all_flags_leave_the_results_as_they_are(network, tmp_path, capsys, monkeypatch):
    """Two data sets, the merger's limit on stuff at work; the saved predictions score the same officially."""
    evaluation = pytest.importorskip("panopticapi.evaluation")
    config, weights = network
    options = (*weights, "DATASETS.TEST", (VAL, OTHER), "TEST.TRIM_AREAS", "[0, 3000, 5000]")
    options += ("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 3000)
    run_script("train_net", *config, "--eval-only", *options, "OUTPUT_DIR", tmp_path / "plain")
    plain_out = capsys.readouterr().out
    run_script("train_net", *config, "--eval-only", *FLAGS, *options, "OUTPUT_DIR", tmp_path / "full")
    out = capsys.readouterr().out
    files = {path.name for path in (tmp_path / "full/inference").iterdir()}
    changed = 0
    for name, values in zip((VAL, OTHER), ({}, {}), strict=True):
        for folder in ("plain", "full"):
            lines = map(json.loads, (tmp_path / folder / "metrics.json").read_text().splitlines())
            values[folder] = next(line for line in lines if f"{name}/panoptic_seg/PQ" in line)
        extra = [key for key in values["full"] if key not in values["plain"]]
        assert {key.split("/")[2] for key in extra} == {"0", "3000", "5000"}
        assert all(repr(values["full"][key]) == repr(value) for key, value in values["plain"].items())
        untrimmed, trimmed = (values["full"][f"{name}/trim_study/{a}/IoU_st"] for a in (0, 3000))
        changed += untrimmed != trimmed
        of_study = {key: values["full"][f"{name}/trim_study/3000/{key}"] for key in [*KEYS, "IoU_st"]}
        assert repr(of_study) == repr({k: values["full"][f"{name}/panoptic_seg/{k}"] for k in of_study})
        assert {f"panoptic_{name}", f"panoptic_{name}.json", f"panoptic_{name}_per_class.json"} <= files

        truth, saved = MetadataCatalog.get(name), tmp_path / f"full/inference/panoptic_{name}.json"
        true, predicted = (json.loads(Path(f).read_text()) for f in (truth.panoptic_json, saved))
        categories = {c["id"]: c for c in predicted["categories"]}
        of_image = {entry["image_id"]: entry for entry in predicted["annotations"]}
        pairs = [(entry, of_image[entry["image_id"]]) for entry in true["annotations"]]
        folders = (truth.panoptic_root, str(saved.with_suffix("")))
        official = evaluation.pq_compute_single_core(0, pairs, *folders, categories)
        for isthing, block in ((None, ""), (True, "_th"), (False, "_st")):
            expected = 100 * official.pq_average(categories, isthing)[0]["pq"]
            assert values["full"][f"{name}/panoptic_seg/PQ{block}"] == pytest.approx(expected, abs=1e-9)
    assert changed  # the study sees the stuff that the merger's limit takes from the other results
    for text in (plain_out, out):
        assert text.index(VAL) < text.index(OTHER) and "mIoU" in text and "IoU stuff" in text
        assert re.search(r"\[\d+\.\d, \d+\.\d\]", _row(text, "stuff"))
    assert _row(out, "3,000") and _row(out, "5,000")
    assert _row(out, "all") == _row(plain_out, "all")
    assert "| FP |" not in re.sub(" +", " ", plain_out) and "| FP |" in re.sub(" +", " ", out)


def test_detectron2s_evaluator_finds_the_same(network, tmp_path):
    config, weights = network
    pytest.importorskip("panopticapi")
    found = []
    for kind in ("streaming", "detectron2"):
        options = ("TEST.METRICS", "['pq']", "TEST.PANOPTIC_EVALUATOR", kind, "OUTPUT_DIR", tmp_path / kind)
        run_script("train_net", *config, "--eval-only", *weights, *options)
        found.append({key: _metrics(tmp_path / kind)[f"panoptic_seg/{key}"] for key in KEYS})
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_confusion_of_things_and_stuff(network, tmp_path, capsys):
    """Printed and written beside the results, which stay as they are."""
    config, weights = network
    for folder, flags in (("plain", ()), ("flag", ("--confusion",))):
        options = (*weights, "OUTPUT_DIR", tmp_path / folder)
        run_script("train_net", *config, "--eval-only", *flags, *options)
        assert ("labelled things" in capsys.readouterr().out) == (folder == "flag")
    plain, found = (_metrics(tmp_path / folder) for folder in ("plain", "flag"))
    extra = {"sem_seg/mIoU_st", *(f"confusion/{t}_{p}" for t in ("th", "st") for p in ("th", "st"))}
    assert found.keys() - plain.keys() == extra
    assert all(repr(found[key]) == repr(value) for key, value in plain.items())
    for true in ("th", "st"):
        assert found[f"confusion/{true}_th"] + found[f"confusion/{true}_st"] == pytest.approx(100, abs=1e-9)


@pytest.mark.parametrize(
    "options, message",
    [
        (("SOLVER.STEPS", ()), "--confusion goes with --eval-only; add that"),
        (("--eval-only", "TEST.METRICS", "['pq']"), "--confusion needs 'miou' in TEST.METRICS"),
    ],
)
def test_confusion_without_effect_is_refused(network, capsys, tmp_path, options, message):
    _refused(network, capsys, tmp_path, ("--confusion", *options), message)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize(
    "options, message",
    [
        (("SOLVER.STEPS", ()), "goes with --eval-only; add that"),
        (("--eval-only", "TEST.METRICS", "['ap']"), "needs 'pq' in TEST.METRICS"),
        (("--eval-only", "TEST.PANOPTIC_EVALUATOR", "detectron2"), "needs TEST.PANOPTIC_EVALUATOR streaming"),
    ],
)
def test_a_flag_without_effect_is_refused(network, capsys, tmp_path, flag, options, message):
    _refused(network, capsys, tmp_path, (flag, *options), f"{flag} {message}")


@pytest.mark.parametrize(
    "options, message",
    [
        (("TEST.STUFF_AREA", -5), "TEST.STUFF_AREA is -5; expected a whole number"),
        (("TEST.STUFF_AREA", 9, "TEST.PANOPTIC_EVALUATOR", "detectron2"), "'detectron2' trims nothing"),
        (("--trim-study", "TEST.TRIM_AREAS", "[]"), "TEST.TRIM_AREAS is []; expected a list"),
        (("--trim-study", "TEST.TRIM_AREAS", "[0, -1]"), "TEST.TRIM_AREAS is [0, -1]; expected a list"),
        (("DATASETS.TEST", "()"), "DATASETS.TEST is empty"),
    ],
)
def test_settings_that_cannot_be_evaluated(network, capsys, tmp_path, options, message):
    _refused(network, capsys, tmp_path, ("--eval-only", *options), message)


def _refused(network, capsys, tmp_path, options, message):
    config, weights = network
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_script("train_net", *config, *options, *weights, "OUTPUT_DIR", tmp_path / "output")
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and message in err
    assert not (tmp_path / "output").exists()


def test_weights_are_read_once(network, tmp_path, monkeypatch):
    """To check them, they are looked at on the disk."""
    config, options = network
    names_only, read = [], weights.read_checkpoint

    def reading(path, *args, **kwargs):
        names_only.append(kwargs.get("mmap", False))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(weights, "read_checkpoint", reading)
    run_script("train_net", *config, "--eval-only", *options, "OUTPUT_DIR", tmp_path / "output")
    assert names_only == [True, False]
