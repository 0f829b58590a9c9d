"""One run per folder: two at the same time, and one after the other, in every command that writes there."""

import json
import os
import re
import shutil
import signal
import sys

import pytest
import torch
from test_cli import refused, tree
from test_resume import SCHEDULE
from toy import ROOT, TOY_NET, _own_logging, run_script, write_config

from auto_panoptic import train
from auto_panoptic.errors import UserError
from auto_panoptic.training import build_config
from auto_panoptic.training import run_folder as module
from auto_panoptic.training.checkpoint import RECORD
from auto_panoptic.training.run_folder import LOCK, check_unused, only_run

sys.path.insert(0, str(ROOT / "tools"))

IN_USE = rf"OUTPUT_DIR '.*' is in use by another process \(host \S+, pid {os.getpid()}, started 20\S+\): wait"


@pytest.fixture
def command(tmp_path, shapes, monkeypatch):
    """Arguments of train_net on the toy network; OUTPUT_DIR is tmp_path/output."""
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path / "toy.yaml", shapes)
    options = (*TOY_NET, *SCHEDULE, "SOLVER.CHECKPOINT_PERIOD", 1)
    return lambda *more: (*(("train_net", "--config-file", path) + more[:1]), *options, *more[1:])


def untouched(folder):
    return {name: content for name, content in tree(folder).items() if not name.endswith("log.txt")}


def test_one_run_after_the_other(capfd, tmp_path, command):
    """A finished run is kept by a second start; what the message says works."""
    run_script(*command("--resume"))
    line = refused(capfd, tmp_path, *command("--num-gpus=1", "SEED", 5))
    assert line.endswith(
        f"OUTPUT_DIR '{tmp_path}/output' holds model_final.pth of an earlier run: continue that one with "
        "--resume (resume=True in Python), or choose another OUTPUT_DIR"
    )
    before = untouched(tmp_path / "output")
    run_script(*command("--num-gpus=1", "SEED", 5, "OUTPUT_DIR", tmp_path / "other"))
    run_script(*command("--resume"))
    after = untouched(tmp_path / "output")
    assert {name: after[name] for name in before if name.endswith(".pth")} == {
        name: content for name, content in before.items() if name.endswith(".pth")
    }
    with pytest.raises(UserError, match="holds model_final.pth of an earlier run"):
        train("toy.yaml", [*TOY_NET, *SCHEDULE])


@pytest.mark.parametrize("mode", ["--num-gpus=1", "--resume", "--eval-only"])
def test_two_runs_at_the_same_time(capfd, tmp_path, monkeypatch, command, mode):
    import train_net

    if mode == "--eval-only":  # any network; the folder is looked at first
        monkeypatch.setattr(train_net, "check", lambda args: build_config(args.config_file, args.opts))
    with only_run(str(tmp_path / "output")):
        line = refused(capfd, tmp_path, *command(mode))
    assert re.search(IN_USE, line) and line.endswith("or choose another OUTPUT_DIR")


@pytest.mark.parametrize("name, content, used", [
    ("model_final.pth", "", True),
    ("model_0000012.pth", "", True),
    ("metrics.json", '{"iteration": 3, "total_loss": 1.5}\n', True),
    ("metrics.json", '{"panoptic_seg/PQ": 5.0}\n', False),
    ("metrics.json", "", False),
    ("model_start.pth", "", False),
    ("log.txt", "total_loss", False),
    ("stage.json", "{}", False),
    ("search/ledger.jsonl", "{}", False),
    (LOCK, '{"pid": 1}', False),
])  # fmt: skip
def test_what_makes_a_folder_used(tmp_path, name, content, used):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    if used:
        with pytest.raises(UserError, match=f"holds {name} of an earlier run"):
            check_unused(str(tmp_path))
        with pytest.raises(UserError, match="earlier run"), only_run(str(tmp_path), fresh=True):
            pass
    else:
        check_unused(str(tmp_path))
    check_unused(str(tmp_path / "absent"))
    with only_run(str(tmp_path)):  # the refusal above has given the lock back
        pass


def test_a_run_in_python_gives_its_folder_back(tmp_path, command):
    with _own_logging():
        train("toy.yaml", [*TOY_NET, *SCHEDULE, "SOLVER.MAX_ITER", 2])
        longer = train("toy.yaml", [*TOY_NET, *SCHEDULE], resume=True)
    lines = [json.loads(line) for line in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert longer.start_iter == 2 and lines[-1]["iteration"] == longer.max_iter - 1
    with only_run(str(tmp_path / "output")):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path):
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        module.WriterLock(tmp_path / LOCK, protects="the folder")
        os.write(write, b"x")
        signal.pause()
    os.read(read, 1)
    with pytest.raises(UserError, match=f"pid {child}"), only_run(str(tmp_path)):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with only_run(str(tmp_path)):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_the_first_process_takes_the_lock_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(module.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(module.comm, "all_gather", lambda mine: ["the folder is in use", mine])
    with pytest.raises(UserError, match="the folder is in use"), only_run(str(tmp_path / "output")):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", module._NO_LOCKS)
def test_a_file_system_without_locks_may_be_used(tmp_path, monkeypatch, caplog, code):
    def refuse(*_):
        raise OSError(code, "No locks available")

    monkeypatch.setattr("auto_panoptic.files.fcntl.flock", refuse)
    with only_run(str(tmp_path)):
        assert "no lock against a second run" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="OUTPUT_DIR '.*/file/o' cannot be written: Not a directory"):
        with only_run(str(tmp_path / "file/o")):
            pass


