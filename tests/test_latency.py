"""Measured times: by a clock that the operators wind on, as a limit by enumeration, and in commands."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from report_util import COSTS, Page, make_search
from test_budget import everything, random_scores, random_tables
from test_search import SPACE
from test_selection import evaluated, write_ledger
from torch import nn
from toy import error_line, make_config, run_script, write_config

from auto_panoptic import latency as command
from auto_panoptic.errors import UserError
from auto_panoptic.explore.budget import best_under_budget, cheapest_near, check_budget
from auto_panoptic.explore.selection import select
from auto_panoptic.modeling import ChoiceBlock
from auto_panoptic.modeling.choice import space_of
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.modeling.timing import network_seconds, operator_seconds
from auto_panoptic.report import write_report
from auto_panoptic.report.cost_figure import measures
from auto_panoptic.report.facts import read_search
from auto_panoptic.search import ledger_path
from auto_panoptic.search.finalists import FinalsRequest, contenders
from auto_panoptic.search.latency import FILE, costs_digest, judged, read_table, warning, write_table
from auto_panoptic.space import LatencyTable, milliseconds, parse_latency
from auto_panoptic.space.latency import Measured, with_latency

CONDITIONS = {
    "device": "cpu (a machine)",
    "threads": 2,
    "image": [64, 96],
    "repeats": 3,
    "versions": {"torch": "2"},
    "network": "0123",
}


def table_of(space, seed=0, unit=10**6, **conditions):
    """Random times of the operators of a space."""
    rng = np.random.default_rng(seed)
    sites = {s.name: {n: int(rng.integers(0, 12)) * unit for n in s.names} for s in space.sites}
    return LatencyTable(space, 5 * unit, sites, CONDITIONS | conditions)


# ------------------------------------------------------------------ times and tables


@pytest.mark.parametrize(
    "text, number", [("120ms", 120 * 10**6), ("1.5s", 15 * 10**8), ("800us", 800_000), (" 0.25 ms ", 250_000)]
)
def test_times_that_can_be_given(text, number):
    assert parse_latency(text, "--max-latency") == number == parse_latency(milliseconds(number), "it")


@pytest.mark.parametrize("text", ["120", "0ms", "-3ms", "fast", "1e3ms", "3 min", ""])
def test_times_that_cannot(text):
    with pytest.raises(UserError, match="--max-latency is .*expected a time for one image, e.g. 120ms"):
        parse_latency(text, "--max-latency")


def test_no_digit_of_a_time_is_lost():
    assert [milliseconds(n) for n in (1, 10**6, 123_456_789, 2 * 10**9)] == [
        "0.000001ms",
        "1ms",
        "123.456789ms",
        "2000ms",
    ]


def test_a_table_adds_up_and_is_read_as_written(tmp_path):
    table = table_of(SPACE)
    a, b = (SPACE.random(np.random.default_rng(i)) for i in (1, 2))
    by_hand = 5 * 10**6 + sum(table.sites[site][name] for site, name in a.names().items())
    assert table.nanoseconds(a) == table.nanoseconds(a.indices()) == by_hand
    table = table.with_network(a, 7).with_network(b, by_hand).with_network(a, 2 * by_hand)
    assert [n.measured for n in table.networks] == [by_hand, 2 * by_hand]
    assert table.measured(a).error == -0.5 and table.measured(SPACE.random(np.random.default_rng(9))) is None
    write_table(tmp_path / "search" / FILE, table)
    assert read_table(tmp_path / "search" / FILE) == table


def test_damaged_tables_are_refused(tmp_path):
    content = table_of(SPACE).to_json()
    site = SPACE.sites[0].name
    path = tmp_path / FILE
    wrong = [{key: v for key, v in content.items() if key != gone} for gone in ("fixed", "device", "sites")]
    wrong += [content | {"fixed": -1}, content | {"fixed": 1.5}, content | {"networks": [{}]}, []]
    wrong += [content | {"sites": {site: {"no_such": 3}}}, content | {"sites": {site: {"shuffle_3x3": "3"}}}]
    for damaged in wrong:
        path.write_text(json.dumps(damaged))
        with pytest.raises(UserError, match="latency.json: no table of times|unknown operator"):
            read_table(path)
    with pytest.raises(UserError, match="cannot read the table of times: there is no such file"):
        read_table(tmp_path / "nowhere.json")


# ------------------------------------------------------------------ the limit


@pytest.mark.parametrize("limited", [("latency",), ("macs", "latency"), ("macs", "params", "latency")])
def test_equal_to_enumeration(limited):
    """The best score within the limits, of equal ones the least of the first; what is infeasible by name."""
    refused = several = 0
    for seed in range(60):
        rng = np.random.default_rng([seed, len(limited), 7])
        plain = random_tables(rng)
        table = table_of(plain.space, seed, unit=int(rng.choice([1, 10**9 + 7])))
        tables = with_latency(plain, table)
        scores = random_scores(rng, plain)
        choices = [(*c, table.nanoseconds(c[3])) for c in everything(plain, scores)]
        place = {"macs": 1, "params": 2, "latency": 4}
        centre = choices[rng.integers(len(choices))]
        limits = {f"max_{n}": max(int(centre[place[n]] + rng.integers(-2, 3)), 0) for n in limited}
        feasible = [c for c in choices if all(c[place[n]] <= limits[f"max_{n}"] for n in limited)]
        if not feasible:
            refused += 1
            with pytest.raises(UserError, match="smallest feasible value") as error:
                best_under_budget(scores, tables, **limits)
            name, value = re.search(r"of --max-(\w+) is (\S+)$|is (\S+)$", str(error.value)).group(1, 2)
            if name:  # together infeasible: what it names is, and less is not
                several += 1
                number = parse_latency(value, "") if name == "latency" else int(value)
                involved = re.findall(r"--max-(\w+) [\d.,]+(?:ms)?(?: with|:)", str(error.value))
                loose = {f"max_{n}": limits[f"max_{n}"] for n in involved}
                barred = [np.where(np.isfinite(s), 0.0, -np.inf) for s in scores]
                best_under_budget(barred, tables, **loose | {f"max_{name}": number})
                with pytest.raises(UserError):
                    best_under_budget(barred, tables, **loose | {f"max_{name}": number - 1})
            continue
        point = best_under_budget(scores, tables, **limits)
        best = max(round(c[0], 9) for c in feasible)
        least = min(c[place[limited[0]]] for c in feasible if round(c[0], 9) == best)
        assert point.exact and round(point.score, 9) == best
        assert {"macs": point.macs, "params": point.params, "latency": point.latency}[limited[0]] == least
        assert point.latency == table.nanoseconds(list(point.indices))
        near = cheapest_near(scores, tables, point.indices, 1.0, **limits)
        allowed = [c for c in feasible if c[0] >= point.score - 1.0 - 1e-9]
        assert near.exact and near.macs == min(c[1] for c in allowed)
    assert refused > 3 and (several or len(limited) == 1)


def test_a_time_that_is_too_short_names_the_shortest():
    tables = with_latency(COSTS, table := table_of(SPACE))
    least = table.fixed + sum(min(row.values()) for row in table.sites.values())
    with pytest.raises(
        UserError, match=f"--max-latency .*no architecture is that fast; .* {milliseconds(least)}$"
    ):
        check_budget(tables, max_latency=least - 1)
    check_budget(tables, max_latency=least)


def test_the_selection_keeps_the_limit_and_states_the_time():
    cycles, _ = evaluated(SPACE, cycles=2)
    tables = with_latency(COSTS, table := table_of(SPACE, 3, network=costs_digest(COSTS)))
    free = select(SPACE, cycles, "mean", tables)
    time = table.nanoseconds(free.architecture)
    assert free.cost["latency"] == time and "max_latency" not in free.limits
    tight = select(SPACE, cycles, "mean", tables, max_latency=time - 1)
    assert table.nanoseconds(tight.architecture) < time and tight.limits["max_latency"] == time - 1
    assert "latency" not in select(SPACE, cycles, "mean", COSTS).cost

    class Result:
        architecture, selection = tight.architecture, tight

    candidates = [(a, f) for cycle in cycles for a, f in cycle]
    finalists = contenders(FinalsRequest(6, 0, 1), Result, candidates, tables)
    assert len(finalists) > 2 and all(table.nanoseconds(c.architecture) < time for c in finalists)


def test_times_of_another_space_are_no_costs_of_this_one():
    other = random_tables(np.random.default_rng(0)).space
    with pytest.raises(UserError, match="times of another space"):
        with_latency(COSTS, table_of(other))


# ------------------------------------------------------------------ measuring


class HandClock:
    """Stands still until somebody works."""

    now = 0.0

    def mark(self):
        return self.now

    def seconds(self, first, second):
        return second - first


class Work(nn.Module):
    """Takes so many seconds, and in its second call ten more."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds, self.calls = clock, seconds, 0

    def forward(self, x):
        self.calls += 1
        self.clock.now += self.seconds + 10 * (self.calls == 2)
        return x


