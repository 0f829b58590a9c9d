"""Two processes train what one trains, and stay equal."""

import contextlib
import importlib
import inspect
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import detectron2.engine
import distributed_run
import pytest
import torch

from auto_panoptic import errors
from auto_panoptic.errors import UserError
from auto_panoptic.training import launch_processes
from auto_panoptic.training.launch import PATIENCE

launch_module = importlib.import_module("auto_panoptic.training.launch")

SCRIPT = Path(__file__).with_name("distributed_run.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, shapes):
    """What the two processes of tests/distributed_run.py saved."""
    folder = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(SCRIPT), str(folder), str(shapes)],
        env={**os.environ, "PYTHONPATH": f"{SCRIPT.parent}{os.pathsep}{SCRIPT.parents[1]}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_equal(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **{"rtol": 0, "atol": 0, **tolerance})


def test_ranks_and_sizes(ranks):
    assert [(rank["world"], rank["local"]) for rank in ranks] == [(2, (0, 2)), (2, (1, 2))]


def test_two_processes_equal_one_on_the_union_of_the_batches(ranks):
    """Two fair cycles, paths used in early passes only included; without BatchNorm this is exact."""
    single = distributed_run.train_regression()
    assert_equal(ranks[0]["regression"], ranks[1]["regression"])
    assert_equal(ranks[0]["regression"], single, rtol=1e-6, atol=1e-6)
    weights = torch.stack([value for name, value in single.items() if "candidates" in name])
    assert ((weights - 1).abs() > 1e-4).all()  # every path was trained


def test_uniform_paths_train_alike(ranks):
    """A path that no process drew keeps its weights, momentum and decay, as with one process."""
    single = distributed_run.train_regression("uniform")
    assert_equal(ranks[0]["uniform"], ranks[1]["uniform"])
    assert_equal(ranks[0]["uniform"], single, rtol=1e-6, atol=1e-6)
    idle = [name for name, value in single.items() if "candidates" in name and value == 1]
    assert 0 < len(idle) < len(single) - 2
    assert all(ranks[0]["uniform"][name] == 1 for name in idle)


def test_processes_draw_the_same_cycles(ranks):
    first, second = (rank["cycles"] for rank in ranks)
    assert torch.equal(first, second) and first.shape == (20, 12, 56)


def test_images_without_objects_on_one_process(ranks):
    """No process waits for another, and the weights stay equal, those of the mask and box heads included."""
    first, second = ranks[0]["empty"], ranks[1]["empty"]
    assert_equal(first["start"], second["start"])
    assert_equal(first["end"], second["end"])
    moved = {name for name, value in first["end"].items() if not torch.equal(value, first["start"][name])}
    for part in ("mask_head.deconv.weight", "box_predictor.bbox_pred.weight", "rpn_head.conv.weight"):
        assert any(part in name for name in moved)
    for rank in (first, second):  # every pass was counted
        assert set(rank["counts"].flatten().tolist()) == {0, 2, 3, 4}
        assert (rank["counts"].sum(1) == 12).all()


def test_the_unified_network_without_objects_on_one_process(ranks):
    """Likewise; its panoptic loss is 0 there, and all its parts learn what the other process sees."""
    first, second = ranks[0]["unified"], ranks[1]["unified"]
    assert_equal(first["start"], second["start"])
    assert_equal(first["end"], second["end"])
    moved = {name for name, value in first["end"].items() if not torch.equal(value, first["start"][name])}
    for part in ("mask_head.predictor", "box_head.fc1", "affinity_head.predictor", "sem_seg_head.predictor"):
        assert any(part in name for name in moved), part


def test_registered_images_without_objects_on_one_process(ranks):
    """Stuff only, crowd only, all void, or an object without a pixel: losses stay finite, weights equal."""
    first, second = ranks[0]["scenes"], ranks[1]["scenes"]
    assert len(first["objects"]) == len(second["objects"]) == 24
    assert sum(first["objects"]) > 0 and sum(second["objects"]) == 0
    for rank in (first, second):
        assert all(math.isfinite(loss) for loss in rank["losses"])
        assert all(value.isfinite().all() for value in rank["end"].values())
    assert min(second["losses"]) > 0
    assert_equal(first["end"], second["end"])


def test_a_parameter_that_one_process_did_not_use(ranks):
    """It counts as zero there: both step by half the gradient of the other. What none used stays."""
    for rank in ranks:
        assert rank["partly"] == {"everywhere": -1.0, "once": -0.5, "never": 7.0}


def test_an_overflow_on_one_process_skips_the_step_on_all(ranks):
    for rank in ranks:
        assert rank["overflow"]["weight"].tolist() == [0, 0]  # two of three steps of 0.5
        assert rank["overflow"]["skipped"] == 1
        assert rank["overflow"]["scale"] == 2.0**15  # halved once


@pytest.mark.parametrize(
    "kind, text, weight",
    [
        ("nan", "loss nan in pass 1 of 1 of process 1 on images nan; no step was taken", 0.5),
        ("boxes", "Predicted boxes contain Inf/NaN nan in pass 1 of 1 of process 1 on images boxes", 0.5),
        ("overflow", "the gradient of weight holds 2 of 2 values that are NaN or infinite", None),
    ],
)
def test_a_nan_on_one_process_stops_all(ranks, kind, text, weight):
    messages = [rank["nan"][kind]["message"] for rank in ranks]
    assert text in messages[0] and "diverged at iteration 1" in messages[0]
    for rank in ranks if weight else ():
        assert rank["nan"][kind]["message"] == messages[0]
        assert rank["nan"][kind]["weight"].tolist() == [weight, weight]  # the first step only


def test_an_evaluation_with_nan_in_one_process_fails_in_all(ranks):
    expected = "NaN or infinity in the network's results, on images nan"
    assert [rank["evaluated"] for rank in ranks] == [expected] * len(ranks)


def test_panoptic_weights_and_statistics_stay_equal(ranks):
    """Different at first, made equal before the first step, equal after it, and moved by it."""
    first, second = ranks[0]["panoptic"], ranks[1]["panoptic"]
    assert any(not torch.equal(first["own"][name], second["own"][name]) for name in first["own"])
    assert_equal(second["start"], first["own"])
    assert_equal(first["end"], second["end"])
    moved = [name for name, value in first["end"].items() if not torch.equal(value, first["start"][name])]
    assert len(moved) > 0.8 * len(first["end"])


# ------------------------------------------------------------------ how processes are started


def arguments(**changes):
    values = {"num_gpus": 8, "num_machines": 4, "machine_rank": 2, "dist_url": "tcp://node0:1234"}
    return SimpleNamespace(**{**values, **changes})


def test_detectron2_starts_the_processes_of_gpus_and_machines(monkeypatch):
    """--num-gpus 8 --num-machines 4 --machine-rank 2 --dist-url go to Detectron2's launch as they are."""
    calls = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(launch_module, "launch", lambda *args, **kwargs: calls.append((args, kwargs)))
    args, cfg = arguments(), SimpleNamespace()
    launch_processes(print, args, cfg)
    ((positional, named),) = calls
    bound = inspect.signature(detectron2.engine.launch).bind(*positional, **named).arguments
    assert bound.pop("main_func").args == (print, os.getpid())
    assert bound.pop("timeout") == PATIENCE
    assert bound == {
        "num_gpus_per_machine": 8,
        "num_machines": 4,
        "machine_rank": 2,
        "dist_url": "tcp://node0:1234",
        "args": (args, cfg),
    }


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launch_module, "launch", lambda *args, **kwargs: pytest.fail("started"))
    with pytest.raises(UserError, match="--num-gpus 8: this machine has 2 GPUs"):
        launch_processes(print, arguments(), SimpleNamespace())


