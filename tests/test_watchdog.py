"""What a killed search leaves behind: nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from auto_panoptic.search.watchdog import MARK, Watchdog, marked

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start(script, *arguments):
    """A Python process with the tests and the package on its path."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
    )


# Without the package around it, which imports torch.
SLEEPERS = f"""
import importlib.util, os, subprocess, sys, time
spec = importlib.util.spec_from_file_location("watchdog", {str(HERE.parent)!r} + "/auto_panoptic/search/watchdog.py")
watchdog = importlib.util.module_from_spec(spec)
spec.loader.exec_module(watchdog)
dog = watchdog.Watchdog()
with dog:
    first = subprocess.Popen(["sh", "-c", "sleep 100 & exec sleep 100"], start_new_session=True)
other = subprocess.Popen(["sleep", "100"])
dog.remove(sys.argv[1])
print(dog._token, other.pid, flush=True)
time.sleep(100)
"""  # noqa: E501


def test_a_killed_process_takes_those_it_started_along(tmp_path):
    """Also grandchildren in other sessions, and the folder; not what was started outside."""
    folder = tmp_path / "session"
    folder.mkdir()
    (folder / "log").write_text("")
    driver = start(SLEEPERS, folder)
    token, other = driver.stdout.readline().split()
    try:
        wait_until(lambda: len(marked(token)) == 2, 10)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        wait_until(lambda: not marked(token) and not folder.exists(), 10)
        os.kill(int(other), 0)
    finally:
        os.kill(int(other), signal.SIGKILL)


FORGETFUL = SLEEPERS.replace("sleep 100 & exec sleep 100", "sleep 1; exec env -i sleep 100")


def test_a_process_that_loses_its_environment_is_remembered(tmp_path):
    """As Ray's agents do, which write their titles over it."""
    driver = start(FORGETFUL.replace("flush=True", "first.pid, flush=True"), tmp_path / "none")
    token, other, first = driver.stdout.readline().split()
    try:
        wait_until(lambda: not marked(token), 10)
        environment = Path(f"/proc/{first}/environ").read_bytes()
        assert token.encode() not in environment
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        wait_until(lambda: not Path(f"/proc/{first}").exists(), 10)
    finally:
        os.kill(int(other), signal.SIGKILL)


def test_closing_ends_what_was_started_within(tmp_path):
    folder = tmp_path / "session"
    folder.mkdir()
    dog = Watchdog()
    with dog:
        inside = subprocess.Popen(["sleep", "100"])
    assert MARK not in os.environ
    outside = subprocess.Popen(["sleep", "100"])
    process = dog._process
    dog.remove(str(folder))
    dog.close()
    dog.close()
    assert inside.wait(timeout=5) == -signal.SIGKILL and process.poll() == 0
    assert not folder.exists() and outside.poll() is None
    outside.kill()
    outside.wait()


RAY = """
import sys, ray, workers_run
from toy import toy_space
from auto_panoptic.explore import fair_cycle
from auto_panoptic.search.executors.ray import RayExecutor
ray.cloudpickle.register_pickle_by_value(workers_run)
items = list(enumerate(fair_cycle(toy_space(), seed=0, cycle=0)))
shared = {"table": {repr(a.indices()): 10.0 for _, a in items}, "folder": sys.argv[1], "seconds": float(sys.argv[2])}
with RayExecutor(workers_run.make_evaluate, lambda: shared, 2) as workers:
    session = ray.worker.global_worker.node.get_session_dir_path()
    print(workers._watchdog._token, session, flush=True)
    run = workers.run(items)
    next(run)
    print("evaluating", flush=True)
    print(len(list(run)) + 1, len(items), flush=True)
"""  # noqa: E501


@pytest.mark.slow
def test_ray_ends_with_a_killed_driver_and_starts_anew(tmp_path):
    """Within seconds; the next driver starts a Ray of its own at once, and cleans up behind itself."""
    pytest.importorskip("ray")
    killed = start(RAY, tmp_path, 1.0)
    token, session = killed.stdout.readline().split()
    assert killed.stdout.readline() == "evaluating\n"
    assert len(marked(token)) > 5 and Path(session).is_dir()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    following = start(RAY, tmp_path, 0.0)
    wait_until(lambda: not marked(token) and not Path(session).exists(), 5)
    output, _ = following.communicate(timeout=300)
    lines = output.splitlines()
    assert following.returncode == 0 and len(set(lines[-1].split())) == 1
    token, another = lines[0].split()
    assert another != session
    assert not marked(token) and not Path(another).exists()