class Net(nn.Module):
    """Three operators, called twice, beside two of another site, and a second of work without a choice."""

    device = torch.device("cpu")
    TIMES = {"mask.0": (3.0, 5.0, 7.0), "mask.1": (0.5, 0.25)}
    NAMES = ("dwconv_3x3", "dwconv_5x5", "atconv_3x3")

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.first, self.second = (
            ChoiceBlock(site, {n: Work(clock, t) for n, t in zip(self.NAMES, times, strict=False)})
            for site, times in self.TIMES.items()
        )

    def forward(self, inputs):
        self.clock.now += 1.0
        return self.second(self.first(self.first(inputs[0]["image"])))


def test_operators_by_hand():
    """Both calls of a site count; the one slow call of each operator, in a round that counts, does not."""
    net = Net(clock := HandClock()).eval()
    fixed, sites, networks = operator_seconds(net, [{"image": torch.ones(1)}], 5, clock=clock)
    assert fixed == 1.0 and networks == []
    first, second = sites["mask.0"], sites["mask.1"]
    assert first == dict(zip(Net.NAMES, (6.0, 10.0, 14.0), strict=True))
    assert second == dict(zip(Net.NAMES, (0.5, 0.25), strict=False))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_whole_networks_by_hand():
    """Every path takes what the table says."""
    net = Net(clock := HandClock()).eval()
    inputs = [{"image": torch.ones(1)}]
    space = space_of(net)
    paths = [space.architecture(indices) for indices in itertools.product(range(3), range(2))]
    fixed, sites, networks = operator_seconds(net, inputs, 3, paths, clock)
    predicted = [fixed + sum(sites[s][n] for s, n in a.names().items()) for a in paths]
    assert networks == predicted == [network_seconds(net, inputs, a, 2, clock) for a in paths]


