"""Bad input to the commands: one line on stderr, exit code 2, and nothing written."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
import yaml
from detectron2.modeling import build_model
from toy import PREFIX, ROOT, make_config, run_script, write_config

from auto_panoptic.explore import Ledger
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AtomicCheckpointer


@pytest.fixture
def toy(tmp_path, shapes, monkeypatch):
    """Path of a config; the current folder is empty."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return write_config(tmp_path / "toy.yaml", shapes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, shapes):
    """Weights of the config's supernet."""
    folder = tmp_path_factory.mktemp("weights")
    AtomicCheckpointer(build_model(make_config(folder, shapes)), str(folder)).save("model_final")
    return folder / "model_final.pth"


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.suffix != ".lock"
    }


def refused(capfd, folder, script, *arguments):
    """The command ends as bad input must; returns its line."""
    before = tree(folder)
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        run_script(script, *arguments)
    out, err = capfd.readouterr()
    assert end.value.code == 2
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert "Traceback" not in out + err
    assert tree(folder) == before
    return lines[0]


BOTH = pytest.mark.parametrize("script", ["train_net", "search_net"])


@BOTH
@pytest.mark.parametrize(
    "key, hint",
    [
        ("NAS.CYCELS", "did you mean NAS.CYCLES"),
        ("MODEL.SHUFLENET.WIDTH", "did you mean .*MODEL.SHUFFLENET.WIDTH"),
        ("ENTIRELY_UNKNOWN_THING", "config.py lists the keys|did you mean"),
    ],
)
def test_unknown_key_on_the_command_line(capfd, tmp_path, toy, script, key, hint):
    line = refused(capfd, tmp_path, script, "--config-file", toy, key, "1")
    assert f"error: command line: unknown config key '{key}'; " in line
    assert re.search(hint, line)


@BOTH
def test_unknown_key_in_the_file(capfd, tmp_path, toy, script):
    content = yaml.safe_load(toy.read_text())
    content["MODEL"]["SHUFFLENET"]["STAGE_REPEAT"] = [1, 1, 1, 1]
    toy.write_text(yaml.safe_dump(content))
    line = refused(capfd, tmp_path, script, "--config-file", toy)
    assert f"{toy}: unknown config key" in line and "MODEL.SHUFFLENET.STAGE_REPEATS" in line


@BOTH
def test_wrong_type_of_a_value(capfd, tmp_path, toy, script):
    line = refused(capfd, tmp_path, script, "--config-file", toy, "SOLVER.MAX_ITER", "many")
    assert "SOLVER.MAX_ITER" in line


@BOTH
def test_broken_yaml(capfd, tmp_path, toy, script):
    toy.write_text("MODEL: [1, 2\nNAS: }")
    assert str(toy) in refused(capfd, tmp_path, script, "--config-file", toy)


@BOTH
@pytest.mark.parametrize("options", [("NAS.SEED",), ("NAS.SEED", "1", "NAS.CYCLES")])
def test_odd_list_of_options(capfd, tmp_path, toy, script, options):
    line = refused(capfd, tmp_path, script, "--config-file", toy, *options)
    assert "command line" in line and "odd length" in line


@BOTH
@pytest.mark.parametrize("options", [("NAS.SEED", "1", "--resume"), ("NAS.SEED", "1", "--num-gpus", "2")])
def test_flag_after_the_overrides(capfd, tmp_path, toy, script, options):
    line = refused(capfd, tmp_path, script, "--config-file", toy, *options)
    assert line.strip() == f"error: {options[2]} stands after KEY VALUE pairs: options come before them"


@BOTH
def test_missing_config_file(capfd, tmp_path, toy, script):
    line = refused(capfd, tmp_path, script, "--config-file", tmp_path / "nowhere.yaml")
    assert f"--config-file: no file '{tmp_path / 'nowhere.yaml'}'; see configs/" in line


def test_no_config_file(capfd, tmp_path, toy):
    assert "--config-file is missing" in refused(capfd, tmp_path, "train_net")


