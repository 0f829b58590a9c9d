"""From evaluated candidates to one architecture, with what the choice at every site rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from ..errors import UserError
from ..space import Architecture, ChoiceSite, CostTables, SearchSpace
from .budget import Point, best_under_budget, cheapest_near, pareto_front
from .controls import random_of_equal_cost
from .estimators import ESTIMATORS, Cycles, Observations, observations, operator_scores
from .intervals import LEVEL, block_numbers, operator_effects
from .own_scores import better_candidate, share_on_images
from .posterior import RidgePosterior
from .scoreboard import Scoreboard, best_operators

COMPARED = 64  # random architectures that a selection is compared with


@dataclass(frozen=True)
class Selection:
    """A selected architecture and its reasons.

    Attributes:
        architecture: the selection.
        estimator: what scored the operators.
        scores: {site: {operator: score}}; None for an operator without an evaluated candidate.
        score: total over the selected operators.
        bound: upper bound of the total within the limits.
        exact: whether the selection is proved to be the best within the limits; if not, it is the best found,
            and the bound says how far from it the best can be.
        cost: {"macs", "params"} of the selection, None without cost tables; and "latency", its predicted
            nanoseconds, with a table of times.
        limits: {"max_macs", "max_params"}, None for no limit; and "max_latency", if that is limited.
        verdicts: {site: {"selected", "rival", "difference", "interval", "decided"}}: the selected operator
            against the one of the others with the highest effect; difference of their effects in units of
            fitness with its 95 % interval [low, high] (see :mod:`.intervals`; by :class:`RidgePosterior` of
            candidates that were chosen by earlier results), both None where the data do not tell.
            ``decided``: the interval lies above 0. Each interval is one of 95 %, not all together: where few
            sites are decided, those may be wrong more often than one in twenty.
        disagreements: {site: {estimator: operator}} for the sites where the estimators, without limits,
            choose differently.
        trade: with ``within_noise`` what was given up for fewer MACs, else None: {"best": {site: operator} of
            the highest score, "score", "macs", "params" of it, "standard_error" of its score, "given_up": how
            much less the selection scores, "interval": that with its 95 % interval}. Both errors are those of
            the posterior and, with ``noise``, of the images.
        own: of a candidate that was taken for what it scored itself: {"best": {site: operator} of the highest
            score, and the attributes of what :func:`.better_candidate` found}.
        over_random: {"lead", "interval"}: how much higher the fitness of the selection is predicted to be, by
            :class:`RidgePosterior`, than the mean of random architectures of its MACs. None without cost
            tables, or where there are too few such architectures.
    """

    architecture: Architecture
    estimator: str
    scores: Mapping[str, Mapping[str, float | None]]
    score: float
    bound: float
    exact: bool
    cost: Mapping[str, int] | None
    limits: Mapping[str, int | None]
    verdicts: Mapping[str, dict]
    disagreements: Mapping[str, Mapping[str, str]]
    trade: Mapping | None = None
    own: Mapping | None = None
    over_random: Mapping | None = None

    @property
    def decided(self) -> int:
        """Number of sites whose choice is decided, of those with another operator to choose."""
        return sum(v["decided"] and v["rival"] is not None for v in self.verdicts.values())

    def to_json(self) -> dict:
        """JSON-compatible summary, without the architecture."""
        return {
            "estimator": self.estimator,
            "limits": dict(self.limits),
            "score": self.score,
            "bound": self.bound,
            "exact": self.exact,
            "cost": dict(self.cost) if self.cost else None,
            "selected": self.architecture.names(),
            "scores": {site: dict(row) for site, row in self.scores.items()},
            "verdicts": dict(self.verdicts),
            "decided": self.decided,
            "disagreements": {site: dict(row) for site, row in self.disagreements.items()},
            **({"trade": dict(self.trade)} if self.trade else {}),
            **({"own": dict(self.own)} if self.own else {}),
            **({"over_random": dict(self.over_random)} if self.over_random else {}),
        }


def select(
    space: SearchSpace,
    cycles: Cycles,
    estimator: str = "ranks",
    costs: CostTables | None = None,
    max_macs: int | None = None,
    max_params: int | None = None,
    mode: str = "exact",
    within_noise: bool = False,
    adaptive: bool = False,
    max_latency: int | None = None,
    noise: float | None = None,
    resampled: np.ndarray | None = None,
) -> Selection:
    """Select the architecture with the highest total score, within the limits if there are any.

    With ``within_noise`` it is the cheapest one whose total score is not below that by more than its standard
    error: the one-standard-error rule of model selection. The cheapest has the fewest MACs, of equally many
    the highest score. The standard error is that of the best architecture's predicted fitness above the mean
    candidate, by :class:`RidgePosterior`, and of ``noise``, which all predictions share; scores must be those
    of ``ridge``, therefore.

    Otherwise ``resampled`` lets an evaluated candidate be selected if it is expected to be above the
    architecture with the highest score, by what it scored itself: see :func:`.better_candidate`.

    Operators of equal score are ordered by :func:`best_operators`: by mean fitness, then lower index. Where a
    limit forbids that choice, see :func:`best_under_budget` for ties.

    Args:
        space: the search space.
        cycles: per cycle its (architecture, fitness) pairs in the order of their indices; fitness None or
            NaN for a failed candidate.
        estimator: ``ranks``, ``mean`` or ``ridge``; see :func:`operator_scores`.
        costs: of the space; needed with a limit.
        max_macs, max_params: limits for the whole network, inclusive.
        mode: of the scoreboard, for ``ranks``.
        within_noise: take the cheapest within a standard error of the best.
        adaptive: whether candidates were chosen by the results of earlier ones.
        max_latency: limit in nanoseconds; ``costs`` must have a table of times.
        noise: standard deviation that the fitness of a candidate, relative to the others, has from the choice
            of images; for ``within_noise``.
        resampled: (n, B) fitness of all candidates, in their order, on the same B resamples of the images;
            for ``ridge``. Rows of failed ones do not count.

    Raises:
        UserError: no candidate was evaluated; no architecture is within the limits; unknown estimator.
    """
    if within_noise and estimator != "ridge":
        raise ValueError("within_noise needs the standard errors of ridge")
    if resampled is not None and (estimator != "ridge" or within_noise):
        raise ValueError("candidates count with their own scores beside those of ridge alone")
    ranked = Scoreboard.of(space, cycles, mode).select()
    data = observations(space, cycles)
    scores = {name: operator_scores(space, cycles, name, data, mode) for name in {*ESTIMATORS, estimator}}
    favourites = {name: best_operators(scores[name], scores["mean"]) for name in ESTIMATORS}
    favourites["ranks"] = [site.index(ranked[site.name].name) for site in space.sites]
    used = scores[estimator]
    indices = favourites[estimator]
    bound, exact = _total(used, indices), True
    limits = {"max_macs": max_macs, "max_params": max_params}
    limits |= {} if max_latency is None else {"max_latency": max_latency}
    if costs is not None:
        _check_costs(space, costs)
    if within_noise or any(limit is not None for limit in limits.values()):
        if costs is None:
            raise ValueError("a limit, or the cheapest, needs costs")
        if not within_limits(costs, indices, limits):
            point = best_under_budget(used, costs, **limits)
            indices, bound, exact = list(point.indices), point.bound, point.exact
    trade = own = None
    if resampled is not None:
        keeps = [costs is None or within_limits(costs, a, limits) for cycle in cycles for a, _ in cycle]
        posterior = ridge_posterior(space, data)
        share = share_on_images(posterior, data.fitness[data.ok], resampled[data.ok])
        found = better_candidate(posterior, data, indices, share, np.array(keeps))
        if found:
            own = {"best": space.architecture(indices).names(), **found._asdict()}
            indices = data.choices[own.pop("place")].tolist()
    if within_noise:
        best, posterior = indices, ridge_posterior(space, data)
        error = float(np.hypot(posterior.standard_error(best), noise or 0.0))
        point = cheapest_near(used, costs, best, error, **limits)
        indices, exact = list(point.indices), exact and point.exact
        trade = {"score": _total(used, best), "standard_error": error}
        trade |= _trade(space, costs, posterior, best, indices, noise or 0.0)
    architecture = space.architecture(indices)
    cost = None if costs is None else cost_of(costs, architecture)
    if costs is not None and not within_limits(costs, architecture, limits):
        raise AssertionError(f"selected {cost} beyond the limits {limits}")
    return Selection(
        architecture,
        estimator,
        _by_name(space, used),
        _total(used, indices),
        bound,
        exact,
        cost,
        limits,
        _posterior_verdicts(space, data, indices) if adaptive else _verdicts(space, data, indices),
        {
            site.name: {name: site.names[favourites[name][i]] for name in ESTIMATORS}
            for i, site in enumerate(space.sites)
            if len({favourites[name][i] for name in ESTIMATORS}) > 1
        },
        trade,
        own,
        None if costs is None else _over_random(costs, ridge_posterior(space, data), architecture),
    )


def alternatives(selection: Selection, costs: CostTables) -> dict[str, Architecture]:
    """{site: the architecture of the highest total score within the limits with another operator there}.

    By total score, the highest first; of equal ones in site order. A site has none where no other operator
    has a score, or where none is within the limits.
    """
    space, found = selection.architecture.space, {}
    limits = {name: limit for name, limit in selection.limits.items() if limit is not None}
    rows = [[selection.scores[site.name][name] for name in site.names] for site in space.sites]
    scores = [np.array([-np.inf if s is None else s for s in row]) for row in rows]
    for i, (site, chosen) in enumerate(zip(space.sites, selection.architecture.choices, strict=True)):
        barred = [*scores[:i], scores[i].copy(), *scores[i + 1 :]]
        barred[i][site.index(chosen)] = -np.inf
        if not np.isfinite(barred[i]).any():
            continue
        indices = [int(row.argmax()) for row in barred]
        if not within_limits(costs, indices, limits):
            try:
                indices = best_under_budget(barred, costs, **limits, warn=False).indices
            except UserError:
                continue
        found[site.name] = (_total(scores, indices), space.architecture(indices))
    ranked = sorted(found, key=lambda name: -found[name][0])  # stable
    return {name: found[name][1] for name in ranked}


def ridge_posterior(space: SearchSpace, data: Observations) -> RidgePosterior:
    """That of the evaluated candidates."""
    return RidgePosterior(data.choices[data.ok], data.fitness[data.ok], [len(s.ops) for s in space.sites])


def _over_random(costs: CostTables, posterior: RidgePosterior, architecture: Architecture) -> dict | None:
    """See :class:`Selection`."""
    macs = costs.cost(architecture).macs
    try:
        others = random_of_equal_cost(costs, macs, COMPARED, seed=0, other_than=[architecture])
    except UserError:
        return None
    names = [a.choices for a in (architecture, *others)]
    first, *rows = ([s.index(n) for s, n in zip(costs.space.sites, row, strict=True)] for row in names)
    lead, error = posterior.above_mean(first, rows)
    half = float(ndtri((1 + LEVEL) / 2)) * error
    return {"lead": lead, "interval": [lead - half, lead + half]}


def _trade(space, costs, posterior, best: list[int], chosen: list[int], noise: float) -> dict:
    """See :class:`Selection`."""
    given_up, interval = _lead(posterior, best, chosen, noise * (best != chosen))
    return {
        "best": space.architecture(best).names(),
        **costs.cost(best)._asdict(),
        "given_up": given_up,
        "interval": interval,
    }


def _lead(
    posterior: RidgePosterior, first: Sequence[int], second: Sequence[int], noise: float = 0.0
) -> tuple[float, list[float]]:
    """By how much the fitness of one architecture is predicted to be above another's, and its interval.

    ``noise`` is that of either fitness, by images.
    """
    lead, error = posterior.difference(first, second)
    half = float(ndtri((1 + LEVEL) / 2) * np.hypot(error, 2**0.5 * noise))
    return lead, [lead - half, lead + half]


@dataclass(frozen=True)
class FrontPoint:
    """A point of the score-against-MACs front.

    Attributes:
        point: the choice, its score and costs.
        behind: by how much its fitness is predicted to be below that of the last point, whose score is the
            highest, by :class:`RidgePosterior` whatever scored the operators.
        interval: that with its 95 % interval.
    """

    point: Point
    behind: float
    interval: list[float]


def front(
    space: SearchSpace, cycles: Cycles, estimator: str, costs: CostTables, mode: str = "exact"
) -> list[FrontPoint]:
    """The score-against-MACs front of the candidates' scores; see :func:`pareto_front`."""
    _check_costs(space, costs)
    data = observations(space, cycles)
    points = pareto_front(operator_scores(space, cycles, estimator, data, mode), costs)
    posterior, best = ridge_posterior(space, data), points[-1].indices
    return [FrontPoint(point, *_lead(posterior, best, point.indices)) for point in points]


