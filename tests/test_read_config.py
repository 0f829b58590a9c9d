"""What reading a config may do: plain values, no code, and modules that the user names."""

import ast
import os
import re
import sys
import time
from pathlib import Path

import pytest
from test_cli import refused, toy  # noqa: F401
from toy import ROOT

from auto_panoptic.data import check
from auto_panoptic.errors import UserError
from auto_panoptic.read_config import read_config

CODE = {
    "apply": '!!python/object/apply:os.system ["touch EXECUTED"]',
    "new": "!!python/object/new:os.system ['touch EXECUTED']",
    "eval": '!!python/object/apply:eval [\'open("EXECUTED", "w")\']',
    "name": "!!python/name:os.system",
    "module": "!!python/module:antigravity",
    "tuple": "!!python/tuple [1, 2]",
    "own tag": "!anything [1]",
}


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("tag", CODE.values(), ids=CODE)
@pytest.mark.parametrize("place", ["file", "base", "list of bases"])
def test_tags_of_yaml_are_refused(tmp_path, monkeypatch, tag, place):
    monkeypatch.chdir(tmp_path)
    bad = write(tmp_path / "bad.yaml", f"VERSION: 2\nVIS_PERIOD: {tag}\n")
    fine = write(tmp_path / "fine.yaml", "VERSION: 2\n")
    base = {"base": bad, "list of bases": [fine, bad]}.get(place)
    path = write(tmp_path / "c.yaml", f"_BASE_: {base}\n") if base else bad
    with pytest.raises(
        UserError, match=rf"bad\.yaml: .*tag.*{re.escape(tag.split()[0].strip('!')[:6])}.* in line 2"
    ):
        read_config(path)
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("script, arguments", [
    ("train_net", ()), ("train_net", ("--eval-only",)), ("train_net", ("--resume",)), ("search_net", ()),
    ("search_net", ("--rescore",)), ("search_net", ("--resume",)),
])  # fmt: skip
def test_no_command_runs_a_config(capfd, tmp_path, toy, script, arguments):  # noqa: F811
    mark = tmp_path / "EXECUTED"
    bad = write(
        tmp_path / "bad.yaml", f"_BASE_: {toy}\nVIS_PERIOD: !!python/object/apply:os.mkdir ['{mark}']\n"
    )
    # What an earlier command may have stored beside its results is no less hostile.
    search = tmp_path / "output/search"
    search.mkdir(parents=True)
    (search / "config.json").write_text(
        '{"made_from": "", "config": {"VIS_PERIOD": "!!python/name:os.mkdir"}}'
    )
    line = refused(capfd, tmp_path, script, "--config-file", bad, *arguments)
    assert f"{bad}: could not determine a constructor" in line and not mark.exists()


def test_no_check_runs_a_config(tmp_path):
    mark = tmp_path / "EXECUTED"
    bad = write(tmp_path / "bad.yaml", f"VIS_PERIOD: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(UserError, match=f"{bad}: could not determine"):
        check.main(["shapes_panoptic_val", "--config-file", bad])
    assert not mark.exists()


@pytest.mark.parametrize("content, message", [
    ("_BASE_: c.yaml", "c.yaml: is a _BASE_ of itself"),
    ("_BASE_: [d.yaml]", "c.yaml: is a _BASE_ of itself, by way of .*c.yaml and .*d.yaml"),
    ("_BASE_: nowhere.yaml", "c.yaml: no file '.*nowhere.yaml', which is its _BASE_"),
    ("_BASE_: fifo", "c.yaml: no file '.*fifo', which is its _BASE_"),
    ("_BASE_: https://example.org/c.yaml", "expected the path of a YAML file"),
    ("_BASE_: [[1]]", "expected the path of a YAML file"),
    ("", "holds no config"),
    ("- 1", "holds no config"),
    ("a: [", "while parsing"),
    ("a: \x00", "special characters are not allowed"),
    ("[" * 3000, "c.yaml: "),
])  # fmt: skip
def test_files_that_are_no_config(tmp_path, content, message):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "d.yaml").write_text("_BASE_: c.yaml")
    path = write(tmp_path / "c.yaml", content)
    with pytest.raises(UserError, match=message) as caught:
        read_config(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    with pytest.raises(UserError, match="a Python file is no config"):
        read_config(write(tmp_path / "c.py", "print(1)"))


LAUGHS = "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 10 if i else ['x'] * 10)}]\n" for i in range(12))


