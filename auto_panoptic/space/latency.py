"""Measured time of any architecture of a space: a fixed time plus one table entry per site."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from ..errors import UserError
from .cost import CostTables
from .space import SearchSpace

_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s)")
_UNITS = {"us": 10**3, "ms": 10**6, "s": 10**9}


def parse_latency(text: str, option: str) -> int:
    """Nanoseconds of ``120ms``, ``1.5s`` or ``800us``.

    Raises:
        UserError: it is none of these, or less than one.
    """
    match = _TIME.fullmatch(str(text).strip())
    number = Decimal(match[1]) * _UNITS[match[2]] if match else Decimal(0)
    if number < 1:
        raise UserError(f"{option} is {text!r}: expected a time for one image, e.g. 120ms or 1.5s")
    return int(number)


def milliseconds(nanoseconds: int) -> str:
    """A time as :func:`parse_latency` reads it: no digit is lost."""
    return f"{Decimal(nanoseconds).scaleb(-6).normalize():f}ms"


@dataclass(frozen=True)
class Measured:
    """One network, measured as a whole.

    Attributes:
        architecture: the operators' index lists.
        predicted, measured: nanoseconds; the former by the table.
    """

    architecture: Mapping[str, list[int]]
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """By which part of the measured time the prediction is above it."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class LatencyTable:
    """Times of the operators of a space, in nanoseconds for one image.

    Attributes:
        space: the search space.
        fixed: of what no choice changes.
        sites: {site: {operator: time}}.
        conditions: how it was measured: "device", "threads", "image" [height, width], "repeats", "versions";
            and "network", a digest of the multiply-adds and parameters of the space (:func:`costs_digest`).
        networks: whole networks, to judge the table by.
    """

    space: SearchSpace
    fixed: int
    sites: Mapping[str, Mapping[str, int]]
    conditions: Mapping
    networks: tuple[Measured, ...] = ()

    def nanoseconds(self, architecture) -> int:
        """Predicted time of an architecture, given as for :meth:`CostTables.cost`."""
        if getattr(architecture, "space", None) != self.space:
            architecture = self.space.architecture(architecture)
        return self.fixed + sum(self.sites[site][name] for site, name in architecture.names().items())

    def with_network(self, architecture, measured: int) -> LatencyTable:
        """With the measurement of a network, in the place of an earlier one."""
        found = Measured(architecture.indices(), self.nanoseconds(architecture), measured)
        others = tuple(n for n in self.networks if n.architecture != found.architecture)
        return replace(self, networks=(*others, found))

    def measured(self, architecture) -> Measured | None:
        """The measurement of that network; None if there is none."""
        return next((n for n in self.networks if n.architecture == architecture.indices()), None)

    def to_json(self) -> dict:
        """Inverse of :meth:`from_json`."""
        return {
            **self.conditions,
            "unit": "ns",
            "fixed": self.fixed,
            "sites": {site: dict(row) for site, row in self.sites.items()},
            "networks": [dict(vars(network)) for network in self.networks],
        }

    @classmethod
    def from_json(cls, content: Mapping) -> LatencyTable:
        """Of what :meth:`to_json` gives.

        Raises:
            UserError: an unknown operator.
            ValueError: the content is not of that form.
        """
        try:
            sites = {site: {op: _time(t) for op, t in row.items()} for site, row in content["sites"].items()}
            space = SearchSpace.from_dict({site: list(row) for site, row in sites.items()})
            keys = ("device", "threads", "image", "repeats", "versions", "network")
            conditions = {key: content[key] for key in keys}
            table = cls(space, _time(content["fixed"]), sites, conditions)
            for row in content["networks"]:
                table = table.with_network(space.architecture(row["architecture"]), _time(row["measured"]))
        except UserError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no table of times: {type(error).__name__} {error}") from None
        return table


def with_latency(costs: CostTables, table: LatencyTable) -> CostTables:
    """``costs`` whose ``latency`` is the table; UserError if that is of another network."""
    if table.space != costs.space:
        raise UserError(f"times of another space: {costs.space.difference(table.space)}")
    found = CostTables(costs.space, costs.fixed, {site.name: row for site, row in _rows(costs)})
    found.latency = table
    return found


def _rows(costs: CostTables):
    return zip(costs.space.sites, costs.sites, strict=True)


def _time(value) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**15:
        raise ValueError(f"{value!r}: expected nanoseconds")
    return value
