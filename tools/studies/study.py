"""A study: networks trained side by side under several seeds, and how their results differ.

A *training* is a config with options; a *reading* is one way to evaluate a training's weights. Every training
runs once per seed, in a process of its own with one thread; a run that was stopped is resumed, a result that
is there is not computed again. Two readings are compared on the same seeds and the same images.

The 95 % interval of a mean difference adds two independent parts in quadrature: Student's t over the
differences per seed, and, for panoptic quality, the paired bootstrap over the images of the mean over seeds.
An interval that holds 0 is "undecided".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import t as student

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from auto_panoptic.errors import UserError, run_command  # noqa: E402
from auto_panoptic.evaluation.panoptic_quality import PanopticQuality  # noqa: E402
from auto_panoptic.files import write_json  # noqa: E402

PQ = ("PQ", "PQ_th", "PQ_st")


@dataclass(frozen=True)
class Study:
    """What is trained, read and compared.

    Attributes:
        trainings: {name: (config file, options)}; "{seed}" and "{folder}" in an option are filled in, the
            latter by the folder of the whole study.
        readings: {name: (training, options)}; a training's own name needs no entry.
        comparisons: (first, second, metrics): how much the first is above the second.
        prepare: called with the folder, the seeds, the names of trainings and the number of jobs before any
            of them is run.
    """

    name: str
    trainings: Mapping[str, tuple[str, Sequence]]
    readings: Mapping[str, tuple[str, Sequence]] = field(default_factory=dict)
    comparisons: Sequence[tuple[str, str, Sequence[str]]] = ()
    prepare: Callable[[Path, Sequence[int], Sequence[str], int], None] | None = None

    def read(self, name: str) -> tuple[str, Sequence]:
        """(training, options) of a reading."""
        return self.readings.get(name, (name, ()))


def _result(study: Study, folder: Path, name: str, seed: int) -> Path:
    return folder / study.read(name)[0] / f"seed_{seed}" / f"{name}.json"


def asked(config: str, options: Sequence[str]) -> list[str]:
    """What a training is to be; of a file that an option names, its contents."""
    files = {o: Path(o).read_bytes() for o in options if os.path.isfile(o)}
    return [config, *(hashlib.sha256(files[o]).hexdigest() if o in files else o for o in options)]


def check_same(path: Path, wanted: Sequence[str]) -> None:
    """No error where ``path`` does not say what its training was.

    Raises:
        UserError: the training that wrote ``path`` was another one.
    """
    was = json.loads(path.read_text()).get("asked")
    if was is not None and was != wanted:
        raise UserError(f"{path}: its training was another one: give another --output, or delete its folder")


def run_one(study: Study, folder: Path, training: str, seed: int) -> None:
    """Train once, or go on, and evaluate every reading of it; in this process.

    Raises:
        UserError: the folder holds another training of this name and seed.
    """
    from auto_panoptic.evaluation.evaluators import panoptic_quality_of
    from auto_panoptic.search.candidate import path_statistics
    from auto_panoptic.training import AutoPanopticTrainer, build_config, load_weights, train

    config, options = study.trainings[training]
    out = folder / training / f"seed_{seed}"
    filled = [str(o).replace("{seed}", str(seed)).replace("{folder}", str(folder)) for o in options]
    filled += ["SEED", str(seed), "TEST.EVAL_PERIOD", "0"]
    wanted, done, config = asked(config, filled), out / "trained.json", str(ROOT / config)
    filled += ["OUTPUT_DIR", str(out)]
    if done.is_file():
        check_same(done, wanted)
    else:
        start = time.perf_counter()
        train(config, filled, resume=out.is_dir())
        write_json(done, {"seconds": time.perf_counter() - start, "asked": wanted})
    for name in {training, *(n for n, (t, _) in study.readings.items() if t == training)}:
        if _result(study, folder, name, seed).is_file():
            continue
        cfg = build_config(config, [*filled, *map(str, study.read(name)[1])])
        model = AutoPanopticTrainer.build_model(cfg)
        space = load_weights(model, str(out / "model_final.pth"), cfg=cfg)
        evaluator = AutoPanopticTrainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])
        with path_statistics(cfg, model, space):
            found = AutoPanopticTrainer.test(cfg, model, [evaluator])
        quality = panoptic_quality_of(evaluator)
        write_json(_result(study, folder, name, seed), {**quality.record(), "results": found})


def logged(log: Path, *command: str) -> int:
    """The exit code of a script, run with one thread; what it prints goes to the end of ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with open(log, "a") as file:
        command = [sys.executable, *command]
        return subprocess.run(command, stdout=file, stderr=file, env=environment).returncode


