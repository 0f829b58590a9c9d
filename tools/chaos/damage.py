"""Damage to the checkpoints of a training: it shows, and the one before is used, said once."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import torch

from auto_panoptic.training.checkpoint import newest_intact

from .processes import error_line
from .report import Outcome, Plan
from .training import Training, differences, same


def damage(plan: Plan) -> Outcome:
    """The newest checkpoint cut, emptied, flipped, removed; ``last_checkpoint`` empty, dangling, nonsense."""
    cuts, flips = plan.number(20, 3), plan.number(100, 5)
    outcome = Outcome(
        f"newest checkpoint cut ({cuts}), a bit flipped ({flips}), emptied, deleted; last_checkpoint, too"
    )
    rng, training = plan.rng(), Training(plan.folder)
    reference = plan.folder / "reference"
    code = training.start(reference).wait()
    outcome.expect(code == 0, f"the reference ended with exit code {code}")
    folder = plan.folder / "damaged"
    shutil.copytree(reference / "output", folder)
    newest = folder / "model_final.pth"
    sound, data = newest.read_bytes(), torch.load(newest, weights_only=True)
    cases: list[tuple[str, bytes | None]] = [("emptied", b""), ("deleted", None)]
    cases += [(f"cut at {n}", sound[:n]) for n in sorted(rng.sample(range(1, len(sound)), cuts))]
    cases += [(f"flip {i}", flipped(sound, rng)) for i in range(flips)]
    numbers = {"harmless_flips": 0}
    for what, content in cases:
        outcome.count += 1
        newest.unlink() if content is None else newest.write_bytes(content)
        path, problems = newest_intact(str(folder))
        if path == str(newest):
            harmless = what.startswith("flip") and same(torch.load(newest, weights_only=True), data)
            numbers["harmless_flips"] += harmless
            outcome.expect(harmless, f"{what}: the damaged file is used")
        else:
            good = path.endswith(".pth") and len(problems) == 1 and newest.name in problems[0]
            outcome.expect(good, f"{what}: {path or 'nothing'} is used, told is {problems}")
        newest.write_bytes(sound)
    pointer = folder / "last_checkpoint"
    for content in ("", "nowhere.pth", "\0\xff", "../reference/output/model_final.pth", None):
        outcome.count += 1
        pointer.unlink() if content is None else pointer.write_text(content)
        path, _ = newest_intact(str(folder))
        outcome.expect(path == str(newest), f"pointer {content!r}: {path or 'nothing'} is used")
        pointer.write_text(newest.name)
    for number in range(plan.number(4, 1)):  # the whole command
        outcome.count += 1
        failure = continued(training, reference, plan.folder / f"continued_{number}", rng)
        outcome.expect(not failure, f"continued: {failure}")
    outcome.numbers = numbers
    return outcome


def flipped(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def continued(training: Training, reference: Path, folder: Path, rng: random.Random) -> str:
    """What is wrong with the command on a folder whose newest checkpoint is cut; "" if nothing is."""
    shutil.copytree(reference, folder)
    newest = folder / "output/model_final.pth"
    newest.write_bytes(newest.read_bytes()[: rng.randrange(10_000)])
    max((folder / "output").glob("model_0*.pth")).unlink()  # of the same iteration
    before = len((folder / "output/log.txt").read_text())
    process = training.start(folder)
    if process.wait() != 0:
        return error_line(folder / "output.log")
    told = (folder / "output/log.txt").read_text()[before:].count("model_final.pth is damaged")
    if told != 1:
        return f"the damage is told {told} times"
    return ", ".join(differences(folder, reference))
