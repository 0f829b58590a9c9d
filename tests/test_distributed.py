"""Two processes train what one trains, and stay equal."""

import os
import subprocess
import sys
from pathlib import Path

import distributed_run
import pytest
import torch

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
        timeout=120,
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


def test_panoptic_weights_and_statistics_stay_equal(ranks):
    """Different at first, made equal before the first step, equal after it, and moved by it."""
    first, second = ranks[0]["panoptic"], ranks[1]["panoptic"]
    assert any(not torch.equal(first["own"][name], second["own"][name]) for name in first["own"])
    assert_equal(second["start"], first["own"])
    assert_equal(first["end"], second["end"])
    moved = [name for name, value in first["end"].items() if not torch.equal(value, first["start"][name])]
    assert len(moved) > 0.8 * len(first["end"])
