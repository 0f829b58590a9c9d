"""Candidates on Ray workers: the outcomes of one process, whatever dies on the way."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import test_executors
import workers_run
from toy import toy_space
from workers_run import die, make_evaluate

from auto_panoptic.errors import UserError
from auto_panoptic.explore import fair_cycle
from auto_panoptic.search.executors import ray as workers_module
from auto_panoptic.search.executors.ray import RayExecutor, cpu_share

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # a cluster and its workers take tens of seconds to start
HERE = Path(__file__).parent
ITEMS = [((0, i), a) for i, a in enumerate(fair_cycle(toy_space(), seed=0, cycle=0))]


def commands(text):
    """{process id: command line} of the running processes with ``text`` in their command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found[int(path.parent.name)] = line
    return found


@pytest.fixture(scope="module")
def cluster():
    """A head node with two CPUs."""
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(workers_run)  # tests/ is not on the path of the workers
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 10**8},
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def table(**events):
    """PQ 10, 11, ... of the items; ``i3="kill"`` replaces that of the fourth."""
    values = {repr(a.indices()): 10.0 + i for i, (_, a) in enumerate(ITEMS)}
    for name, event in events.items():
        values[repr(ITEMS[int(name[1:])][1].indices())] = event
    return values


def executor(cluster, folder, count, make=make_evaluate, seconds=0.0, **events):
    shared = {"table": table(**events), "folder": str(folder), "seconds": seconds}
    return RayExecutor(make, lambda: shared, count, cluster.address)


def calls(folder):
    lines = (folder / "calls").read_text().splitlines()
    return [lines.count(repr(a.indices())) for _, a in ITEMS]


def expected(**others):
    """Outcomes without events, but for ``others``."""
    outcomes = {
        key: {"status": "ok", "metrics": {"PQ": 10.0 + i}, "seconds": {"evaluation": 0.0}}
        for i, (key, _) in enumerate(ITEMS)
    }
    return outcomes | {(0, int(name[1:])): outcome for name, outcome in others.items()}


FAILED = {"status": "failed", "metrics": {}}


def on_ray(cluster, workers=2):
    """Executes as test_executors.in_process, on Ray workers."""

    def execute(task, make, shared, folder):
        with RayExecutor(make, lambda: shared, workers, cluster.address) as executor:
            return task(executor)

    execute.in_order = False
    return execute


@pytest.mark.parametrize(
    "contract",
    [
        test_executors.test_every_outcome_once_failures_included,
        partial(test_executors.test_a_mistake_of_the_user_ends_the_run, place=3),
        test_executors.test_an_evaluator_that_cannot_be_made_ends_the_run,
        test_executors.test_a_search_is_continued_with_the_same_result,
    ],
    ids=["outcomes", "mistake", "maker", "resume"],
)
def test_the_contract_of_all_executors(cluster, tmp_path, contract):
    contract(execute=on_ray(cluster), tmp_path=tmp_path)
    assert not ray.is_initialized()


@pytest.mark.parametrize("count, threads", [(1, 2), (4, 1)])
def test_any_number_of_workers(cluster, tmp_path, count, threads):
    with executor(cluster, tmp_path, count) as workers:
        assert dict(workers.run(ITEMS)) == expected() and workers.threads == threads


def test_a_killed_worker_is_replaced_and_its_candidate_evaluated_again(cluster, tmp_path):
    with executor(cluster, tmp_path, 1, i3="kill once") as workers:
        found = list(workers.run(ITEMS))
    once = {"status": "ok", "metrics": {"PQ": 50.0}, "seconds": {"evaluation": 0.0}}
    assert sorted(found) == sorted(expected(i3=once).items())
    assert calls(tmp_path) == [1, 1, 1, 2] + [1] * (len(ITEMS) - 4)


def test_a_candidate_that_always_kills_fails_after_three_attempts(cluster, tmp_path):
    """The others go on."""
    with executor(cluster, tmp_path, 2, i0="kill") as workers:
        found = list(workers.run(ITEMS))
    assert len(found) == len(ITEMS)
    found = dict(found)
    error = found[0, 0]["error"]
    assert error.startswith("worker died 3 times: ActorDiedError: ") and "\n" not in error
    assert found == expected(i0={**FAILED, "seconds": {}, "error": error})
    assert calls(tmp_path) == [3] + [1] * (len(ITEMS) - 1)


