"""What a person sees while a command runs: progress with the time left, and few of the log's messages."""

import logging

import numpy as np
import pytest
from detectron2.engine import HookBase
from toy import TOY_NET, _own_logging, make_config, run_script, write_config

from auto_panoptic import progress as module
from auto_panoptic.progress import Progress, hidden, progress
from auto_panoptic.screen import LOG_ONLY, ON_SCREEN, only_warnings, set_up_logs
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AutoPanopticTrainer


@pytest.fixture
def clock(monkeypatch):
    """Seconds of a clock that stands still unless told, as a list of one number."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


# ------------------------------------------------------------------ progress


def test_plain_lines_are_ever_further_apart(clock, capsys):
    with Progress("work", 2000, "images", done=1000) as work:
        for second in range(1, 501):
            clock[0] = float(second)
            work.update(loss=f"{second}")
    lines = capsys.readouterr().out.splitlines()
    # By hand: 10 images in 10 s are one per second; 990 are left, 16 minutes and 30 seconds.
    assert lines[0] == "work: 1,010 of 2,000 images, 16:30 left, loss 10"
    assert lines[-1] == "work: 1,500 of 2,000 images in 08:20, loss 500"
    times = [int(line.rpartition(" ")[2]) for line in lines[:-1]]
    assert times[:6] == [10, 20, 30, 40, 50, 60] and all(
        later - time >= max(10, time / 5) for time, later in zip(times, times[1:], strict=False)
    )
    assert len(times) < 20


def test_what_was_done_before_takes_no_time(clock, capsys):
    with Progress("search", units="candidates") as work:
        work.total = 300
        work.skip(100)
        clock[0] = 20.0
        work.update(10)
        assert capsys.readouterr().out == "search: 110 of 300 candidates, 06:20 left\n"  # 190 at 2 s each


def test_the_time_before_the_first_of_it_does_not_count(clock, capsys):
    with Progress("training", 100, "steps") as work:
        clock[0] = 60.0  # seconds to start
        work.skip(20)
        clock[0] = 70.0
        work.update(20)
        assert capsys.readouterr().out == "training: 40 of 100 steps, 00:30 left\n"


def test_work_within_work_has_a_line_where_it_takes_a_minute(clock, capsys):
    with Progress("search", 4, "candidates") as search:
        for seconds in (5.0, 30.0):
            with Progress("evaluation", 6) as work:
                for _ in range(3):
                    clock[0] += seconds
                    work.update()
            search.update()
    assert capsys.readouterr().out.splitlines() == [
        "search: 1 of 4 candidates, 00:45 left",
        "evaluation: 2 of 6 images, 02:00 left",
        "evaluation: 3 of 6 images in 01:30",
        "search: 2 of 4 candidates, 01:45 left",
        "search: 2 of 4 candidates in 01:45",
    ]


def test_quick_and_hidden_work_says_nothing(clock, capsys):
    assert list(progress("abc", "quick")) == ["a", "b", "c"]
    with Progress("silent", 10, shown=False) as work:
        clock[0] += 100
        work.update()
    with hidden(), Progress("hidden", 10) as work:
        clock[0] += 100
        work.update()
    assert capsys.readouterr() == ("", "")


def test_a_bar_with_the_time_left_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(module, "is_terminal", lambda: True)
    with Progress("training", 3000, "iterations") as work:
        work.update(3000, loss="1.5")
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("\rtraining   0%|") and " 0 of 3,000, ? left" in err
    assert err.endswith("| 3,000 of 3,000, 00:00 left, loss 1.5\n")


def test_nobody_reads_it_any_more(clock, capsys, monkeypatch):
    def broken(*_, **__):
        raise BrokenPipeError

    with Progress("work", 10) as work:
        clock[0] = 100.0
        monkeypatch.setattr(module, "print", broken, raising=False)
        work.update()
    assert work.done == 1


# ------------------------------------------------------------------ messages


def say():
    ours, theirs = logging.getLogger("auto_panoptic.x"), logging.getLogger("detectron2.x")
    theirs.info("noise")
    theirs.warning("\x1b[31mtheir warning\x1b[0m")
    ours.info("for people")
    ours.info("for the log", extra=LOG_ONLY)
    ours.debug("too much")
    logging.getLogger("fvcore.common.checkpoint").info("continuing", extra=ON_SCREEN)
    try:
        raise ValueError("what happened")
    except ValueError:
        ours.exception("it failed")


def test_the_screen_shows_what_people_need_and_the_log_all(tmp_path, capsys):
    with _own_logging():
        set_up_logs(str(tmp_path))
        say()
    assert capsys.readouterr() == (
        "WARNING: their warning\nfor people\ncontinuing\nERROR: it failed (ValueError: what happened)\n",
        "",
    )
    log = (tmp_path / "log.txt").read_text()
    texts = ("noise", "their warning", "for people", "for the log", "too much", "continuing", "Traceback")
    assert all(text in log for text in texts) and "\x1b" not in log


def test_repeated_work_shows_warnings_only(tmp_path, capsys):
    with _own_logging():
        set_up_logs(str(tmp_path))
        with only_warnings():
            say()
        logging.getLogger("auto_panoptic.x").info("the end")
    shown = "WARNING: their warning\nERROR: it failed (ValueError: what happened)\nthe end\n"
    assert capsys.readouterr() == (shown, "")
    assert "for people" in (tmp_path / "log.txt").read_text()


def test_verbose_shows_all_as_detectron2_does(tmp_path, capsys):
    with _own_logging():
        set_up_logs(str(tmp_path), verbose=True)
        say()
    out = capsys.readouterr().out
    assert all(text in out for text in ("noise", "for the log", "Traceback")) and out.count("for people") == 1


def test_other_processes_are_silent(tmp_path, capsys):
    with _own_logging():
        set_up_logs(str(tmp_path), rank=1)
        say()
    assert capsys.readouterr() == ("", "")
    assert "for people" in (tmp_path / "log.txt.rank1").read_text()


def test_messages_stand_above_the_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "is_terminal", lambda: True)
    with _own_logging():
        set_up_logs(str(tmp_path))
        with Progress("work", 3):
            logging.getLogger("auto_panoptic.x").info("for people")
    out, err = capsys.readouterr()
    assert out == "for people\n"
    bars = err.split("\r")  # drawn, removed for the message, drawn again
    assert bars[1].startswith("work   0%") and bars[2].strip() == "" and bars[-1].startswith("work   0%")


# ------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def fixed(tmp_path_factory, shapes):
    """The file of an architecture of the toy config."""
    folder = tmp_path_factory.mktemp("fixed")
    file = folder / "architecture.json"
    SearchSpace.from_config(make_config(folder, shapes)).random(np.random.default_rng(0)).save(file)
    return file


def test_a_training_and_its_evaluations(tmp_path, shapes, fixed, capfd):
    config = write_config(tmp_path / "toy.yaml", shapes, NAS={"ARCHITECTURE": str(fixed)})
    run_script("train_net", "--config-file", config, "TEST.EVAL_PERIOD", 1)
    out = capfd.readouterr().out
    log = (tmp_path / "output/log.txt").read_text()
    assert "Running with full config" in log and "iter: 1" in log and "Accumulating evaluation" in log
    assert "\x1b" not in log + out
    lines = out.splitlines()
    assert f"The log of all that happens: {tmp_path}/output/log.txt" in lines
    assert "Training on 14 images of ['toy_panoptic_nas_train']" in lines
    (found,) = [line for line in lines if line.startswith("Iteration 1, toy_panoptic_val: PQ ")]
    assert ", box AP " in found and ", mIoU " in found
    model, name, empty, table = lines[lines.index(f"model: {tmp_path}/output/model_final.pth") :][:4]
    assert (name, empty) == ("toy_panoptic_val", "") and "PQ |" in table
    assert len(lines) < 30
    assert not any(noise in out for noise in ("Environment", "eta:", "Accumulating", "copypaste"))


class Refuses(HookBase):
    def before_train(self):
        raise RuntimeError("no start")


def test_a_failed_start_has_no_line_of_an_iteration(tmp_path, shapes):
    with _own_logging():
        set_up_logs(str(tmp_path))
        trainer = AutoPanopticTrainer(make_config(tmp_path, shapes, *TOY_NET))
        trainer.register_hooks([Refuses()])
        with pytest.raises(RuntimeError, match="no start"):
            trainer.train()
    log = (tmp_path / "log.txt").read_text()
    assert "Starting training" in log and "iter:" not in log and "N/A" not in log
