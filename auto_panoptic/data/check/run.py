"""The check of one data set: its JSON files, then its images in several processes."""

import contextlib
import dataclasses
import functools
import os
import time

from ...progress import Progress
from ..derive.pool import stream
from ..formats import instances_json, panoptic_json
from ..formats.findings import Finding, findings_in
from ..formats.json_file import read_object
from ..formats.panoptic_png import exchanged_labels
from ..sets.imagenet import EXTENSIONS
from ..source import EXPECTED
from .images import check_file, check_pair
from .report import Report
from .sets import DataSet, find_data_set, from_paths


def _folders(data_set: DataSet, report: Report) -> DataSet:
    """The set without the folders that are missing, which are findings."""
    missing = {}
    for key in ("panoptic_root", "image_root", "sem_seg_root"):
        path = getattr(data_set, key)
        if path is not None and not os.path.isdir(path):
            missing[key] = None
            later = key == "sem_seg_root" and data_set.derives
            kind = "not-made-yet" if later else "folder-missing"
            what = f"{EXPECTED[key]} is not there{' yet' if later else ''}"
            report.findings.append(Finding(kind, path, None, what))
    return dataclasses.replace(data_set, **missing)


def _panoptic_jobs(data_set: DataSet, report: Report):
    """Read the JSON files; returns the function and the items to run, or None."""
    categories, findings = data_set.read_categories()
    report.findings += findings
    data_set = _folders(data_set, report)
    path = data_set.panoptic_json
    content, findings = read_object(path, "panoptic JSON", panoptic_json.KEYS)
    if content is None:
        why = f" ({data_set.problem})" if data_set.problem else ""
        report.findings += [dataclasses.replace(f, what=f.what + why) for f in findings]
        return None
    index = panoptic_json.PanopticIndex(content, categories)
    report.findings += findings_in(path, index.problems())
    report.categories = index.categories
    things = index.categories.things
    if data_set.classes is not None:
        for number, isthing in things.items():
            if number not in data_set.classes[0 if isthing else 1]:
                what = f"{'thing' if isthing else 'stuff'} class {number} is none of data set {data_set.name}"
                report.findings.append(Finding("category-mismatch", path, None, what))
    instances = None
    if data_set.instances_json is not None:
        content, findings = read_object(data_set.instances_json, "instances JSON", instances_json.KEYS)
        report.findings += findings
        if content is not None:
            found = instances_json.InstancesIndex(content, index)
            report.findings += findings_in(data_set.instances_json, found.problems())
            instances = found.instances
    if data_set.panoptic_root is None or data_set.image_root is None:
        return None  # every file would be missing

    def items():
        for image, annotation in index.pairs:
            found = None if instances is None or image is None else instances.get(image["id"], [])
            yield image, annotation, found

    report.total = len(index.pairs)
    return functools.partial(check_pair, data_set, things), items()


def _folder_jobs(root: str, report: Report):
    """List the files of a folder of classified images."""
    try:
        classes = sorted(e.path for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        what = f"the folder cannot be read: {error.strerror}"
        report.findings.append(Finding("folder-missing", root, None, what))
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
    """Check a data set; Ctrl-C ends it with what was found until then. ``processes`` as in :func:`.stream`.

    Raises:
        UserError: a process was killed.
    """
    start, report = time.perf_counter(), Report(data_set.name)
    try:
        folder = data_set.folder
        jobs = _panoptic_jobs(data_set, report) if folder is None else _folder_jobs(folder, report)
        if jobs is not None:
            title = f"check of {data_set.name}"
            with (
                contextlib.closing(stream(*jobs, processes, title)) as results,
                Progress(title, report.total, shown=progress) as bar,
            ):
                for findings, counts in results:
                    report.findings += findings
                    report.counts.add(counts)
                    report.done += 1
                    bar.update()
    except KeyboardInterrupt as error:
        report.interrupted = error
    if report.categories is not None and report.done == report.total and jobs is not None:
        unused = [n for i, n in report.categories.names.items() if not report.counts.segments[i]]
        if unused:
            what = f"{len(unused)} of {len(report.categories.names)} classes: {', '.join(unused)}"
            report.findings.append(Finding("class-unused", data_set.panoptic_json, None, what))
        report.findings += findings_in(data_set.sem_seg_root or "", exchanged_labels(report.counts.labels))
    report.sort()
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
        raise report.interrupted
    return report.findings