def _total(scores: list[np.ndarray], indices: list[int]) -> float:
    return float(sum(score[i] for score, i in zip(scores, indices, strict=True)))


def cost_of(costs: CostTables, architecture) -> dict[str, int]:
    """See :class:`Selection`."""
    latency = {} if costs.latency is None else {"latency": costs.latency.nanoseconds(architecture)}
    return costs.cost(architecture)._asdict() | latency


def within_limits(costs: CostTables, architecture, limits: Mapping[str, int | None]) -> bool:
    """Whether an architecture keeps limits as :class:`Selection` has them."""
    cost = cost_of(costs, architecture)
    return all(limit is None or cost[name[4:]] <= limit for name, limit in limits.items())


def _check_costs(space: SearchSpace, costs: CostTables) -> None:
    if costs.space != space:
        raise UserError(f"costs of another space: {space.difference(costs.space)}")


def _by_name(space: SearchSpace, scores: list[np.ndarray]) -> dict:
    return {
        site.name: {
            name: float(value) if np.isfinite(value) else None
            for name, value in zip(site.names, row, strict=True)
        }
        for site, row in zip(space.sites, scores, strict=True)
    }


def _verdicts(space: SearchSpace, data: Observations, indices: list[int]) -> dict[str, dict]:
    verdicts = {}
    for i, (site, selected) in enumerate(zip(space.sites, indices, strict=True)):
        column, size = data.choices[:, i], len(site.ops)
        blocks = block_numbers(column, size, data.cycle)
        effects = operator_effects(column, size, blocks, data.fitness)
        ranked = np.where(np.isfinite(effects.values), effects.values, -np.inf)
        ranked[selected] = -np.inf
        rival = int(ranked.argmax()) if np.isfinite(ranked).any() else None
        interval = None if rival is None else effects.interval(selected, rival, LEVEL)
        lead = None if interval is None else float(effects.values[selected] - effects.values[rival])
        verdicts[site.name] = _verdict(site, selected, rival, lead, interval)
    return verdicts


