"""What the quickstart reads of its earlier calls: damaged, cut short, or something else."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from toy import ROOT

from auto_panoptic import progress
from auto_panoptic.errors import UserError

sys.path.insert(0, str(ROOT / "tools"))

import quickstart  # noqa: E402

LINE = json.dumps({"panoptic_seg/PQ": 5.0, "bbox/AP": 3.0, "iteration": 7}) + "\n"


def test_the_newest_evaluation_counts(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1, "total_loss": 2.0}\n' + LINE.replace("5.0", "4.0") + LINE)
    assert quickstart.final_results(path) == {"panoptic_seg": {"PQ": 5.0}, "bbox": {"AP": 3.0}}


@pytest.mark.parametrize("content, problem", [
    (LINE + '{"iteration": 1, "total_lo{"iteration": 2}\n' + LINE, "line 2 is damaged; delete that line"),
    (LINE + "3\n", "line 2 is damaged; delete that line"),
    ("[" * 10**5, "line 1 is damaged"),
    (None, "No such file or directory; remove "),
])  # fmt: skip
def test_damaged_metrics_are_named(tmp_path, content, problem):
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"metrics.json: {problem}"):
        quickstart.final_results(path)


@pytest.mark.parametrize("content", ["", '{"iteration": 1, "total_loss": 2.0}\n'])
def test_metrics_without_an_evaluation_are_named(tmp_path, content):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(
        UserError, match=f"metrics.json: holds no evaluation; remove {tmp_path} and start again"
    ):
        quickstart.show_found(quickstart.final_results(path), {"metrics": path})


def test_a_line_that_a_resumed_run_removed_is_no_trouble_to_the_progress(tmp_path, capfd, monkeypatch):
    """The file shrinks while it is watched: what is read next begins within a line."""
    path, stage = tmp_path / "metrics.json", quickstart.Stage("found", tmp_path, "inputs")
    stage.steps = 2
    path.write_text(LINE + "half a line")

    class Child:
        polls = iter([None, None, None, None, None, None, 0, 0])

        def poll(self):
            line = json.dumps({"iteration": 1, "total_loss": 2.0}) + "\n"
            path.write_text(LINE + 3 * line)
            return next(self.polls)

    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    child, steps = Child(), quickstart.Steps(stage)
    quickstart._show_training(steps, child, [child], [steps])
    assert "2 of 2, 00:00 left, loss 2.00" in capfd.readouterr().err


TRAIN = """
import json, sys, time
folder, steps, seconds, code = sys.argv[1], *map(float, sys.argv[2:])
for step in range(int(steps)):
    time.sleep(seconds / steps)
    with open(folder + "/metrics.json", "a") as file:
        file.write(json.dumps({"iteration": step, "total_loss": 3.0 - step}) + "\\n")
print("the last words")
sys.exit(int(code))
"""


def trainings(tmp_path, **seconds_and_code):
    (tmp_path / "train.py").write_text(TRAIN)
    for name, (seconds, code) in seconds_and_code.items():
        stage = quickstart.Stage(name, tmp_path / name, "inputs")
        stage.steps = 2
        stage.command = [str(tmp_path / "train.py"), *map(str, (tmp_path / name, 2, seconds, code))]
        yield stage


def test_trainings_run_beside_each_other(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    quickstart.run_beside("train both", *trainings(tmp_path, first=(4, 0), second=(1, 0)))
    seen = capfd.readouterr()
    assert re.search(r"first .*second [12] of 2", seen.err) and seen.out.count("$ OMP_NUM_THREADS=1") == 2
    quickstart.run_beside("train both", *trainings(tmp_path, first=(4, 0), second=(1, 0)))
    assert capfd.readouterr().out.count("done by an earlier call") == 2


def test_a_training_that_fails_ends_the_one_beside_it(tmp_path, capfd):
    with pytest.raises(UserError, match="second: the command above ended with exit code 3; its output: "):
        quickstart.run_beside("train both", *trainings(tmp_path, first=(60, 0), second=(0.1, 3)))
    assert "the last words" in capfd.readouterr().err
    first, second = trainings(tmp_path, first=(60, 0), second=(0.1, 3))
    assert first.begun and second.begun and not first.done and not second.done


@pytest.mark.parametrize("make, problem", [
    (lambda p: p.write_text("{"), "is not valid JSON: .*; remove "),
    (lambda p: os.mkfifo(p), "not a file; remove "),
    (lambda p: p.symlink_to("/dev/zero"), "not a file; remove "),
    (lambda p: p.write_text("[1]"), "holds something else; remove it"),
])  # fmt: skip
def test_a_damaged_stage_file_is_named(tmp_path, make, problem):
    make(tmp_path / "stage.json")
    with pytest.raises(UserError, match=problem):
        quickstart.Stage("train", tmp_path, "inputs")
    assert list(tmp_path.iterdir())


def test_a_stage_is_begun_and_done(tmp_path):
    stage = quickstart.Stage("train", tmp_path / "a", "inputs")
    assert not stage.begun and not stage.done
    for done in (False, True):
        stage.mark(done)
        stage = quickstart.Stage("train", tmp_path / "a", "inputs")
        assert stage.begun and stage.done == done
    (tmp_path / "a/stage.json").write_text('{"done": true}')  # of no fingerprint: another's
    assert not quickstart.Stage("train", tmp_path / "a", "inputs").begun


@pytest.mark.parametrize("trap, code", [('trap "exit 7" TERM', 7), ('trap "" TERM', -9)])
def test_a_signal_is_passed_on_and_ends_the_command(monkeypatch, trap, code):
    """Also one that does not hear."""
    monkeypatch.setattr(quickstart, "GRACE", 1)
    loop = f"{trap}; echo ready; while :; do sleep 0.1; done"
    options = quickstart.signals.bound()
    with subprocess.Popen(["bash", "-c", loop], stdout=subprocess.PIPE, **options) as child:
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(KeyboardInterrupt, match="the same command continues"), quickstart._ended([child]):
            raise quickstart.signals.Interrupted(signal.SIGTERM)
    assert child.returncode == code


def test_a_stage_of_which_only_the_beginning_was_written_begins(tmp_path):
    (tmp_path / ".partial-1-stage.json").write_text("{")
    assert not quickstart.Stage("train", tmp_path, "inputs").begun
