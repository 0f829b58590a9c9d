import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from auto_panoptic.errors import UserError, disk_problem
from auto_panoptic.explore import Ledger, Scoreboard, path_priority_candidates
from auto_panoptic.files import disk_errors
from auto_panoptic.space import ChoiceSite, SearchSpace

HEADER = {"space": {"mask.0": ["dwconv_3x3", "conv_3x3"]}, "seed": 0, "policy": "path_priority"}


def candidate(i):
    metrics = {"PQ": 40 + i / 7, "PQ_th": 41.0 - i / 3}
    return {"cycle": i // 12, "index": i % 12, "status": "ok", "metrics": metrics, "note": "é ∑"}


def write(path, n):
    with Ledger.open(path, HEADER) as ledger:
        for i in range(n):
            ledger.append(candidate(i))
    return path.read_bytes()


def stored(n):
    return [{"seq": i, **candidate(i)} for i in range(n)]


def test_round_trip(tmp_path):
    data = write(tmp_path / "search" / "ledger.jsonl", 3)
    ledger = Ledger(tmp_path / "search" / "ledger.jsonl")
    assert ledger.header == HEADER and ledger.records == stored(3)
    lines = [json.loads(line) for line in data.decode().splitlines()]
    assert len(lines) == 4 and all(len(line["checksum"]) == 64 for line in lines)
    assert lines[0]["format"] == "auto_panoptic.ledger/1" and [line.get("seq") for line in lines] == [
        None,
        0,
        1,
        2,
    ]


def test_values_are_stored_as_json_sees_them(tmp_path):
    with Ledger.open(tmp_path / "l", HEADER) as ledger:
        record = ledger.append(
            {
                "a": np.float32(0.5),
                "b": np.arange(2),
                "c": (1, float("nan")),
                "d": np.float64("inf"),
                "e": np.bool_(1),
            }
        )
        assert record == {"seq": 0, "a": 0.5, "b": [0, 1], "c": [1, None], "d": None, "e": True}
        with pytest.raises(TypeError, match="of type object cannot be written"):
            ledger.append({"a": object()})
        with pytest.raises(ValueError, match="'seq' must be 1 or absent"):
            ledger.append({"seq": 5})
        with pytest.raises(ValueError, match="'checksum' absent"):
            ledger.append({"checksum": ""})
    assert Ledger(tmp_path / "l").records == [record]


def test_a_candidate_is_recorded_once(tmp_path):
    with Ledger.open(tmp_path / "l", HEADER) as ledger:
        ledger.append(candidate(13))
        with pytest.raises(ValueError, match="candidate 1 of cycle 1 is in the ledger already"):
            ledger.append(candidate(13))
    assert len(Ledger(tmp_path / "l").records) == 1


def test_a_failed_candidate_may_be_recorded_again(tmp_path):
    failed = {**candidate(13), "status": "failed", "metrics": {}}
    with Ledger.open(tmp_path / "l", HEADER) as ledger:
        for record in (failed, failed, candidate(13)):
            ledger.append(record)
        for record in (failed, candidate(13)):
            with pytest.raises(ValueError, match="candidate 1 of cycle 1 is in the ledger already"):
                ledger.append(record)
    assert [r["status"] for r in Ledger(tmp_path / "l").records] == ["failed", "failed", "ok"]


def test_cut_at_every_byte_of_the_last_record(tmp_path):
    path = tmp_path / "ledger.jsonl"
    data = write(path, 3)
    start = data.rstrip(b"\n").rindex(b"\n") + 1
    assert len(data) - start > 150
    for cut in range(start, len(data) + 1):
        path.write_bytes(data[:cut])
        complete = 3 if cut >= len(data) - 1 else 2  # a record that lacks but its line end is complete
        assert Ledger(path).records == stored(complete)
        assert path.read_bytes() == data[:cut]  # reading changes nothing
        with Ledger.open(path, HEADER, resume=True) as ledger:
            assert ledger.records == stored(complete)
            for i in range(complete, 3):
                ledger.append(candidate(i))
        assert path.read_bytes() == data


def test_200_random_cuts_lose_no_complete_record(tmp_path):
    path = tmp_path / "ledger.jsonl"
    data = write(path, 20)
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")][1:]  # of the records
    rng = random.Random(0)
    for _ in range(200):
        cut = rng.randrange(len(data) + 1)
        path.write_bytes(data[:cut])
        with Ledger.open(path, HEADER, resume=True) as ledger:
            assert ledger.records == stored(sum(end - 1 <= cut for end in ends))
            assert ledger.append(candidate(99))["seq"] == len(ledger.records) - 1
            count = len(ledger.records)
        assert len(Ledger(path).records) == count


def test_cut_in_the_header_starts_afresh(tmp_path):
    path = tmp_path / "ledger.jsonl"
    data = write(path, 1)
    for cut in [*range(0, 40), *range(40, data.index(b"\n") + 2, 7), data.index(b"\n") + 1]:
        path.write_bytes(data[:cut])
        with Ledger.open(path, HEADER) as ledger:
            ledger.append(candidate(0))
        assert path.read_bytes() == data


def test_garbage_in_the_tail_is_removed(tmp_path):
    path = tmp_path / "ledger.jsonl"
    data = write(path, 3)
    for garbage in (b"\0" * 500, b"}{", data[-30:-1], b"\xff\xfe"):
        path.write_bytes(data + garbage)
        with Ledger.open(path, HEADER, resume=True) as ledger:
            assert ledger.records == stored(3)
        assert path.read_bytes() == data


def damaged(data):
    lines = data.splitlines(keepends=True)
    yield "middle garbage", lines[:2] + [b"\0\0\0\n"] + lines[3:], 3, "not JSON"
    yield "middle cut short", lines[:2] + [lines[2][:40] + b"\n"] + lines[3:], 3, "not JSON"
    yield "two lines joined", lines[:2] + [lines[2][:40]] + lines[3:], 3, "not JSON"
    yield "line removed", lines[:2] + lines[3:], 3, "it has seq 2 where 1 should follow"
    yield "line twice", lines[:3] + lines[2:], 4, "it has seq 1 where 2 should follow"
    yield "last line twice", lines + lines[-1:], 6, "it has seq 3 where 4 should follow"
    yield "lines swapped", lines[:2] + [lines[3], lines[2]] + lines[4:], 3, "it has seq 2 where 1"
    yield (
        "value edited",
        lines[:2] + [lines[2].replace(b"40.1", b"49.1")] + lines[3:],
        3,
        "checksum does not match",
    )
    yield "blank line", lines[:2] + [b"\n"] + lines[2:], 3, "not JSON"
    yield "a list", lines[:2] + [b"[]\n"] + lines[3:], 3, "not a JSON object"
    yield "last line edited", lines[:4] + [lines[4].replace(b'"ok"', b'"no"')], 5, "checksum does not match"
    yield (
        "header edited",
        [lines[0].replace(b'"seed": 0', b'"seed": 1')] + lines[1:],
        1,
        "checksum does not match",
    )
    yield "header removed", lines[1:], 1, "not the header of a ledger"
    yield "another file", [b"my notes\n"], 1, "not JSON"
    yield "another file, one line", [b"my notes"], 1, "not JSON"


def test_damage_elsewhere_stops_with_the_line_number(tmp_path):
    path = tmp_path / "ledger.jsonl"
    data = write(path, 4)
    cases = list(damaged(data))
    assert len(cases) == 15
    for name, lines, number, reason in cases:
        path.write_bytes(b"".join(lines))
        assert path.read_bytes() != data, name
        for attempt in (lambda: Ledger(path), lambda: Ledger.open(path, HEADER, resume=True)):
            with pytest.raises(UserError, match=rf"ledger.jsonl: line {number} is damaged \(.*{reason}"):
                attempt()
        assert path.read_bytes() == b"".join(lines), name


def test_refuses_to_overwrite_without_resume(tmp_path):
    path = tmp_path / "ledger.jsonl"
    data = write(path, 2)
    with pytest.raises(
        UserError, match="holds 2 evaluated candidates: continue with --resume, or choose another"
    ):
        Ledger.open(path, HEADER)
    assert path.read_bytes() == data
    write(tmp_path / "empty", 0)
    with Ledger.open(
        tmp_path / "empty", {**HEADER, "seed": 1}
    ) as ledger:  # nothing was evaluated: nothing to lose
        assert ledger.header["seed"] == 1
    assert Ledger(tmp_path / "empty").header["seed"] == 1


def test_refuses_another_search_with_a_diff(tmp_path):
    path = tmp_path / "ledger.jsonl"
    data = write(path, 2)
    other = {"space": {"mask.0": ["dwconv_3x3"]}, "seed": 1, "weights": "ab" * 60}
    with pytest.raises(UserError) as error:
        Ledger.open(path, other, resume=True)
    assert str(error.value) == (
        f"{path}: cannot resume, the search has changed (recorded -> now): "
        "space.mask.0: ['dwconv_3x3', 'conv_3x3'] -> ['dwconv_3x3']; seed: 0 -> 1; "
        f"policy: 'path_priority' -> absent; weights: absent -> '{('ab' * 60)[:59]}...; "
        "restore these settings, or choose another OUTPUT_DIR"
    )
    both = {**HEADER, "seed": 1, "weights": "b"}
    for acceptable, offered in ((["weights"], False), (["seed", "weights"], True)):
        with pytest.raises(UserError) as error:
            Ledger.open(path, both, resume=True, acceptable=acceptable)
        assert ("these settings, --accept them by name, or" in str(error.value)) == offered
    with Ledger.open(path, {**HEADER, "seed": 1}, resume=True, allow_changed=["seed"]) as ledger:
        assert ledger.header == HEADER and len(ledger.records) == 2
    assert path.read_bytes() == data
    many = {f"k{i}": i for i in range(9)}
    limited = {**HEADER, **many, "policy_settings": {"max_macs": 1}}  # named after four others, if at all
    with pytest.raises(UserError, match="more; restore .*; --rescore selects within any limits$"):
        Ledger.open(path, limited, resume=True)
    with pytest.raises(UserError, match="k3: absent -> 3; and 5 more; restore"):
        Ledger.open(path, {**HEADER, **many}, resume=True)


def test_missing_or_unwritable(tmp_path):
    with pytest.raises(UserError, match="none: cannot read the ledger: No such file"):
        Ledger(tmp_path / "none")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(UserError, match="empty: the ledger has no header"):
        Ledger(tmp_path / "empty")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileExistsError) as error:
        Ledger.open(tmp_path / "file" / "ledger.jsonl", HEADER)
    assert disk_problem(error.value).startswith(f"{tmp_path / 'file'}: File exists; ")
    write(tmp_path / "l", 1)
    with pytest.raises(ValueError, match="not open for appending"):
        Ledger(tmp_path / "l").append(candidate(1))


