"""Which architectures to evaluate next: policies, by name in POLICY_REGISTRY."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from ..errors import UserError
from ..space import Architecture, CostTables, SearchSpace
from ..validate import PROBABILITY, RULES, Rule, whole
from .fairness import fair_cycle

# A parent pool or a small space may yield too few new architectures: so many draws per place, then it ends.
ATTEMPTS = 10

Generation = Sequence[tuple[Architecture, float | None]]


class Policy:
    """The candidates of a search, cycle by cycle.

    A policy of one's own is a subclass with ``@POLICY_REGISTRY.register``, in a module named in IMPORTS.
    Nothing else knows policies by name.

    Attributes:
        name: as on the command line and in NAS.POLICY.
        node: where its settings are in the config, NAS.<node>; "" for NAS itself.
        keys: {config key: default}, the first two being the numbers of cycles and of models in each. Whole
            numbers are at least 1, others shares from 0 to 1.
        uses_history: whether candidates depend on how earlier cycles scored.
        selects: what is selected in the end: by the estimator of that name, or the "best" candidate.
        own_scores: whether candidates also count with what they scored themselves; see
            :func:`.better_candidate`. Only with the estimator "ridge".
        space, seed: what to search, and the seed of all draws.
        cycles: number of cycles (generations).
        models: candidates of a cycle, at most.
        settings: what the candidates depend on besides space and seed; the number of cycles is not among
            them, for a search may be prolonged.
    """

    name: ClassVar[str]
    node: ClassVar[str] = ""
    keys: ClassVar[Mapping[str, int | float]]
    uses_history: ClassVar[bool] = False
    selects: ClassVar[str] = "best"
    own_scores: ClassVar[bool] = False

    def __init__(self, space: SearchSpace, seed: int, settings: Mapping):
        """Keep the settings, those of ``keys`` in lower case; UserError if one is out of range."""
        RULES["NAS.SEED"].check("NAS.SEED", seed)
        for key, default in self.keys.items():
            _rule(default).check(self.full_key(key), settings[key.lower()])
        self.space, self.seed = space, seed
        self.cycles, self.models = (settings[key.lower()] for key in list(self.keys)[:2])
        self.settings = {list(self.keys)[1].lower(): self.models}

    @classmethod
    def from_config(cls, cfg, space: SearchSpace) -> Policy:
        """The policy with its settings in a config."""
        node = cfg.NAS[cls.node] if cls.node else cfg.NAS
        return cls(space, cfg.NAS.SEED, {key.lower(): node[key] for key in cls.keys})

    @classmethod
    def full_key(cls, key: str) -> str:
        """NAS.NODE.KEY."""
        return ".".join(filter(None, ("NAS", cls.node, key)))

    @classmethod
    def cycle_keys(cls) -> tuple[str, str]:
        """The full config keys of the number of cycles and of the models in each."""
        cycles, models, *_ = map(cls.full_key, cls.keys)
        return cycles, models

    def keep(self, costs: CostTables, limits: Mapping[str, int]) -> None:
        """What the selection must keep, before the first candidates; by default they heed nothing of it.

        Args:
            limits: some of "max_macs", "max_params" and "max_latency". Those that candidates follow from
                become ``settings``.
        """

    def candidates(self, cycle: int, history: Sequence[Generation] = ()) -> list[Architecture]:
        """Candidates of ``cycle``, a pure function of space, seed, settings and the arguments.

        Args:
            cycle: from 0.
            history: for each earlier cycle its architectures with their fitness, None for a failed one.
        """
        raise NotImplementedError


def _rule(default: int | float) -> Rule:
    return whole(1, 10**6) if isinstance(default, int) else PROBABILITY


class _Registry(dict[str, type[Policy]]):
    """{name: policy}, in the order of registration."""

    def register(self, policy: type[Policy]) -> type[Policy]:
        """Add a policy and what its keys may be, as a decorator. ValueError if the name is taken."""
        if self.setdefault(policy.name, policy) is not policy:
            raise ValueError(f"a policy {policy.name!r} is registered already")
        for key, default in policy.keys.items():
            RULES[policy.full_key(key)] = _rule(default)
        return policy

    def of(self, name: str) -> type[Policy]:
        """The policy that NAS.POLICY names. UserError if there is none."""
        if name not in self:
            raise UserError(f"NAS.POLICY is {name!r}; expected one of {', '.join(self)}")
        return self[name]

    def keys_of_others(self, name: str) -> dict[str, str]:
        """{full config key: policy} of the settings that the policy ``name`` does not read."""
        own = {self[name].full_key(key) for key in self[name].keys}
        found = {policy.full_key(key): other for other, policy in self.items() for key in policy.keys}
        return {key: other for key, other in found.items() if key not in own}

    def add_config(self, nas, node_type: Callable[[dict], Mapping], clear: bool = False) -> None:
        """Add the keys of all policies to the config node ``nas``; nodes of their own are ``node_type``.

        With ``clear`` take their settings out: nodes get empty, other keys 0.
        """
        for policy in self.values():
            if policy.node:
                nas[policy.node] = node_type({} if clear else dict(policy.keys))
            else:
                nas.update(dict.fromkeys(policy.keys, 0) if clear else policy.keys)


POLICY_REGISTRY = _Registry()


@POLICY_REGISTRY.register
class PathPriority(Policy):
    """Fair cycles, ranked ("T" cycles of "E" models); see :func:`path_priority_candidates`."""

    name = "path_priority"
    keys = {"CYCLES": 5, "MODELS_PER_CYCLE": 12}
    selects = "ranks"

    def __init__(self, space: SearchSpace, seed: int, settings: Mapping):
        _check_cycle_length(space, settings["models_per_cycle"])
        super().__init__(space, seed, settings)

    def candidates(self, cycle: int, history: Sequence[Generation] = ()) -> list[Architecture]:
        return path_priority_candidates(self.space, self.seed, cycle, self.models)


@POLICY_REGISTRY.register
class RandomSearch(Policy):
    """Uniformly random models, the best of which is selected (paper: 300)."""

    name = "random"
    node = "RANDOM"
    keys = {"CYCLES": 1, "MODELS_PER_CYCLE": 300}

    def candidates(self, cycle: int, history: Sequence[Generation] = ()) -> list[Architecture]:
        rng = np.random.default_rng([self.seed, cycle])
        return [self.space.random(rng) for _ in range(self.models)]


class Breeding(Policy):
    """Cycles of new architectures that depend on how earlier ones scored. No architecture occurs twice."""

    uses_history = True

    def _draw(self, draw: Callable[[], tuple], quota: int, found: dict, visited: set) -> None:
        """Add up to ``quota`` new results of ``draw`` to ``found`` and ``visited``."""
        wanted = len(found) + quota
        for _ in range(ATTEMPTS * quota):
            if len(found) == wanted or len(visited) == self.space.cardinality:
                return
            choices = draw()
            if choices not in visited:
                visited.add(choices)
                found[choices] = None

    def _filled(self, cycle: int, rng: np.random.Generator, found: dict, visited: set) -> list[Architecture]:
        """The cycle: ``found``, then random models; a warning if the space has no more."""
        self._draw(lambda: self._random(rng), self.models - len(found), found, visited)
        if len(found) < self.models:
            logging.getLogger(__name__).warning(
                "generation %d has %d of %d candidates: %d of the space's %d architectures are taken",
                *(cycle, len(found), self.models, len(visited), self.space.cardinality),
            )
        return [Architecture(self.space, choices) for choices in found]

    def _random(self, rng: np.random.Generator) -> tuple[str, ...]:
        indices = rng.integers([len(site.ops) for site in self.space.sites])
        return tuple(site.names[i] for site, i in zip(self.space.sites, indices, strict=True))


@POLICY_REGISTRY.register
class Evolution(Breeding):
    """Generations of mutants, crossings and random models (paper, after DetNAS and SPOS).

    Generation 0 is random. Every later one holds, in this order,

    - mutants: a uniformly chosen parent, each gene drawn anew with MUTATION_PROBABILITY;
    - crossings: of two uniformly chosen parents, each gene from either with probability 1/2;
    - random models, for the rest of the generation.

    MUTATION and CROSSOVER are shares of a generation (DetNAS: 0.4 and 0.4, SPOS: 0.5 and 0.5). Parents are
    the best PARENTS of all models so far; failed ones never are. No architecture occurs twice. Each kind has
    10 draws per place; where they do not suffice random models take the places, and where those do not
    either (the space is nearly used up) the generation is shorter, possibly empty.
    """

    name = "evolution"
    node = "EVOLUTION"
    keys = {
        "GENERATIONS": 20,
        "POPULATION": 50,
        "PARENTS": 10,
        "MUTATION": 0.4,
        "CROSSOVER": 0.4,
        "MUTATION_PROBABILITY": 0.1,
    }

    def __init__(self, space: SearchSpace, seed: int, settings: Mapping):
        super().__init__(space, seed, settings)
        if settings["mutation"] + settings["crossover"] > 1 + 1e-9:
            raise UserError(
                f"NAS.EVOLUTION.MUTATION {settings['mutation']} and CROSSOVER {settings['crossover']} are "
                "shares of a generation; expected a sum of at most 1"
            )
        self.settings |= {
            "parents": settings["parents"],
            "mutation": math.floor(settings["mutation"] * self.models + 1e-9),
            "crossover": math.floor(settings["crossover"] * self.models + 1e-9),
            "mutation_probability": settings["mutation_probability"],
        }

    def candidates(self, cycle: int, history: Sequence[Generation] = ()) -> list[Architecture]:
        rng = np.random.default_rng([self.seed, cycle])
        parents = [a.choices for a in best(history[:cycle], self.settings["parents"])]
        found: dict[tuple[str, ...], None] = {}
        visited = {a.choices for generation in history[:cycle] for a, _ in generation}
        if parents:
            self._draw(lambda: self._mutant(rng, parents), self.settings["mutation"], found, visited)
            self._draw(lambda: self._crossing(rng, parents), self.settings["crossover"], found, visited)
        return self._filled(cycle, rng, found, visited)

    def _mutant(self, rng: np.random.Generator, parents: list) -> tuple[str, ...]:
        parent = parents[rng.integers(len(parents))]
        anew = rng.random(len(parent)) < self.settings["mutation_probability"]
        fresh = self._random(rng)
        return tuple(new if use else old for old, new, use in zip(parent, fresh, anew, strict=True))

    def _crossing(self, rng: np.random.Generator, parents: list) -> tuple[str, ...]:
        first, second = (parents[i] for i in rng.integers(len(parents), size=2))
        coin = rng.random(len(first)) < 0.5
        return tuple(a if heads else b for a, b, heads in zip(first, second, coin, strict=True))


def best(history: Sequence[Generation], count: int) -> list[Architecture]:
    """The ``count`` architectures of highest fitness, best first, of equal ones the earliest; none failed."""
    scored = [(a, f) for generation in history for a, f in generation if f is not None and math.isfinite(f)]
    ranked = [a for a, _ in sorted(scored, key=lambda pair: -pair[1])]  # stable: equal ones keep their order
    first = {}
    for architecture in ranked:
        first.setdefault(architecture.choices, architecture)
    return list(first.values())[:count]


def path_priority_candidates(
    space: SearchSpace, seed: int, cycle: int, models_per_cycle: int | None = None
) -> list[Architecture]:
    """The models that search cycle ``cycle`` evaluates and ranks together.

    These are consecutive fair cycles, which no two search cycles share: ``models_per_cycle`` is a multiple of
    ``space.cycle_length`` (the default). Each operator of a site with P operators occurs in exactly
    ``models_per_cycle`` / P of them.
    """
    models_per_cycle = space.cycle_length if models_per_cycle is None else models_per_cycle
    _check_cycle_length(space, models_per_cycle)
    cycles = models_per_cycle // space.cycle_length
    return [a for i in range(cycles) for a in fair_cycle(space, seed, cycle * cycles + i)]


def _check_cycle_length(space: SearchSpace, models_per_cycle: int) -> None:
    length = space.cycle_length
    if models_per_cycle < 1 or models_per_cycle % length:
        nearest = max(1, round(models_per_cycle / length)) * length
        raise UserError(
            f"NAS.MODELS_PER_CYCLE is {models_per_cycle}: expected a multiple of {length}, the fair cycle "
            f"length of this search space ({space.describe_sites()}), e.g. {nearest}"
        )
