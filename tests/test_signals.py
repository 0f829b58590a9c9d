"""SIGTERM and Ctrl-C save and leave; processes end with what started them; one process of a run speaks."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from detectron2.engine import DefaultTrainer, hooks
from detectron2.utils import comm
from forked_ranks import on_ranks
from test_resume import final, make_trainer, trace, uninterrupted  # noqa: F401  a fixture
from test_training import assert_same_state

from auto_panoptic import errors, signals
from auto_panoptic.errors import UserError, one_line, run_command
from auto_panoptic.training import launch, launch_processes

PERIODIC = ("SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.CHECKPOINTS_KEPT", 1)


def signalled(trainer, iteration, *numbers):
    """The trainer, with signals in the middle of an iteration."""
    batch, size = trainer._trainer.batch, trainer._trainer.space.cycle_length

    def get(number):
        if number == size * iteration + 5:
            for one in numbers:
                signal.raise_signal(one)
        return batch(number)

    trainer._trainer.batch = get
    return trainer


def models(folder):
    return sorted(path.name for path in (folder / "output").glob("*.pth"))


def forked(work) -> int:
    """The status of a process that does it."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            work()
        os._exit(77)
    return os.waitpid(child, 0)[1]


# ------------------------------------------------------------------ training


def test_signals_change_nothing(tmp_path, shapes, uninterrupted, capsys):  # noqa: F811
    """Before the first checkpoint, after one, and after a step that has just been saved."""
    for iteration, number, code, kept in (
        (1, signal.SIGTERM, 143, []),
        (3, signal.SIGINT, 130, ["model_0000002.pth"]),
        (5, signal.SIGHUP, 129, ["model_0000005.pth"]),
    ):
        trainer = make_trainer(tmp_path, shapes, *PERIODIC, resume=iteration > 1)
        with pytest.raises(SystemExit) as end:
            run_command(signalled(trainer, iteration, number).train)
        assert end.value.code == code
        (line,) = capsys.readouterr().err.splitlines()
        saved = tmp_path / "output/model_interrupted.pth"
        name = signal.Signals(number).name
        assert line == f"interrupted by {name} at iteration {iteration}; saved {saved}; --resume continues"
        assert models(tmp_path) == [*kept, "model_interrupted.pth"]
        assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    make_trainer(tmp_path, shapes, *PERIODIC, resume=True).train()
    assert models(tmp_path) == ["model_0000005.pth", "model_final.pth"]
    assert trace(tmp_path) == trace(uninterrupted)
    assert_same_state(final(tmp_path), final(uninterrupted))


def test_data_loaders_outlive_a_signal_to_all(tmp_path, shapes):
    """As a terminal, torchrun and Slurm send it; the step still needs them. Their process ends them."""
    trainer = make_trainer(tmp_path, shapes, "DATALOADER.NUM_WORKERS", 1)
    batch, workers = trainer._trainer.batch, []

    def get(number):
        workers[:] = multiprocessing.active_children()
        if number == 5:
            processes = [*(worker.pid for worker in workers), os.getpid()]
            subprocess.run(["kill", "-TERM", *map(str, processes)], check=True)
            time.sleep(0.5)
        return batch(number)

    trainer._trainer.batch = get
    with pytest.raises(SystemExit, match="143"):
        run_command(trainer.train)
    assert models(tmp_path) == ["model_interrupted.pth"]
    assert len(workers) == 1 and not workers[0].is_alive()


def test_a_second_signal_ends_at_once(tmp_path, shapes):
    trainer = signalled(make_trainer(tmp_path, shapes), 1, signal.SIGINT, signal.SIGINT)
    assert os.waitstatus_to_exitcode(forked(lambda: run_command(trainer.train))) == 130
    assert models(tmp_path) == []