def _posterior_verdicts(space: SearchSpace, data: Observations, indices: list[int]) -> dict[str, dict]:
    """As :func:`_verdicts`, for candidates that are no random design: a posterior holds for any."""
    posterior, verdicts = ridge_posterior(space, data), {}
    for i, (site, selected) in enumerate(zip(space.sites, indices, strict=True)):
        seen = np.bincount(data.choices[data.ok, i], minlength=len(site.ops)) > 0
        effects = posterior.mean[posterior.first[i] : posterior.first[i + 1]]
        ranked = np.where(seen, effects, -np.inf)
        ranked[selected] = -np.inf
        rival = int(ranked.argmax()) if np.isfinite(ranked).any() else None
        lead = interval = None
        if rival is not None:
            lead, interval = _lead(posterior, indices, [*indices[:i], rival, *indices[i + 1 :]])
        verdicts[site.name] = _verdict(site, selected, rival, lead, interval)
    return verdicts


def _verdict(site: ChoiceSite, selected: int, rival: int | None, lead, interval) -> dict:
    return {
        "selected": site.names[selected],
        "rival": None if rival is None else site.names[rival],
        "difference": lead,
        "interval": None if interval is None else list(interval),
        "decided": bool(len(site.ops) == 1 or (interval is not None and interval[0] > 0)),
    }
