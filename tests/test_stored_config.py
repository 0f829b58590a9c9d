"""Selecting anew reads the config beside the ledger, and no other config than the one asked for."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from test_selecting import evaluated, write_ledger
from toy import ROOT, make_config, run_script, write_config

from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.search.stored_config import store_config, stored_config
from auto_panoptic.space import SearchSpace

# Runs the command given as arguments; on stderr its CPU seconds and the heavy modules it imported.
TIMED = """
import sys, time, search_net
search_net.run()
print(time.process_time(), sorted({"torch", "detectron2"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def toy(tmp_path, shapes):
    """(config file, its config with OUTPUT_DIR tmp_path/output, where a ledger lies)."""
    cfg = make_config(tmp_path, shapes)
    space = SearchSpace.from_config(cfg)
    write_ledger(tmp_path / "output", space, evaluated(space)[0])
    return str(write_config(tmp_path / "toy.yaml", shapes)), cfg


def test_the_second_selection_imports_no_framework(toy, tmp_path):
    config, _ = toy
    folder = tmp_path / "output/search"
    options = ("--config-file", config, "--rescore", "--estimator", "ridge", "--pareto")
    run_script("search_net", *options)
    names = ("scoreboard.json", "architecture.json", "pareto.json")
    first = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    result = subprocess.run(
        [sys.executable, "-c", TIMED, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    seconds, modules = result.stderr.splitlines()[-1].split(maxsplit=1)
    assert modules == "[]" and float(seconds) < 1
    assert {name: (folder / name).read_bytes() for name in names} == first


def test_the_stored_config_is_that_of_the_search(toy):
    config, cfg = toy
    assert stored_config(config, []) is None
    store_config(cfg, config, [])
    stored = stored_config(config, [])
    assert SearchSpace.from_config(stored) == SearchSpace.from_config(cfg)
    architecture = SearchSpace.from_config(cfg).architecture([0] * len(SearchSpace.from_config(cfg).sites))
    assert configured_costs(stored).cost(architecture) == configured_costs(cfg).cost(architecture)
    assert stored.OUTPUT_DIR == cfg.OUTPUT_DIR


def test_another_config_is_not_the_stored_one(toy, tmp_path):
    config, cfg = toy
    store_config(cfg, config, ["NAS.SEED", "1"])
    assert stored_config(config, ["NAS.SEED", "1"]) is not None
    for options in ([], ["NAS.SEED", "2"], ["NAS.SEED", "1", "TEST.DETECTIONS_PER_IMAGE", "7"], ["NAS.SEED"]):
        assert stored_config(config, options) is None
    assert stored_config(str(tmp_path / "missing.yaml"), ["NAS.SEED", "1"]) is None
    (tmp_path / "base.yaml").write_text("NAS:\n  CYCLES: 2\n")
    (tmp_path / "two.yaml").write_text(f"_BASE_: base.yaml\nOUTPUT_DIR: {cfg.OUTPUT_DIR}\n")
    store_config(cfg, str(tmp_path / "two.yaml"), [])
    assert stored_config(str(tmp_path / "two.yaml"), []) is not None
    (tmp_path / "base.yaml").write_text("NAS:\n  CYCLES: 3\n")
    assert stored_config(str(tmp_path / "two.yaml"), []) is None


def test_a_moved_search_and_a_damaged_file(toy, tmp_path):
    config, cfg = toy
    store_config(cfg, config, [])
    moved = tmp_path / "moved"
    (tmp_path / "output").rename(moved)
    assert stored_config(config, []) is None
    assert stored_config(config, ["OUTPUT_DIR", str(moved)]).OUTPUT_DIR == str(moved)
    moved.rename(tmp_path / "output")
    assert stored_config(config, []) is not None
    assert stored_config(config, ["OUTPUT_DIR", ""]) is None  # the working directory
    (tmp_path / "output").rename(moved)
    path = moved / "search/config.json"
    for damage in ("{", "[]", '{"config": {}}'):
        path.write_text(damage)
        assert stored_config(config, ["OUTPUT_DIR", str(moved)]) is None
    store_config(SimpleNamespace(OUTPUT_DIR=str(tmp_path / "none")), config, [])  # no search, nothing to do
    assert not (tmp_path / "none").exists()


def test_help_imports_no_framework():
    code = "import sys, search_net; search_net.parser(); print({'torch', 'detectron2'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"
