"""Runs the fault drills of tools/chaos, in the process of a test or in one of their own."""

import json
import os
import subprocess
import sys

from toy import ROOT


def run(drill, plan):
    """A drill in this process."""
    plan.folder.mkdir()
    return drill(plan)


def passes(drill, plan):
    outcome = run(drill, plan)
    assert outcome.failures == [] and outcome.passed
    return outcome


SCRIPT = """
import json, sys
from pathlib import Path
from chaos import worker
from chaos.report import Plan
from auto_panoptic.search.executors import ray as workers
{changes}
plan = Plan(Path(sys.argv[1]), quick=True)
plan.folder.mkdir()
outcome = {drill}(plan)
print(json.dumps([outcome.passed, outcome.count, outcome.failures, outcome.numbers]))
"""


def with_ray(drill, folder, changes=""):
    """A drill that starts Ray: drills fork, and the forks of a process that has used Ray may hang.

    Args:
        drill: "module.function".
        folder: of its files.
        changes: statements that break what the drill tests.

    Returns:
        Whether it passed, its count, failures and numbers.
    """
    paths = [str(ROOT / "tools"), str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(drill=drill, changes=changes), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])
