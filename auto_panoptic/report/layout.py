"""Where the parts of a network stand in a drawing of its architecture.

A system may bring ``layout.py``; :data:`~auto_panoptic.systems.panoptic_fpn.layout` explains its form. Any
other network is drawn row by row of its sites, in their order, without a word about what follows what.
"""

from __future__ import annotations

import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..space import Architecture

Lane = Mapping  # {"sites", "name", ...} or {"box"}
SYSTEMS = Path(__file__).resolve().parents[1] / "systems"


def site_rows(architecture: Architecture) -> dict[str, list[str]]:
    """{row: its site names in order}; a row is what stands before the last dot of a site's name."""
    rows: dict[str, list[str]] = {}
    for site in architecture.space.sites:
        rows.setdefault(site.name.rpartition(".")[0] or site.name, []).append(site.name)
    return rows


def lanes_of(architecture: Architecture, config: Mapping | None = None) -> Sequence[Sequence[Lane]]:
    """The rows of a drawing, from input to output.

    The layout is that of the system which a search's config names, or which has just these rows of sites.
    """
    rows = site_rows(architecture)
    model = (config or {}).get("MODEL") if isinstance(config, Mapping) else None
    name = model.get("META_ARCHITECTURE") if isinstance(model, Mapping) else None
    for path in sorted(SYSTEMS.glob("*/layout.py")):
        layout = runpy.run_path(str(path))
        lanes = layout["LANES"]
        known = {lane["sites"] for row in lanes for lane in row if "sites" in lane}
        if name in layout["MODELS"] and rows.keys() <= known or name is None and rows.keys() == known:
            kept = [[lane for lane in row if "box" in lane or lane["sites"] in rows] for row in lanes]
            return [row for row in kept if row]
    return [[{"sites": row, "name": row, "parallel": True, "apart": True}] for row in rows]


def stages_of(lane: Lane, count: int, config: Mapping | None = None) -> list[int]:
    """How many of a lane's ``count`` sites each stage has; one stage where nothing says so."""
    value = config
    for key in lane.get("stages", "").split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    for stages in (value, lane.get("published") if config is None else None):
        if isinstance(stages, list | tuple) and all(type(n) is int and n > 0 for n in stages):
            if sum(stages) == count:
                return list(stages)
    return [count]
