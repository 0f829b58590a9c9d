"""What searches of the benchmark select, trained, against the paths of its table."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from auto_panoptic.bench import load
from auto_panoptic.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/nas_bench"))

import build  # noqa: E402
import selected  # noqa: E402
from predictors import truth_of  # noqa: E402
from table import trained_results  # noqa: E402


@pytest.fixture(scope="module")
def bench():
    """The first 20 paths of the shipped table."""
    whole, paths = load("shapes4096"), 20
    networks = paths * whole.trained["PQ"].shape[1]
    return dataclasses.replace(
        whole,
        paths=whole.paths[:paths],
        trained={name: values[:paths] for name, values in whole.trained.items()},
        seconds=whole.seconds[:paths],
        counts=whole.counts[..., :networks],
        iou=whole.iou[..., :networks],
    )


def test_the_gain_by_hand():
    """Three paths were selected by four searches of two supernets; two of chance."""
    places = np.array([[0, 0], [1, 2]])
    own, chance = np.array([[52.0, 54], [50, 50], [60, 62]]), np.array([[50.0, 51], [49, 50]])
    value, low, high = selected.gain(places, own, chance)
    assert value == pytest.approx((53 + 53 + 50 + 61) / 4 - 50) and low < value < high
    assert low >= 50 - 51 and high <= 62 - 49
    assert selected.gain(places, own * 0 + 7, chance * 0 + 5) == (2, 2, 2)


def test_a_seed_counts_for_both():
    """What it does to all paths alike is in no gain, nor in its interval."""
    of_seeds = np.array([-10.0, 0, 10])
    found = selected.gain(np.array([[0], [1]]), 3 + np.tile(of_seeds, (2, 1)), np.tile(of_seeds, (4, 1)))
    assert found == pytest.approx((3, 3, 3))


def test_selections_are_of_the_best_paths(bench):
    chosen = selected.selections(bench, 2, 60)
    assert chosen.shape == (3, 2)
    for scores, paths in zip(bench.supernet["PQ"], chosen, strict=True):
        assert (scores[paths] > np.quantile(scores, 0.97)).all()


def test_the_command(tmp_path, monkeypatch, capsys, bench):
    """It is told paths whose trainings are known: nothing is trained, PQ is the table's.

    Two controls are drawn, of no special cost; the others are the table's own.
    """
    bench.save(table := tmp_path / "table.npz")
    with build.Ledger.open(tmp_path / "journal.jsonl", build.HEADER, resume=True) as ledger:
        build.take_over(bench, build.Journal(ledger), bench.provenance["steps"])
    asked = []

    def drawn(costs, macs, number, seed, other_than):
        asked.append((macs, number, {bench.number(a) for a in other_than}))
        return [bench.path(path) for path in bench.paths[[9, 3]].tolist()]

    chosen = bench.paths[[[2, 1], [2, 2], [4, 16]]]
    monkeypatch.setattr(selected, "selections", lambda *_: chosen)
    monkeypatch.setattr(selected, "random_of_equal_cost", drawn)
    options = ["--output", str(tmp_path), "--table", str(table), "--controls", "2"]
    monkeypatch.setattr(sys, "argv", ["selected.py", *options])
    selected.main()
    assert asked == [(int(bench.macs[chosen].mean()), 2, {*chosen.ravel().tolist()})]
    *_, first, second, third, chance, alike, verdict, other = capsys.readouterr().out.splitlines()
    truth, macs = truth_of(bench), bench.macs[bench.paths]
    close = [i for i, cost in enumerate(macs) if abs(cost / bench.macs[chosen].mean() - 1) <= 0.02]
    controls = [9, 3, *(i for i in close if i not in (1, 2, 3, 4, 9, 16))]
    assert controls == [9, 3, 0, 18]
    rows = ((first, [2, 1]), (second, [2]), (third, [4, 16]), (chance, range(len(truth))), (alike, controls))
    for row, places in rows:
        assert float(row.split()[-1]) == pytest.approx(truth[list(places)].mean(), abs=0.006)
    mean = truth[[2, 1, 2, 2, 4, 16]].mean()
    assert f"random: {mean - truth.mean():+.2f} PQ [" in verdict
    assert f"random of equal cost: {mean - truth[controls].mean():+.2f} PQ [" in other


def test_other_trainings_in_a_table(bench):
    results = {(path, seed): {**metrics, "seconds": 1.0} for path, seed, metrics, _ in trained_results(bench)}
    paths = bench.paths[[3, 1]].tolist()
    found = selected.of_these(bench, paths, [[results[path, seed] for seed in range(3)] for path in paths])
    assert np.array_equal(truth_of(found), truth_of(bench)[[3, 1]])


def test_wrong_use(tmp_path, monkeypatch):
    for arguments, message in (
        (["--searches", "0"], "--searches is 0"),
        (["--table", "shapes"], "no benchmark"),
    ):
        monkeypatch.setattr(sys, "argv", ["selected.py", "--output", str(tmp_path), *arguments])
        with pytest.raises(UserError, match=message):
            selected.main()
    assert not any(tmp_path.iterdir())
