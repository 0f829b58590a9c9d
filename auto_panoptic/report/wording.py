"""The sentences of a report: what the data show, and no more."""

from __future__ import annotations

import math

from ..search.latency import sentence, where
from .axes import amount
from .facts import Search

_UP = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def found(search: Search, trained: str = "") -> str:
    """What was found, and how sure it is; ``trained``: what the finals say of it."""
    sentences = [_scored(search), _range(search), _selected(search), *_limits(search)]
    sentences += [_over_random(search), *_decided(search)]
    if search.selected:
        sentences.append(trained or "What the selected network is worth shows when it is trained.")
    return " ".join(filter(None, sentences))


def state(search: Search) -> str:
    """Whether this is the end of the search; empty if it is."""
    if search.selected is None:
        return "All candidates failed: there is nothing to select from. Their reasons stand below."
    if search.final:
        return ""
    return (
        f"No final selection from these {len(search.candidates)} candidates has been written: the search "
        "runs, or it was stopped. What is shown as selected is what their scores say so far."
    )


def power(number: int) -> str:
    """A whole number, large ones in powers of ten: 6.7 × 10³³."""
    if number < 10**6:
        return f"{number:,}"
    exponent = int(math.log10(number))
    mantissa = number / 10**exponent
    if f"{mantissa:.1f}" == "10.0":
        mantissa, exponent = 1.0, exponent + 1
    return f"{mantissa:.1f} × 10{str(exponent).translate(_UP)}"


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def decided(search: Search) -> tuple[int, int] | None:
    """Number of decided sites, and of sites, among those with a choice; None where sites were not judged."""
    if search.selection is None:
        return None
    choices = [site.name for site in search.space.sites if len(site.ops) > 1]
    return sum(search.selection["verdicts"][name]["decided"] for name in choices), len(choices)


def disagreement(search: Search) -> str:
    """At how many sites with a choice the estimators differ; empty where at none."""
    if not search.selection or not (sites := search.selection["disagreements"]):
        return ""
    of = f"At {len(sites)} of {decided(search)[1]} sites with a choice"
    return f"{of} the estimators (ranks, mean, ridge) do not choose the same operator."


def data_sets(search: Search) -> str:
    config = search.header.get("config")
    names = config.get("DATASETS", {}).get("SEARCH", []) if isinstance(config, dict) else []
    return ", ".join(map(str, names))


def order(search: Search) -> str:
    """How much the order of the candidates means; empty where that is not known."""
    ranking = search.ranking
    if not ranking:
        return ""
    share = f"{100 * ranking['reliability']:.0f}"
    share = "more than 99" if share == "100" and ranking["reliability"] < 1 else share
    return (
        f"The candidates' PQ has a standard deviation of {ranking['spread']:.2f}; the choice of the images "
        f"alone moves a candidate by {ranking['noise']:.2f} against the others, so that {share} % of the "
        "variance does not come from it. This is about the order of these candidates in the supernet, not "
        "about the operators of a site, nor about the order of trained networks."
    )


def _scored(search: Search) -> str:
    sizes = sorted({len(site.ops) for site in search.space.sites})
    ops = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    number, failed = len(search.candidates), len(search.failed)
    failures = f", {failed} of which failed" if failed else ""
    where = f" on {names}" if (names := data_sets(search)) else ""
    return (
        f"The search scored {number:,} candidate network{'s' * (number != 1)}{failures}, out of "
        f"{power(search.space.cardinality)} possible ones: {len(search.space.sites)} sites with {ops} "
        f"operators each. All of them use the weights of one supernet; the score is their "
        f"{search.fitness}{where}."
    )


def _range(search: Search) -> str:
    values = [c.fitness for c in search.good]
    if not values:
        return ""
    return f"They scored from {min(values):.2f} to {max(values):.2f} {search.fitness}."