@pytest.mark.parametrize("content, message", [
    ("SEED: 1\nSEED: 2", r"key 'SEED' stands in line 1 and again in line 2; remove one"),
    ("SOLVER:\n  BASE_LR: 1\nMODEL: {}\nSOLVER: {}", "key 'SOLVER' stands in line 1 and again in line 4"),
    ("SOLVER: {BASE_LR: 1, BASE_LR: 2}", "key 'BASE_LR' stands in line 1 and again in line 1"),
    ("DATASETS:\n  COCO_PANOPTIC: [{name: a, name: b}]", "key 'name' stands in line 2"),
    ("1: 2", "line 1: a key is a name; write '1' in quotes"),
    ("ON: 2", "line 1: a key is a name; write 'ON' in quotes"),
    ("? [a]\n: 2", "line 1: a key is a name"),
    (LAUGHS, "holds more than 20000 values"),
    ("a: &a [*a]", "holds more than 20000 values"),
    ("&a {a: *a}", "holds more than 20000 values"),
    ("\tSEED: 1", "cannot start any token"),
    (b"SEED: \xe9", "unacceptable character"),
    (b"\xff\xfea", "c.yaml: "),
    ("a: 1\n---\na: 2", "expected a single document"),
    ("#" * 300_000, "at most 50 files and 256 KiB"),
    ("_BASE_: [" + "empty.yaml, " * 60 + "]", "at most 50 files"),
    ("_BASE_: .", "no file .*, which is its _BASE_"),
    ("_BASE_: /dev/zero", "no file '/dev/zero', which is its _BASE_"),
    ("_BASE_: detectron2://x.yaml", "expected the path of a YAML file"),
    ("_BASE_: s3://bucket/x.yaml", "expected the path of a YAML file"),
    ("_BASE_:", "expected the path of a YAML file"),
    ("SEED: " + "9" * 100_000, "Exceeds the limit"),
    ("SEED: '" + "9" * 100_000 + "'", "Type mismatch"),
    ("SOLVER:", "SOLVER is a section; give the keys in it"),
    ("SOLVER: 3", "SOLVER is a section; give the keys in it"),
    ("SOLVER: [1]", "SOLVER is a section; give the keys in it"),
])  # fmt: skip
def test_texts_that_are_no_config(tmp_path, content, message):
    (tmp_path / "empty.yaml").write_text("VERSION: 2\n")
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    begin = time.process_time()
    with pytest.raises(UserError, match=message) as caught:
        read_config(str(path))
    assert time.process_time() - begin < 5
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_bases_of_bases_are_bounded(tmp_path):
    """Ten files, each twice the base of the next one, would be read 1024 times."""
    for i in range(10):
        write(tmp_path / f"{i}.yaml", f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]\n")
    write(tmp_path / "10.yaml", "VERSION: 2\n")
    with pytest.raises(UserError, match="at most 50 files"):
        read_config(str(tmp_path / "0.yaml"))


def test_what_yaml_allows_is_allowed(tmp_path):
    write(tmp_path / "base.yaml", "VERSION: 2\nSEED: 7\n")
    text = "_BASE_: [base.yaml, base.yaml]\nSOLVER: &s {BASE_LR: 0.5}\nINPUT: {MIN_SIZE_TRAIN: &m [5], "
    path = write(tmp_path / "c.yaml", text + "MAX_SIZE_TEST: 9}\nMODEL: {WEIGHTS: &w 'é \U0001f600'}\n")
    cfg = read_config(path)
    assert (cfg.SEED, cfg.SOLVER.BASE_LR, cfg.MODEL.WEIGHTS) == (7, 0.5, "é \U0001f600")


