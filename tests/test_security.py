"""What runs code, unpickles or fetches stands in reviewed places only, and none of them takes a file's word.

A new place belongs into :data:`REVIEWED` with the reason why no untrusted content reaches it.
"""

import ast
from pathlib import Path

import pytest
import torch
from toy import ROOT, error_line, make_config, run_script, write_config

from auto_panoptic.errors import UserError
from auto_panoptic.read_config import read_config
from auto_panoptic.training import AtomicCheckpointer
from auto_panoptic.training.checkpoint import newest_intact

DANGEROUS = {
    *("eval", "exec", "compile", "__import__", "import_module", "run_path", "run_module"),
    *("unsafe_load", "full_load", "unsafe_load_all", "UnsafeLoader", "FullLoader", "Loader"),
    *("_Unpickler", "Unpickler", "read_pickle", "joblib", "dill", "shelve", "marshal", "cloudpickle"),
    *("system", "popen", "Popen", "run", "call", "check_call", "check_output", "execv", "execve", "execvp"),
    *("urlopen", "urlretrieve", "download", "get_local_path", "PathManager", "HTTPURLHandler", "hub"),
    *("DetectionCheckpointer", "DefaultPredictor", "Checkpointer", "load_yaml_with_base", "merge_from_file"),
    *("pickle.load", "pickle.loads", "torch.load", "np.load", "numpy.load", "yaml.load", "torch.jit.load"),
}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
COMMON = {*BUILT_IN, "run", "call"}  # names of methods, too
# {file: {what: why}}
REVIEWED = {
    "auto_panoptic/__init__.py": {"import_module": "modules of the package"},
    "auto_panoptic/__main__.py": {"run_module": "a fixed list of modules", "run_path": "and of scripts"},
    "auto_panoptic/bench/__init__.py": {"np.load": "allow_pickle=False"},
    "auto_panoptic/doctor.py": {"import_module": "a fixed list of modules"},
    "auto_panoptic/read_config.py": {
        "import_module": "IMPORTS of the config that a command names, and KEY VALUE pairs",
        "merge_from_file": "allow_unsafe=False, after read_files has looked at all bases",
    },
    "auto_panoptic/evaluation/evaluators.py": {"import_module": "panopticapi"},
    "auto_panoptic/export.py": {
        "import_module": "onnx and onnxruntime",
        "torch.jit.load": "what it has just made",
    },
    "auto_panoptic/own_data.py": {"Popen": "its own commands, a list of arguments, no shell"},
    "auto_panoptic/report/command.py": {"import_module": "what --import names on the command line"},
    "auto_panoptic/report/layout.py": {"run_path": "tables of the package"},
    "auto_panoptic/space/space.py": {"run_path": "tables of the package"},
    "auto_panoptic/training/archive.py": {"torch.load": "weights_only"},
    "auto_panoptic/training/checkpoint.py": {
        "DetectionCheckpointer": "only its writing; _load_file reads by read_checkpoint",
    },
    "auto_panoptic/training/zoo.py": {
        "_Unpickler": "find_class gives stand-ins only",
        "pickle.loads": "of the file that --trust-pickle names",
        "PathManager": "names of the catalogue, which lead to one host",
        "get_local_path": "the same",
    },
}


