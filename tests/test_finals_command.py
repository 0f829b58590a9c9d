"""search_net.py --finals on tiny data: killed and resumed, with workers, and wrong use."""

import json
import signal
import subprocess
import sys

import pytest
from toy import ROOT, error_line, make_config, run_script, write_config

from auto_panoptic.bundle import read_bundle
from auto_panoptic.search import final_training
from auto_panoptic.space import Architecture
from auto_panoptic.training import hooks
from auto_panoptic.training.schedule import check_schedule

FINALS = ("--finals", 2, "--controls", 2, "--final-steps", 3)


@pytest.fixture(scope="module")
def world(tmp_path_factory, shapes):
    """A folder with a trained supernet, and a search of it."""
    folder = tmp_path_factory.mktemp("finals")
    config = write_config(folder / "toy.yaml", shapes, SOLVER={"BASE_LR": 0.05})
    run_script("train_net", "--config-file", config, "OUTPUT_DIR", folder / "supernet")
    return folder


def search(world, name, *arguments):
    weights = ("--weights", world / "supernet/model_final.pth")
    where = ("OUTPUT_DIR", world / name)
    run_script("search_net", "--config-file", world / "toy.yaml", *weights, "--cycles", 1, *arguments, *where)
    return outputs(world / name) if "--finals" in arguments else None


def outputs(folder):
    return [(folder / "search" / name).read_text() for name in ("finals.json", "architecture.json")]


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_one_run(world, capsys, monkeypatch):
    whole = search(world, "whole", *FINALS)
    shown = capsys.readouterr().out
    assert "trainings from scratch; the best" in shown and "random ones of equal cost" in shown
    content = json.loads(whole[0])
    assert (len(content["controls"]), content["steps"], content["seeds"]) == (2, 3, 2)
    assert all(t["PQ"] is not None for row in content["finalists"] for t in row["trained"])
    assert not list((world / "whole/search/finals").iterdir())  # trainings that count are deleted
    bundle = read_bundle(world / "whole/search/bundle.pth")
    winner = Architecture.load(world / "whole/search/architecture.json")
    assert {site: [name] for site, name in winner.names().items()} == bundle["space"]
    macs = [row["macs"] for row in content["controls"]]
    winner = next(r for r in content["finalists"] if r["architecture"] == content["winner"])
    assert macs == pytest.approx([winner["macs"]] * 2, rel=0.02)

    # Stopped within the third training, after its first step, and then resumed.
    steps = iter(range(7))
    stop = hooks.Interruption.after_step

    def after_step(self):
        if next(steps, None) == 6:
            signal.raise_signal(signal.SIGTERM)
        stop(self)

    monkeypatch.setattr(hooks.Interruption, "after_step", after_step)
    with pytest.raises(SystemExit) as end:
        search(world, "stopped", *FINALS)
    assert end.value.code == 143 and "--resume continues" in capsys.readouterr().err
    left = list((world / "stopped/search/finals").iterdir())
    assert [(folder / "model_interrupted.pth").is_file() for folder in left] == [True]
    monkeypatch.undo()
    assert search(world, "stopped", *FINALS, "--resume") == whole

    # A finished search may have finals later, with the same end.
    search(world, "later")
    assert search(world, "later", *FINALS, "--resume") == whole

    # From scratch is another start than from weights.
    assert content["start"] == ""
    start = ("--final-weights", world / "supernet/model_final.pth")
    with pytest.raises(SystemExit):
        search(world, "later", *FINALS, *start, "--resume")
    assert "trainings of other finals (start differ)" in capsys.readouterr().err
    search(world, "started", *FINALS, *start)
    trained = [json.loads(outputs(world / name)[0])["finalists"] for name in ("whole", "started")]
    assert trained[0] != trained[1]


