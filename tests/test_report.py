"""The report of a search says what its files say, and promises nothing that they do not."""

import dataclasses
import json
import re
import shutil
import time

import pytest
from report_util import COSTS, Page, make_search, words
from test_search import HEADER, SPACE, Evaluate, candidates, utility

from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger
from auto_panoptic.report import write_report
from auto_panoptic.report.candidates_figure import best_so_far
from auto_panoptic.report.cost_figure import front
from auto_panoptic.report.facts import read_search
from auto_panoptic.report.score_map import score_map
from auto_panoptic.report.wording import decided, disagreement, duration, found, power
from auto_panoptic.search import Request, ledger_path
from auto_panoptic.space import Architecture, ChoiceSite, SearchSpace


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_search(folder)
    return folder


@pytest.fixture(scope="module")
def page(finished):
    return Page(write_report(finished).read_text())


def stored(folder, name):
    return json.loads((folder / "search" / name).read_text())


# ------------------------------------------------------------------ the numbers are those of the files


def test_every_cell_has_the_scores_of_scoreboard_json(finished, page):
    cells = [
        f"{site}, {row['op']}: score {row['score']:.6g}, {row['count']} candidates, "
        f"PQ {row['mean']:.2f} on average"
        for site, rows in stored(finished, "scoreboard.json")["sites"].items()
        for row in rows
    ]
    said = [tip for tip in page.tips if ": score " in tip]
    assert sorted(said) == sorted(2 * cells)  # once in the wide drawing, once in the narrow one


def test_every_lead_is_that_of_scoreboard_json(finished, page):
    selection = stored(finished, "scoreboard.json")["selection"]
    leads = []
    for site, verdict in selection["verdicts"].items():
        low, high = verdict["interval"]
        leads.append(
            f"{site}: {verdict['selected']} leads {verdict['rival']} by {verdict['difference']:+.2f} "
            f"[{low:+.2f}, {high:+.2f}], {'decided' if verdict['decided'] else 'undecided'}"
        )
    assert sorted(tip for tip in page.tips if " leads " in tip) == sorted(2 * leads)
    assert selection["decided"] == 0
    assert "0 of 8 sites are decided: at no site do these candidates show" in words(page.text["found"])


def test_the_drawn_architecture_is_that_of_architecture_json(finished, page):
    sites = stored(finished, "architecture.json")["sites"]
    boxes = [tip for tip in page.tips if re.fullmatch(r"[\w.]+: \w+", tip)]
    assert sorted(boxes) == sorted(2 * [f"{site}: {op}" for site, op in sites.items()])


def test_the_costs_are_those_of_costs_json(finished, page):
    search = read_search(finished)
    names = stored(finished, "architecture.json")["sites"]
    assert search.selected_cost == tuple(COSTS.cost(SPACE.architecture(names)))
    provenance = dict(page.tables["provenance"])
    assert provenance["architecture.json: macs"] == f"{search.selected_cost[0]:,}"
    assert provenance["architecture.json: params"] == f"{search.selected_cost[1]:,}"


def test_the_table_has_every_candidate_to_the_last_digit_the_best_first(finished, page):
    ledger = Ledger(ledger_path(finished))
    head, *rows = page.tables["table"]
    assert head == ["no.", "cycle", "PQ", "SQ", "MACs", "parameters", "seconds", "operators"]
    expected = [
        [
            str(r["seq"]),
            str(r["cycle"]),
            repr(r["metrics"]["PQ"]),
            repr(r["metrics"]["SQ"]),
            str(r["macs"]),
            str(r["params"]),
            "0.5",
            "".join(map(str, [i for group in r["architecture"].values() for i in group])),
        ]
        for r in sorted(ledger.records, key=lambda r: -r["metrics"]["PQ"])
    ]
    assert rows == expected


def test_time_and_fairness_are_counted(page):
    """48 candidates of half a second; sites of 4, 6 and 3 operators in two cycles of 24."""
    assert page.tables["phases"][1] == ["evaluation", "24.0", "0.5 s", "100 %"]
    text = words(page.text["record"])
    assert "At each of the 8 sites every operator was used by equally many candidates (8 to 16, by" in text
    assert "Failures None." in text


# ------------------------------------------------------------------ the words promise nothing


def with_decided(search, number):
    """The search with the verdicts of its first ``number`` sites decided, the others not."""
    verdicts = {
        site: {**verdict, "decided": i < number}
        for i, (site, verdict) in enumerate(search.selection["verdicts"].items())
    }
    return dataclasses.replace(search, selection={**search.selection, "verdicts": verdicts})


@pytest.mark.parametrize("number, said", [
    (0, "0 of 8 sites are decided: at no site do these candidates show which operator is best. Other"),
    (1, "1 of 8 sites is decided: there the 95 % interval of the selected operator's lead"),
    (3, "At the other 5, these candidates do not show which operator is best. Among 8 intervals some"),
    (8, "8 of 8 sites are decided: there the 95 % interval of the selected operator's lead over the "
        "strongest other one lies above 0. What the selected network is worth shows when it is trained."),
])  # fmt: skip
def test_undecided_sites_read_so(finished, number, said):
    search = with_decided(read_search(finished), number)
    assert decided(search) == (number, 8)
    assert said in found(search)


def test_sites_without_a_choice_are_no_decisions(finished):
    """scoreboard.json counts them as decided: there is nothing else to select."""
    search = with_decided(read_search(finished), 2)
    first, *rest = SPACE.sites
    space = SearchSpace((ChoiceSite(first.name, first.ops[:1]), *rest))
    search = dataclasses.replace(search, space=space)
    assert decided(search) == (1, 7)
    assert "Sites with a single operator, of which there are 1, do not count." in found(search)
    selection = {**search.selection, "disagreements": {rest[0].name: {}}}
    assert disagreement(dataclasses.replace(search, selection=selection)).startswith("At 1 of 7 sites with a")
    selection["disagreements"] = {}
    assert disagreement(dataclasses.replace(search, selection=selection)) == ""


def test_the_map_of_scores_says_where_nothing_is_to_choose(finished):
    """And draws no axis of leads beside such sites alone."""
    search = read_search(finished)
    domains = len({tuple(site.ops) for site in SPACE.sites})
    first, *rest = SPACE.sites
    fixed = SearchSpace((ChoiceSite(first.name, first.ops[:1]), *rest))
    verdicts = dict(search.selection["verdicts"])
    verdicts[first.name] = {**verdicts[first.name], "interval": None}
    selection, axes = {**search.selection, "verdicts": verdicts}, []
    for space, said in ((SPACE, 0), (fixed, 1)):
        text = score_map(dataclasses.replace(search, space=space, selection=selection), 900).svg()
        assert (text.count("nothing to choose"), text.count("too few candidates")) == (said, 1 - said)
        axes.append(text.count("lead, PQ"))
    assert axes == [domains, domains]


def test_what_was_not_measured_is_not_claimed(finished):
    search = read_search(finished)
    assert search.selected_candidate is None
    assert "was not itself a candidate, so its PQ in the supernet is not known" in found(search)
    known = dataclasses.replace(search, selected=search.best.architecture)
    assert f"It was itself a candidate, with PQ {search.best.fitness:.2f}." in found(known)
    values = [utility(a) for a in candidates(2)]
    assert f"They scored from {min(values):.2f} to {max(values):.2f} PQ." in found(search)


def test_a_policy_that_takes_the_best_candidate_judges_no_site(tmp_path):
    make_search(tmp_path, policy="random", request=None, header=HEADER | {"policy": "random"})
    search = read_search(tmp_path)
    assert search.final and search.selection is None and search.selected == search.best.architecture
    assert decided(search) is None
    text = Page(write_report(tmp_path).read_text()).text["found"]
    assert (
        f"Selected is the candidate with the highest PQ, {search.best.fitness:.2f}. The best of many" in text
    )
    assert "decided" not in text


@pytest.mark.parametrize("number, text", [
    (4**40 * 6**7 * 3**9, "6.7 × 10³³"), (999_999, "999,999"), (10**6, "1.0 × 10⁶"),
    (999_999_999, "1.0 × 10⁹"),
])  # fmt: skip
def test_powers(number, text):
    assert power(number) == text


def test_durations():
    assert [duration(s) for s in (0.25, 119, 150, 9000)] == ["0.2 s", "119.0 s", "2.5 min", "2.5 h"]


# ------------------------------------------------------------------ under way, cut off, failed


def test_while_a_search_runs_the_report_selects_as_its_end_would(finished, tmp_path):
    """Without the files that the end writes, the numbers are the same and the page says what it is."""
    shutil.copytree(finished / "search", tmp_path / "search")
    for name in ("scoreboard.json", "architecture.json"):
        (tmp_path / "search" / name).unlink()
    with open(ledger_path(tmp_path), "a") as stream:
        stream.write('{"seq": 48, "cycle"')  # being written
    now, end = read_search(tmp_path), read_search(finished)
    assert (now.final, end.final) == (False, True)
    assert now.table == stored(finished, "scoreboard.json")["sites"]
    assert now.ranking == stored(finished, "scoreboard.json")["ranking"]
    assert now.selected == end.selected
    same = ("estimator", "score", "selected", "scores", "verdicts", "disagreements")
    assert {k: now.selection[k] for k in same} == {k: end.selection[k] for k in same}
    text = Page(write_report(tmp_path).read_text()).text["state"]
    assert text.startswith("No final selection from these 48 candidates has been written: the search runs")


def test_files_of_fewer_candidates_are_not_mixed_with_the_ledger(tmp_path):
    make_search(tmp_path, cycles=1)
    old = stored(tmp_path, "scoreboard.json")
    make_search(tmp_path, cycles=2, resume=True)
    (tmp_path / "search/scoreboard.json").write_text(json.dumps(old))
    search = read_search(tmp_path)
    assert not search.final and len(search.candidates) == 48
    assert {sum(row["count"] for row in rows) for rows in search.table.values()} == {48}


@pytest.mark.parametrize("change", [
    lambda selection: selection.pop("verdicts"),
    lambda selection: selection["verdicts"].pop("mask.0"),
    lambda selection: selection["scores"]["mask.0"].popitem(),
    lambda selection: selection["selected"].update({"mask.0": "r4"}),
    lambda selection: selection.clear(),
    lambda selection: selection.update(own={"share": 1.0}),
    lambda selection: selection.update(own={"share": "all", "deviation": 1.0, "ahead": 1.0}),
    lambda selection: selection.update(over_random={"lead": 1.0, "interval": ["low", 2.0]}),
])  # fmt: skip
def test_a_damaged_selection_is_computed_anew(finished, tmp_path, change):
    shutil.copytree(finished / "search", tmp_path / "search")
    board = stored(finished, "scoreboard.json")
    change(board["selection"])
    (tmp_path / "search/scoreboard.json").write_text(json.dumps(board))
    now, end = read_search(tmp_path), read_search(finished)
    assert not now.final and now.selected == end.selected
    assert now.selection["verdicts"] == end.selection["verdicts"]


@pytest.mark.parametrize("change", [{"seconds": [1]}, {"seconds": {"evaluation": "long"}}, {"macs": "many"}])
def test_a_record_that_no_search_wrote_is_named(finished, tmp_path, change):
    ledger = Ledger(ledger_path(finished))
    record = {k: v for k, v in ledger.records[0].items() if k != "seq"} | change
    with Ledger.open(ledger_path(tmp_path), ledger.header) as mine:
        mine.append(record)
    with pytest.raises(UserError, match="line 2 is not as a search writes it"):
        read_search(tmp_path)


def test_limits_and_estimator_of_a_selection_are_kept(tmp_path):
    limit = COSTS.minimum.macs + 30
    make_search(tmp_path, request=Request("mean", max_macs=limit))
    search = read_search(tmp_path)
    assert search.selection["estimator"] == "mean" and search.selected_cost[0] <= limit
    assert search.selected == Architecture.load(tmp_path / "search/architecture.json")
    assert "as far as the limits allow" in found(search)
    assert f"The limits were macs ≤ {limit / 1000:.3g} k." in found(search)


@pytest.mark.parametrize(
    "low, said", [(0.5, "as many MACs."), (-0.5, "another limit may leave more to decide.")]
)
def test_what_a_search_is_worth_at_this_cost(finished, tmp_path, low, said):
    shutil.copytree(finished / "search", tmp_path / "search")
    board = stored(finished, "scoreboard.json")
    board["selection"]["over_random"] = {"lead": 1.25, "interval": [low, 2.5]}
    (tmp_path / "search/scoreboard.json").write_text(json.dumps(board))
    sentence = (
        f"predicted to be +1.25 [{low:+.2f}, +2.50] against the mean of random networks of as many MACs"
    )
    text = found(read_search(tmp_path))
    assert sentence in text and said in text