@pytest.mark.parametrize(
    "key, value",
    [
        ("NAS.GRADIENTS", "median"),
        ("NAS.SEED", "-1"),
        ("SOLVER.AMP.ENABLED", "True"),
        ("SOLVER.IMS_PER_BATCH", "0"),
        ("SOLVER.MAX_ITER", "0"),
        ("DATASETS.TRAIN", "()"),
        ("TEST.METRICS", "['pg']"),
        ("TEST.PANOPTIC_EVALUATOR", "guess"),
    ],
)
def test_settings_a_training_run_cannot_start_with(capfd, tmp_path, toy, key, value):
    assert key in refused(capfd, tmp_path, "train_net", "--config-file", toy, key, value)


@pytest.mark.parametrize(
    "key, value, part",
    [
        ("MODEL.META_ARCHITECTURE", "Nope", "Nope"),
        ("MODEL.DEVICE", "cuuda", "cuuda"),
        ("MODEL.SHUFFLENET.NORM", "LN", "NORM"),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", "40", "32"),
    ],
)
def test_a_model_that_cannot_be_built(capfd, tmp_path, toy, key, value, part):
    assert part in refused(capfd, tmp_path, "train_net", "--config-file", toy, key, value)


@BOTH
def test_missing_data_set(capfd, tmp_path, toy, script):
    options = ("DATASETS.TEST", f"('{PREFIX}_valid',)")
    line = refused(capfd, tmp_path, script, "--config-file", toy, *options)
    assert f"unknown data set '{PREFIX}_valid'" in line and f"{PREFIX}_val" in line