def test_one_process_runs_in_place(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    seen = []
    args = arguments(num_gpus=1, num_machines=1, machine_rank=0)
    launch_processes(lambda *given: seen.append(given), args, "cfg")
    assert seen == [(args, "cfg")]


def fail_together(args, cfg):
    raise args.error


def spawn(store, main, processes, args, **_):
    """Stands in for Detectron2's launcher, which starts nothing without GPUs."""
    torch.multiprocessing.spawn(start, (store, main, args), processes)


def start(rank, store, main, args):
    launch_module.comm.get_local_rank = lambda: rank
    launch_module.setup_datasets = lambda cfg: None
    launch_module.among_ranks = lambda limit: contextlib.nullcontext()
    errors.shared_store = torch.distributed.FileStore(str(store), 2)
    main(*args)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error, code, message",
    [(UserError("no"), 2, "error: no\n"), (KeyboardInterrupt(), 130, "interrupted by SIGINT\n")],
)
def test_started_processes_end_with_one_message(monkeypatch, capfd, tmp_path, error, code, message):
    """And with its exit code."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launch_module, "launch", partial(spawn, tmp_path / "store"))
    args = SimpleNamespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto", error=error)
    with pytest.raises(SystemExit) as end:
        launch_processes(fail_together, args, SimpleNamespace(IMPORTS=(), RANK_TIMEOUT=120.0))
    assert end.value.code == code
    lines = [line for line in capfd.readouterr().err.splitlines(True) if "SIGTERM" not in line]
    assert lines == [message]


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("WORLD_SIZE", "two", "a whole number of at least 1, at most 1000000"),
        ("WORLD_SIZE", "0", "a whole number of at least 1, at most 1000000"),
        ("RANK", "x", "a whole number of at least 0, at most 1"),
        ("RANK", "2", "a whole number of at least 0, at most 1"),
        ("LOCAL_RANK", "-1", "a whole number of at least 0, at most 1"),
        ("LOCAL_WORLD_SIZE", "3", "a whole number of at least 1, at most 2"),
        ("MASTER_PORT", "http", "a whole number of at least 0, at most 65535"),
    ],
)
def test_a_variable_of_a_launcher_that_makes_no_sense_is_named(monkeypatch, name, value, expected):
    whole = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for key, text in {**whole, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", name: value}.items():
        monkeypatch.setenv(key, text)
    with pytest.raises(UserError, match=f"^{name} is '{value}'; expected {expected}: start the"):
        launch_processes(None, None, SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu")))


def test_missing_variables_of_a_launcher_are_named(monkeypatch):
    """A scheduler that sets WORLD_SIZE only; those of one process per machine have defaults."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    cfg = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu"), RANK_TIMEOUT=120.0)
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but RANK and MASTER_ADDR not set: start the proc"):
        launch_processes(None, None, cfg)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    seen = []
    monkeypatch.setattr(launch_module.dist, "init_process_group", lambda backend, **_: seen.append(backend))
    monkeypatch.setattr(launch_module, "among_ranks", lambda limit: contextlib.nullcontext())
    monkeypatch.setattr(launch_module.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(launch_module.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(launch_module.dist, "new_group", lambda ranks: ranks)
    monkeypatch.setattr(launch_module.dist, "destroy_process_group", lambda: None)
    launch_processes(lambda args, cfg: seen.append(launch_module.comm._LOCAL_PROCESS_GROUP), None, cfg)
    assert seen[0] == "gloo" and seen[1] == [1]