def test_a_launcher_may_repeat_a_signal(tmp_path, shapes, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(SystemExit, match="143"):
        run_command(signalled(make_trainer(tmp_path, shapes), 1, signal.SIGTERM, signal.SIGTERM).train)
    assert models(tmp_path) == ["model_interrupted.pth"]


def test_a_python_program_ends_as_the_signal_ends_it(tmp_path, shapes):
    with pytest.raises(KeyboardInterrupt, match="SIGINT at iteration 1; saved .*; --resume continues"):
        signalled(make_trainer(tmp_path, shapes), 1, signal.SIGINT).train()
    assert make_trainer(tmp_path, shapes, resume=True).start_iter == 2

    def terminated():
        with signals.deferred():
            signal.raise_signal(signal.SIGTERM)
            assert signals.pending() == signal.SIGTERM
        signals.leave(signals.Interrupted(signal.SIGTERM), "saved")

    assert os.waitstatus_to_exitcode(forked(terminated)) == -signal.SIGTERM


def test_a_second_signal_after_an_evaluation_ends_at_once():
    """While the first one's checkpoint is saved, say."""

    def twice():
        with signals.deferred():
            with pytest.raises(KeyboardInterrupt), signals.at_once():
                signal.raise_signal(signal.SIGTERM)
            assert signals.pending() == signal.SIGTERM
            signal.raise_signal(signal.SIGTERM)

    assert os.waitstatus_to_exitcode(forked(twice)) == -signal.SIGTERM


def test_an_evaluation_is_left_at_once(tmp_path, shapes, monkeypatch, capsys):
    """The iteration before it is saved. In the evaluation of the end it has been."""
    monkeypatch.setattr(DefaultTrainer, "test", lambda *_: signal.raise_signal(signal.SIGTERM))
    for at in ("at iteration 3; saved", "at iteration 8; --resume"):
        trainer = make_trainer(tmp_path, shapes, resume="8" in at)
        period = 4 if "saved" in at else 0
        trainer.register_hooks([hooks.EvalHook(period, partial(trainer.test, trainer.cfg, trainer.model))])
        with pytest.raises(SystemExit, match="143"):
            run_command(trainer.train)
        assert at in capsys.readouterr().err
    assert models(tmp_path) == ["model_final.pth"]


# ------------------------------------------------------------------ processes of a run


def in_ranks(folder, main, limit=120.0):
    """Exit codes and what was printed, of two processes of a run."""
    config = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu"), RANK_TIMEOUT=limit)
    codes = on_ranks(2, lambda _: run_command(lambda: launch_processes(main, None, config)), folder / "logs")
    return codes, "".join((folder / f"logs/{rank}.log").read_text() for rank in range(2))


def test_all_processes_save_together(tmp_path, shapes):
    """The signal comes to one of them; what they have saved continues as if nothing had been."""

    def train(folder, resume, numbers):
        def main(*_):
            trainer = make_trainer(folder, shapes, resume=resume)
            signalled(trainer, 1, *numbers[comm.get_rank() :][:1]).train()

        folder.mkdir(exist_ok=True)
        return in_ranks(folder, main)

    codes, text = train(tmp_path / "one", False, [signal.SIGCONT, signal.SIGTERM])
    assert codes == [143, 143] and text.count("interrupted by SIGTERM at iteration 1; saved") == 1, text
    assert "error" not in text.lower() and models(tmp_path / "one") == ["model_interrupted.pth"]
    for folder, resume in ((tmp_path / "one", True), (tmp_path / "two", False)):
        codes, text = train(folder, resume, [])
        assert codes == [0, 0], text
    assert_same_state(final(tmp_path / "one"), final(tmp_path / "two"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "error, code, text",
    [
        (UserError("no"), 2, "error: no"),
        (OSError(5, "Input/output error"), 2, "error: OSError from the system: [Errno 5] Input/output error"),
        (MemoryError("injected"), 2, "error: out of memory (MemoryError: injected)"),
        (RuntimeError("injected"), 1, "RuntimeError: injected"),
    ],
)
def test_one_process_says_what_happened(tmp_path, rank, error, code, text):
    def main(*_):
        if comm.get_rank() == rank:
            raise error
        comm.all_gather(0)

    codes, said = in_ranks(tmp_path, main)
    assert codes[rank] == code and codes[1 - rank] == 2
    assert said.count(text) == 1 and "onnection" not in said
    assert said.count("Traceback") == (code == 1) and (code == 1 or len(said.splitlines()) == 1)


def test_a_stopped_process_ends_the_run(tmp_path):
    def main(*_):
        if comm.get_rank() == 1:
            if not os.fork():  # clears away in the end
                time.sleep(8)
                os.kill(os.getppid(), signal.SIGKILL)
                os._exit(0)
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGSTOP)
        comm.all_gather(0)

    codes, said = in_ranks(tmp_path, main, limit=2.0)
    assert codes == [2, -signal.SIGKILL]
    assert said.startswith("error: process 1 of the run has given no sign of life for 2 s (RANK_TIMEOUT)")


def test_a_process_may_work_alone(tmp_path):
    """Longer than another may be silent, and after that has left."""

    def main(*_):
        time.sleep(4 * (comm.get_rank() == 0))
        comm.all_gather(0)
        time.sleep(4 * (comm.get_rank() == 0))

    assert in_ranks(tmp_path, main, limit=2.0) == ([0, 0], "")


def test_leaving_is_the_last_sign(monkeypatch):
    """Also where a sign is on its way then: in its place, it would make who has left one that is silent."""
    on_its_way = threading.Event()

    class Slow(dist.HashStore):
        clone = property(lambda self: lambda: self)

        def set(self, key, sign):
            if sign != "left":
                on_its_way.set()
                time.sleep(0.3)
            super().set(key, sign)

    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    store = Slow()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(errors, "shared_store", None)
    before = threading.enumerate()
    with launch.among_ranks(8.0):  # a sign each two seconds
        assert on_its_way.wait(60)
    for thread in set(threading.enumerate()) - set(before):
        thread.join()
    assert store.get("sign/0") == b"left"


@pytest.mark.parametrize(
    "error, line",
    [
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"), "out of"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), "memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "memory"),
        (UserError("Caught UserError in DataLoader worker\nOriginal Traceback (most recent call last):\n"
                   "  File\nauto_panoptic.errors.UserError: a.png: cut off"), "a.png: cut off"),
        (OSError("Caught OSError in DataLoader worker\nOriginal Traceback (most recent call last):\n"
                 "  File\nOSError: [Errno 5] Input/output error: 'a.png'"), "'a.png'"),
    ],
)  # fmt: skip
def test_errors_of_the_machine_are_one_line(error, line):
    assert line in one_line(error) and "\n" not in one_line(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError("odd"), KeyError("a")])
def test_faults_of_the_program_keep_their_traceback(error):
    assert one_line(error) is None


# ------------------------------------------------------------------ parents and children

CHILD = """
import sys, time
from auto_panoptic import signals
if {thread}: signals.die_with_parent = lambda: None
signals.end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
from auto_panoptic import signals
options = signals.bound()
if {thread}: del options["preexec_fn"]
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], **options)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_a_child_ends_with_its_parent(stopped):
    """By the system, even if stopped; where that does not know how, by a thread."""
    thread = not stopped
    command = [sys.executable, "-c", PARENT.format(thread=thread), CHILD.format(thread=thread)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "ready\n"
        if stopped:
            os.kill(child, signal.SIGSTOP)
        parent.kill()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_child_of_a_shell_outlives_it(monkeypatch):
    monkeypatch.setattr(signals, "die_with_parent", lambda: pytest.fail("bound to a shell"))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("AUTO_PANOPTIC_PARENT", raising=False)
    signals.end_with_parent()
