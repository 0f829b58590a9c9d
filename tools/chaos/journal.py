"""Damage to the ledger of a finished search, which then goes on."""

from __future__ import annotations

import itertools
import re

from . import pure
from .processes import error_line, fork
from .report import Outcome, Plan


def cut(data: bytes, ends: list[int], rng) -> tuple[bytes, int | None]:
    """The file ends anywhere."""
    return data[: rng.randrange(len(data))], None


def tail(data: bytes, ends: list[int], rng) -> tuple[bytes, int | None]:
    """After any complete line, something that is no line."""
    junk = bytes(rng.choice([b for b in range(256) if b != ord("\n")]) for _ in range(rng.randint(1, 600)))
    return data[: rng.choice(ends)] + junk, None


def duplicate(data: bytes, ends: list[int], rng) -> tuple[bytes, int | None]:
    """A line follows itself."""
    start, end, number = line(ends, rng)
    return data[:end] + data[start:end] + data[end:], number + 1


def garbage(data: bytes, ends: list[int], rng) -> tuple[bytes, int | None]:
    """Bytes that are no text within a line."""
    start, end, number = line(ends, rng)
    size = rng.randint(1, min(60, end - 1 - start))
    at = rng.randint(start, end - 1 - size)
    return data[:at] + bytes(rng.randrange(128, 256) for _ in range(size)) + data[at + size :], number


def flip(data: bytes, ends: list[int], rng) -> tuple[bytes, int | None]:
    """One bit of a line."""
    start, end, number = line(ends, rng)
    at = rng.randrange(start, end - 1)
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :], number


DAMAGES = (cut, tail, duplicate, garbage, flip)


def line(ends: list[int], rng) -> tuple[int, int, int]:
    """(start, end, number from 1) of any line."""
    index = rng.randrange(len(ends))
    return (ends[index - 1] if index else 0), ends[index], index + 1


def journal(plan: Plan) -> Outcome:
    """A damaged tail is repaired, other damage stops with its line; no complete record is lost."""
    count = plan.number(200, 10)
    outcome = Outcome(f"ledgers with {', '.join(d.__name__ for d in DAMAGES)} at random, then resumed")
    rng, bar = plan.rng(), plan.bar(count, "journal")
    reference = plan.folder / "reference"
    pure.whole(reference, pure.Evaluate(plan.folder / "reference.log"))
    data = (reference / "search/ledger.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    outcome.numbers = dict.fromkeys(("repaired", "stopped"), 0)
    for number in range(count):
        damage = DAMAGES[number % len(DAMAGES)]
        broken, where = damage(data, ends, rng)
        outcome.count += 1
        outcome.numbers["repaired" if where is None else "stopped"] += 1
        for failure in resumed(plan.folder / f"{number}_{damage.__name__}", broken, where, reference):
            outcome.expect(False, failure)
        bar.update()
    bar.close()
    return outcome


def resumed(folder, broken: bytes, where: int | None, reference) -> list[str]:
    """What went wrong with the ledger ``broken``, damaged in line ``where``, or in its tail if None."""
    failures = []
    path, output, log = folder / "search/ledger.jsonl", folder / "output.log", folder / "evaluations.log"
    path.parent.mkdir(parents=True)
    path.write_bytes(broken)

    def resume():
        return fork(lambda: pure.search(folder, pure.Evaluate(log)), output).wait()

    code = resume()
    if where is not None:
        message = error_line(output)
        if code != 2 or not re.search(rf"ledger\.jsonl: line {where} is damaged", message):
            failures.append(f"{folder}: exit code {code}, not the message of line {where}: {message}")
        if path.read_bytes() != broken or pure.evaluations(log):
            failures.append(f"{folder}: went on with a damaged ledger")
            return failures
        path.write_bytes(b"".join(broken.splitlines(keepends=True)[: where - 1]))  # as the message advises
        code = resume()
    if code != 0:
        failures.append(f"{folder}: exit code {code}: {error_line(output)}")
    elif different := pure.differences(folder, reference):
        failures.append(f"{folder}: other {', '.join(different)} than undamaged")
    whole = _complete(broken, (reference / "search/ledger.jsonl").read_bytes())
    evaluated, missing = len(pure.evaluations(log)), pure.CYCLES * pure.MODELS - whole
    if evaluated != missing:
        failures.append(f"{folder}: {evaluated} candidates were evaluated, {missing} were missing")
    return failures


def _complete(broken: bytes, data: bytes) -> int:
    """Number of records at the start of ``broken`` that are whole, the last maybe but for its line end."""
    found = zip(broken.split(b"\n"), data.split(b"\n")[:-1], strict=False)
    return max(0, sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], found)) - 1)
