"""What the check of a set found, and how it is printed."""

import collections
import dataclasses

from ..formats.categories import Categories
from ..formats.findings import ERROR, KINDS, NOTE, SEVERITIES, WARNING
from .images import Counts

_LISTED = {ERROR: None, WARNING: 20, NOTE: 3}  # findings of one kind that are printed


@dataclasses.dataclass
class Report:
    """What the check of one set found; ``done`` of ``total`` images, or annotations alone, were read.

    ``interrupted``: what ended it before its time.
    """

    name: str
    findings: list = dataclasses.field(default_factory=list)
    counts: Counts = dataclasses.field(default_factory=Counts)
    categories: Categories | None = None  # of a folder of classified images
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    interrupted: KeyboardInterrupt | None = None

    def number(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def record(self) -> dict:
        """For a JSON file."""
        names = self.categories.names if self.categories else {}
        classes = [
            {
                "id": i,
                "name": name,
                "isthing": int(self.categories.things[i]),
                "segments": self.counts.segments[i],
                "crowds": self.counts.crowds[i],
                "pixels": self.counts.pixels[i],
            }
            for i, name in names.items()
        ]
        return {
            "name": self.name,
            "images": self.counts.images,
            "checked": self.done,
            "total": self.total,
            "interrupted": self.interrupted is not None,
            "seconds": round(self.seconds, 3),
            **{f"{severity}s": self.number(severity) for severity in SEVERITIES},
            "classes": classes,
            "findings": [finding.record() for finding in self.findings],
        }

    def sort(self) -> None:
        """Errors first, then by kind, file and image."""
        kinds = list(KINDS)
        self.findings.sort(
            key=lambda f: (SEVERITIES.index(f.severity), kinds.index(f.kind), f.file, str(f.image_id), f.what)
        )


def format_report(report: Report, all_lines: bool = False) -> str:
    """The classes, the findings by kind, the totals: what is wrong stands at the end of a long output.

    All errors are listed, but for files of one wrong format, and the first warnings and notes of each kind.
    """
    lines, groups = [], collections.defaultdict(list)
    for finding in report.findings:
        groups[finding.kind].append(finding)
    for kind, findings in groups.items():
        severity = findings[0].severity
        lines.append(f"{severity.upper()} {kind}: {len(findings)}")
        if kind.endswith("-format") and not all_lines:
            lines += _by_format(findings)
            continue
        shown = findings if all_lines else findings[: _LISTED[severity]]
        lines += [f"  {finding.line()}" for finding in shown]
        if len(shown) < len(findings):
            lines.append(
                f"  ... and {len(findings) - len(shown)} more; --all prints them, --json writes them"
            )
    return "\n".join([*_classes(report), *lines, *([""] if lines else []), *_totals(report)])


def _by_format(findings: list) -> list[str]:
    """One line for all files that are written in the same wrong way."""
    groups = collections.defaultdict(list)
    for finding in findings:
        groups[finding.what].append(finding)
    several = "  {} files: {}; {}; such as {} (--all lists them)"
    return [
        several.format(len(same), what, same[0].remedy, same[0].file) if len(same) > 3 else f"  {f.line()}"
        for what, same in groups.items()
        for f in (same[:1] if len(same) > 3 else same)
    ]


def _classes(report: Report) -> list[str]:
    """How often each class occurs."""
    from tabulate import tabulate

    if report.categories is None:
        return []
    counts = report.counts
    rows = [
        (
            number,
            name,
            "thing" if report.categories.things[number] else "stuff",
            counts.segments[number],
            counts.crowds[number],
            100 * counts.pixels[number] / max(counts.total, 1),
        )
        for number, name in report.categories.names.items()
    ]
    header = ("id", "class", "kind", "segments", "crowds", "% of pixels")
    rows.append(("", "void", "", "", "", 100 * counts.void / max(counts.total, 1)))
    return [tabulate(rows, header, tablefmt="simple", floatfmt=".2f"), ""]


def _totals(report: Report) -> list[str]:
    counts = report.counts
    found = [(report.number(severity), severity) for severity in SEVERITIES]
    numbers = ", ".join(f"{number} {severity}{'s' * (number != 1)}" for number, severity in found)
    speed = report.done / report.seconds if report.seconds else 0.0
    lines = [
        f"{report.name}: {numbers} in {counts.images:,} images, {sum(counts.segments.values()):,} segments "
        f"({report.seconds:.1f} s, {speed:.0f} images/s)"
    ]
    if report.interrupted:
        lines.append(f"interrupted after {report.done} of {report.total} images; the rest was not read")
    return lines
