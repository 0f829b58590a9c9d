"""At which limit a search pays: leads by hand on a small table; those in the docs."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from auto_panoptic.bench import Benchmark, load
from auto_panoptic.errors import UserError
from auto_panoptic.explore.budget import parse_amount
from auto_panoptic.space import SearchSpace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools/nas_bench"))

import limits  # noqa: E402

EFFECTS = np.array([[0.0, 4.0, 1.0, 2.0], [3.0, 0.0, 1.0, 5.0]])


@pytest.fixture
def bench():
    """Two sites of four operators, all paths trained; the truth is a sum, the score its negative."""
    space = SearchSpace.from_dict(
        {f"a.{i}": ["conv_3x3", "identity", "dwconv_3x3", "atconv_3x3"] for i in range(2)}
    )
    first, second = np.divmod(np.arange(16), 4)
    truth, macs = EFFECTS[0][first] + EFFECTS[1][second], 1000 + 100 * first + 3 * second
    empty, paths = np.zeros(0), np.arange(16)
    trained = {"PQ": np.stack([truth - 1, truth + 1], axis=1)}
    return Benchmark(space, macs, macs, {"PQ": -truth[None]}, paths, trained, empty, empty, empty, {})


def test_leads_over_the_paths_of_the_same_cost(bench):
    """Paths 0 to 3 are within the limit and of one cost; the highest score, the lowest truth, is 1's."""
    trained = limits.predicted_truth(bench)
    truth = bench.trained["PQ"].mean(axis=1)
    assert np.corrcoef(trained, truth)[0, 1] == pytest.approx(1)
    (row,) = limits.leads(bench, 1050, truth)
    assert row == {"path": 1, "macs": 1003, "others": 3, "score": 3.0, "trained": -3.0}
    with pytest.raises(UserError, match="no path is that small; the smallest has 1000"):
        limits.leads(bench, 999, truth)
    bench.macs[:] = 1000 * 2 ** np.arange(16)
    with pytest.raises(UserError, match="no other path costs what the best one does"):
        limits.leads(bench, 1050, truth)
    with pytest.raises(UserError, match="none of its paths was trained"):
        limits.predicted_truth(replace(bench, paths=np.zeros(0, int)))


def test_documented_leads():
    bench = load("shapes4096")
    trained, lines = limits.predicted_truth(bench), []
    section = (ROOT / "docs/benchmark.md").read_text().split("## Does a search pay?")[1]
    rows = re.findall(r"^\| (\d+M) \| (.*) \|$", section, re.M)
    for text, _ in rows:
        found = limits.leads(bench, parse_amount(text, "--max-macs"), trained)
        cells = [", ".join(f"{row['macs'] / 1e9:.3f}" for row in found) + " G"]
        cells += [", ".join(f"{row[name]:+.1f}" for row in found) for name in ("score", "trained")]
        mean = np.mean([row["trained"] for row in found])
        lines.append((text, " | ".join([*cells, f"{mean:+.1f}"])))
    assert rows == lines and len(rows) == 7
