"""The command: what to check, in processes, and how the findings are printed."""

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Sequence

from ...errors import UserError
from ...read_config import read_config
from ..formats.categories import Categories
from ..formats.findings import ERROR, KINDS, NOTE, SEVERITIES, WARNING, Finding
from ..formats.instances_json import index_instances_json
from ..formats.panoptic_json import index_panoptic_json
from ..sets.imagenet import EXTENSIONS
from .images import Counts, Roots, check_file, check_pair, stream
from .sets import DataSet, find_data_set, from_paths

_LISTED = 20  # warnings or notes of one kind that are printed


@dataclasses.dataclass
class Report:
    """What the check of one set found.

    Args:
        name: of the set.
        findings: errors first, then by kind, file and image.
        counts: sums over the images that were read.
        categories: the classes, or None for a folder of classified images.
        done, total: images (or annotations without one) that were read, and that there are.
        seconds: time it took.
        interrupted: Ctrl-C ended it.
    """

    name: str
    findings: list = dataclasses.field(default_factory=list)
    counts: Counts = dataclasses.field(default_factory=Counts)
    categories: Categories | None = None
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    interrupted: bool = False

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
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
            **{f"{severity}s": self.number(severity) for severity in SEVERITIES},
            "classes": classes,
            "findings": [finding.record() for finding in self.findings],
        }


def _folders(data_set: DataSet) -> list[Finding]:
    paths = {"panoptic_root": "panoptic PNGs", "image_root": "images", "sem_seg_root": "semantic PNGs"}
    missing = []
    for key, what in paths.items():
        path = getattr(data_set, key)
        if path is None or os.path.isdir(path):
            continue
        if key == "sem_seg_root" and data_set.derives:
            missing.append(Finding("not-made-yet", path, None, "the label maps are not there yet"))
        else:
            missing.append(Finding("folder-missing", path, None, f"the folder of {what} does not exist"))
    return missing


def _panoptic_jobs(data_set: DataSet, report: Report):
    """Read the JSON files; returns the function and the items to run, or None."""
    categories, findings = data_set.read_categories()
    report.findings += findings + _folders(data_set)
    index, findings = index_panoptic_json(data_set.panoptic_json, categories)
    if index is None and data_set.problem:
        findings = [dataclasses.replace(f, what=f"{f.what} ({data_set.problem})") for f in findings]
    report.findings += findings
    if index is None:
        return None
    report.categories = index.categories
    things = index.categories.things
    if data_set.classes is not None:
        for number, isthing in things.items():
            if number not in data_set.classes[0 if isthing else 1]:
                what = f"{'thing' if isthing else 'stuff'} class {number} is none of data set {data_set.name}"
                report.findings.append(Finding("category-mismatch", data_set.panoptic_json, None, what))
    missing = {f.file for f in report.findings if f.kind in ("folder-missing", "not-made-yet")}
    instances = None  # {image id: annotations}
    if data_set.instances_json is not None:
        found, findings = index_instances_json(data_set.instances_json, index.images, things)
        instances = None if found is None else found.instances
        report.findings += findings
    if data_set.panoptic_root in missing or data_set.image_root in missing:
        return None  # every file would be missing
    roots = Roots(
        panoptic_json=data_set.panoptic_json,
        panoptic_root=data_set.panoptic_root,
        image_root=data_set.image_root,
        things=things,
        labels=index.categories.labels,
        sem_seg_root=None if data_set.sem_seg_root in missing else data_set.sem_seg_root,
        instances_json=data_set.instances_json,
        locate=data_set.locate,
    )

    def items():
        for image, annotation in index.pairs:
            found = None if instances is None or image is None else instances.get(image["id"], [])
            yield image, annotation, found

    report.total = len(index.pairs)
    return functools.partial(check_pair, roots), items()