def _selected(search: Search) -> str:
    if search.selected is None:
        return ""
    if search.selection is None:
        return (
            f"Selected is the candidate with the highest {search.fitness}, {search.best.fitness:.2f}. The "
            "best of many scores owes some of its lead to chance: on other images it is likely to be lower."
        )
    by = {"ranks": "the most points", "mean": "the highest mean", "ridge": "the highest estimated effect"}
    how = by.get(search.selection["estimator"], f"the best score by {search.selection['estimator']}")
    within = " as far as the limits allow" if any(search.selection["limits"].values()) else ""
    if search.selection.get("trade"):
        within += ", cheaper ones taken where that lies within a standard error"
    candidate = search.selected_candidate
    own = search.selection.get("own")
    if own and candidate:
        deviation, share, ahead = (own[key] for key in ("deviation", "share", "ahead"))
        return (
            f"Selected is a candidate, with {search.fitness} {candidate.fitness:.2f}: {deviation:+.2f} to "
            f"what the effects of its operators predict. Of that {share:.0%} count, what is not the noise of "
            f"the images; this puts it {ahead:.2f} ahead of the operators with {how}{within}."
        )
    known = (
        f"It was itself a candidate, with {search.fitness} {candidate.fitness:.2f}."
        if candidate
        else f"It was not itself a candidate, so its {search.fitness} in the supernet is not known."
    )
    return f"Selected is, at every site, the operator with {how}{within}. {known}"


def _limits(search: Search) -> list[str]:
    selection = search.selection or {}
    given = {k[4:]: v for k, v in selection.get("limits", {}).items() if v is not None}
    limits = [f"{k} ≤ {f'{v / 1e6:g} ms' if k == 'latency' else amount(v)}" for k, v in given.items()]
    if not limits:
        return []
    sentence = f"The limits were {' and '.join(limits)}."
    if not selection["exact"]:
        gap = selection["bound"] - selection["score"]
        sentence += f" The selection is the best found; the best could have a total score {gap:.3g} higher."
    return [sentence]


def _over_random(search: Search) -> str:
    over = (search.selection or {}).get("over_random")
    if not over:
        return ""
    low, high = over["interval"]
    lead = f"{over['lead']:+.2f} [{low:+.2f}, {high:+.2f}]"
    sentence = f"Its {search.fitness} in the supernet is predicted to be {lead} against the mean of random "
    sentence += "networks of as many MACs"
    return f"{sentence}." if low > 0 else f"{sentence}; another limit may leave more to decide."


def latency(search: Search) -> str:
    """How times were measured, and how well they predict; or that they were not."""
    table = search.latency
    if table is None:
        return "Latency was not measured; python -m auto_panoptic.latency measures it."
    height, width = table.conditions["image"]
    sentences = [
        "Latency is the sum of measured times of the operators (latency.json): one image of "
        f"{height} × {width} on {where(table.conditions)}."
    ]
    if search.selected and (found := table.measured(search.selected)):
        sentences.append(f"The selected network as a whole: {sentence(found)}.")
    if others := [abs(network.error) for network in table.networks]:
        worst, number = max(others), len(others)
        sentences.append(
            f"Of {number} networks that were measured as a whole, the sum is off by at most {worst:.0%}."
        )
    return " ".join(sentences)


def _decided(search: Search) -> list[str]:
    if (numbers := decided(search)) is None:
        return []
    number, total = numbers
    open_sites, alone = total - number, len(search.space.sites) - total
    given = [f"Sites with a single operator, of which there are {alone}, do not count."] if alone else []
    if not number:
        return [
            f"0 of {total} sites are decided: at no site do these candidates show which operator is best. "
            "Other candidates or other images could lead to another selection.",
            *given,
        ]
    meaning = "the 95 % interval of the selected operator's lead over the strongest other one lies above 0"
    sentences = [f"{number} of {total} sites {'is' if number == 1 else 'are'} decided: there {meaning}."]
    if open_sites:
        sentences.append(f"At the other {open_sites}, these candidates do not show which operator is best.")
    if number < total / 2:
        sentences.append(
            f"Among {total} intervals some lie above 0 by chance, so a decision here may be wrong more often "
            "than one in twenty."
        )
    return sentences + given
