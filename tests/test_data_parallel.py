"""Two processes score a candidate as one does, record it once, and fail and end together."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_parallel_run import METRICS, SETTINGS, with_shifted_truth
from detectron2.modeling import build_model
from toy import answer_strongly, make_config, run_script, write_config

from auto_panoptic.evaluation import PanopticQuality
from auto_panoptic.explore import fair_cycle
from auto_panoptic.search import CandidateEvaluator
from auto_panoptic.search.data_parallel import deal
from auto_panoptic.space import SearchSpace

HERE = Path(__file__).resolve().parent
KEPT = 2  # records of the search in one process that the two processes find


@pytest.fixture(scope="module")
def supernet(tmp_path_factory, shapes):
    """(config file, config, model, weights file) of a toy supernet whose paths differ in PQ."""
    folder = tmp_path_factory.mktemp("supernet")
    cfg = make_config(folder, shapes, *SETTINGS)
    torch.manual_seed(0)
    model = build_model(cfg)
    answer_strongly(model)
    weights = folder / "supernet.pth"
    torch.save({"model": model.state_dict(), "space": None}, weights)
    return write_config(folder / "toy.yaml", shapes), cfg, model, weights


@pytest.fixture(scope="module")
def single(supernet, tmp_path_factory):
    """Folder of a search in one process."""
    folder = tmp_path_factory.mktemp("single")
    config, _, _, weights = supernet
    run_script("search_net", "--config-file", config, "--weights", weights, *SETTINGS, "OUTPUT_DIR", folder)
    return folder / "search"


@pytest.fixture(scope="module")
def parallel(supernet, single, tmp_path_factory):
    """(folder, what both processes of data_parallel_run.py saw); they resume the search in one process."""
    folder = tmp_path_factory.mktemp("parallel")
    config, _, _, weights = supernet
    (folder / "search").mkdir()
    lines = (single / "ledger.jsonl").read_text().splitlines(keepends=True)
    (folder / "search/ledger.jsonl").write_text("".join(lines[: 1 + KEPT]))
    result = torchrun(HERE / "data_parallel_run.py", folder, config, weights)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "search", [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def torchrun(*command):
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        + [str(part) for part in command],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def records(folder):
    """What the ledger holds, seconds and what follows from them apart."""
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()[1:]]
    return [{k: v for k, v in line.items() if k not in ("seconds", "checksum")} for line in lines]


def test_scores_are_those_of_one_process_to_the_last_bit(parallel, supernet):
    """PQ, AP, mIoU, standard error and bootstrap samples; with an average and with a moving average."""
    _, cfg, model, _ = supernet
    chosen = fair_cycle(SearchSpace.from_config(cfg), seed=2, cycle=0)[:2]
    evaluate = with_shifted_truth(CandidateEvaluator(cfg, copy.deepcopy(model), METRICS))
    expected = [evaluate(architecture)[0] for architecture in chosen]
    moving = cfg.clone()
    moving.defrost()
    moving.NAS.BN_RECALIBRATION.MOMENTUM = 0.1
    main, other = parallel[1]
    found = [main["scores"]["outcomes"][key]["metrics"] for key in "01"]
    assert found == expected
    assert 0 < found[0]["PQ"] != found[1]["PQ"] > 0
    assert found[0]["PQ_se"] > 0 and len(found[0]["bootstrap"]) == 64
    assert {"PQ_se", "box_AP", "mask_AP", "mIoU"} <= found[0].keys()
    evaluate = with_shifted_truth(CandidateEvaluator(moving, copy.deepcopy(model)))
    assert main["moving"]["outcomes"]["0"]["metrics"] == evaluate(chosen[0])[0]
    assert other["scores"] == {"outcomes": {}, "ended": 0}


def test_a_search_of_one_process_is_resumed_by_two(parallel, single):
    """The ledger is written once; scoreboard and architecture are the same bytes."""
    folder, (main, other) = parallel
    assert len(records(folder)) == 4
    assert records(folder) == records(single)
    for name in ("scoreboard.json", "architecture.json"):
        assert (folder / name).read_bytes() == (single / name).read_bytes()
    assert "4 candidates" in main["printed"] and other["printed"] == ""


def test_a_failure_in_one_process_fails_the_candidate_in_all(parallel):
    """Before or after the processes have talked, in either; the next candidates are evaluated."""
    main, other = (rank["failing"] for rank in parallel[1])
    outcomes = [main["outcomes"][str(key)] for key in range(6)]
    assert [outcome["status"] for outcome in outcomes] == ["ok"] + ["failed"] * 5
    assert outcomes[0]["metrics"]["PQ"] == 31
    assert [outcome["error"] for outcome in outcomes[1:]] == [
        "StepFailed: process 1: ArithmeticError: broken candidate",
        "StepFailed: process 0: ArithmeticError: broken candidate",
        "StepFailed: process 1: MemoryError: out of memory",
        "StepFailed: process 0: MemoryError: out of memory",
        "PQ is not a number",
    ]
    assert main["ended"] == other["ended"] == 0


def test_all_processes_end_with_the_main_process(parallel):
    """One message, in the main process; the others have its exit code."""
    main, other = parallel[1]
    assert (main["refusing"]["ended"], other["refusing"]["ended"]) == ("UserError: no images here", 2)
    assert (main["stopped"], other["stopped"]) == ("UserError: the disk is full", 2)
    assert (main["defective"], other["defective"]) == ("KeyError: 'defect'", 1)
    assert "in use by another process" in main["held"] and other["held"] == 2
    assert (main["left"], other["left"]) == ("interrupted", 130)


# ------------------------------------------------------------------ parts


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_batch_is_dealt_once_and_about_equally(world):
    rng = np.random.default_rng(0)
    images = rng.permutation(101).tolist()
    batches = [images[i : i + 4] for i in range(0, 101, 4)]
    shares = deal(batches, world)
    assert sorted(sum(shares, [])) == list(range(len(batches)))
    counts = [sum(len(batches[place]) for place in places) for places in shares]
    assert max(counts) - min(counts) <= 8
    assert deal([[1, 0]], 3) in ([[0], [], []], [[], [0], []], [[], [], [0]])
    assert deal([], world) == [[] for _ in range(world)]


def test_the_order_of_images_decides_the_last_bits_only():
    rng = np.random.default_rng(0)
    images = []
    for key in range(30):
        truth = rng.integers(1, 3, (9, 9))
        segments = [{"id": i, "category_id": 1} for i in (1, 2)]
        images.append((key, np.where(rng.random((9, 9)) < 0.1, 1, truth), truth, segments))

    def quality(order):
        result = PanopticQuality([{"id": 1, "isthing": 1}], per_image=True)
        for key, prediction, truth, segments in (images[i] for i in order):
            present = [s for s in segments if (prediction == s["id"]).any()]
            result.update(prediction, present, truth, segments, key)
        return result

    order = rng.permutation(30).tolist()
    whole = quality(range(30)).compute()
    merged = quality(order[:11]).merge(quality(order[11:]))
    found = merged.compute()["PQ"]
    assert found == pytest.approx(whole["PQ"], abs=1e-9) and found != whole["PQ"]
    assert repr(merged.in_order(list(range(30))).compute()) == repr(whole)


# ------------------------------------------------------------------ what a user may get wrong


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--workers", 2, "--num-gpus", 2), "--workers evaluates whole candidates, 2 processes share each"),
        (("--num-gpus", 0), "--num-gpus is 0; expected at least 1"),
        (("--num-machines", 0), "--num-machines is 0; expected at least 1"),
        (("--num-machines", 2), "--num-machines 2: add --dist-url tcp://HOST:PORT of machine 0"),
        (("--machine-rank", 1), "--machine-rank is 1; expected 0 to 0, as --num-machines is 1"),
        (("--num-gpus", 64), "--num-gpus 64: this machine has"),
    ],
)
def test_wrong_arguments(supernet, tmp_path, capfd, arguments, message):
    config, _, _, weights = supernet
    with pytest.raises(SystemExit) as end:
        run_script(
            "search_net", "--config-file", config, "--weights", weights, *arguments, "OUTPUT_DIR", tmp_path
        )
    lines = capfd.readouterr().err.splitlines()
    assert end.value.code == 2
    assert len(lines) == 1 and lines[0].startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []
