"""The finals of a search: who takes part, successive halving, and the same end after every interruption."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_search import FREE, HEADER, SPACE, Evaluate, search, utility

from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger, controls
from auto_panoptic.explore.selection import alternatives
from auto_panoptic.search import Request, finalists, ledger_path
from auto_panoptic.search.final_training import Final
from auto_panoptic.search.finalists import FinalsRequest, contenders, evaluated_candidates, random_networks
from auto_panoptic.search.finals import Finals, finals_header, open_journal, rounds, trainings, write_finals
from auto_panoptic.space import Cost, CostTables

COSTS = CostTables(SPACE, {"stem": Cost(1000, 7)}, FREE)
REQUEST = FinalsRequest(finalists=4, controls=3, steps=8, seeds=2)


@pytest.mark.parametrize(
    ("finalists", "expected"),
    [
        (1, []),
        (2, [(2, 100)]),
        (3, [(3, 50), (2, 100)]),
        (5, [(5, 25), (3, 50), (2, 100)]),
        (8, [(8, 25), (4, 50), (2, 100)]),
    ],
)
def test_half_go_on_with_twice_the_steps(finalists, expected):
    assert rounds(finalists, 100) == expected


def test_a_training_has_at_least_one_step():
    assert rounds(16, 3) == [(16, 1), (8, 1), (4, 1), (2, 3)]


class Train:
    """Scores as a supernet's path, but for the noise of steps and seed; stops where told to."""

    def __init__(self, kill_at=None, fail=lambda final: False, backwards=False, worth=utility):
        self.calls, self.kill_at, self.fail, self.backwards, self.worth = [], kill_at, fail, backwards, worth

    def run(self, items):
        items = list(items)
        for key, final in reversed(items) if self.backwards else items:
            if len(self.calls) == self.kill_at:
                raise KeyboardInterrupt
            self.calls.append(final)
            if self.fail(final):
                yield key, {"status": "failed", "metrics": {}, "seconds": {}, "error": "diverged"}
                continue
            rng = np.random.default_rng([final.seed, final.steps])
            score = self.worth(final.architecture) + final.steps + rng.normal() / 10
            metrics = {"PQ": score, "bootstrap": (score + rng.normal(size=64) / 100).tolist()}
            yield key, {"status": "ok", "metrics": metrics, "seconds": {"training": 1.0}}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(folder, result, ledger) of a search."""
    folder = tmp_path_factory.mktemp("searched")
    result, _ = search(folder, Evaluate(), costs=COSTS, request=Request("ridge"))
    return result, Ledger(ledger_path(folder))


def hold(folder, found, train, request=REQUEST, retry_failed=False):
    result, ledger = found
    (folder / "search").mkdir(exist_ok=True)
    result.architecture.save(folder / "search/architecture.json")
    who = contenders(request, result, evaluated_candidates(ledger, SPACE), COSTS)
    header = finals_header(ledger, request, who, {"BASE_LR": 0.1})
    with open_journal(folder / "search", header) as journal:
        came = Finals(request, journal, train, retry_failed).run(who, COSTS, result.selection.limits)
    write_finals(folder / "search", request, came, COSTS)
    return came, came.finalists


def files(folder):
    return [(folder / "search" / name).read_bytes() for name in ("finals.json", "architecture.json")]


def test_who_takes_part(found):
    result, ledger = found
    finalists = contenders(REQUEST, result, evaluated_candidates(ledger, SPACE), COSTS)
    controls = random_networks(3, finalists[0], finalists, COSTS)
    assert finalists[0].architecture == result.architecture and "the selection" in finalists[0].roles
    best = max(ledger.records, key=lambda r: r["metrics"]["PQ"])["architecture"]
    assert [c.architecture.indices() for c in finalists if "the best candidate" in c.roles] == [best]
    assert 4 <= len(finalists) <= 5  # the best candidate may be one of the others
    assert len({c.architecture for c in (*finalists, *controls)}) == len(finalists) + 3
    assert [c.roles for c in finalists[1:4]] == [
        [f"the best with another operator of {site}"] for site in [*alternatives(result.selection, COSTS)][:3]
    ]
    scores = result.selection.scores
    predicted = [sum(scores[s][n] for s, n in c.architecture.names().items()) for c in finalists[:4]]
    assert predicted == sorted(predicted, reverse=True)
    with pytest.raises(UserError, match="--finals 5000: the search has 72 different candidates"):
        contenders(FinalsRequest(5000, 0, 1), result, evaluated_candidates(ledger, SPACE), COSTS)


def costs_by_index(step=1000):
    """Every operator costs ``step`` times its place at its site, from 1."""
    rows = {site.name: enumerate(site.names, start=1) for site in SPACE.sites}
    return CostTables(
        SPACE,
        {"stem": Cost(1, 1)},
        {site: {name: Cost(step * i, 1) for i, name in row} for site, row in rows.items()},
    )


def test_fewer_networks_within_the_limits_than_finalists(found):
    """The limit is the cost of the third cheapest candidate; the selection is the cheapest of the space."""
    result, ledger = found
    costs, candidates = costs_by_index(), evaluated_candidates(ledger, SPACE)
    cheap = sorted(costs.cost(a).macs for a in {a for a, _ in candidates})
    assert cheap[2] < cheap[3]
    cheapest = SPACE.architecture([0] * len(SPACE.sites))
    limits = {"max_macs": cheap[2], "max_params": None}
    selection = replace(result.selection, architecture=cheapest, limits=limits)
    tight = replace(result, selection=selection, architecture=cheapest)
    assert cheapest not in {a for a, _ in candidates}
    there = len({cheapest, *alternatives(selection, costs).values()}) + 3
    assert len(contenders(FinalsRequest(there, 0, 8), tight, candidates, costs)) == there
    message = f"--finals {there + 1}: {there} networks are within the limits.*give --finals {there}"
    with pytest.raises(UserError, match=message):
        contenders(FinalsRequest(there + 1, 0, 8), tight, candidates, costs)


def test_controls_that_do_not_exist_are_refused_before_any_training(found, tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "_DRAWS", 0)
    train = Train()
    with pytest.raises(UserError, match="--controls 3: found 0 other architectures"):
        hold(tmp_path, found, train)
    assert train.calls == [] and not (tmp_path / "search/finals.jsonl").exists()
    hold(tmp_path, found, train, FinalsRequest(4, 0, 8))


def test_the_best_network_wins_and_is_compared_by_other_trainings(found, tmp_path):
    train = Train()
    came, finalists = hold(tmp_path, found, train)
    controls = came.controls
    expected = max(finalists, key=lambda c: utility(c.architecture))
    assert came.winner is expected and came.difference.verdict == "above"
    difference = utility(expected.architecture) - np.mean([utility(c.architecture) for c in controls])
    assert came.difference.mean == pytest.approx(difference, abs=0.3)
    seeds = {
        c: {f.seed for f in train.calls if f.architecture == c} for c in {f.architecture for f in train.calls}
    }
    assert seeds[expected.architecture] == {0, 1, 2, 3} and seeds[controls[0].architecture] == {2, 3}
    assert len(train.calls) == came.trainings
    content = json.loads((tmp_path / "search/finals.json").read_text())
    assert content["winner"] == expected.architecture.indices() and content["score"] == came.score
    saved = json.loads((tmp_path / "search/architecture.json").read_text())
    assert saved["backbone"] == content["winner"]["backbone"]
    assert saved["provenance"]["finals"]["over_random"] == content["over_random"]
    assert "beats random ones of equal cost by" in came.lines()[-1]


def test_random_networks_cost_what_the_winner_does_not_the_selection(found):
    """The cheapest finalist wins, whose cost no random network of the selection's has."""
    costs = costs_by_index()
    result, ledger = found
    finalists = contenders(REQUEST, result, evaluated_candidates(ledger, SPACE), costs)
    by_cost = sorted(finalists, key=lambda c: costs.cost(c.architecture).macs)
    for winner in (by_cost[0], by_cost[-1]):
        drawn = [costs.cost(c.architecture).macs for c in random_networks(3, winner, finalists, costs)]
        assert drawn == pytest.approx([costs.cost(winner.architecture).macs] * 3, rel=0.02)
    first, last = (costs.cost(c.architecture).macs for c in (by_cost[0], by_cost[-1]))
    assert last > 1.05 * first


def test_what_the_first_trainings_say_of_the_operators_is_a_finalist(found, tmp_path):
    """Three alternatives are better than the selection: a network with the operators of all three wins."""
    result, selected = found[0], found[0].architecture.names()
    finalists = contenders(REQUEST, result, evaluated_candidates(found[1], SPACE), COSTS)
    better = {s: n for c in finalists[1:4] for s, n in c.architecture.names().items() if n != selected[s]}
    assert len(better) == 3

    def worth(architecture):
        return 40 + 9 * sum(architecture.names()[s] == n for s, n in better.items())

    came, all_of_them = hold(tmp_path, found, train := Train(worth=worth))
    assert better.items() <= came.winner.architecture.names().items()
    assert came.winner.roles == ["the combination of the first trainings"]
    trained = {(f.steps, f.seed) for f in train.calls if f.architecture == came.winner.architecture}
    assert trained == {(4, 0), (8, 0), (8, 1), (8, 2), (8, 3)}  # of the rounds of 2, 4 and 8 steps
    assert all_of_them[:-1] == [c for c in all_of_them if c is not came.winner]
    written = json.loads((tmp_path / "search/finals.json").read_text())["finalists"]
    assert [row["roles"] for row in written] == [c.roles for c in all_of_them]
    assert came.trainings == len(train.calls) <= sum(n for n, _ in trainings(len(finalists), REQUEST))