def test_weights_of_finals_that_are_not_there_are_refused_before_the_search(world, capfd):
    with pytest.raises(SystemExit) as end:
        search(world, "gone", *FINALS, "--final-weights", world / "gone.pth")
    assert end.value.code == 2 and "gone.pth" in error_line(capfd)
    assert not (world / "gone").exists()


def test_more_finalists_than_candidates_are_refused_before_the_search(world, capfd):
    with pytest.raises(SystemExit) as end:
        search(world, "many", "--finals", 13)
    assert end.value.code == 2
    assert "--finals 13: the search has 12 candidates; ask for at most so many" in error_line(capfd)
    assert not (world / "many").exists()


@pytest.mark.slow
def test_workers_end_as_one_process(world):
    pytest.importorskip("ray")
    alone = search(world, "alone", *FINALS)
    command = [sys.executable, str(ROOT / "search_net.py"), "--config-file", str(world / "toy.yaml")]
    command += ["--weights", str(world / "supernet/model_final.pth"), "--cycles", "1", "--workers", "2"]
    command += [*map(str, FINALS), "OUTPUT_DIR", str(world / "workers")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert outputs(world / "workers") == alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--controls", 2), "--controls is an option of the finals: add --finals K"),
        (("--final-steps", 2), "--final-steps is an option of the finals: add --finals K"),
        (("--final-weights", "x.pth"), "--final-weights is an option of the finals: add --finals K"),
        (("--finals", 0), "--finals is 0; expected a whole number of at least 1"),
        (("--finals", 2, "--final-steps", 0), "--final-steps is 0; expected a whole number of at least 1"),
        (("--finals", 2, "--controls", -1), "--controls is -1; expected a whole number of at least 0"),
        (("--finals", 2, "--num-gpus", 2), "--finals trains one network per worker: use --workers N"),
    ],
)
def test_wrong_use(capfd, tmp_path, shapes, arguments, message):
    config = write_config(tmp_path / "toy.yaml", shapes)
    with pytest.raises(SystemExit) as end:
        run_script("search_net", "--config-file", config, *arguments)
    assert end.value.code == 2 and message in error_line(capfd)
    assert not (tmp_path / "output").exists()


def test_rescoring_trains_nothing(capfd):
    with pytest.raises(SystemExit) as end:
        run_script("search_net", "--rescore", "--finals", 2)
    assert end.value.code == 2 and "--rescore evaluates nothing" in error_line(capfd)


@pytest.mark.parametrize(
    ("steps", "falls"),
    [(1, ()), (2, ()), (3, (2,)), (4, (3,)), (5, (4,)), (8, (7,)), (12, (10, 11)), (16, (13, 14, 15))],
)
def test_a_short_training_has_a_schedule(shapes, tmp_path, steps, falls):
    """Where the rate would fall twice at a step, or after the last one."""
    schedule = "SOLVER.MAX_ITER", 240, "SOLVER.STEPS", "(200, 205, 225)", "SOLVER.WARMUP_ITERS", 20
    made = final_training.final_config(
        make_config(tmp_path, shapes, *schedule), "", final_training.Final(None, steps, 0), tmp_path / "x"
    )
    check_schedule(made)
    assert (made.SOLVER.MAX_ITER, made.SOLVER.STEPS) == (steps, falls)


def test_the_schedule_keeps_its_shape(shapes, tmp_path):
    cfg = make_config(
        tmp_path,
        shapes,
        "SOLVER.MAX_ITER",
        240,
        "SOLVER.STEPS",
        "(200, 225)",
        "SOLVER.WARMUP_ITERS",
        20,
        "SEED",
        0,
    )
    final = final_training.Final(None, 120, 3)
    made = final_training.final_config(cfg, "supernet.pth", final, tmp_path / "x")
    assert (made.SOLVER.MAX_ITER, made.SOLVER.STEPS, made.SOLVER.WARMUP_ITERS) == (120, (100, 112), 12)
    assert (made.SEED, made.MODEL.WEIGHTS, made.DATASETS.TEST) == (4000, "supernet.pth", ())
