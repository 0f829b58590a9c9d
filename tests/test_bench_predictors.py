"""What predicts trained paths: reliability, Kendall's tau and its intervals, and what is compared."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau
from test_nas_bench import make_table
from toy import ROOT

from auto_panoptic.bench import FOLDER, load

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/nas_bench"))

import predictors  # noqa: E402
from variant_file import Measured, read_variants, variants_beside  # noqa: E402


def test_reliability_is_the_share_of_the_paths():
    # Rows differ by 3; what is left of rows and columns is 1/2 everywhere, one degree of freedom: variance 1.
    r = predictors.reliability(np.array([[0.0, 0.0], [4.0, 2.0]]))
    assert r.noise == 1 and r.paths == 2  # 9/2 between means, less 1/2
    assert (r.single, r.mean) == (pytest.approx(4 / 5), pytest.approx(8 / 9))
    exact = predictors.reliability(np.add.outer(np.arange(5.0), [0.0, 7.0, 3.0]))
    assert exact.mean == pytest.approx(1) and exact.noise == pytest.approx(0, abs=1e-12)
    assert predictors.reliability(np.array([[0.0, 1.0], [1.0, 0.0]]))[2:] == (0, 0)


def test_taus_are_those_of_scipy_on_every_resample():
    rng = np.random.default_rng(0)
    predictor, truth = rng.integers(6, size=15).astype(float), rng.integers(9, size=15).astype(float)
    counts = rng.multinomial(15, [1 / 15] * 15, 20)
    expected = [kendalltau(np.repeat(predictor, c), np.repeat(truth, c)).statistic for c in counts]
    assert predictors.taus(predictor, truth, counts) == pytest.approx(expected)
    assert np.isnan(predictors.taus(np.ones(3), np.arange(3.0), np.ones((1, 3)))).all()


def test_intervals():
    truth = np.arange(40.0)
    assert predictors.interval(predictors.resampled(truth, truth)) == pytest.approx((1, 1, 1))
    noisy = np.random.default_rng(0).permutation(40).astype(float)
    whole, low, high = predictors.interval(predictors.resampled(noisy, truth))
    assert low < 0 < high and low < whole < high
    both = predictors.resampled(np.array([truth, -truth]), truth)  # of two seeds the mean
    assert both == pytest.approx(np.zeros(1 + predictors.RESAMPLES))
    assert np.isnan(predictors.interval(np.full(3, math.nan))).all()


@pytest.fixture
def table():
    """Paths of PQ 1, 2, 3.5 and 6.5, which their numbers put in order, as scores and multiply-adds do."""
    table = make_table([[[], []]] * 4, [0, 1, 2, 5])
    table.trained["PQ"][:] = np.array([[1, 1], [2, 2], [3, 4], [6, 7]])
    return table


def test_what_the_table_itself_predicts(table, capsys):
    found = predictors.predictors_of(table)
    # Scores are the numbers of the paths, 3 * (first site) + (second site): additive.
    sums = found["additive part of all scores"].values
    assert sums + 2.5 == pytest.approx(np.array([[0, 1, 2, 5]] * 2))
    for estimator in ("ranks", "mean", "ridge"):
        values = found[f"{estimator} of 60 scores"].values
        assert values.shape == (2 * predictors.SEARCHES, 4)
        assert (np.diff(values.mean(axis=0)) > 0).all(), estimator
    assert (np.diff(found["ridge of 60 scores"].values, axis=1) > 0).all()
    rows = predictors.report(table, found, predictors.truth_of(table))
    assert rows["reliability"]["single"] > 0.9 and rows["between_supernets"] == pytest.approx([1])
    for name in ("supernet", "multiply-adds", "parameters", "ridge of 60 scores"):
        assert rows["taus"][name]["tau"][0] == pytest.approx(1)
        assert rows["taus"][name]["less_supernet"] == (0, 0, 0), name
    assert "reliability" in capsys.readouterr().out


def test_variants_are_compared_on_the_paths_that_they_have(table, capsys):
    measured = [
        Measured("long", 3, 13.5, {0: 3.0, 1: 1.0, 2: 2.0, 4: 9.0}),  # path 5 is missing, 4 was not trained
        Measured("long", 4, 14.5, {0: 1.0, 1: 2.0, 2: 3.0, 5: 4.0}),
        Measured("norm", 3, None, {0: 4.0, 1: 3.0, 2: 2.0, 5: 1.0}),
    ]
    found = predictors.predictors_in(measured, table)
    assert found["long"].minutes == 14 and found["norm"].minutes is None
    assert np.isnan(found["long"].values).tolist() == [[False, False, False, True], [False] * 4]
    rows = predictors.report(table, predictors.predictors_of(table) | found, predictors.truth_of(table))
    rows = rows["taus"]
    assert (rows["long"]["seeds"], rows["long"]["paths"], rows["norm"]["paths"]) == (2, 3, 4)
    assert rows["long"]["tau"][0] == pytest.approx((-1 / 3 + 1) / 2)
    assert rows["long"]["less_supernet"][0] == pytest.approx(1 / 3 - 1)
    assert rows["norm"]["tau"] == (-1, -1, -1)
    ceiling = math.sqrt(predictors.reliability(table.trained["PQ"].astype(float)).mean)
    assert rows["norm"]["of_ceiling"] == pytest.approx(-1 / ceiling)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("long")]
    assert line.split()[1:4] == ["2", "3", "14.0"]


def test_images_that_score_supernets_are_no_truth():
    rows = [
        (0, 0, 1, 0, 0, 0.5),
        (1, 0, 1, 0, 1, 0.75),
        (2, 0, 1, 0, 0, 0.25),
    ]  # image, class, TP, FP, FN, IoU
    table = make_table([[rows, rows[1:]]], [4])
    table.trained["PQ"][:] = 7
    about = table.provenance  # its images are 11, 12 and 13
    about.update(search=["s"], images_of={"s": [11, 13], "v": [12]})
    assert predictors.truth_of(table).tolist() == [[50, 50]]  # 0.75 / (1 + 1 / 2)
    assert predictors.truth_of(table, all_images=True).tolist() == [[7, 7]]
    about.update(images_of={"s": [], "v": [11, 12, 13]})
    assert predictors.truth_of(table).tolist() == [[7, 7]]


def test_the_documented_taus_are_those_of_the_shipped_files():
    bench, page = load("shapes4096"), (ROOT / "docs/benchmark.md").read_text()
    measured = read_variants(variants_beside(FOLDER / "shapes4096"))
    assert all(m.values.keys() == {*bench.paths.tolist()} for m in measured)
    found = predictors.predictors_of(bench) | predictors.predictors_in(measured, bench)
    rows = predictors.report(bench, found, predictors.truth_of(bench))["taus"]
    table = page[page.index("| predictor | minutes |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table]
    documented = {name.split(":")[0]: numbers for name, *numbers in cells}
    assert documented.keys() >= {m.name for m in measured}
    for name, numbers in documented.items():
        row = rows[name]
        (tau, *ends), (less, *apart) = row["tau"], row["less_supernet"]
        minutes = f"{row['minutes']:.1f}" if row["minutes"] else ""
        expected = [minutes, f"{tau:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]", f"{row['of_ceiling']:.2f}"]
        expected.append("" if name == "supernet" else f"{less:+.2f} [{apart[0]:.2f}, {apart[1]:.2f}]")
        assert numbers == expected, name
