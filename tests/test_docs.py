"""What README, pages and comments of configs name exists, and each command in them is one that works.

The commands are parsed by their own parsers, and the configs that they name are built with their options.
"""

import ast
import importlib
import re
import shlex
import sys

import pytest
from test_configs import CONFIGS, FOLDER, RUNNABLE, named, read
from toy import ROOT

from auto_panoptic.errors import UserError
from auto_panoptic.training import find_config

sys.path.insert(0, str(ROOT / "tools/docs"))
import commands  # noqa: E402
import pages  # noqa: E402

# A path of this repository: starts with one of its folders, or is a file at its top.
PATHS = re.compile(
    r"(?<![\w./-])((?:auto_panoptic|configs|datasets|tests|tools)/[\w./*-]*\w(?:/(?![\w*]))?|\w+\.py|\w+\.md)(?![\w/*])"
)
# Named in texts, but made by users or commands, or scripts of other projects.
MADE = ("datasets/shapes", "datasets/coco", "datasets/derived", "my_model.py", "my_ops.py")
MADE += ("prepare_panoptic_fpn.py", "prepare_ade20k_pan_seg.py", "prepare_ade20k_ins_seg.py")
MADE += ("createPanopticImgs.py",)
OWN_CONFIGS = ("my.yaml", "my_ops.yaml")
TEXTS = [ROOT / name for name in ("README.md", "MODEL_ZOO.md", "CONTRIBUTING.md", "datasets/README.md")]
TEXTS += sorted((ROOT / "docs").glob("*.md"))
# What a shell script of a page does besides starting commands.
SHELL = re.compile(r"^(#!|head=|mkdir |cd |export )")
# Of Python programs that come with libraries.
STARTERS = {"python", "torchrun", "srun"}
OTHERS = {"make", "pip", "tensorboard"}


def of_texts(function):
    return pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))(function)


def missing_paths(text, *folders):
    """Paths in ``text`` that exist neither in the repository nor in ``folders``."""
    found = [path for path in PATHS.findall(text) if not path.startswith(MADE)]
    return [
        path for path in found if not any(list(folder.glob(path.rstrip("/"))) for folder in (ROOT, *folders))
    ]


def test_a_wrong_path_would_be_noticed():
    assert missing_paths("see tools/nothing.py, `configs/*.yaml`, configs/quick/ and train_net.py") == [
        "tools/nothing.py"
    ]


def missing_architectures(text):
    """Names after NAS.ARCHITECTURE that are no file under configs/architectures; paths do not count."""
    names = re.findall(r"NAS\.ARCHITECTURE (\w+_\w+)(?![\w./])", text)
    return [name for name in names if not (FOLDER / f"architectures/{name}.json").exists()]


@named(CONFIGS)
def test_comments_name_existing_files(path):
    """Files of the repository, architectures, and folders that another config writes."""
    text = path.read_text()
    assert missing_paths(text) == []
    assert missing_architectures(text) == []
    written = {read(config).OUTPUT_DIR for config in RUNNABLE}
    written |= {"output/quickstart/search", "output/own/search", "output/own_cpu/search"}
    written |= {f"{folder}/search" for folder in written}
    folders = {folder.rpartition("/")[0] for folder in re.findall(r"output/[\w/]+\.\w+", text)}
    assert folders <= written


def shell_commands(text):
    """The commands of the shell blocks, continued lines joined, comments dropped."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = [line for line in lines if not SHELL.match(line)]
    return [command for line in lines if (command := shlex.split(line, comments=True))]


def program(command):
    """("python", the words after it), also of ``VAR=1 torchrun --nproc-per-node 2 train_net.py ...``.

    Of a command of another kind: its name, and the words after it.
    """
    words = list(command)
    while "=" in words[0]:
        words = words[1:]
    if words[0] == commands.FORWARDS:
        return "python", ["-m", "auto_panoptic", *words[1:]]
    if words[0] not in STARTERS:
        return words[0], words[1:]
    start = next(i for i, word in enumerate(words) if word.endswith(".py") or words[i - 1 : i] == ["-m"])
    return "python", words[start - 1 :] if words[start - 1] == "-m" else words[start:]


@of_texts
def test_nothing_is_left_to_fill_in(path):
    assert re.findall(r"@[A-Z]+@|TODO|TBD|XXX", path.read_text()) == []


@of_texts
def test_named_files_exist(path):
    text = path.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    made = pages.MADE if path.parent.name == "docs" else ()
    assert [link for link in links if not ((path.parent / link).exists() or link in made)] == []
    plain = re.sub(r"\]\([^)]*\)", "]", text)
    assert missing_paths(plain, ROOT / "auto_panoptic", ROOT / "docs") == []
    assert missing_architectures(text) == []


@of_texts
def test_make_targets_exist(path):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    called = {words[0] for kind, words in map(program, shell_commands(path.read_text())) if kind == "make"}
    called |= set(re.findall(r"`make ([a-z-]+)", path.read_text()))
    assert {word for word in called if "=" not in word} <= targets


@of_texts
def test_commands_parse(path):
    """Every command has arguments that its parser takes, and options that are config keys."""
    for command in shell_commands(path.read_text()):
        kind, words = program(command)
        if kind != "python":
            assert kind in OTHERS, command
            continue
        arguments = commands.parse(words)
        name = getattr(arguments, "config_file", None)
        if name and name not in OWN_CONFIGS:
            config = ROOT / name if name.startswith("configs/") else find_config(name)
            read(config, *[word for word in arguments.opts if word != "..."])


def test_a_wrong_option_would_be_noticed():
    """Also one of a command that another one starts."""
    for line in ("train_net.py --evals", "-m auto_panoptic train --nothing", "-m auto_panoptic.report"):
        with pytest.raises((SystemExit, UserError)):
            commands.parse(line.split())
    assert commands.parse("-m auto_panoptic train --eval-only SEED 1".split()).opts == ["SEED", "1"]


@of_texts
def test_keys_exist(path):
    """Keys in code spans, such as `SOLVER.MAX_ITER`."""
    cfg = read(RUNNABLE[0])
    pattern = r"`((?:NAS|MODEL|SOLVER|DATASETS|INPUT|TEST|DATALOADER)(?:\.[A-Z_0-9]+)+)"
    for key in re.findall(pattern, path.read_text()):
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


@of_texts
def test_python_is_python_and_names_what_there_is(path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
        ast.parse(block)
        for module, names in re.findall(r"^from (auto_panoptic[\w.]*) import ([\w, ]+)$", block, re.M):
            loaded = importlib.import_module(module)
            assert [name for name in names.split(", ") if not hasattr(loaded, name)] == []


# ------------------------------------------------------------------ README


def readme():
    return (ROOT / "README.md").read_text()


def test_readme_opens_with_the_two_commands():
    assert shell_commands(readme())[:2] == [["make", "quickstart"], ["make", "test"]]


def test_the_two_main_commands_are_in_readme_and_pages():
    for text in (readme(), (ROOT / "docs/search.md").read_text() + (ROOT / "docs/training.md").read_text()):
        started = {words[0] for kind, words in map(program, shell_commands(text)) if kind == "python"}
        assert set(commands.MAIN) <= started
