"""Losses and scores that are not numbers."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from toy import ToyNet

from . import pure
from .processes import error_line
from .report import Outcome, Plan
from .training import ITERATIONS, PERIOD, Training, differences

DIVERGED = 3  # exit code


def nan(plan: Plan) -> Outcome:
    """A candidate without a score is a failed one, ranked last; a training without a loss stops."""
    places = plan.number(pure.CYCLES * pure.MODELS, 6)
    losses = plan.number(ITERATIONS, 2)
    outcome = Outcome(
        f"NaN or infinity as the score of any of {places} candidates, as the loss of an iteration"
    )
    rng = plan.rng()
    everybody = pure.candidates()
    for place in sorted(rng.sample(range(len(everybody)), places)):
        outcome.count += 1
        folder = plan.folder / f"candidate_{place}"
        failure = scored(folder, everybody, place, rng.choice((math.nan, math.inf, -math.inf, "nan")))
        outcome.expect(not failure, f"candidate {place}: {failure}")
    training = Training(plan.folder)
    reference = plan.folder / "reference"
    training.start(reference).wait()
    for iteration in sorted(rng.sample(range(ITERATIONS), losses)):
        outcome.count += 1
        value = rng.choice((math.nan, math.inf))
        failure = trained(training, plan.folder / f"loss_{iteration}", reference, iteration, value)
        outcome.expect(not failure, f"loss {value} in iteration {iteration}: {failure}")
    outcome.numbers = {"candidates": places, "losses": losses}
    return outcome


def scored(folder: Path, everybody: list, place: int, value: object) -> str:
    """What is wrong with a search in which a candidate has this score; "" if nothing is."""
    name = pure.key(everybody[place])
    code = pure.whole(folder, pure.Evaluate(folder / "evaluations.log", events={name: value}))
    if code != 0:
        return f"exit code {code}: {error_line(folder / 'output.log')}"
    failed = [r["architecture"] for r in pure.records(folder) if r["status"] == "failed"]
    if failed != [everybody[place].indices()]:
        return f"{len(failed)} candidates failed, expected one"
    crashed = folder.with_name(f"{folder.name}_crashed")
    pure.whole(crashed, pure.Evaluate(crashed / "evaluations.log", events={name: "crash"}))
    if pure.results(folder) != pure.results(crashed):
        return "ranked otherwise than a candidate that crashed"
    return ""


def trained(training: Training, folder: Path, reference: Path, iteration: int, value: float) -> str:
    """What is wrong with a training whose loss is ``value`` in an iteration; then without that."""

    def poison():
        forward, calls = ToyNet.forward, []

        def poisoned(self, batch):
            calls.append(None)
            loss = forward(self, batch)
            bad = len(calls) > 2 * iteration  # two passes in an iteration
            return {name: v * value if bad else v for name, v in loss.items()}

        ToyNet.forward = poisoned

    code = training.start(folder, poison).wait()
    text = (folder / "output.log").read_text()
    if code != DIVERGED or "Traceback" in text:
        return f"exit code {code}: {error_line(folder / 'output.log')}"
    if f"iteration {iteration}" not in error_line(folder / "output.log"):
        return f"the iteration is not named: {error_line(folder / 'output.log')}"
    for file in (folder / "output").glob("*.pth"):
        tensors = torch.load(file, weights_only=True)["model"].values()
        if not all(t.isfinite().all() for t in tensors if t.is_floating_point()):
            return f"{file.name} is not finite"
    kept = sorted(p.name for p in (folder / "output").glob("model_0*.pth"))
    if len(kept) < iteration // PERIOD and not kept:
        return "earlier checkpoints are lost"
    if training.start(folder).wait() != 0:
        return f"not continued: {error_line(folder / 'output.log')}"
    return ", ".join(d for d in differences(folder, reference) if d != "losses")