def test_a_combination_without_random_networks_does_not_join(found, tmp_path, monkeypatch, caplog):
    """Rather than an error after hours, when it has won."""

    def drawn(number, winner, finalists, costs):
        if "combination" in winner.roles[0]:
            raise UserError("--controls: too few")
        return random_networks(number, winner, finalists, costs)

    monkeypatch.setattr(finalists, "random_networks", drawn)
    names = found[0].architecture.names()
    worth = lambda a: 40 + sum(a.names()[s] != n for s, n in names.items())  # noqa: E731
    came, who = hold(tmp_path, found, train := Train(worth=worth))
    assert not any("combination" in c.roles[0] for c in who) and came.trainings == len(train.calls)
    assert "takes no part: --controls: too few" in caplog.text


def test_a_combination_that_is_a_finalist_is_not_trained_twice(found, tmp_path):
    selected = found[0].architecture.names()

    def worth(architecture):
        return 40 + 9 * sum(architecture.names()[s] == n for s, n in selected.items())

    came, finalists = hold(tmp_path, found, train := Train(worth=worth))
    assert came.winner is finalists[0] and not any("combination" in c.roles[0] for c in finalists)
    calls = [(f.architecture, f.steps, f.seed) for f in train.calls]
    assert came.trainings == len(calls) == len(set(calls))


def test_a_search_that_did_not_pay_says_so(found, tmp_path):
    came, _ = hold(tmp_path, found, Train(worth=lambda architecture: 40.0))
    assert came.difference.verdict == "undecided"
    assert "NOT shown to beat random ones of equal cost" in came.lines()[-1]


@pytest.mark.parametrize("backwards", [False, True])
def test_killed_anywhere_and_in_any_order_it_ends_the_same(found, tmp_path, backwards):
    (tmp_path / "whole").mkdir()
    came, _ = hold(tmp_path / "whole", found, Train())
    for kill_at in range(0, came.trainings, 3):
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        first, second = Train(kill_at, backwards=backwards), Train(backwards=backwards)
        with pytest.raises(KeyboardInterrupt):
            hold(folder, found, first)
        hold(folder, found, second)
        assert files(folder) == files(tmp_path / "whole")
        assert len(first.calls) + len(second.calls) == came.trainings
        assert not set(first.calls) & set(second.calls)


def test_failed_trainings_lose_and_may_be_repeated(found, tmp_path):
    (tmp_path / "whole").mkdir(), (tmp_path / "failing").mkdir()
    came, finalists = hold(tmp_path / "whole", found, Train())
    best = came.winner.architecture
    without, _ = hold(tmp_path / "failing", found, Train(fail=lambda final: final.architecture == best))
    assert without.winner.architecture != best
    again, _ = hold(tmp_path / "failing", found, Train(), retry_failed=True)
    assert again.winner.architecture == best
    everything = Train(fail=lambda final: True)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="a training of the best finalist failed"):
        hold(tmp_path / "none", found, everything)


def test_finals_of_others_are_not_continued(found, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        hold(tmp_path, found, Train(kill_at=3))
    with pytest.raises(UserError, match=r"holds 3 trainings of other finals \(steps differ\)"):
        hold(tmp_path, found, Train(), FinalsRequest(4, 3, 16, 2))


def test_a_training_has_a_folder_of_its_own():
    one, other = (SPACE.architecture([i] + [0] * (len(SPACE.sites) - 1)) for i in (0, 1))
    folders = {Final(a, steps, seed).folder for a in (one, other) for steps in (1, 2) for seed in (0, 1)}
    assert len(folders) == 8
    assert HEADER["space"] == SPACE.to_dict()