def test_a_bad_table_is_called_bad():
    good, bad = Measured({}, 109, 100), Measured({}, 85, 100)
    assert warning([]) == warning([good]) == []
    (line,) = warning([good, bad])
    assert line.startswith("THE TABLE IS OFF BY 15%")


# ------------------------------------------------------------------ the commands


@pytest.fixture
def toy(tmp_path, shapes):
    """(config file, its costs) of a finished search in tmp_path/output."""
    costs = configured_costs(make_config(tmp_path, shapes))
    write_ledger(tmp_path / "output", costs.space, evaluated(costs.space)[0])
    return write_config(tmp_path / "toy.yaml", shapes), costs


def test_measured_and_selected_by_commands(toy, tmp_path, capfd):
    """The table is written; the limit is kept; the selection is measured as a whole, and both are shown."""
    config, costs = toy
    arguments = ["--config-file", str(config), "--rescore", "--estimator", "mean"]
    with pytest.raises(SystemExit) as end:
        run_script("search_net", *arguments, "--max-latency", "100s")
    line = error_line(capfd)
    assert end.value.code == 2 and "needs measured times, there is no" in line
    words = line.rpartition("python -m auto_panoptic.latency ")[2].split()
    assert words == ["--config-file", str(config), "OUTPUT_DIR", str(tmp_path / "output")]

    command.main(["--repeats", "1", "--networks", "2", *words])
    out = capfd.readouterr().out
    path = ledger_path(tmp_path / "output").with_name(FILE)
    table = read_table(path)
    assert table.space == costs.space and table.conditions["image"] == [64, 64] and len(table.networks) == 2
    assert out.splitlines()[-1] == f"table         {path}" and "random 2" in out
    assert all(re.search(rf"^{re.escape(s.name)} .* ms$", out, re.M) for s in costs.space.sites)

    # Times that leave something to choose, whatever this machine was doing.
    rng = np.random.default_rng(0)
    sites = {s: {n: int(rng.integers(10**6, 10**7)) for n in row} for s, row in table.sites.items()}
    table = LatencyTable(table.space, table.fixed, sites, table.conditions)
    write_table(path, table)
    least = table.fixed + sum(min(row.values()) for row in sites.values())
    with pytest.raises(SystemExit):
        run_script("search_net", *arguments, "--max-latency", milliseconds(least - 1))
    assert error_line(capfd).endswith(f"the smallest feasible value is {milliseconds(least)}")
    run_script("search_net", *arguments, "--max-latency", milliseconds(limit := least + 10**7))
    out = capfd.readouterr().out
    assert f"Selected by mean with latency <= {milliseconds(limit)}" in out and "ms predicted" in out
    (found,) = read_table(path).networks
    assert found.predicted <= limit and found.measured > 0
    assert re.search(r"^latency: [\d.,]+ ms predicted, [\d.,]+ ms measured: the prediction is", out, re.M)
    assert ("MEASURED ABOVE --max-latency" in out) == (found.measured > limit)
    saved = json.loads(path.with_name("architecture.json").read_text())["provenance"]
    assert saved["max_latency"] == limit and saved["latency"] == found.predicted
    page = Page(path.with_name("report.html").read_text())
    assert f"latency ≤ {limit / 1e6:g} ms" in page.text["found"]

    with pytest.raises(SystemExit):
        run_script("search_net", *arguments, "--max-latency", "1s", "MODEL.ROI_MASK_HEAD.CONV_DIM", 64)
    assert "was measured on networks of another config" in error_line(capfd)