def _folder_jobs(root: str, report: Report):
    """List the files of a folder of classified images."""
    try:
        classes = sorted(e.path for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        report.findings.append(
            Finding("folder-missing", root, None, f"the folder cannot be read: {error.strerror}")
        )
        return None
    if not classes:
        report.findings.append(Finding("class-missing", root, None, "the folder holds no folder of a class"))
    files = []
    for folder in classes:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
        images = [name for name in names if name.lower().endswith(EXTENSIONS)]
        if not images:
            report.findings.append(Finding("class-without-image", folder, None, "the class has no image"))
        for name in sorted(set(names) - set(images)):
            what = f"not named as an image ({', '.join(EXTENSIONS)})"
            report.findings.append(Finding("other-file", os.path.join(folder, name), None, what))
        files += [os.path.join(folder, name) for name in images]
    report.total = len(files)
    return check_file, files


def run_check(data_set: DataSet, processes: int | None = None, progress: bool = True) -> Report:
    """Check a data set; Ctrl-C ends it with what was found until then.

    Args:
        data_set: the set.
        processes: None takes the CPUs this process may use, at most 16.
        progress: show a bar.

    Raises:
        UserError: a process was killed.
    """
    from tqdm import tqdm

    start, report = time.perf_counter(), Report(data_set.name)
    try:
        folder = data_set.folder
        jobs = _panoptic_jobs(data_set, report) if folder is None else _folder_jobs(folder, report)
        if jobs is not None:
            bar = {"total": report.total, "desc": data_set.name, "unit": "image", "disable": not progress}
            with contextlib.closing(stream(*jobs, processes=processes)) as results:
                for findings, counts in tqdm(results, mininterval=0.5, **bar):
                    report.findings += findings
                    report.counts.add(counts)
                    report.done += 1
    except KeyboardInterrupt:
        report.interrupted = True
    if report.categories is not None and report.done == report.total and jobs is not None:
        unused = [n for i, n in report.categories.names.items() if not report.counts.segments[i]]
        if unused:
            what = f"{len(unused)} of {len(report.categories.names)} classes: {', '.join(unused)}"
            report.findings.append(Finding("class-unused", data_set.panoptic_json, None, what))
    kinds = list(KINDS)
    report.findings.sort(
        key=lambda f: (SEVERITIES.index(f.severity), kinds.index(f.kind), f.file, str(f.image_id), f.what)
    )
    report.seconds = time.perf_counter() - start
    return report


def check_data_set(
    name: str = "data set", *, image_folder: str | None = None, processes: int | None = None, **paths
) -> list[Finding]:
    """Read every file of a data set and return all that was found.

    Args:
        name: a registered name, or any name if paths are given.
        image_folder: root of a folder of classified images.
        processes: None takes the CPUs this process may use, at most 16; 1 starts none.
        **paths: panoptic_json, panoptic_root, image_root and, optionally, instances_json, sem_seg_root and
            categories, as for :func:`..register_coco_panoptic`.

    Returns:
        findings, errors first; none of severity "error" means that the set can be used.

    Raises:
        UserError: an unknown name or missing arguments.
    """
    if image_folder is not None:
        data_set = DataSet(name=name, folder=os.fspath(image_folder))
    else:
        data_set = from_paths(name, paths) if paths else find_data_set(name)
    report = run_check(data_set, processes, progress=False)
    if report.interrupted:
        raise KeyboardInterrupt
    return report.findings


def format_report(report: Report, all_lines: bool = False) -> str:
    """The classes, the findings by kind, the totals: what is wrong stands at the end of a long output.

    All errors are listed, and the first warnings and notes of each kind.
    """
    lines, groups = [], collections.defaultdict(list)
    for finding in report.findings:
        groups[finding.kind].append(finding)
    for kind, findings in groups.items():
        severity = findings[0].severity
        lines.append(f"{severity.upper()} {kind}: {len(findings)}")
        shown = findings if all_lines or severity == ERROR else findings[:_LISTED]
        lines += [f"  {finding.line()}" for finding in shown]
        if len(shown) < len(findings):
            lines.append(
                f"  ... and {len(findings) - len(shown)} more; --all prints them, --json writes them"
            )
    return "\n".join([*_classes(report), *lines, *([""] if lines else []), *_totals(report)])


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
        f"{report.name}: {numbers} in {counts.images} images, {sum(counts.segments.values())} segments "
        f"({report.seconds:.1f} s, {speed:.0f} images/s)"
    ]
    if report.interrupted:
        lines.append(f"interrupted after {report.done} of {report.total} images; the rest was not read")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m auto_panoptic.data.check",
        description="Read every file of data sets and list everything that is wrong with them.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered sets, or sets of the config")
    parser.add_argument(
        "--config-file", help="config that describes own sets; without NAME, checks all it uses"
    )
    parser.add_argument("--panoptic-json", help="check this COCO-panoptic JSON without registering it")
    parser.add_argument("--panoptic-root", help="folder of its panoptic PNGs")
    parser.add_argument("--image-root", help="folder of its images")
    parser.add_argument("--instances-json", help="COCO instances JSON of the same images (optional)")
    parser.add_argument("--sem-seg-root", help="folder of semantic PNGs (optional)")
    parser.add_argument("--categories", help="JSON whose 'categories' replace those of --panoptic-json")
    parser.add_argument("--image-folder", help="check a folder with one folder of images per class")
    parser.add_argument("--json", metavar="FILE", help="write all findings and counts to FILE")
    parser.add_argument("--all", action="store_true", help="print every warning and note, not the first ones")
    parser.add_argument(
        "--processes", type=int, help="processes that read files (default: one per CPU, up to 16)"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ... that override the config; last"
    )
    return parser


def _data_sets(args: argparse.Namespace) -> list[DataSet]:
    keys = ("panoptic_json", "panoptic_root", "image_root", "instances_json", "sem_seg_root", "categories")
    paths = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    if args.opts and args.config_file is None:
        raise UserError("--opts changes the config of --config-file, which is not given.")
    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes {args.processes}: expected at least 1.")
    cfg = None if args.config_file is None else read_config(args.config_file, args.opts)
    names = list(dict.fromkeys(args.names))
    if cfg is not None and not names:
        names = list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *cfg.DATASETS.SEARCH)))
    data_sets = [find_data_set(name, cfg) for name in names]
    if paths:
        data_sets.append(from_paths(args.panoptic_json or "given by paths", paths))
    if args.image_folder is not None:
        data_sets.append(DataSet(name=args.image_folder, folder=args.image_folder))
    if not data_sets:
        raise UserError("nothing to check; give a NAME, --config-file, --panoptic-json or --image-folder.")
    return data_sets


def _write_json(path: str, reports: list) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"data_sets": [report.record() for report in reports]}, file, indent=1)
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}.") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = _parser().parse_args(arguments)
    reports = []
    try:
        data_sets = _data_sets(args)
        if args.json is not None:
            _write_json(args.json, reports)  # before the work, which may take an hour
        for data_set in data_sets:
            reports.append(run_check(data_set, args.processes, progress=sys.stderr.isatty()))
            print(format_report(reports[-1], args.all), flush=True)
            if reports[-1].interrupted:
                break
        if args.json is not None:
            _write_json(args.json, reports)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if reports[-1].interrupted:
        return 130
    if len(reports) > 1:
        numbers = ", ".join(f"{sum(r.number(s) for r in reports)} {s}s" for s in (ERROR, WARNING, NOTE))
        print(f"all {len(reports)} sets: {numbers}")
    return 2 if any(report.number(ERROR) for report in reports) else 0