def test_workers_that_cannot_start_end_the_run(cluster, tmp_path):
    with executor(cluster, tmp_path, 1, die) as workers:
        with pytest.raises(UserError, match="no worker could start"):
            list(workers.run(ITEMS))


def test_no_room_for_a_worker_ends_the_run(cluster, tmp_path, monkeypatch):
    """Others hold the CPUs of the cluster."""
    monkeypatch.setattr(workers_module, "START_TIMEOUT", 2.0)
    with executor(cluster, tmp_path, 1) as workers:
        blocker = ray.remote(num_cpus=1)(workers_run.Evaluate).remote({}, str(tmp_path))
        ray.wait([blocker.__ray_ready__.remote()])
        with pytest.raises(UserError, match="no worker started within 2 seconds"):
            list(workers.run(ITEMS))


def test_an_abandoned_run_leaves_free_workers(cluster, tmp_path):
    """Whoever stops reading gets no stale outcomes in the next run."""
    with executor(cluster, tmp_path, 2) as workers:
        for _ in workers.run(ITEMS):
            break
        assert dict(workers.run(ITEMS)) == expected()


def test_a_node_dies(cluster, tmp_path):
    """Two nodes; the second and its worker go while they evaluate, and the first evaluates everything."""
    node = cluster.add_node(num_cpus=2, object_store_memory=10**8)
    try:
        with executor(cluster, tmp_path, 2, seconds=3) as workers:
            assert workers.threads == 2  # one worker per node
            run = workers.run(ITEMS)
            found = dict([next(run)])
            deadline = time.monotonic() + 60
            while workers.ready < 2 and time.monotonic() < deadline:
                found |= [next(run)]
            assert workers.ready == 2 and len(ITEMS) - len(found) > 1
            cluster.remove_node(node, allow_graceful=False)
            node = None
            found |= run
            assert workers.ready == 1
    finally:
        if node is not None:
            cluster.remove_node(node)
    for outcome in found.values():
        outcome["seconds"] = {"evaluation": 0.0}
    assert found == expected()
    assert sum(calls(tmp_path)) > len(ITEMS)


# ------------------------------------------------------------------ a search's candidates, a Ray of its own


@pytest.fixture
def script(tmp_path, shapes):
    """Process of workers_run.py."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "workers_run.py"), str(tmp_path), str(shapes)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()


def test_scores_are_those_of_one_process_and_nothing_stays(script):
    """To the last bit; no second copy of the images in a worker, no process left behind."""
    output, errors = script.communicate(timeout=200)
    assert script.returncode == 0, errors
    found = json.loads(output.splitlines()[-1])
    assert found["workers"] == found["in_process"]
    assert len({metrics["mIoU"] for metrics in found["workers"]}) == 3
    assert found["asked_early"] is None  # no worker is ready yet
    assert found["examples"][0] == found["examples"][1] != []
    assert found["in_place"] and found["threads"] >= 1
    assert commands(found["session"]) == {}


# ------------------------------------------------------------------ what a user may get wrong


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--workers needs Ray .*; pip install 'ray>=2.40', or leave"):
        RayExecutor(make_evaluate, dict, 2)


@pytest.mark.parametrize(
    "count, address, message",
    [
        (0, None, "--workers is 0; expected a whole number of at least 1"),
        (1, "somewhere", "--ray-address somewhere: expected auto or host:port"),
        (1, "127.0.0.1:1", "--ray-address 127.0.0.1:1: nothing answers"),
    ],
)
def test_wrong_arguments(count, address, message):
    with pytest.raises(UserError, match=message):
        RayExecutor(make_evaluate, dict, count, address)
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    "cpus, workers, share",
    [
        ([8], 3, 2),
        ([2], 2, 1),
        ([2], 4, 0.5),
        ([2], 5, 1 / 3),
        ([1, 1, 2], 2, 1),
        ([4, 4], 2, 4),
        ([0, 3], 2, 1),
    ],
)
def test_equal_shares_that_fit_on_the_nodes(cpus, workers, share):
    assert cpu_share(cpus, workers) == share
