"""The report as one file that opens anywhere, and its figures as files."""

from __future__ import annotations

import collections
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup

from ..errors import one_line
from ..files import write_bytes, write_text
from . import palette, wording
from .architecture_figure import architecture_figure
from .axes import amount
from .candidates_figure import candidates_figure
from .cost_figure import cost_figure
from .drawing import Drawing
from .facts import Search, read_search
from .finals import finals_figure, read_finals
from .pictures import Pictures, mistake_legend, read_pictures
from .retraining import retraining_command
from .score_map import score_map

WIDE, NARROW = 1040, 350  # units; a page shows the one that fits
MOST_ROWS = 1000  # candidates in the table: the best ones
METRICS = ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "mIoU", "AP")  # columns of the table, where there are such
_HERE = Path(__file__).parent
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def write_report(
    path: str | os.PathLike,
    compare: Sequence[str | os.PathLike] = (),
    trained: Sequence[str | os.PathLike] = (),
) -> Path:
    """Write ``report.html`` and ``figures/`` beside a ledger; the path of the page.

    Args:
        path: the search's OUTPUT_DIR, or its ledger.
        compare: further ledgers, or the OUTPUT_DIRs of their searches.
        trained: OUTPUT_DIRs of trainings of the selected architecture, whose pictures are shown.

    Raises:
        UserError: see :func:`read_search` and :func:`read_pictures`; a file cannot be written.
    """
    search = read_search(path, compare)
    pictures = read_pictures(search, [Path(folder) for folder in trained])
    figures = search_figures(search)
    folder = search.directory / "figures"
    folder.mkdir(exist_ok=True)
    for name, (wide, _) in figures.items():
        write_figure(folder / name, wide)
    report = search.directory / "report.html"
    write_text(report, render(search, figures, pictures))
    return report


def report_after_search(output_dir: str | os.PathLike) -> None:
    """:func:`write_report`, and say where; a failure is one line, for the search has its results."""
    try:
        page = write_report(output_dir)
    except Exception as error:
        problem = " ".join((one_line(error) or f"{type(error).__name__}: {error}").split())
        again = shlex.join(["python", "-m", "auto_panoptic.report", str(output_dir)])
        print(f"report: not written ({problem}); once that is mended: {again}", file=sys.stderr)
    else:
        print(f"{'report':<13} {page}")


def write_figure(path: Path, drawing: Drawing) -> None:
    """Write PATH.svg and PATH.png."""
    write_text(path.with_name(path.name + ".svg"), drawing.svg())
    write_bytes(path.with_name(path.name + ".png"), drawing.png())


def search_figures(search: Search) -> dict[str, tuple[Drawing, Drawing]]:
    """{name: the drawing, wide and narrow}; without those for which there are no data."""
    makers = {"score_map": score_map, "candidates": candidates_figure, "costs": cost_figure}
    makers |= {"finals": finals_figure, "architecture": _answer_figure}
    drawn = {name: (make(search, WIDE), make(search, NARROW)) for name, make in makers.items()}
    return {name: pair for name, pair in drawn.items() if pair[0] is not None}


def _answer_figure(search: Search, width: float) -> Drawing | None:
    if search.selected is None:
        return None
    finals = read_finals(search)
    name, answer = ("best of the finals", finals.winner) if finals else ("selected", search.selected)
    return architecture_figure([(name, answer, search.header.get("config"))], width)


def render(
    search: Search, figures: dict[str, tuple[Drawing, Drawing]], pictures: Sequence[Pictures] = ()
) -> str:
    """The page."""
    command, is_known = retraining_command(search)
    return template("report.html").render(
        search=search,
        wording=wording,
        amount=amount,
        figures={name: _inline(*pair) for name, pair in figures.items()},
        finals=read_finals(search),
        pictures=pictures,
        mistakes=mistake_legend(),
        columns=[m for m in METRICS if any(m in c.record["metrics"] for c in search.good)],
        rows=_rows(search),
        most_rows=MOST_ROWS,
        fairness=_fairness(search),
        phases=_phases(search),
        failures=_failures(search),
        provenance=_provenance(search),
        config=yaml.safe_dump(search.header.get("config"), sort_keys=True, allow_unicode=True),
        differences=_differences(search),
        command=command,
        command_is_known=is_known,
    )


def template(name: str) -> jinja2.Template:
    """A page of this folder, with style and script; text that is put in is escaped."""
    loader = jinja2.FileSystemLoader(_HERE / "pages")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = palette.css() + (_HERE / "pages" / "report.css").read_text()
    script = (_HERE / "pages" / "report.js").read_text()
    environment.globals |= {"style": Markup(style), "script": Markup(script)}
    return environment.get_template(name)


def _inline(wide: Drawing, narrow: Drawing) -> Markup:
    """A figure of a page."""
    pair = (f'<div class="{name}">{d.svg(True)}</div>' for name, d in (("wide", wide), ("narrow", narrow)))
    return Markup("".join(pair))


def _rows(search: Search) -> list[dict]:
    """The candidates of the table, the best first."""
    order = sorted(search.good, key=lambda c: (-c.fitness, c.record["seq"]))[:MOST_ROWS]
    tables = [{name: _DIGITS[min(i, 35)] for i, name in enumerate(site.names)} for site in search.space.sites]
    selected = search.selected_candidate
    return [
        {
            "candidate": c,
            "selected": c is selected,
            "seconds": sum(c.record.get("seconds", {}).values()),
            "choices": "".join(t[name] for t, name in zip(tables, c.architecture.choices, strict=True)),
        }
        for c in order
    ]


def _fairness(search: Search) -> dict:
    """How often the operators were used: the sites where all were used equally often, and the others."""
    counts = {site: [row["count"] for row in rows] for site, rows in search.table.items()}
    equal = {site: row[0] for site, row in counts.items() if len(set(row)) == 1}
    return {
        "equal": equal,
        "range": (min(equal.values()), max(equal.values())) if equal else None,
        "unequal": [
            {"site": site, "counts": ", ".join(f"{r['op']} {r['count']}" for r in search.table[site])}
            for site in counts
            if site not in equal
        ],
    }


def _phases(search: Search) -> list[dict]:
    """Seconds of every phase: total, mean over the candidates that have it, share of all."""
    found = collections.defaultdict(list)
    for c in search.candidates:
        for phase, seconds in c.record.get("seconds", {}).items():
            found[phase].append(seconds)
    total = sum(map(sum, found.values())) or 1
    return [
        {"name": name, "total": sum(v), "mean": sum(v) / len(v), "share": sum(v) / total}
        for name, v in found.items()
    ]


def _failures(search: Search) -> list[dict]:
    """Reasons for which candidates failed, with their numbers in the ledger."""
    found = collections.defaultdict(list)
    for c in search.failed:
        found[str(c.record.get("error") or "no reason recorded")].append(c.record["seq"])
    return [{"reason": reason, "seqs": seqs} for reason, seqs in found.items()]


def _provenance(search: Search) -> list[tuple[str, str]]:
    """What identifies the search, and what was selected with."""
    header = search.header
    rows = [("ledger", search.path), ("policy", search.policy), ("seed", header["seed"])]
    rows += [(f"policy: {k}", v) for k, v in header.get("policy_settings", {}).items()]
    rows += [("weights, SHA-256 (first digits)", header["weights"])]
    for key in ("data", "content", "versions", "libraries"):
        value = header.get(key)
        if isinstance(value, dict):
            rows += [(f"{key}: {k}", _words(v)) for k, v in value.items()]
    if isinstance(header.get("metrics"), list):
        rows.append(("metrics", ", ".join(map(str, header["metrics"]))))
    shown = ("config", "estimator", "max_macs", "max_params", "max_latency", "macs", "params", "latency")
    rows += [
        (f"architecture.json: {k}", v) for k, v in search.provenance.items() if k in shown and v is not None
    ]
    return [(name, _shown(name, value)) for name, value in rows]


def _shown(name: str, value: object) -> str:
    if name.endswith("latency"):
        return f"{value / 1e6:g} ms"
    return f"{value:,}" if type(value) is int and name != "seed" else str(value)


def _words(value: object) -> object:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value


def _differences(search: Search) -> list[str]:
    """What makes the scores of the other ledgers not comparable with these."""
    keys = ("space", "weights", "data", "content", "metrics", "versions")
    notes = []
    for run in search.others:
        other = [key for key in keys if run.header.get(key) != search.header.get(key)]
        if other:
            notes.append(f"{run.path}: another {', '.join(other)}; its scores may not be comparable")
    return notes