def test_a_search_keeps_the_limit(tmp_path, shapes, capfd, monkeypatch):
    """And where the times are of another machine it says that it has not measured."""
    from detectron2.modeling import build_model

    from auto_panoptic.training import AtomicCheckpointer

    cfg = make_config(tmp_path, shapes)
    AtomicCheckpointer(build_model(cfg), str(tmp_path)).save("model_final")
    costs = configured_costs(cfg)
    table = table_of(costs.space, 1, network=costs_digest(costs))
    write_table(ledger_path(tmp_path / "output").with_name(FILE), table)
    middle = table.fixed + sum(sum(row.values()) // len(row) for row in table.sites.values())
    config = write_config(tmp_path / "toy.yaml", shapes)
    arguments = ("--policy", "random", "--cycles", 1, "--models-per-cycle", 2)
    limit = ("--max-latency", milliseconds(middle))
    run_script(
        "search_net", "--config-file", config, "--weights", tmp_path / "model_final.pth", *arguments, *limit
    )
    out = capfd.readouterr().out
    assert "was not measured: this is cpu (" in out and "the times are of cpu (a machine), 2 threads" in out
    saved = json.loads((tmp_path / "output/search/architecture.json").read_text())
    assert table.nanoseconds(saved["sites"] and costs.space.architecture(saved["sites"])) <= middle


def test_parts_of_a_fixed_network(tmp_path, shapes, capsys):
    space = configured_costs(make_config(tmp_path, shapes)).space
    space.architecture([0] * len(space.sites)).save(tmp_path / "a.json")
    nas = {"ARCHITECTURE": str(tmp_path / "a.json")}
    config = write_config(tmp_path / "fixed.yaml", shapes, NAS=nas)
    command.main(["--config-file", str(config), "--repeats", "1", "--size", "64", "96"])
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("one image of 64 x 96, cpu (")
    names = ["backbone", "proposal_generator", "roi_heads", "sem_seg_head", "attention", "rest", "all"]
    assert [row.split()[0] for row in rows] == names and not (tmp_path / "output").exists()
    for words, message in (
        (["--repeats", "0"], "--repeats is 0"),
        (["--networks", "-1"], "--networks is -1"),
    ):
        with pytest.raises(UserError, match=message):
            command.main(["--config-file", str(config), *words])


# ------------------------------------------------------------------ the report


def test_the_report_shows_times_that_were_measured(tmp_path):
    make_search(tmp_path)
    path = ledger_path(tmp_path).with_name(FILE)
    assert "Latency was not measured" in Page(write_report(tmp_path).read_text()).text["costs"]
    table = table_of(SPACE, network=costs_digest(COSTS))
    search = read_search(tmp_path)
    time = table.nanoseconds(search.selected)
    write_table(path, table.with_network(search.selected, time * 2))
    search = read_search(tmp_path)
    *_, shown = measures(search)
    assert shown.selected == time / 1e6
    assert [shown.of(c) for c in search.good] == [
        table.nanoseconds(c.architecture) / 1e6 for c in search.good
    ]
    text = Page(write_report(tmp_path).read_text()).text["costs"]
    assert "64 × 96 on cpu (a machine), 2 threads" in text and "the prediction is 50.0% below" in text
    assert "ms of an image, predicted" in text
    for other in (table_of(SPACE, network="other").to_json(), {}):
        path.write_text(json.dumps(other))
        assert read_search(tmp_path).latency is None and len(measures(read_search(tmp_path))) == 2


def test_judging_needs_the_machine_of_the_table(tmp_path, shapes):
    class Result:
        architecture = SPACE.architecture([0] * len(SPACE.sites))
        directory = tmp_path
        selection = type("Selection", (), {"limits": {"max_latency": 1}})

    tables = with_latency(COSTS, table_of(SPACE, device="cpu (another)"))
    (line,) = judged(make_config(tmp_path, shapes), tables, Result)
    assert "was not measured: this is" in line and not (tmp_path / FILE).exists()
