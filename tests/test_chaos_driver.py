"""The drill that kills a search while its Ray workers evaluate; it fails where the search is broken."""

import os
import subprocess
import sys
import time

import pytest
from toy import ROOT

sys.path.append(str(ROOT / "tools"))

from chaos import driver
from chaos_util import with_ray

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.mark.slow
def test_a_killed_driver_costs_an_evaluation_per_worker(tmp_path):
    passed, count, failures, _ = with_ray("driver.driver", tmp_path / "drill")
    assert failures == [] and passed and count == 1


ASLEEP = """
class Asleep:
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def remove(self, folder):
        pass
    close = __exit__
workers.Watchdog = Asleep
driver.LIMIT = 1.0
"""


@pytest.mark.slow
def test_ray_that_outlives_its_driver_is_found(tmp_path):
    _, _, failures, _ = with_ray("driver.driver", tmp_path / "drill", ASLEEP)
    assert "processes are left after 1 s" in " ".join(failures)


def test_what_is_left_is_counted_and_killed(monkeypatch):
    monkeypatch.setattr(driver, "LIMIT", 0.2)
    token = f"test-{os.getpid()}-{time.monotonic()}"
    left = subprocess.Popen(["sleep", "60"], env={**os.environ, driver.MARK: token})
    seconds, count = driver.wait_for_end(f"{driver.MARK}={token}")
    assert seconds >= 0.2 and count == 1 and left.wait(timeout=5) == -9
    assert driver.wait_for_end(f"{driver.MARK}={token}")[1] == 0