def test_failures_stand_with_their_reasons(tmp_path):
    bad = candidates(1)[3:6]
    make_search(tmp_path, cycles=1, evaluate=Evaluate(crash=bad[:2], nan=bad[2:], bootstrap=True))
    page = Page(write_report(tmp_path).read_text())
    assert page.tables["failures"][1:] == [
        ["2", "RuntimeError: out of memory", "3, 4"],
        ["1", "PQ is not a number", "5"],
    ]
    assert "The search scored 24 candidate networks, 3 of which failed" in words(page.text["found"])
    assert len(page.tables["table"]) == 1 + 21


def test_of_failures_alone_there_is_a_report(tmp_path):
    with pytest.raises(UserError, match="nothing to select from"):
        make_search(tmp_path, cycles=1, evaluate=Evaluate(crash=candidates(1)))
    page = Page(write_report(tmp_path).read_text())
    assert "All candidates failed" in page.text["state"] and "architecture" not in page.text
    assert page.tables["failures"][1][0] == "24"


def test_what_a_ledger_says_is_text_not_markup(tmp_path):
    class Evil(Evaluate):
        def __call__(self, architecture):
            if not self.calls:
                self.calls.append(architecture)
                raise RuntimeError("<script>alert(1)</script><img src=x>")
            return super().__call__(architecture)

    make_search(tmp_path, cycles=1, evaluate=Evil())
    html = write_report(tmp_path).read_text()
    assert "alert(1)" in html and "<script>alert(1)" not in html and "<img" not in html


# ------------------------------------------------------------------ the file


def test_the_page_needs_nothing_else(finished, page):
    html = (finished / "search/report.html").read_text()
    assert [link for link in page.links if not link.startswith(("#", "data:"))] == []
    assert "url(" not in html and "@import" not in html and "http:" not in html and "https:" not in html
    assert "default-src 'none'" in html
    assert len(html) < 2_000_000


def test_a_thousand_candidates_are_small_and_quick(tmp_path):
    """Of 2 MB the pictures may take 600 kB; seconds of the CPU, whatever else the machine does."""
    make_search(tmp_path, cycles=42)
    start = time.process_time()
    page = write_report(tmp_path)
    assert time.process_time() - start < 5
    assert len(read_search(tmp_path).good) == 1008 and page.stat().st_size < 1_400_000


def test_every_figure_lies_beside_the_page(finished, page):
    names = [
        f"{name}.{kind}"
        for name in ("architecture", "candidates", "costs", "score_map")
        for kind in ("png", "svg")
    ]
    folder = finished / "search/figures"
    assert sorted(p.name for p in folder.iterdir()) == names
    for name in names:
        start = b"\x89PNG" if name.endswith("png") else b"<svg xmlns="
        assert (folder / name).read_bytes().startswith(start)


def test_the_same_search_gives_the_same_page(finished, page):
    before = (finished / "search/report.html").read_bytes()
    assert write_report(finished).read_bytes() == before


def test_several_ledgers_in_one_figure(finished, tmp_path):
    header = HEADER | {"policy": "random", "weights": "89ab"}
    make_search(tmp_path / "other", policy="random", request=None, header=header)
    search = read_search(finished, [tmp_path / "other/search/ledger.jsonl"])
    assert [run.policy for run in (search, *search.others)] == ["path_priority", "random"]
    text = Page(write_report(finished, [tmp_path / "other"]).read_text()).text["candidates"]
    assert "random, 48 candidates (other)" in text
    assert f"{tmp_path}/other/search/ledger.jsonl: another weights; its scores may not be comparable" in text
    write_report(finished)


def test_best_so_far(finished):
    """By hand: the running maximum, over the order of the ledger."""
    search = read_search(finished)
    values = [c.fitness for c in search.candidates]
    maxima = [(i + 1, v) for i, v in enumerate(values) if v > max(values[:i], default=-1)]
    assert best_so_far(search) == maxima and maxima[-1][1] == max(values)


def test_front_of_the_candidates(finished):
    search = read_search(finished)
    best = front(search.good, lambda c: c.cost[0])
    for c in search.good:  # none is better at no more cost than all of the front
        assert any(f.cost[0] <= c.cost[0] and f.fitness >= c.fitness for f in best)
    for one, two in zip(best, best[1:], strict=False):
        assert one.cost[0] < two.cost[0] and one.fitness < two.fitness
