"""``search_net.py --rescore``: another selection from a ledger, without data, later without torch."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from test_selection import evaluated, write_ledger
from toy import ROOT, error_line, make_config, run_script, write_config

from auto_panoptic.explore import Ledger
from auto_panoptic.modeling import counting
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.search import Request, ledger_path
from auto_panoptic.search import command as command_module
from auto_panoptic.search.arguments import asks_for_selection, rescore_parser, selection_request
from auto_panoptic.search.costs import origin, store_tables, stored_tables
from auto_panoptic.space import Architecture


@pytest.fixture
def toy(tmp_path, shapes):
    """(config file, its costs, options) of a finished search in tmp_path/output."""
    costs = configured_costs(make_config(tmp_path, shapes))
    write_ledger(tmp_path / "output", costs.space, evaluated(costs.space)[0])
    config = write_config(tmp_path / "toy.yaml", shapes)
    return config, costs, ("--config-file", config, "--rescore")


# Runs the command given as arguments; on stderr its CPU seconds and the heavy modules it imported.
TIMED = """
import sys, time, search_net
search_net.run()
print(time.process_time(), sorted({"torch", "detectron2"} & set(sys.modules)), file=sys.stderr)
"""
FILES = ("scoreboard.json", "architecture.json", "pareto.json")


def test_the_second_call_imports_no_framework(toy, tmp_path):
    """Also with options that change the costs; the files are the same to the byte."""
    _, _, command = toy
    folder = tmp_path / "output/search"
    for options in ((), ("MODEL.ROI_MASK_HEAD.CONV_DIM", "64")):
        arguments = [*map(str, command), "--estimator", "ridge", "--pareto", *options]
        run_script("search_net", *arguments)
        first = {name: (folder / name).read_bytes() for name in FILES}
        for name in FILES:
            (folder / name).unlink()
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        run = [sys.executable, "-c", TIMED, *arguments]
        result = subprocess.run(run, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        seconds, modules = result.stderr.splitlines()[-1].split(maxsplit=1)
        assert modules == "[]" and float(seconds) < 2
        assert {name: (folder / name).read_bytes() for name in FILES} == first
        assert result.stdout.splitlines()[-1] == f"report        {tmp_path}/output/search/report.html"
    assert len(json.loads((folder / "costs.json").read_text())) == 2


def test_a_search_stores_its_costs(toy, tmp_path, monkeypatch, caplog):
    """Damaged ones, or those of another config, are counted anew."""
    config, costs, command = toy
    folder = tmp_path / "output/search"
    counts = []
    count = configured_costs
    monkeypatch.setattr(counting, "configured_costs", lambda cfg: counts.append(1) or count(cfg))
    key, output_dir = origin(str(config), [])
    assert output_dir == str(tmp_path / "output")
    store_tables(folder, key, costs)
    run_script("search_net", *command)
    assert counts == [] and stored_tables(folder, key).to_json() == costs.to_json()
    content = (folder / "costs.json").read_text()
    entry = json.loads(content)[key]
    part = next(iter(entry["tables"]["fixed"]))
    halved = {**entry, "tables": {**entry["tables"], "fixed": {**entry["tables"]["fixed"], part: [1, 1]}}}
    entries = [json.dumps({key: changed}) for changed in (halved, {**entry, "sha256": "0"}, 1)]
    for damaged in ("{", "[]", "null", content.replace('"fixed"', '"fixes"'), *entries):
        (folder / "costs.json").write_text(damaged)
        caplog.clear()
        assert stored_tables(folder, key) is None
        assert caplog.messages == [
            f"{folder / 'costs.json'} was changed or is damaged: the costs are counted anew"
        ]
    caplog.clear()
    (folder / "costs.json").write_text(json.dumps({"other": entry}))
    assert stored_tables(folder, key) is None and not caplog.messages  # another config's are no damage
    assert stored_tables(folder, "other") is None and caplog.messages  # but under another name they are
    run_script("search_net", *command)
    assert counts == [1] and stored_tables(folder, key).to_json() == costs.to_json()
    run_script("search_net", *command)
    run_script("search_net", *command, "TEST.DETECTIONS_PER_IMAGE", 7)
    (tmp_path / "output").rename(tmp_path / "moved")
    run_script("search_net", *command, "OUTPUT_DIR", tmp_path / "moved")
    assert counts == [1, 1]


def test_data_sets_need_not_be_there(tmp_path, shapes, capfd):
    """They only tell the numbers of classes, which the ledger has: the costs are those of the search."""
    paths = {"panoptic_json": "gone.json", "panoptic_root": "gone", "image_root": "gone"}
    entries = [{"name": f"gone_{part}", **paths} for part in ("train", "val", "search")]
    cfg = make_config(tmp_path, shapes, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 99)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES != 99  # the data set says how many
    costs = configured_costs(cfg)
    write_ledger(
        tmp_path / "output", costs.space, evaluated(costs.space)[0], config=yaml.safe_load(cfg.dump())
    )
    datasets = {"COCO_PANOPTIC": entries} | {
        key: [entry["name"]] for key, entry in zip(("TRAIN", "TEST", "SEARCH"), entries, strict=True)
    }
    heads = {"SEM_SEG_HEAD": {"NUM_CLASSES": 99}}
    config = write_config(tmp_path / "elsewhere.yaml", shapes, DATASETS=datasets, MODEL=heads)
    run_script("search_net", "--config-file", config, "--rescore", "--max-macs", costs.maximum.macs)
    key, _ = origin(str(config), [])
    assert stored_tables(tmp_path / "output/search", key).to_json() == costs.to_json()
    assert f"{costs.cost(Architecture.load(tmp_path / 'output/search/architecture.json')).macs:,} MACs" in (
        capfd.readouterr().out
    )


def test_the_origin_of_costs(tmp_path):
    """Every file and option counts but OUTPUT_DIR; modules of IMPORTS say more than the config does."""
    (tmp_path / "a.yaml").write_text("OUTPUT_DIR: a\nNAS:\n  CYCLES: 2\n")
    (tmp_path / "b.yaml").write_text("OUTPUT_DIR: b\n")
    path = tmp_path / "c.yaml"
    path.write_text("_BASE_: [a.yaml, b.yaml]\n")
    key, folder = origin(str(path), [])
    assert folder == "b"  # the last base counts most
    assert origin(str(path), ["OUTPUT_DIR", "d"]) == (key, "d")
    assert origin(str(path), ["NAS.SEED", "1"])[0] != key
    (tmp_path / "a.yaml").write_text("OUTPUT_DIR: a\nNAS:\n  CYCLES: 3\n")
    assert origin(str(path), [])[0] != key
    assert origin(str(path), ["IMPORTS", "[mine]"]) is None and origin(str(path), ["NAS.SEED"]) is None
    assert origin(str(tmp_path / "nowhere.yaml"), []) is None
    path.write_text("_BASE_: a.yaml\nIMPORTS: [mine]\n")
    assert origin(str(path), []) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--max-params", "1k"), "smallest feasible value"),
        (
            ("MODEL.SEM_SEG_HEAD.NUM_LAYERS", 2),
            "another space than the config's .*sem_seg.1; give the config",
        ),
        (("OUTPUT_DIR", "elsewhere"), "cannot read the ledger"),
        (("NAS.SEED", 1, "--pareto"), "--pareto stands after KEY VALUE"),
        (("--accept", "weights"), "--accept continues a search: add --resume"),
        (("--retry-failed",), "--retry-failed continues a search: add --resume"),
        (("--resume", "--accept", "foo"), "--accept foo: expected one of config, content, data"),
        (("--max-macs", "3.5 giga"), "--max-macs: '3.5 giga': expected a positive number.*--help shows"),
    ],
)
def test_refusals(toy, tmp_path, capfd, arguments, message):
    """One line, and no file is touched."""
    before = {p.name: p.read_bytes() for p in (tmp_path / "output/search").glob("*.json*")}
    with pytest.raises(SystemExit) as end:
        run_script("search_net", *toy[2], *arguments)
    assert end.value.code == 2 and re.search(message, error_line(capfd))
    assert {p.name: p.read_bytes() for p in (tmp_path / "output/search").glob("*.json*")} == before


def test_not_while_a_search_is_writing(toy, tmp_path, capfd):
    path = ledger_path(tmp_path / "output")
    with Ledger.open(path, Ledger(path).header, resume=True), pytest.raises(SystemExit):
        run_script("search_net", *toy[2])
    assert "in use by another process" in capfd.readouterr().err
    assert not (tmp_path / "output/search/costs.json").exists()


def test_arguments():
    words = "--rescore --estimator mean --max-macs 3.5G --max-params 24M --pareto --num-gpus 8 --cycles 3"
    for parser in (rescore_parser(), command_module.parser()):
        args = parser.parse_args([*words.split(), "NAS.SEED", "1"])
        assert selection_request(args) == Request("mean", 3_500_000_000, 24_000_000, True)
        assert args.rescore and asks_for_selection(args) and args.opts == ["NAS.SEED", "1"]
        assert not asks_for_selection(parser.parse_args([]))
        assert parser.parse_args([]).config_file == "configs/supernet_coco.yaml"
