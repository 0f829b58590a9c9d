"""The drills of changed headers, of the order of candidates and of memory, in small numbers."""

import subprocess
import sys

import numpy as np
import pytest
from chaos_util import passes, run
from detectron2.data import DatasetCatalog, MetadataCatalog
from toy import PREFIX, ROOT

sys.path.append(str(ROOT / "tools"))

from chaos import changed, memory, order, processes, pure
from chaos.processes import resident_bytes
from chaos.report import Plan

from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger, ledger


@pytest.fixture
def plan(tmp_path):
    return Plan(tmp_path / "drill", quick=True)


@pytest.fixture
def own_toy_sets():
    """The drills register the toy data sets of their own folder under the names of the other tests' sets."""

    def forget():
        for name in [n for n in DatasetCatalog.list() if n.startswith(PREFIX)]:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    forget()
    yield
    forget()


# ------------------------------------------------------------------ changed headers


def continued(folder, *arguments):
    """Stands in for search_net.py --resume."""
    accept = [arguments[i + 1] for i, a in enumerate(arguments) if a == "--accept"]

    def search():
        if unknown := set(accept) - set(changed.ACCEPTABLE):
            raise UserError(f"--accept {unknown.pop()}: expected another")
        policy = pure.search_policy(pure.config(folder, cycles=1), pure.SPACE)
        path = pure.ledger_path(folder)
        with Ledger.open(path, pure.header(), resume=True, allow_changed=accept) as opened:
            pure.run_search(policy, opened, pure.InProcess(pure.Evaluate(folder / "log")))

    return processes.fork(search, folder / "output.log").wait()


@pytest.fixture
def recorded(tmp_path):
    """A finished search."""
    assert pure.whole(tmp_path / "original", pure.Evaluate(tmp_path / "log"), cycles=1) == 0
    return Ledger(tmp_path / "original/search/ledger.jsonl")


KEYS = [("seed",), ("space", "mask.0"), ("weights",), ("data", "search"), ("versions", "auto_panoptic")]


def test_changed_headers(tmp_path, recorded):
    assert set(KEYS) < set(changed.leaves(recorded.header))
    for key in KEYS:
        assert changed.altered(tmp_path / ".".join(key), recorded, key, continued) == []


def test_a_change_that_is_not_refused_is_found(tmp_path, recorded, monkeypatch):
    monkeypatch.setattr(ledger, "_difference", lambda *_: "")
    assert "exit code 0, not a diff" in changed.altered(tmp_path / "a", recorded, ("seed",), continued)[0]
    monkeypatch.setattr(ledger, "_difference", lambda *_: "something")
    found = changed.altered(tmp_path / "b", recorded, ("weights",), continued)
    assert "not a diff that names it" in found[0] and "not accepted, exit code 2" in found[-1]


@pytest.mark.slow
def test_changed_headers_and_the_command(plan, own_toy_sets):
    assert passes(changed.changed, plan).count == 3


# ------------------------------------------------------------------ order, memory


def fair(count=4):
    return pure.candidates(cycles=1)[:count]


def scores():
    return pure.InProcess(lambda a: ({"PQ": pure.utility(a)}, {})).evaluate


def test_scores_do_not_depend_on_the_order(plan):
    outcome = run(lambda p: order.equal_scores(p, scores, fair()), plan)
    assert outcome.passed and outcome.count == 12


def test_a_trace_of_earlier_candidates_is_found(plan):
    def tracing():
        calls = []

        def evaluate(architecture):
            calls.append(architecture)
            return {"PQ": pure.utility(architecture) + 1e-12 * (len(calls) > 1)}, {}

        return evaluate

    outcome = run(lambda p: order.equal_scores(p, tracing, fair()), plan)
    assert len(outcome.failures) == 9 and "reversed: candidate 0 scores" in " ".join(outcome.failures)


def test_equal_scores_prove_nothing(plan):
    outcome = run(lambda p: order.equal_scores(p, lambda: lambda a: ({"PQ": 1.0}, {}), fair()), plan)
    assert outcome.failures == ["all candidates score the same"]


def memory_of(plan, evaluate):
    return run(lambda p: memory.flat_memory(p, lambda: evaluate, pure.SPACE, 12), plan)


def test_flat_memory(plan):
    outcome = memory_of(plan, scores())
    assert outcome.passed and outcome.numbers["children"] == [0] and outcome.numbers["ratio"] < 1.05


def test_a_leak_and_processes_left_behind_are_found(plan):
    kept = []
    leak = resident_bytes() // 50  # of a process of any size

    def leaking(architecture):
        kept.append(np.ones(leak, np.uint8))
        if len(kept) % 5 == 0:
            kept.append(subprocess.Popen(["sleep", "60"]))
        return {"PQ": pure.utility(architecture)}, {}

    failures = memory_of(plan, leaking).failures
    assert [f.split(":")[0] for f in failures] == [
        "resident MiB",
        "child processes",
        "2 processes are left",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("drill", [order.order, memory.memory], ids=["order", "memory"])
def test_a_toy_supernet(drill, plan, own_toy_sets):
    passes(drill, plan)