def _process(study: Study, folder: Path, training: str, seed: int) -> str:
    log = folder / training / f"seed_{seed}.log"
    code = logged(log, sys.argv[0], "--output", str(folder), "--one", training, str(seed))
    state = "done" if code == 0 else f"FAILED with exit code {code}, see {log}"
    print(f"{time.strftime('%H:%M:%S')} {training} seed {seed}: {state}", flush=True)
    return state


def _metric(record: dict, metric: str) -> float:
    """ "segm/AP" is the AP of masks; a bare name is the first one found."""
    group, _, name = metric.rpartition("/")
    for key, values in record["results"].items():
        if isinstance(values, Mapping) and name in values and group in ("", key):
            return values[name]
    return math.nan


def difference(first: Sequence[dict], second: Sequence[dict], metric: str) -> tuple[float, float, int]:
    """(mean, half width of its 95 % interval, number of seeds) of first - second, records seed by seed."""
    by_seed = np.array([_metric(a, metric) - _metric(b, metric) for a, b in zip(first, second, strict=True)])
    count, mean = len(by_seed), float(by_seed.mean())
    if count < 2:
        return mean, math.inf, count
    half = student.ppf(0.975, count - 1) * by_seed.std(ddof=1) / math.sqrt(count)
    if metric in PQ:
        qualities = [[PanopticQuality.of_record(r) for r in records] for records in (first, second)]
        samples = [[q.bootstrap_samples()[metric] for q in row] for row in qualities]
        images = np.subtract(*np.mean(samples, axis=1))  # the same images are drawn for all
        half = math.hypot(half, 1.96 * float(np.nanstd(images, ddof=1)))
    return mean, half, count


def report(study: Study, folder: Path, seeds: Sequence[int]) -> dict:
    """Print what is there so far; returns it."""
    records: dict[str, dict[int, dict]] = {}
    for name in {**study.trainings, **study.readings}:
        paths = {seed: _result(study, folder, name, seed) for seed in seeds}
        records[name] = {seed: json.loads(p.read_text()) for seed, p in paths.items() if p.is_file()}
    columns = ("PQ", "PQ_th", "PQ_st", "IoU_st", "mIoU", "segm/AP")
    print(f"\n{'mean over seeds':34}" + "".join(f"{c:>9}" for c in columns) + "  seeds   minutes")
    summary: dict = {"results": {}, "differences": {}}
    for name, by_seed in records.items():
        if not by_seed:
            continue
        means = {c: float(np.mean([_metric(r, c) for r in by_seed.values()])) for c in columns}
        trained = [folder / study.read(name)[0] / f"seed_{seed}" / "trained.json" for seed in by_seed]
        minutes = np.mean([json.loads(path.read_text())["seconds"] for path in trained]) / 60
        values = "".join(f"{'–' if math.isnan(v) else f'{v:.2f}':>9}" for v in means.values())
        print(f"{name:34}{values}{len(by_seed):7}{minutes:10.1f}")
        known = {c: value for c, value in means.items() if not math.isnan(value)}
        summary["results"][name] = {**known, "seeds": len(by_seed)}
    print(f"\n{'difference, 95 % interval':70}")
    for first, second, metrics in study.comparisons:
        common = sorted(records[first].keys() & records[second].keys())
        for metric in metrics if common else ():
            pair = ([records[name][seed] for seed in common] for name in (first, second))
            mean, half, count = difference(*pair, metric)
            if math.isnan(mean):
                continue
            verdict = "undecided" if not abs(mean) > half else "above" if mean > 0 else "below"
            what = f"{first} - {second}"
            print(f"{what:70}{metric:>8} {mean:+7.2f} [{mean - half:+.2f}, {mean + half:+.2f}]  {verdict}")
            low, high = (None, None) if math.isinf(half) else (mean - half, mean + half)
            found = {"mean": mean, "low": low, "high": high, "seeds": count}
            summary["differences"][f"{what}: {metric}"] = {**found, "verdict": verdict}
    return summary


def main(study: Study) -> int:
    """The command line of a study; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "studies" / study.name)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--only", action="append", choices=[*study.trainings], help="may be repeated")
    parser.add_argument("--report", action="store_true", help="train nothing, show what is there")
    parser.add_argument("--one", nargs=2, metavar=("TRAINING", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run_command(lambda: run_one(study, args.output, args.one[0], int(args.one[1])))
        return 0
    states = []
    if not args.report:
        names = args.only or [*study.trainings]
        if study.prepare:
            run_command(lambda: study.prepare(args.output, range(args.seeds), names, args.jobs))
        with ThreadPoolExecutor(args.jobs) as pool:
            jobs = [(study, args.output, name, seed) for seed in range(args.seeds) for name in names]
            states = list(pool.map(lambda job: _process(*job), jobs))
    print(json.dumps(report(study, args.output, range(args.seeds))))
    return int(any(state != "done" for state in states))
