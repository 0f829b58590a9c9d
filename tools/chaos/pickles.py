"""Files that would run code if they were unpickled or read as Python, in every place where one may stand."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from toy import run_script

from . import pure
from .processes import error_line, fork
from .report import Outcome, Plan
from .training import Training


class Malicious:
    """Makes the file ``mark`` when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def in_archive(content) -> bytes:
    """As torch.save writes it."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def legacy(content) -> bytes:
    """As torch.save once wrote it."""
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def in_sound_archive(sound: bytes, payload: bytes) -> bytes:
    """A checkpoint of ours whose structure is another."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(sound)) as old, zipfile.ZipFile(stream, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, payload if entry.filename.endswith("data.pkl") else old.read(entry))
    return stream.getvalue()


def pickles(plan: Plan) -> Outcome:
    """None is executed; each is refused by one line, or passed over."""
    outcome = Outcome(
        "files that run code when unpickled: weights, checkpoints, configs, results; no execution"
    )
    training = Training(plan.folder)
    sound_run = plan.folder / "sound"
    training.start(sound_run).wait()
    sound = (sound_run / "output/model_final.pth").read_bytes()
    mark = plan.folder / "executed"
    evil = Malicious(mark)
    payloads = {f"protocol {n}": pickle.dumps({"model": evil}, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)}
    payloads |= {"archive": in_archive({"model": evil}), "old torch": legacy({"model": evil})}
    payloads |= {
        "swapped": in_sound_archive(sound, pickle.dumps({"model": evil}, 2)),
        "bare": pickle.dumps(evil),
    }
    weights = {
        f"weights{end} {name}": (end, data)
        for name, data in payloads.items()
        for end in (".pth", ".pkl", ".bin")
    }
    if plan.quick:
        weights = dict(list(weights.items())[::7])
    for name, (end, data) in weights.items():
        path = plan.folder / f"evil{end}"
        path.write_bytes(data)
        _try(outcome, plan, mark, name, lambda p=path: _train(training, plan, p))
        _try(outcome, plan, mark, f"{name}, search", lambda p=path: _search(training, plan, p))
    for name, data in payloads.items() if not plan.quick else ():
        folder = plan.folder / f"resumed {name}"
        shutil.copytree(sound_run, folder)
        for path in folder.glob("output/*.pth"):
            path.write_bytes(data)
        _try(outcome, plan, mark, f"checkpoint {name}", lambda f=folder: training.run(f))
    for name, text in configs(mark, training.config).items():
        path = plan.folder / "evil.yaml"
        path.write_text(text)
        line = ("train_net", "--config-file", str(path), "OUTPUT_DIR", str(plan.folder / "never"))
        _try(outcome, plan, mark, f"config {name}", lambda a=line: run_script(*a))
    for name in ("search/ledger.jsonl", "search/scoreboard.json", "search/costs.json"):
        folder = plan.folder / name.replace("/", " ")
        pure.whole(folder, pure.Evaluate(folder / "evaluations.log"), cycles=1)
        (folder / name).write_bytes(payloads["protocol 2"])
        fails = name.endswith("jsonl")  # the others are made anew
        _try(
            outcome,
            plan,
            mark,
            name,
            lambda f=folder: pure.search(f, pure.Evaluate(f / "log"), cycles=1),
            fails,
        )
    outcome.numbers = {"executions": int(mark.exists())}
    return outcome


def configs(mark: Path, base: Path) -> dict[str, str]:
    """Configs that would run code."""
    call = f"os.system [touch {mark}]"
    made = f"[touch {mark}]"
    plain = yaml.safe_dump({"_BASE_": str(base)})
    tags = ("apply:os.system", "new:os.system", "object/apply:os.system", "object/new:os.system")
    found = {tag: f"{plain}SEED: !!python/{tag} {made}\n" for tag in tags}
    found["name"] = f"{plain}OUTPUT_DIR: !!python/name:os.system\n"
    found["text"] = f"{plain}OUTPUT_DIR: {json.dumps(f'__import__(chr(111)+chr(115)).{call}')}\nSEED: x\n"
    found["imports"] = plain + f"IMPORTS: [\"os; os.system('touch {mark}')\"]\n"
    script = mark.with_name("evil_base.py")
    script.write_text(f"import os\nos.system('touch {mark}')\n")
    return found | {"base": f"_BASE_: {script}\n", "base by url": "_BASE_: https://127.0.0.1:9/base.yaml\n"}


def _train(training: Training, plan: Plan, path: Path) -> None:
    options = (*training.options, "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(plan.folder / "never"))
    run_script("train_net", "--config-file", str(training.config), *options)


def _search(training: Training, plan: Plan, path: Path) -> None:
    options = (*training.options, "OUTPUT_DIR", str(plan.folder / "never"))
    run_script("search_net", "--config-file", str(training.config), "--weights", str(path), *options)


def _try(outcome: Outcome, plan: Plan, mark: Path, name: str, run: Callable, fails: bool = True) -> None:
    log = plan.folder / "output.log"
    log.unlink(missing_ok=True)
    outcome.count += 1
    code = fork(run, log).wait(120)
    outcome.expect(not mark.exists(), f"{name}: code was run")
    expected = 2 if fails else 0
    good = code == expected and "Traceback" not in log.read_text()
    outcome.expect(good, f"{name}: exit code {code}, expected {expected}: {error_line(log)}")
    outcome.expect(not (plan.folder / "never").exists(), f"{name}: OUTPUT_DIR was made")