def test_disk_full_leaves_the_ledger_as_it_was(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger.open(path, HEADER)
    ledger.append(candidate(0))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (len(before) + 50, hard)
        )  # the write comes up short, then fails
        with pytest.raises(UserError, match=f"^{path}: File too large; make room, then mend"):
            with disk_errors(tmp_path, "mend"):
                ledger.append(candidate(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and ledger.records == stored(1)
    ledger.append(candidate(1))
    ledger.close()
    assert Ledger(path).records == stored(2)


def test_second_opener_is_told_who_holds_it(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger.open(path, HEADER) as ledger:
        expected = f"in use by another process .host {socket.gethostname()}, pid {os.getpid()}, started 20"
        for resume in (False, True):
            with pytest.raises(UserError, match=expected):
                Ledger.open(path, HEADER, resume=resume)
        ledger.append(candidate(0))
        assert Ledger(path).records == stored(1)  # readers need no lock
    with Ledger.open(path, HEADER, resume=True):
        pass
    with pytest.raises(ValueError, match="not open for appending"):
        ledger.append(candidate(1))


def race(path, start, done, results):
    start.wait(30)
    try:
        ledger = Ledger.open(path, HEADER)
        results.put((os.getpid(), None))
    except Exception as error:
        ledger = None
        results.put((os.getpid(), f"{type(error).__name__}: {error}"))
    done.wait(30)  # the winner keeps the lock until all have tried
    if ledger:
        ledger.close()


def test_races_have_one_winner(tmp_path):
    context = multiprocessing.get_context("fork")
    for attempt in range(20):
        start, done, results = context.Barrier(2), context.Barrier(2), context.SimpleQueue()
        path = tmp_path / str(attempt) / "ledger.jsonl"
        processes = [context.Process(target=race, args=(path, start, done, results)) for _ in range(2)]
        for process in processes:
            process.start()
        outcomes = [results.get(), results.get()]
        for process in processes:
            process.join(10)
            assert process.exitcode == 0
        winners = [pid for pid, message in outcomes if message is None]
        losers = [message for _, message in outcomes if message is not None]
        assert len(winners) == len(losers) == 1
        assert losers[0].startswith("UserError: ") and f"pid {winners[0]}," in losers[0]


def test_lock_does_not_outlive_its_process_through_a_child(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger.open(path, HEADER)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:  # inherits the open ledger; neither keeps its lock nor writes to it
        try:
            ledger.append(candidate(0))
            os.write(write_end, b"written")
        except ValueError:
            os.write(write_end, b"refused")
        time.sleep(60)
        os._exit(0)
    try:
        assert os.read(read_end, 7) == b"refused"
        with pytest.raises(UserError, match="in use"):
            Ledger.open(path, HEADER)
        ledger.close()
        with Ledger.open(path, HEADER) as again:
            again.append(candidate(0))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)


def test_kill_9_loses_at_most_the_record_being_written(tmp_path):
    path = tmp_path / "ledger.jsonl"
    code = (
        "import itertools, sys; from auto_panoptic.explore import Ledger\n"
        f"ledger = Ledger.open({str(path)!r}, {HEADER!r}, resume=True)\n"
        "for i in itertools.count(len(ledger.records)):\n"
        "    ledger.append({'value': i, 'text': 'x' * 5000}); print(i, flush=True)\n"
    )
    total = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(15):
            acknowledged = int(process.stdout.readline())
        process.kill()
        rest = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        acknowledged = int(rest[-1]) if rest else acknowledged
        records = Ledger(path).records
        assert [r["value"] for r in records] == list(range(len(records)))
        assert len(records) - (acknowledged + 1) in (0, 1)  # 1: on disk, but killed before it said so
        assert len(records) > total
        total = len(records)


def search(path, space, fitness, stop_after=None):
    """A search of two cycles in miniature: the candidates follow from the seed, the rest is in the ledger."""
    evaluated = 0
    cycles = [path_priority_candidates(space, 0, cycle, 12) for cycle in range(2)]
    with Ledger.open(path, HEADER, resume=True) as ledger:
        done = {(r["cycle"], r["index"]) for r in ledger.records}
        for cycle, candidates in enumerate(cycles):
            for index, architecture in enumerate(candidates):
                if (cycle, index) in done:
                    continue
                if evaluated == stop_after:
                    return None
                ledger.append({"cycle": cycle, "index": index, "PQ": fitness(architecture)})
                evaluated += 1
        board = Scoreboard(space)
        scores = {(r["cycle"], r["index"]): r["PQ"] for r in ledger.records}
        for cycle, candidates in enumerate(cycles):
            board.add_cycle(candidates, [scores[cycle, index] for index in range(len(candidates))])
        return evaluated, (board.table(), board.select()), path.read_bytes()


def test_resume_after_any_candidate_equals_an_uninterrupted_search(tmp_path):
    space = SearchSpace(
        (
            ChoiceSite("backbone.0", ("shuffle_3x3", "shuffle_5x5", "shuffle_7x7", "xception_3x3")),
            ChoiceSite("mask.0", ("dwconv_3x3", "dfconv_5x5", "conv_3x3")),
        )
    )
    utility = {"shuffle_5x5": 1 / 3, "xception_3x3": 0.1, "dfconv_5x5": 0.7, "dwconv_3x3": 0.3}

    def fitness(architecture):
        values = [utility.get(name, 0.0) for name in architecture.choices]
        return float("nan") if architecture.choices == ("shuffle_3x3", "conv_3x3") else sum(values)

    evaluated, board, data = search(tmp_path / "whole", space, fitness)
    assert evaluated == 24
    for stop in range(24):
        path = tmp_path / f"stopped_{stop}"
        assert search(path, space, fitness, stop_after=stop) is None
        with open(path, "ab") as f:
            f.write(b'{"seq": ')  # and it was killed while writing the next
        assert search(path, space, fitness) == (24 - stop, board, data)