def test_a_second_quickstart_is_refused(tmp_path, monkeypatch):
    import quickstart

    lock = module.WriterLock(tmp_path / "quickstart.lock", protects="it")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--output", str(tmp_path)])
    with pytest.raises(UserError, match=rf"pid {os.getpid()}, .* or choose another --output"):
        quickstart.run()
    lock.release()


# ------------------------------------------------------------------ the record of a run


def test_a_run_that_was_killed_before_it_saved_has_used_the_folder(tmp_path, command, capfd, monkeypatch):
    """One fixed command with --resume begins again; other settings or weights do not go on with it."""
    import auto_panoptic.training.run as run

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run, "traces", lambda folder: ["a kill removes nothing"])
        patch.setattr(run, "log_ids", lambda cfg: sys.exit(9))
        run_script(*command("--num-gpus=1"))
    assert os.path.isfile(tmp_path / "output" / RECORD)
    line = refused(capfd, tmp_path, *command("--num-gpus=1"))
    assert f"holds {RECORD} of an earlier run: continue that one with --resume" in line
    line = refused(capfd, tmp_path, *command("--resume", "SOLVER.BASE_LR", 0.5))
    assert f"{RECORD}': SOLVER.BASE_LR was 0.01, is 0.5; restore them, or start a new run in another" in line
    run_script(*command("--resume"))
    assert (tmp_path / "output/model_final.pth").exists()


def test_a_run_that_comes_to_nothing_leaves_its_folder_unused(tmp_path, command, monkeypatch):
    import auto_panoptic.training.run as run

    def out_of_memory(self, cfg):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"), _own_logging():
        patch.setattr(run.AutoPanopticTrainer, "__init__", out_of_memory)
        train("toy.yaml", [*TOY_NET, *SCHEDULE])
    check_unused(str(tmp_path / "output"))


def test_a_run_goes_on_from_its_own_weights_only(tmp_path, command, capfd, caplog):
    """Weights that are gone, left out or lie elsewhere are no others."""
    run_script(*command("--resume", "OUTPUT_DIR", "first", "SOLVER.MAX_ITER", 1))
    start, other = tmp_path / "start.pth", tmp_path / "other.pth"
    start.write_bytes((tmp_path / "first/model_final.pth").read_bytes())
    data = torch.load(start, weights_only=True)
    torch.save({"model": data["model"]}, other)
    run_script(*command("--resume", "MODEL.WEIGHTS", start, "SOLVER.MAX_ITER", 1))
    line = refused(capfd, tmp_path, *command("--resume", "MODEL.WEIGHTS", other))
    assert f'MODEL.WEIGHTS was ["{start}", "' in line and f'is ["{other}", "' in line
    shutil.move(start, tmp_path / "moved.pth")
    others = ("moved.pth", "", start, "output/model_final.pth", "nowhere.pth")
    for length, weights in enumerate(others, start=1):
        run_script(*command("--resume", "MODEL.WEIGHTS", weights, "SOLVER.MAX_ITER", length))
    assert "start.pth': MODEL.WEIGHTS 'nowhere.pth' is not read" in caplog.text
    kept = torch.load(tmp_path / "output/model_final.pth", weights_only=True)["settings"]
    assert json.loads(kept["MODEL.WEIGHTS"])[0] == str(start)
    line = refused(capfd, tmp_path, *command("--resume", "OUTPUT_DIR", "first", "MODEL.WEIGHTS", other))
    assert 'MODEL.WEIGHTS was ["", null], is ["' in line


def test_an_evaluation_leaves_the_config_of_a_training(tmp_path, shapes):
    from types import SimpleNamespace

    from toy import make_config

    from auto_panoptic.training.run import started

    for number, (eval_only, kept) in enumerate([(False, 0), (True, 0), (False, 2)]):
        cfg = make_config(tmp_path, shapes, "SEED", number)
        args = SimpleNamespace(config_file="", resume=True, eval_only=eval_only, opts=[])
        with _own_logging(), started(args, cfg):
            (tmp_path / "output/metrics.json").write_text('{"total_loss": 1}\n')
        assert f"\nSEED: {kept}\n" in (tmp_path / "output/config.yaml").read_text()
    (tmp_path / "output/config.yaml").unlink()  # tidied away: nothing to keep
    args.eval_only = True
    with _own_logging(), started(args, cfg):
        assert "\nSEED: 2\n" in (tmp_path / "output/config.yaml").read_text()
