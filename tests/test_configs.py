"""Every config parses and builds; what the README and the comments name exists."""

import importlib
import re
import shlex

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import META_ARCH_REGISTRY
from toy import ROOT

import auto_panoptic.data
import auto_panoptic.modeling  # noqa: F401  registers the components
from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.modeling import choice_blocks
from auto_panoptic.space import SearchSpace, configured_ops

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RUNNABLE = [path for path in CONFIGS if not path.name.startswith("Base-")]


def read(path, *options):
    """The config of a file, merged as the commands do; a key that does not exist is an error."""
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.merge_from_list([*options])
    return cfg


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=[str(p.relative_to(ROOT / "configs")) for p in paths])


def test_there_are_configs():
    names = {str(path.relative_to(ROOT / "configs")) for path in CONFIGS}
    assert {"supernet_coco.yaml", "quick/supernet.yaml", "quick/retrain.yaml"} <= names


def test_an_unknown_key_would_be_noticed(tmp_path):
    (tmp_path / "bad.yaml").write_text(f"_BASE_: {RUNNABLE[0]}\nSOLVER:\n  MAX_ITERS: 3\n")
    with pytest.raises(KeyError, match="SOLVER.MAX_ITERS"):
        read(tmp_path / "bad.yaml")


@named(CONFIGS)
def test_it_parses_and_so_do_its_bases(path):
    read(path)
    chain = [path]
    while base := yaml.safe_load(chain[-1].read_text()).get("_BASE_"):
        chain.append((chain[-1].parent / base).resolve())
        assert chain[-1].is_file() and chain[-1] in CONFIGS
        assert len(chain) < 6
    assert chain[-1].name.startswith("Base-")


@named(RUNNABLE)
def test_its_model_builds(path, tmp_path):
    """Without memory; the choice blocks are those of the config's space, one operator each if it is fixed."""
    cfg = read(path, "MODEL.DEVICE", "meta")
    space = SearchSpace.from_config(cfg)
    if cfg.NAS.ARCHITECTURE.endswith(".json"):  # the result of an earlier command
        space.random(np.random.default_rng(0)).save(tmp_path / "architecture.json")
        cfg.NAS.ARCHITECTURE = str(tmp_path / "architecture.json")
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    found = {site: tuple(block.candidates) for site, block in choice_blocks(model).items()}
    assert found == {site: tuple(op.name for op in ops) for site, ops in configured_ops(cfg).items()}
    assert found.keys() == {site.name for site in space.sites}
    if cfg.NAS.ARCHITECTURE:
        assert {len(ops) for ops in found.values()} == {1}
    else:
        assert min(len(ops) for ops in found.values()) > 1


@named(RUNNABLE)
def test_its_data_sets_are_known_and_its_schedule_is_sound(path):
    cfg = read(path)
    names = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *cfg.DATASETS.SEARCH}
    assert names and names <= set(auto_panoptic.data.register.DatasetCatalog.list())
    if not cfg.NAS.ARCHITECTURE:
        assert cfg.DATASETS.SEARCH
        # Candidates are ranked neither on what trained them nor on what the result is reported on.
        assert not set(cfg.DATASETS.SEARCH) & {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
        assert cfg.NAS.MODELS_PER_CYCLE % SearchSpace.from_config(cfg).cycle_length == 0
    for name in names:
        metadata = MetadataCatalog.get(name)
        assert len(metadata.thing_classes) == cfg.MODEL.ROI_HEADS.NUM_CLASSES
        assert len(metadata.stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    steps = list(cfg.SOLVER.STEPS)
    assert steps == sorted(steps) and steps[-1] < cfg.SOLVER.MAX_ITER
    assert 0 < cfg.SOLVER.WARMUP_ITERS < steps[0]
    assert cfg.OUTPUT_DIR.startswith("output/")


def test_the_published_schedule_of_the_supernet():
    """90000 mini-batches in fair cycles of 12; learning rate / 10 at epochs 8 and 11 of 12."""
    cfg = read(ROOT / "configs/supernet_coco.yaml")
    assert cfg.SOLVER.MAX_ITER * SearchSpace.from_config(cfg).cycle_length == 90000
    assert [step * 12 / cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS] == [8, 11]
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MOMENTUM) == (16, 0.02, 0.9)
    assert solver.WEIGHT_DECAY == 1e-4
    assert SearchSpace.from_config(cfg) == SearchSpace.default()
    settings = cfg.NAS.BN_RECALIBRATION
    assert (cfg.NAS.CYCLES, cfg.NAS.MODELS_PER_CYCLE, settings.NUM_IMAGES) == (5, 12, 500)


def test_the_quick_commands_fit_together():
    """Retraining builds a path of the quick supernet; its statistics move as slowly as the paper's (0.01)."""
    supernet, retrain = read(ROOT / "configs/quick/supernet.yaml"), read(ROOT / "configs/quick/retrain.yaml")
    assert SearchSpace.from_config(supernet) == SearchSpace.from_config(retrain)
    assert (supernet.MODEL.SHUFFLENET.NORM_MOMENTUM, retrain.MODEL.SHUFFLENET.NORM_MOMENTUM) == (0.1, 0.01)
    supernet.MODEL.SHUFFLENET.NORM_MOMENTUM = 0.01
    assert supernet.MODEL.SHUFFLENET == retrain.MODEL.SHUFFLENET


# ------------------------------------------------------------------ names in texts

# A path of this repository: starts with one of its folders, or is a file at its top.
PATHS = re.compile(
    r"(?<![\w./-])((?:auto_panoptic|configs|datasets|tests|tools)/[\w./*-]*\w(?:/(?![\w*]))?|\w+\.py|\w+\.md)(?![\w/*])"
)
# Named in texts, but made by users or commands.
MADE = ("datasets/shapes", "datasets/coco", "datasets/derived")


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


@named(CONFIGS)
def test_comments_name_existing_files(path):
    assert missing_paths(path.read_text()) == []


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
    published = re.findall(r"NAS\.ARCHITECTURE (\w+)(?![\w./])", readme)
    assert [name for name in published if not (ROOT / f"configs/architectures/{name}.json").exists()] == []


def test_readme_make_targets_exist(readme):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    named_targets = set(re.findall(r"\bmake ([a-z]+)\b(?=`|\s*#|\s*$)", readme, re.M))
    assert {"quickstart", "test"} <= named_targets
    assert named_targets <= targets


def test_readme_commands_parse(readme):
    """Every command of a script has arguments that the script knows, and options that are config keys."""
    import search_net

    parsers = {"train_net.py": default_argument_parser(), "search_net.py": search_net.parser()}
    seen = set()
    for command in readme_commands(readme):
        script = next((word for word in command if word.rpartition("/")[2] in parsers), None)
        if script is None:
            continue
        seen.add(script)
        arguments = parsers[script].parse_args(command[command.index(script) + 1 :])
        opts = list(arguments.opts)
        config = ROOT / (arguments.config_file or "configs/supernet_coco.yaml")
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
