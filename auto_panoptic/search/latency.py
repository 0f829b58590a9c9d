"""search/latency.json: measured times of every operator, and how well they predict whole networks."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from ..files import read_json, write_json
from ..space import Architecture, CostTables, LatencyTable, milliseconds
from ..space.latency import Measured, with_latency
from .selection import SearchResult

FILE = "latency.json"  # beside the ledger
OFF = 0.1  # part of the measured time by which a prediction may be off before that is said


def costs_digest(costs: CostTables) -> str:
    """What tells the networks of one config from those of another, whatever the numbers of classes."""
    return hashlib.sha256(json.dumps(costs.to_json()["sites"]).encode()).hexdigest()[:16]


def read_table(path: Path) -> LatencyTable:
    """The table of a file; UserError if it is missing or damaged."""
    try:
        return LatencyTable.from_json(read_json(path, "table of times"))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}; measure again with python -m auto_panoptic.latency") from None


def with_measured(costs: CostTables, directory: Path, config_file: str) -> CostTables:
    """``costs`` with the times of ``directory``/latency.json.

    Raises:
        UserError: there is no such file, it is damaged, or of another network than ``costs``.
    """
    path = directory / FILE
    command = f"python -m auto_panoptic.latency --config-file {config_file} OUTPUT_DIR {directory.parent}"
    if not path.exists():
        raise UserError(f"--max-latency needs measured times, there is no {path}; measure them: {command}")
    table = read_table(path)
    if table.conditions["network"] != costs_digest(costs):
        raise UserError(f"{path}: was measured on networks of another config; measure again: {command}")
    return with_latency(costs, table)


def write_table(path: Path, table: LatencyTable) -> None:
    """Write the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, table.to_json())


def device_name(device: str) -> str:
    """The kind of a device, with the name that its maker gave it."""
    if device.startswith("cuda"):
        import torch

        return f"cuda ({torch.cuda.get_device_name(device)})"
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{device} ({name})"


def here(device: str) -> dict:
    """The conditions of a measurement that belong to this process."""
    import torch

    return {"device": device_name(device), "threads": torch.get_num_threads()}


def nanoseconds(seconds: float) -> int:
    """As tables have them; what was not run takes no time."""
    return max(round(seconds * 1e9), 0)


def measured_selection(cfg, table: LatencyTable, architecture: Architecture) -> tuple[LatencyTable, str]:
    """The table with the measurement of one network as a whole, and why there is none, if it is not made."""
    import torch

    from ..modeling.timing import network_seconds, timed_model

    device = cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu"
    now, then = here(device), {key: table.conditions[key] for key in ("device", "threads")}
    if now != then:
        return table, f"this is {where(now)}, the times are of {where(then)}"
    supernet = cfg.clone()
    supernet.defrost()
    supernet.NAS.ARCHITECTURE = ""
    model, inputs = timed_model(supernet, tuple(table.conditions["image"]))
    seconds = network_seconds(model, inputs, architecture, table.conditions["repeats"])
    return table.with_network(architecture, nanoseconds(seconds)), ""


def judged(cfg, costs: CostTables, result: SearchResult) -> list[str]:
    """Measure what was selected by predicted time, note that in the file, and say how the prediction did."""
    architecture, limit = result.architecture, result.selection.limits["max_latency"]
    table, reason = measured_selection(cfg, costs.latency, architecture)
    if reason:
        return [f"latency: predicted only, the selected network was not measured: {reason}"]
    write_table(result.directory / FILE, table)
    found = table.measured(architecture)
    lines = [f"latency: {sentence(found)} on {where(table.conditions)}"]
    if found.measured > limit:
        lines.append(f"MEASURED ABOVE --max-latency {milliseconds(limit)}: choose a lower limit")
    return [*lines, *warning([found])]


def sentence(found: Measured) -> str:
    """How a prediction did."""
    side = "above" if found.error > 0 else "below"
    return (
        f"{found.predicted / 1e6:,.1f} ms predicted, {found.measured / 1e6:,.1f} ms measured: the prediction "
        f"is {abs(found.error):.1%} {side}"
    )


def warning(networks: Sequence[Measured]) -> list[str]:
    """A line if a table predicts a network badly."""
    worst = max((abs(network.error) for network in networks), default=0.0)
    if worst <= OFF:
        return []
    return [
        f"THE TABLE IS OFF BY {worst:.0%}: times of operators do not add up to those of networks here; "
        "measure on a quiet machine, with more --repeats, and trust MACs more"
    ]


def where(conditions: Mapping) -> str:
    """Device and threads of a measurement."""
    threads = conditions["threads"]
    return f"{conditions['device']}, {threads} thread{'s' * (threads != 1)}"