@BOTH
def test_missing_files_of_a_data_set(capfd, tmp_path, toy, script, monkeypatch):
    """COCO is registered by Detectron2, but its files are not here."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    options = ("DATASETS.TRAIN", "('coco_2017_train_panoptic_separated',)")
    line = refused(capfd, tmp_path, script, "--config-file", toy, *options)
    assert "data set coco_2017_train_panoptic_separated: " in line and "does not exist" in line


def test_missing_weights(capfd, tmp_path, toy, weights):
    nowhere = tmp_path / "nowhere.pth"
    for script, arguments in (
        ("train_net", ("MODEL.WEIGHTS", nowhere)),
        ("search_net", ("--weights", nowhere)),
        ("search_net", ("MODEL.WEIGHTS", nowhere)),
    ):
        line = refused(capfd, tmp_path, script, "--config-file", toy, *arguments)
        assert f"MODEL.WEIGHTS: no file '{nowhere}'" in line
    line = refused(capfd, tmp_path, "search_net", "--config-file", toy)  # the default place
    assert f"no file '{tmp_path / 'output/model_final.pth'}'" in line


def test_evaluation_needs_weights(capfd, tmp_path, toy):
    line = refused(capfd, tmp_path, "train_net", "--config-file", toy, "--eval-only")
    assert "--eval-only needs weights; add MODEL.WEIGHTS" in line


@BOTH
def test_weights_of_another_space(capfd, tmp_path, toy, weights, script):
    option = ("MODEL.SHUFFLENET.STAGE_REPEATS", "[1, 2, 2, 1]")
    line = refused(capfd, tmp_path, script, "--config-file", toy, "MODEL.WEIGHTS", weights, *option)
    assert f"MODEL.WEIGHTS: '{weights}' holds a backbone of width custom" in line


@pytest.mark.parametrize("models", ["5", "13", "0"])
def test_models_per_cycle(capfd, tmp_path, toy, weights, models):
    arguments = ("--config-file", toy, "--weights", weights)
    line = refused(capfd, tmp_path, "search_net", *arguments, "--models-per-cycle", models)
    assert f"NAS.MODELS_PER_CYCLE is {models}: expected a multiple of 12" in line


def test_no_cycles(capfd, tmp_path, toy, weights):
    line = refused(capfd, tmp_path, "search_net", "--config-file", toy, "--weights", weights, "--cycles", "0")
    assert "NAS.CYCLES is 0; expected a whole number of at least 1" in line


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--policy", "greedy"), "NAS.POLICY is 'greedy'; expected one of path_priority, random, evolution"),
        (
            ("--policy", "random", "--cycles", "0"),
            "NAS.RANDOM.CYCLES is 0; expected a whole number of at least 1",
        ),
        (("--policy", "random", "--models-per-cycle", "0"), "NAS.RANDOM.MODELS_PER_CYCLE is 0"),
        (("--policy", "evolution", "--cycles", "0"), "NAS.EVOLUTION.GENERATIONS is 0"),
        (("--policy", "evolution", "--models-per-cycle", "0"), "NAS.EVOLUTION.POPULATION is 0"),
        (("--cycles", "0", "NAS.POLICY", "evolution"), "NAS.EVOLUTION.GENERATIONS is 0"),
        (
            ("NAS.RANDOM.CYCLES", "3"),
            "NAS.RANDOM.CYCLES is a setting of the policy random, but this search's is path_priority: leave "
            "it out, or add --policy random",
        ),
        (
            ("NAS.CYCLES", "3", "NAS.POLICY", "posterior"),
            "NAS.CYCLES is a setting of the policy path_priority",
        ),
        (
            ("--evaluations", "100"),
            "--evaluations 100: a cycle has 12 candidates and is evaluated whole; give 96",
        ),
        (("--policy", "random", "--evaluations", "10"), "--evaluations 10: a cycle has 300 candidates"),
        (("--budget", "1h", "--cycles", "2"), "--cycles and --budget both say how long to search"),
        (("--budget", "60"), "--budget: '60': expected a time, e.g. 30m, 2h, 1h30m or 90s"),
        (
            ("--within-noise", "--estimator", "mean"),
            "--within-noise needs standard errors, which --estimator mean",
        ),
        (("--max-macs", "3.5X"), "--max-macs: '3.5X': expected a positive number"),
        (("NAS.SEED", "1", "--resume"), "--resume stands after KEY VALUE pairs: options come before them"),
        (("--cycles", "many"), "--cycles: invalid int value: 'many'; --help shows the options"),
        (("--retry-failed",), "--retry-failed continues a search: add --resume"),
        (("--accept", "weights"), "--accept continues a search: add --resume"),
        (
            ("--resume", "--accept", "seed"),
            "--accept seed: expected one of config, content, data, libraries, metrics, versions, weights",
        ),
    ],
)
def test_policies_and_continuation(capfd, tmp_path, toy, weights, arguments, message):
    line = refused(capfd, tmp_path, "search_net", "--config-file", toy, "--weights", weights, *arguments)
    assert message in line


def test_search_of_a_fixed_model(capfd, tmp_path, toy, weights, shapes):
    space = SearchSpace.from_config(make_config(tmp_path, shapes))
    space.architecture([0] * len(space.sites)).save(tmp_path / "architecture.json")
    option = ("NAS.ARCHITECTURE", tmp_path / "architecture.json")
    line = refused(capfd, tmp_path, "search_net", "--config-file", toy, "--weights", weights, *option)
    assert "NAS.ARCHITECTURE is set: a search needs the supernet" in line


@pytest.mark.parametrize("metrics", ["ap", "pq,bleu", ""])
def test_unknown_metrics(capfd, tmp_path, toy, weights, metrics):
    arguments = ("--config-file", toy, "--weights", weights, f"--metrics={metrics}")
    assert f"--metrics '{metrics}'; expected pq" in refused(capfd, tmp_path, "search_net", *arguments)


@pytest.mark.parametrize(
    "content, hint",
    [
        (None, "architecture.json"),
        ("", "architecture.json"),
        ("{ not json", "architecture.json"),
        ("[1, 2, 3]", "architecture.json"),
        (json.dumps({"sites": {"backbone.0": "shuffle_9x9"}}), "shuffle_9x9|backbone"),
        (json.dumps([{"backbone": [0], "head": [0], "inter": [0]}]), "backbone"),
    ],
)
@BOTH
def test_unreadable_architecture_file(capfd, tmp_path, toy, script, content, hint):
    path = tmp_path / "architecture.json"
    if content is not None:
        path.write_text(content)
    line = refused(capfd, tmp_path, script, "--config-file", toy, "NAS.ARCHITECTURE", path)
    assert re.search(hint, line)


def test_a_search_that_exists_is_not_touched(capfd, tmp_path, toy, weights):
    folder = tmp_path / "output" / "search"
    folder.mkdir(parents=True)
    with Ledger.open(folder / "ledger.jsonl", {"space": {}}) as ledger:
        ledger.append({"cycle": 0, "index": 0})
    arguments = ("--config-file", toy, "--weights", weights)
    line = refused(capfd, tmp_path, "search_net", *arguments)
    assert "holds 1 evaluated candidates: continue with --resume" in line
    line = refused(capfd, tmp_path, "search_net", *arguments, "--resume")
    assert "cannot resume, the search has changed" in line


def test_policies_end_to_end(tmp_path, toy, weights, monkeypatch, capfd):
    """Each policy through the command, on a stand-in for the images; continued, retried, changes accepted."""
    calls, failing, pause = [], [], [0]

    class Evaluate:
        def __init__(self, cfg, model, metrics):
            pass

        def __call__(self, architecture):
            calls.append(architecture)
            time.sleep(pause[0])
            if len(calls) in failing:
                raise RuntimeError("out of memory")
            return {"PQ": float(sum(map(len, architecture.choices)))}, {}

    monkeypatch.setattr("auto_panoptic.search.candidate.CandidateEvaluator", Evaluate)

    def run(policy, *arguments):
        calls.clear()
        options = ("--config-file", toy, "--weights", weights, "--policy", policy, *arguments)
        run_script("search_net", *options, "OUTPUT_DIR", tmp_path / policy)
        return len(calls)

    assert run("random", "--models-per-cycle", 7) == 7
    assert run("random", "--models-per-cycle", 7, "--cycles", 2, "--resume") == 7
    failing.append(2)
    assert run("evolution", "--cycles", 2, "--models-per-cycle", 10) == 20
    failing.clear()
    ledger = Ledger(tmp_path / "evolution/search/ledger.jsonl")
    assert ledger.header["policy"] == "evolution"
    assert ledger.header["policy_settings"] == {
        "population": 10,
        "parents": 10,
        "mutation": 4,
        "crossover": 4,
        "mutation_probability": 0.1,
    }
    assert [r["index"] for r in ledger.records if r["status"] == "failed"] == [1]
    assert run("path_priority") == 12
    failing[:] = [3, 5]
    changed = ("--resume", "--cycles", 2, "--accept", "config", "--accept", "data", "INPUT.MIN_SIZE_TEST", 96)
    assert run("path_priority", *changed) == 12
    assert run("path_priority", *changed[:-2], "--retry-failed") == 2
    failing.clear()
    assert run("posterior", "--evaluations", 24, "--within-noise") == 24
    assert run("posterior", "--evaluations", 36, "--within-noise", "--resume") == 12
    ledger = Ledger(tmp_path / "posterior/search/ledger.jsonl")
    assert ledger.header["asked"] == {"evaluations": 24} and len(ledger.records) == 36
    with pytest.raises(SystemExit, match="2"):  # within limits there are other candidates
        run("posterior", "--evaluations", 48, "--resume", "--max-macs", "900G")
    said = capfd.readouterr().err
    assert "policy_settings.max_macs: absent -> 900000000000" in said and "--rescore selects" in said
    pause[0] = 0.2
    assert run("random", "--models-per-cycle", 7, "--budget", "2s", "--resume") in (7, 14)


def test_the_commands_as_processes(tmp_path, toy):
    """Exit code and stderr of the real thing, started elsewhere than in the repository."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / script), "--config-file", str(toy), "NAS.CYCELS", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for script in ("train_net.py", "search_net.py")
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert out == "" and "Traceback" not in err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert line.startswith(
            "error: command line: unknown config key 'NAS.CYCELS'; did you mean NAS.CYCLES"
        )
    assert os.listdir(tmp_path / "cwd") == []
    assert sorted(os.listdir(tmp_path)) == ["cwd", "toy.yaml"]


def test_interrupting_says_so(capfd, toy, monkeypatch):
    import train_net

    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_net, "check", interrupted)
    with pytest.raises(SystemExit) as end:
        run_script("train_net", "--config-file", toy)
    assert end.value.code == 130
    assert capfd.readouterr().err.endswith("interrupted by SIGINT\n")


def test_other_errors_keep_their_traceback(toy, monkeypatch):
    """Only mistakes of the user become one line; a defect stays visible."""
    import train_net

    monkeypatch.setattr(train_net, "check", lambda args: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError):
        run_script("train_net", "--config-file", toy)