def test_devices_and_folders_are_no_configs(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (
        tmp_path,
        tmp_path / "fifo",
        "/dev/zero",
        "detectron2://x.yaml",
        "https://a.b/c.yaml",
        "a\0b",
    ):
        with pytest.raises(UserError, match="no file|is no plain file"):
            read_config(str(path))


@pytest.mark.parametrize("key, message", [
    ("BASE_LR", "did you mean SOLVER.BASE_LR?"),
    ("BASE_RL", "did you mean SOLVER.BASE_LR?"),
    ("base_lr", "did you mean SOLVER.BASE_LR?"),
    ("SOLVER.BASE_RL", "did you mean SOLVER.BASE_LR?"),
    ("SOLVR.BASE_LR", "did you mean SOLVER.BASE_LR?"),
    ("MODEL.BASE_LR", "did you mean SOLVER.BASE_LR?"),
    ("solver.max_iter", "did you mean SOLVER.MAX_ITER?"),
    ("SOLVER.MAX_ITERS", "did you mean SOLVER.MAX_ITER?"),
    ("MODEL.NAS.SEED", "did you mean NAS.SEED"),
    ("NAS.ARCHITECTUR", "did you mean NAS.ARCHITECTURE?"),
    ("MODEL.NUM_CLASSES", "did you mean MODEL.ROI_HEADS.NUM_CLASSES or "),
    ("SOLVER.BASE_LR.X", "did you mean SOLVER.BASE_LR"),
    ("zzzzzzz", "auto_panoptic/config.py lists the keys"),
])  # fmt: skip
def test_a_typo_tells_the_nearest_key(tmp_path, key, message):
    with pytest.raises(UserError, match="command line: unknown config key ") as caught:
        read_config(write(tmp_path / "c.yaml", "VERSION: 2\n"), [key, "1"])
    assert message in str(caught.value)
    nested = key.replace(".", ": {") + ": 1" + "}" * key.count(".")
    with pytest.raises(UserError, match="did you mean|lists the keys|Type mismatch"):
        read_config(write(tmp_path / "c.yaml", f"VERSION: 2\n{nested}\n"))


@pytest.mark.parametrize("line, message", [
    ("_BASES_: x.yaml", "did you mean _BASE_?"),
    ("_base_: x.yaml", "did you mean _BASE_?"),
    ("VERSION: 1", "VERSION is 1; expected 2"),
    ("VERSION: v2", "VERSION is 'v2'; expected 2"),
])  # fmt: skip
def test_what_a_file_says_of_itself(tmp_path, line, message):
    with pytest.raises(UserError) as caught:
        read_config(write(tmp_path / "c.yaml", f"{line}\n"))
    assert message in str(caught.value)


def test_a_key_of_a_million_letters_is_refused_at_once(tmp_path):
    start = time.process_time()
    with pytest.raises(UserError, match="unknown config key '?SOLVER.zzz"):
        read_config(write(tmp_path / "c.yaml", "VERSION: 2\n"), ["SOLVER." + "z" * 10**6, "1"])
    assert time.process_time() - start < 10


def test_a_key_with_dots_in_a_file(tmp_path):
    with pytest.raises(UserError, match="a file has no dots in it but levels: SOLVER: {BASE_LR: ...}"):
        read_config(write(tmp_path / "c.yaml", "VERSION: 2\nSOLVER.BASE_LR: 1\n"))


# ------------------------------------------------------------------ IMPORTS


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the current folder; its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    (tmp_path / "my_imported").mkdir()
    (tmp_path / "my_imported/system.py").write_text("def add_config(cfg):\n    cfg.MY_KEY = 1\n")
    yield "my_imported.system"
    for name in [name for name in sys.modules if name.startswith("my_imported")]:
        del sys.modules[name]


def test_imports_of_the_named_config_and_of_options(tmp_path, module):
    path = write(tmp_path / "c.yaml", f"VERSION: 2\nIMPORTS: [{module}]\nMY_KEY: 3\n")
    cfg = read_config(path)
    assert cfg.MY_KEY == 3 and cfg.IMPORTS == [module]
    plain = write(tmp_path / "d.yaml", "VERSION: 2\n")
    for value in (module, f"['{module}']", f"('{module}',)"):
        assert read_config(plain, ["MY_KEY", "4", "IMPORTS", value]).MY_KEY == 4
    with pytest.raises(UserError, match="unknown config key 'MY_KEY'"):
        read_config(plain, ["MY_KEY", "4"])


def test_a_base_imports_nothing(tmp_path, module):
    base = write(tmp_path / "base.yaml", f"VERSION: 2\nIMPORTS: [{module}]\n")
    path = write(tmp_path / "c.yaml", f"_BASE_: {base}\n")
    with pytest.raises(
        UserError, match=rf"a base of it has IMPORTS {module}.*add IMPORTS: \[{module}\] there"
    ):
        read_config(path)
    assert module not in sys.modules
    write(tmp_path / "c.yaml", f"_BASE_: {base}\nIMPORTS: [{module}]\n")
    assert read_config(path).MY_KEY == 1


@pytest.mark.parametrize("value, message", [
    ("nowhere_to_be_found", "'nowhere_to_be_found' cannot be imported .*; it is looked for in"),
    ("../evil.py", "expected a list of modules"),
    ("3", "expected a list of modules"),
    ("[['a']]", "expected a list of modules"),
])  # fmt: skip
def test_imports_that_cannot_be(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        read_config(write(tmp_path / "c.yaml", "VERSION: 2\n"), ["IMPORTS", value])


# ------------------------------------------------------------------ the whole repository


def test_nothing_reads_a_file_in_a_way_that_runs_code():
    """Calls that do so by their nature; those that need ``weights_only`` or ``allow_unsafe`` must say it."""
    always = {
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
        "yaml.load_all",
        "pickle.load",
        "torch.hub.load",
    }
    needs = {"torch.load": ("weights_only", True), ".merge_from_file": ("allow_unsafe", False)}
    found = []
    for path in [
        *ROOT.glob("*.py"),
        *(p for d in ("auto_panoptic", "tools", "datasets") for p in (ROOT / d).rglob("*.py")),
    ]:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            given = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
            demand = next((pair for end, pair in needs.items() if name.endswith(end)), None)
            if name in always or name in ("eval", "exec") or given.get("allow_pickle"):
                found.append(f"{path}:{call.lineno} {name}")
            elif demand and given.get(demand[0]) is not demand[1]:
                found.append(f"{path}:{call.lineno} {name} without {demand[0]}={demand[1]}")
    assert not found
