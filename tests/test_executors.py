"""One contract for all executors: in process, one candidate per rank; test_workers.py holds Ray to it."""

import contextlib
import json
import multiprocessing
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import workers_run
from detectron2.modeling import build_model
from detectron2.utils import comm
from forked_ranks import on_ranks
from toy import answer_strongly, error_line, make_config, run_script, toy_space, write_config
from workers_run import make_evaluate, refuse

from auto_panoptic.errors import UserError, run_command
from auto_panoptic.explore import POLICY_REGISTRY, Ledger, fair_cycle
from auto_panoptic.search import InProcess, ledger_path, run_search
from auto_panoptic.search.executors.ranks import Ranks, follow, leading
from auto_panoptic.training import launch_processes

SPACE = toy_space()
ITEMS = [((0, i), a) for i, a in enumerate(fair_cycle(SPACE, seed=0, cycle=0))]
CPU = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu"), RANK_TIMEOUT=120.0)
HEADER = {
    "space": SPACE.to_dict(),
    "seed": 0,
    "policy": "path_priority",
    "config": "0123",
    "weights": "4567",
    "versions": {"auto_panoptic": "test"},
}


def in_process(task, make, shared, folder):
    return task(InProcess(make(shared)))


in_process.in_order = True


def on_two_ranks(task, make, shared, folder, world=2):
    """Ends as the main rank does; the others must end well."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)

    def main(*_):
        if not comm.is_main_process():
            return follow(partial(make, shared))
        with leading():
            report.write_text(json.dumps(task(Ranks(partial(make, shared)))))

    codes = on_ranks(world, lambda _: run_command(lambda: launch_processes(main, None, CPU)), folder / "logs")
    assert codes[1:] == [0] * (world - 1)
    if codes[0]:
        raise UserError((folder / "logs/0.log").read_text().splitlines()[-1].removeprefix("error: "))
    return json.loads(report.read_text())


def on_five_ranks(*args):
    return on_two_ranks(*args, world=5)


on_two_ranks.in_order = on_five_ranks.in_order = True


ALL = pytest.mark.parametrize("execute", [in_process, on_two_ranks, on_five_ranks])


def shared(folder, **events):
    """PQ 10, 11, ... of the items; ``i3="raise"`` lets the fourth fail. Calls are noted in ``folder``."""
    table = {repr(a.indices()): 10.0 + i for i, (_, a) in enumerate(ITEMS)}
    table |= {repr(ITEMS[int(name[1:])][1].indices()): event for name, event in events.items()}
    return {"table": table, "folder": str(folder)}


def calls(folder):
    lines = (folder / "calls").read_text().splitlines()
    return [lines.count(repr(a.indices())) for _, a in ITEMS]


@ALL
def test_every_outcome_once_failures_included(execute, tmp_path):
    """In several runs of one executor; one after the other in the order of the items, but for Ray."""

    def task(executor):
        return [[key[1], outcome] for half in (ITEMS[:5], ITEMS[5:]) for key, outcome in executor.run(half)]

    found = execute(task, make_evaluate, shared(tmp_path, i1="raise"), tmp_path)
    if not execute.in_order:
        found.sort(key=lambda pair: pair[0])
    error = "ArithmeticError: broken candidate"
    expected = [
        [i, {"status": "ok", "metrics": {"PQ": 10.0 + i}, "seconds": {"evaluation": 0.0}}]
        for i in range(len(ITEMS))
    ]
    expected[1][1] = {"status": "failed", "metrics": {}, "seconds": {}, "error": error}
    assert found == expected
    assert calls(tmp_path) == [1] * len(ITEMS)


@ALL
@pytest.mark.parametrize("place", [0, 3])
def test_a_mistake_of_the_user_ends_the_run(execute, tmp_path, place):
    """All candidates would fail of it: an image that is missing, say."""
    events = {f"i{place}": "mistake"}
    with pytest.raises(UserError, match=r"^(rank \d: )?img.png: no such image$"):
        execute(lambda e: list(e.run(ITEMS)), make_evaluate, shared(tmp_path, **events), tmp_path)


@ALL
def test_an_evaluator_that_cannot_be_made_ends_the_run(execute, tmp_path):
    """With the reason that its maker gave."""
    with pytest.raises(UserError, match="no annotations on this node"):
        execute(lambda e: list(e.run(ITEMS)), refuse, None, tmp_path)


def search(folder, executor, **options):
    policy = POLICY_REGISTRY.of("path_priority")(SPACE, 0, {"cycles": 2, "models_per_cycle": 12})
    with Ledger.open(ledger_path(folder), HEADER, **options) as ledger:
        run_search(policy, ledger, executor)


def records(folder):
    """What the ledger holds, seconds and what follows from them apart."""
    return [
        {k: v for k, v in r.items() if k != "seconds"} for r in Ledger(folder / "search/ledger.jsonl").records
    ]


def without_arrival(record):
    """What does not follow from the order in which outcomes arrive."""
    kept = {k: v for k, v in record.items() if k not in ("seq", "duplicate_of")}
    return kept | {"place": (kept.pop("cycle"), kept.pop("index"))}


@ALL
def test_a_search_is_continued_with_the_same_result(execute, tmp_path):
    """The first process evaluated three candidates, two of which failed; NaN is no score."""
    table = shared(tmp_path, i1="raise", i2=float("nan"))
    table["table"] |= {repr(a.indices()): 30.0 + i for i, a in enumerate(fair_cycle(SPACE, seed=0, cycle=1))}
    search(tmp_path / "whole", InProcess(make_evaluate(table)))
    whole = records(tmp_path / "whole")
    assert [r["status"] for r in whole[:4]] == ["ok", "failed", "failed", "ok"]
    lines = (tmp_path / "whole/search/ledger.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "part/search").mkdir(parents=True)
    (tmp_path / "part/search/ledger.jsonl").write_text("".join(lines[:4]))
    (tmp_path / "calls").unlink()
    execute(lambda e: search(tmp_path / "part", e, resume=True), make_evaluate, table, tmp_path)
    number = len((tmp_path / "calls").read_text().splitlines())
    assert calls(tmp_path)[:4] == [0, 0, 0, 1] and number == 20  # one of 21 recurs
    part = records(tmp_path / "part")
    if not execute.in_order:
        part, whole = (
            sorted(map(without_arrival, found), key=lambda r: r["place"]) for found in (part, whole)
        )
    assert part == whole
    for name in ("scoreboard.json", "architecture.json"):
        assert (tmp_path / "part/search" / name).read_bytes() == (
            tmp_path / "whole/search" / name
        ).read_bytes()


# ------------------------------------------------------------------ ranks


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_rank_ends_the_run(tmp_path, lost):
    """One line in the main rank; what is in the ledger stays, and the search can be continued."""
    table = shared(tmp_path, i4="kill", i5="kill") | {"rank": lost}
    table["table"] |= {repr(a.indices()): 1.0 for a in fair_cycle(SPACE, seed=0, cycle=1)}

    def main(*_):
        make = partial(workers_run.make_evaluate_of_rank, table, comm.get_rank())
        if not comm.is_main_process():
            return follow(make)
        with leading():
            search(tmp_path, Ranks(make))

    codes = on_ranks(2, lambda _: run_command(lambda: launch_processes(main, None, CPU)), tmp_path / "logs")
    assert codes[lost] == -9 and codes[1 - lost] == 2
    assert len(records(tmp_path)) == 4
    if lost:
        last = (tmp_path / "logs/0.log").read_text().splitlines()[-1]
        assert last.startswith("error: another process of the run has ended") and "--resume" in last


def test_two_ranks_search_as_one_process(tmp_path, shapes):
    """The command on a supernet, all metrics: the same ledger, scoreboard and architecture to the byte."""
    settings = ("NAS.POLICY", "random", "NAS.RANDOM.MODELS_PER_CYCLE", 3)
    cfg = make_config(tmp_path, shapes)
    torch.manual_seed(0)
    model = build_model(cfg)
    answer_strongly(model)
    torch.save({"model": model.state_dict(), "space": None}, tmp_path / "supernet.pth")
    config = write_config(tmp_path / "toy.yaml", shapes)
    arguments = ("--config-file", config, "--weights", tmp_path / "supernet.pth", "--metrics", "pq,ap,miou")

    def command(folder):
        run_script("search_net", *arguments, *settings, "OUTPUT_DIR", tmp_path / folder)

    command("one")
    assert on_ranks(2, lambda _: command("two"), tmp_path / "logs") == [0, 0]
    assert len({r["metrics"]["mIoU"] for r in records(tmp_path / "one")}) == 3
    assert records(tmp_path / "two") == records(tmp_path / "one")
    for name in ("scoreboard.json", "architecture.json"):
        assert (tmp_path / "two/search" / name).read_bytes() == (tmp_path / "one/search" / name).read_bytes()
    pictures = [sorted((tmp_path / run / "search").glob("pictures_*/*")) for run in ("one", "two")]
    contents = [[path.read_bytes() for path in run] for run in pictures]
    assert len(contents[0]) > 8 and contents[0] == contents[1]
    assert "3 candidates" in (tmp_path / "logs/0.log").read_text()
    assert "candidates" not in (tmp_path / "logs/1.log").read_text()
    with contextlib.ExitStack() as stack:  # one line, in the main rank
        path = tmp_path / "two/search/ledger.jsonl"
        stack.enter_context(Ledger.open(path, Ledger(path).header, resume=True))
        assert on_ranks(2, lambda _: command("two"), tmp_path / "logs") == [2, 0]
    assert "in use by another process" in (tmp_path / "logs/0.log").read_text().splitlines()[-1]
    assert (tmp_path / "logs/1.log").read_text() == ""


def test_a_started_process_knows_the_components(tmp_path, shapes):
    """It has imported what it runs, and gets a config; so do Detectron2's processes and Ray's workers."""
    context = multiprocessing.get_context("spawn")
    cfg = make_config(tmp_path, shapes)
    with context.Pool(1) as pool:
        assert pool.apply(load_in_started_process, (cfg,)) == cfg.MODEL.META_ARCHITECTURE


def load_in_started_process(cfg):
    from auto_panoptic.training import launch

    found = []
    launch._registered(lambda _, cfg: found.append(type(build_model(cfg)).__name__), None, cfg)
    return found[0]


# ------------------------------------------------------------------ what a user may get wrong


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--workers", 2, "--num-gpus", 2), "--workers starts processes, of which this run has 2"),
        (("--num-gpus", 0), "--num-gpus is 0; expected at least 1"),
        (("--num-machines", 0), "--num-machines is 0; expected at least 1"),
        (("--num-machines", 2), "--num-machines 2: add --dist-url tcp://HOST:PORT of machine 0"),
        (("--machine-rank", 1), "--machine-rank is 1; expected 0 to 0, as --num-machines is 1"),
    ],
)
def test_wrong_arguments(tmp_path, capfd, arguments, message):
    with pytest.raises(SystemExit) as end:
        run_script("search_net", *arguments, "OUTPUT_DIR", tmp_path)
    assert end.value.code == 2 and error_line(capfd).startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []
