"""What the README and the comments of the configs name exists, and the README's commands parse."""

import importlib
import re
import shlex

import pytest
from detectron2.engine import default_argument_parser
from test_configs import CONFIGS, FOLDER, RUNNABLE, named, read
from toy import ROOT

from auto_panoptic.search.command import parser
from auto_panoptic.training import find_config

# A path of this repository: starts with one of its folders, or is a file at its top.
PATHS = re.compile(
    r"(?<![\w./-])((?:auto_panoptic|configs|datasets|tests|tools)/[\w./*-]*\w(?:/(?![\w*]))?|\w+\.py|\w+\.md)(?![\w/*])"
)
# Named in texts, but made by users or commands.
MADE = ("datasets/shapes", "datasets/coco", "datasets/derived", "my_model.py")


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
    written = {read(config).OUTPUT_DIR for config in RUNNABLE} | {"output/quickstart/search"}
    written |= {f"{folder}/search" for folder in written}
    folders = {folder.rpartition("/")[0] for folder in re.findall(r"output/[\w/]+\.\w+", text)}
    assert folders <= written


@pytest.fixture
def readme():
    path = ROOT / "README.md"
    if not path.exists():
        pytest.skip("there is no README yet")
    return path.read_text()


def readme_commands(text):
    """The commands of the shell blocks, continued lines joined, comments dropped."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := shlex.split(line, comments=True))]


def test_readme_opens_with_the_two_commands(readme):
    commands = readme_commands(readme)
    assert commands[:2] == [["make", "quickstart"], ["make", "test"]]


def test_readme_has_no_blanks(readme):
    assert re.findall(r"@[A-Z]+@|TODO|TBD|XXX", readme) == []


def test_readme_names_existing_files(readme):
    assert missing_paths(readme, ROOT / "auto_panoptic") == []
    links = [link for link in re.findall(r"\]\(([^)#]+)", readme) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert missing_architectures(readme) == []


def test_readme_make_targets_exist(readme):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    named_targets = set(re.findall(r"\bmake ([a-z]+)\b(?=`|\s*#|\s*$)", readme, re.M))
    assert {"quickstart", "test"} <= named_targets
    assert named_targets <= targets


def test_readme_commands_parse(readme):
    """Every command of a script has arguments that the script knows, and options that are config keys."""
    parsers = {"train_net.py": default_argument_parser(), "search_net.py": parser()}
    seen = set()
    for command in readme_commands(readme):
        script = next((word for word in command if word.rpartition("/")[2] in parsers), None)
        if script is None:
            continue
        seen.add(script)
        arguments = parsers[script].parse_args(command[command.index(script) + 1 :])
        opts = list(arguments.opts)
        name = arguments.config_file or "configs/supernet_coco.yaml"
        config = ROOT / name if name.startswith("configs/") else find_config(name)
        if opts == ["..."]:
            opts = []
        read(config, *opts)
    assert seen == set(parsers)


def test_readme_keys_exist(readme):
    """Keys in code spans, such as `SOLVER.MAX_ITER`."""
    cfg = read(RUNNABLE[0])
    keys = re.findall(r"`((?:NAS|MODEL|SOLVER|DATASETS|INPUT|TEST|DATALOADER)(?:\.[A-Z_0-9]+)+)", readme)
    assert keys
    for key in keys:
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def test_importable_names_in_the_readme(readme):
    for module, names in re.findall(r"^from (auto_panoptic[\w.]*) import ([\w, ]+)$", readme, re.M):
        loaded = importlib.import_module(module)
        assert [name for name in names.split(", ") if not hasattr(loaded, name)] == []
