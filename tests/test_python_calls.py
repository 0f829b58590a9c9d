"""``train`` and ``search`` in Python, with a file or a config object; Detectron2's trainer on a supernet."""

import numpy as np
import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from toy import TOY_NET, _own_logging, make_config, write_config

import auto_panoptic
from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.errors import UserError
from auto_panoptic.search import ledger_path
from auto_panoptic.training import run


@pytest.fixture
def config(tmp_path, shapes):
    """A config object, as a program makes it with Detectron2's functions."""
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    cfg.merge_from_file(str(write_config(tmp_path / "toy.yaml", shapes)))
    return cfg


def test_a_config_object_is_trained_and_searched(config, tmp_path, capsys):
    """As its file is; both go on with resume=True, and the object stays as it was."""
    before = config.dump()
    with _own_logging():
        trained = auto_panoptic.train(config, ["OUTPUT_DIR", tmp_path / "a"])
        assert trained.is_supernet and (tmp_path / "a/model_final.pth").is_file()
        with pytest.raises(UserError, match="resume=True in Python"):
            auto_panoptic.train(config, ["OUTPUT_DIR", tmp_path / "a"])
        auto_panoptic.train(config, ["OUTPUT_DIR", tmp_path / "a", "SOLVER.MAX_ITER", 3], resume=True)
        options = ["OUTPUT_DIR", tmp_path / "a"]
        few = {"policy": "random", "cycles": 1, "models_per_cycle": 2, "pareto": True}
        found = auto_panoptic.search(config, options, **few)
        more = {**few, "resume": True, "accept": ["config", "data"]}
        again = auto_panoptic.search(tmp_path / "toy.yaml", options, **more)
    assert config.dump() == before
    assert found.evaluated == again.evaluated == 2 and found.architecture == again.architecture
    assert found.directory == ledger_path(tmp_path / "a").parent
    assert (found.directory / "pareto.json").is_file() and (found.directory / "report.html").is_file()
    assert "Selected from 2 candidates" in capsys.readouterr().out


def test_a_training_may_show_its_whole_log(config, monkeypatch):
    monkeypatch.setattr(run, "train_in", lambda args, cfg, trainer: args.verbose)
    assert auto_panoptic.train(config, verbose=True) and not auto_panoptic.train(config)


def test_the_room_is_a_function_and_a_package():
    from auto_panoptic import search
    from auto_panoptic.search import run_search  # noqa: F401

    assert callable(search) and search is auto_panoptic.search and search.__name__ == "auto_panoptic.search"


@pytest.mark.parametrize("arguments, message", [
    ({"rescore": True}, "use the command search_net.py"),
    ({"num_gpus": 2}, "use the command search_net.py"),
    ({"retry_failed": True}, "add --resume"),
    ({"speed": 3}, "unrecognized arguments: --speed=3|--help shows the options"),
    ({"estimator": "luck"}, "invalid choice: 'luck'"),
    ({"weights": "nowhere.pth"}, "no file 'nowhere.pth'"),
])  # fmt: skip
def test_wrong_arguments_of_a_search(config, arguments, message):
    with pytest.raises(UserError, match=message):
        auto_panoptic.search(config, **arguments)


def test_wrong_config_objects(config):
    with pytest.raises(UserError, match=r"lacks NAS: call add_auto_panoptic_config\(cfg\)"):
        auto_panoptic.train(get_cfg())
    config.NAS.CYCLES = -1
    with pytest.raises(UserError, match="NAS.CYCLES is -1"):
        auto_panoptic.train(config)
    config.NAS.CYCLES = 1
    with pytest.raises(UserError, match="unknown config key 'NAS.CYCELS'; did you mean NAS.CYCLES"):
        auto_panoptic.train(config, ["NAS.CYCELS", 2])
    with pytest.raises(UserError, match="MODEL.RESNETS.DEPTH is 18, but no part of"):
        auto_panoptic.train(config, ["MODEL.RESNETS.DEPTH", 18])


def test_detectron2s_trainer_refuses_a_supernet(tmp_path, shapes):
    """It would train the first operator of every site, and nobody would notice."""
    cfg = make_config(tmp_path, shapes, "INPUT.MASK_FORMAT", "bitmask")
    with _own_logging(), pytest.raises(UserError, match="no path of it was chosen; train it with"):
        DefaultTrainer(cfg).train()


def test_an_architecture_as_text_is_one_as_a_file(tmp_path, shapes, config):
    from auto_panoptic.modeling import Choices, configured_space
    from auto_panoptic.space import as_text

    architecture = configured_space(make_config(tmp_path, shapes)).random(np.random.default_rng(0))
    architecture.save(tmp_path / "a.json")
    text = as_text(architecture.names())
    dumped = yaml.safe_load(make_config(tmp_path, shapes, "NAS.ARCHITECTURE", text).dump())
    assert dumped["NAS"]["ARCHITECTURE"] == text
    config.NAS.ARCHITECTURE = text
    named = Choices.from_config(config).names
    config.NAS.ARCHITECTURE = str(tmp_path / "a.json")
    assert named == Choices.from_config(config).names == architecture.names()
    for wrong in ("json:", "json:{", "json:[]", 'json:{"sites": {"backbone.0": "no_such"}}'):
        with pytest.raises(UserError, match="NAS.ARCHITECTURE: "):
            make_config(tmp_path, shapes, "NAS.ARCHITECTURE", wrong, *TOY_NET)