def dotted(node) -> str:
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def dangerous(source: str) -> set[str]:
    """Names of :data:`DANGEROUS` that a source uses or imports, not ``model.eval`` and ``re.compile``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            found |= {name, node.attr} - (set() if name.startswith("subprocess.") else COMMON)
        elif isinstance(node, ast.Name):
            found |= {node.id} & BUILT_IN
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle"):
            found |= {"system"} if getattr(node.value, "value", True) else set()
    return found & DANGEROUS


@pytest.mark.parametrize(
    "source, found",
    [
        ("import pickle\npickle.load(stream)", {"pickle.load"}),
        ("torch.load(path)", {"torch.load"}),
        ("yaml.load(text, yaml.UnsafeLoader)", {"yaml.load", "UnsafeLoader"}),
        ("from yaml import unsafe_load", {"unsafe_load"}),
        ("eval(text)", {"eval"}),
        ("model.eval(); re.compile('a')", set()),
        ("subprocess.run(text, shell=True)", {"run", "system"}),
        ("np.load(path, allow_pickle=True)", {"np.load", "system"}),
        ("import dill", {"dill"}),
    ],
)
def test_the_guard_sees(source, found):
    assert dangerous(source) == found


SOURCES = [
    *Path(ROOT, "auto_panoptic").rglob("*.py"),
    *ROOT.glob("*.py"),
    *Path(ROOT, "datasets").glob("*.py"),
]


def test_dangerous_calls_stand_in_reviewed_places():
    found = {str(path.relative_to(ROOT)): dangerous(path.read_text()) for path in SOURCES}
    reviewed = {file: set(names) for file, names in REVIEWED.items()}
    assert {file: names for file, names in found.items() if names} == reviewed


def test_torch_reads_weights_only():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and dotted(node.func) == "torch.load":
                options = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
                assert options["weights_only"] is True, path


def test_tools_run_no_text():
    for path in Path(ROOT, "tools").glob("*.py"):
        found = dangerous(path.read_text()) - {"run", "Popen", "download"}  # lists of arguments, no shell
        assert not found, path


COMMANDS = [
    ("train_net", ()),
    ("train_net", ("--eval-only",)),
    ("train_net", ("--resume",)),
    ("search_net", ()),
    ("search_net", ("--rescore",)),
]
TAGS = ["object/apply:os.mkdir [{}]", "object/new:os.mkdir [{}]", "name:os.mkdir ''", "module:os ''"]


@pytest.mark.parametrize(
    "script, options, tag, base",
    [(*line, TAGS[0], base) for line in COMMANDS for base in (False, True)]
    + [(*COMMANDS[0], tag, False) for tag in TAGS[1:]],
)
def test_no_config_runs_code(tmp_path, shapes, capsys, script, options, tag, base):
    path = write_config(tmp_path / "toy.yaml", shapes)
    path.write_text(path.read_text() + f"VIS_PERIOD: !!python/{tag.format(tmp_path / 'executed')}\n")
    if base:
        (tmp_path / "own.yaml").write_text("_BASE_: toy.yaml\nSEED: 1\n")
        path = tmp_path / "own.yaml"
    with pytest.raises(SystemExit) as stop:
        run_script(script, "--config-file", path, *options)
    assert stop.value.code == 2 and "no code is run" in error_line(capsys)
    assert not (tmp_path / "executed").exists() and not (tmp_path / "output").exists()


@pytest.mark.parametrize("base", ["https://example.org/a.yaml", "detectron2://a.yaml", "file:///etc/passwd"])
def test_no_base_is_fetched(tmp_path, base):
    (tmp_path / "own.yaml").write_text(f"_BASE_: {base}\n")
    with pytest.raises(UserError, match="_BASE_ is .*; expected the path of a YAML file"):
        read_config(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize("place", ["https://example.org/a", "detectron2://a", "https://1drv.ms/u/s!a"])
def test_a_place_is_on_this_machine(tmp_path, shapes, place):
    """Detectron2 would hand such a path to what fetches it."""
    with pytest.raises(UserError, match="OUTPUT_DIR is .*; expected a folder of this machine"):
        make_config(tmp_path, shapes, "OUTPUT_DIR", place)
    with pytest.raises(UserError):
        make_config(tmp_path, shapes, "NAS.ARCHITECTURE", f"{place}.json")
    entry = {"name": "remote", "panoptic_json": f"{place}.json", "panoptic_root": place, "image_root": place}
    with pytest.raises(UserError):
        make_config(tmp_path, shapes, DATASETS={"COCO_PANOPTIC": [entry], "TRAIN": ["remote"]})


def test_a_checkpoint_that_is_not_finite_is_passed_over(tmp_path):
    """Written by others, or earlier."""
    model = torch.nn.Linear(2, 2)
    saver = AtomicCheckpointer(model, str(tmp_path))
    for iteration in range(3):
        saver.save(f"model_{iteration:07d}", iteration=iteration)
    data = torch.load(tmp_path / "model_0000002.pth", weights_only=True)
    data["model"]["bias"][1] = float("nan")
    torch.save(data, tmp_path / "model_0000002.pth")
    data["model"]["bias"] = torch.zeros(1).expand(10**12)
    torch.save(data, tmp_path / "model_0000001.pth")
    path, problems = newest_intact(str(tmp_path))
    assert path.endswith("model_0000000.pth")
    assert problems == [
        "model_0000002.pth bias holds 1 of 2 values that are NaN or infinite",
        "model_0000001.pth holds 'bias' of shape (1000000000000,), but not as many numbers",
    ]
