"""SIGKILL at random moments of a training, requeued by one fixed command until it is done."""

from __future__ import annotations

import time

from auto_panoptic.training.checkpoint import newest_intact

from .processes import error_line
from .report import Outcome, Plan
from .training import ITERATIONS, PERIOD, Training, differences, losses

MOST = 100  # kills of one run
KILLS_PER_RUN = 10  # about


def train_kill(plan: Plan) -> Outcome:
    """Losses, weights, optimiser, schedule as without kills; lost is one checkpoint period at most."""
    kills = plan.number(100, 3)
    outcome = Outcome("trainings SIGKILLed at random, before the first checkpoint too, requeued")
    rng, bar = plan.rng(), plan.bar(kills, "train_kill")
    training = Training(plan.folder)
    start, reference = time.monotonic(), plan.folder / "reference"
    code = training.start(reference).wait()
    length = time.monotonic() - start
    outcome.expect(
        code == 0, f"the reference ended with exit code {code}: {error_line(reference / 'output.log')}"
    )
    numbers = {"runs": 0, "identical": 0, "before_a_checkpoint": 0, "resumed": 0, "most_iterations_lost": 0}

    def left() -> bool:  # whether kills are; without one from which a training goes on nothing was tried
        return outcome.count < kills or not numbers["resumed"]

    while left() and not outcome.failures:
        folder, known = plan.folder / f"run_{numbers['runs']}", 0
        for _ in range(MOST):
            process = training.start(folder)
            moment = rng.uniform(0, 1.2 * length) if left() else 600
            if left() and outcome.count % 2:  # every second kill comes after a checkpoint, with work left
                moment, last = rng.uniform(0, length / ITERATIONS), rng.randrange(PERIOD, ITERATIONS - 1)
                while last not in dict(losses(folder)) and process.wait(0.02) is None:
                    pass
            process.wait(moment)
            died, done = process.kill(), losses(folder)
            lost = _lost(done[known:], done[:known])
            numbers["most_iterations_lost"] = max(numbers["most_iterations_lost"], lost)
            outcome.expect(lost <= PERIOD, f"{folder}: a kill costs {lost} iterations")
            known = len(done)
            if not died:
                break
            outcome.count += 1
            saved = bool(newest_intact(str(folder / "output"))[0])
            numbers["before_a_checkpoint"] += not saved
            numbers["resumed"] += saved and ITERATIONS - 1 not in dict(done)
            bar.update()
        code = process.returncode
        outcome.expect(code == 0, f"{folder}: exit code {code}: {error_line(folder / 'output.log')}")
        different = differences(folder, reference)
        outcome.expect(not different, f"{folder}: other {', '.join(different)} than uninterrupted")
        numbers["runs"] += 1
        numbers["identical"] += not different
    outcome.numbers = numbers
    bar.close()
    return outcome


def _lost(now: list[tuple], before: list[tuple]) -> int:
    """Iterations of ``before`` that ``now`` repeats."""
    return len({i for i, _ in now} & {i for i, _ in before})
