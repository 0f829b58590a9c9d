"""The journal of a search: one line per finished candidate, appended and never changed.

The first line is the header; each following line is one JSON record, numbered by ``seq`` and closed by
``checksum``, the SHA-256 of the rest of the record. Whenever the process is killed, at most the record being
written is lost.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..errors import UserError
from ..files import WriterLock, append, end_last_line, open_own, plain, read_bytes, sync_folder
from ..validate import flat, shortened

FORMAT = "auto_panoptic.ledger/1"
# Header keys that ledgers of earlier versions lack: compared where they are recorded.
LATER_KEYS = ("metrics", "libraries", "content")
_HEADER_START = f'{{"format": "{FORMAT}"'.encode()


class Ledger:
    """A search journal.

    ``Ledger(path)`` reads it and takes no lock; a line that is still being written is left out.
    :meth:`open` returns a ledger to append to; it is a context manager.

    Attributes:
        path: the file.
        header: what identifies the search.
        records: the finished candidates in the order of ``seq``; each has ``seq``, the rest as appended.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            data = read_bytes(self.path)
        except OSError as e:
            raise UserError(
                f"{self.path}: cannot read the ledger: {e.strerror}; name a search's OUTPUT_DIR"
            ) from e
        self.header, self.records, _ = _parse(self.path, data)
        if self.header is None:
            raise UserError(f"{self.path}: the ledger has no header: it is empty, start the search again")
        self._fd = self._lock = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        header: Mapping,
        resume: bool = False,
        allow_changed: Iterable[str] = (),
        acceptable: Iterable[str] = (),
        comparable: Callable[[dict], dict] = dict,
    ) -> Ledger:
        """Open for appending, creating the file if there is none. One process at a time.

        A last line that was cut short by a crash is removed; a complete one is kept. A ledger with records is
        continued with ``resume`` if ``comparable`` of its header is the same, but for the keys of
        ``allow_changed``; it keeps its own header. A refusal offers --accept where all that differs is among
        the keys ``acceptable``.

        Raises:
            UserError: the ledger is in use, has records although ``resume`` is off, belongs to a search with
                another header, or is damaged other than in its last line.
        """
        self = cls.__new__(cls)
        self.path, self._fd = Path(path), None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = WriterLock(self.path.with_name(self.path.name + ".lock"), protects=str(self.path))
        try:
            self._open(plain(dict(header)), resume, set(allow_changed), set(acceptable), comparable)
        except BaseException:
            self.close()
            raise
        return self

    def _open(self, header: dict, resume: bool, allow_changed: set, acceptable: set, comparable: Callable):
        self._fd = open_own(self.path)
        data = read_bytes(self.path)
        stored, self.records, length = _parse(self.path, data)
        if self.records and not resume:
            raise UserError(
                f"{self.path}: holds {len(self.records)} evaluated candidates: continue with --resume, "
                "or choose another OUTPUT_DIR"
            )
        if self.records:
            unknown = {key for key in LATER_KEYS if key not in stored}
            changed = _differences(comparable(stored), comparable(header), allow_changed | unknown)
            if changed:
                offered = {key.partition(".")[0] for key in changed} <= acceptable
                accept = ", --accept them by name" if offered else ""
                limits = any(key.startswith("policy_settings.max_") for key in changed)
                hint = "; --rescore selects within any limits" if limits else ""
                raise UserError(
                    f"{self.path}: cannot resume, the search has changed (recorded -> now): "
                    f"{_in_one_line(changed)}; restore these settings{accept}, "
                    f"or choose another OUTPUT_DIR{hint}"
                )
            header = stored
        else:
            length = 0  # a header alone is worth nothing: start afresh
        self.header = header
        os.ftruncate(self._fd, length)
        end_last_line(self._fd)
        if length == 0:
            self._write({"format": FORMAT, **header})
            sync_folder(self.path.parent)
        os.fsync(self._fd)

    def append(self, record: Mapping) -> dict:
        """Append one finished candidate and wait until it is on disk.

        Numpy scalars are written as numbers; values that are not finite as null. Of a candidate that failed
        there may be several records; the last one counts.

        Returns:
            The record as stored, with its ``seq``.

        Raises:
            OSError: it could not be written (disk full, say); the file is as before.
        """
        if self._fd is None or not self._lock.held:  # a forked child does not hold its parent's lock
            raise ValueError(f"{self.path}: the ledger is not open for appending, use Ledger.open")
        record = plain(dict(record))
        seq = len(self.records)
        if record.pop("seq", seq) != seq or "checksum" in record:
            raise ValueError(f"record {record!r}: 'seq' must be {seq} or absent, and 'checksum' absent")
        cycle, index = record.get("cycle"), record.get("index")
        taken = ((r.get("cycle"), r.get("index")) for r in self.records if r.get("status") != "failed")
        if cycle is not None and (cycle, index) in taken:
            raise ValueError(f"candidate {index} of cycle {cycle} is in the ledger already")
        record = {"seq": seq, **record}
        self._write(record)
        self.records.append(record)
        return record

    def close(self) -> None:
        """Close the file and release the lock; doing so twice is harmless."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _write(self, record: dict) -> None:
        line = json.dumps({**record, "checksum": _checksum(record)}, allow_nan=False) + "\n"
        append(self._fd, line.encode(), self.path)


def _parse(path: Path, data: bytes) -> tuple[dict | None, list[dict], int]:
    """Header (None if there is none), records, and the length of the intact part of ``data``."""
    header, records, length = None, [], 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        is_tail = number == len(lines)  # what follows the last line end: empty unless a write was cut short
        if is_tail and not line:
            break
        content, problem = _decode(line, expected_seq=None if header is None else len(records))
        if problem:
            is_ours = header is not None or line[: len(_HEADER_START)] == _HEADER_START[: len(line)]
            if is_tail and is_ours:
                break
            raise UserError(
                f"{path}: line {number} is damaged ({problem}): restore the file from a copy, or delete that "
                "line and all after it and continue with --resume"
            )
        if header is None:
            header = content
        else:
            records.append(content)
        length += len(line) + (not is_tail)
    return header, records, length


def _decode(line: bytes, expected_seq: int | None) -> tuple[dict | None, str | None]:
    """Content of one line without its checksum, or what is wrong with it."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None, "not JSON"
    if not isinstance(content, dict):
        return None, "not a JSON object"
    if content.pop("checksum", None) != _checksum(content):
        return None, "its checksum does not match"
    if expected_seq is None:
        if content.pop("format", None) != FORMAT:
            return None, f"not the header of a ledger, {FORMAT}"
    elif content.get("seq") != expected_seq:
        return None, f"it has seq {content.get('seq')} where {expected_seq} should follow"
    return content, None


def _checksum(record: dict) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _differences(stored: dict, now: dict, allow_changed: set[str]) -> dict[str, str]:
    """{key that differs: how}."""
    old, new = (
        dict(flat({key: value for key, value in header.items() if key not in allow_changed}))
        for header in (stored, now)
    )
    notes = {}
    for key in {**old, **new}:
        if key not in old or key not in new or old[key] != new[key]:
            before, after = (shortened(d[key], 60) if key in d else "absent" for d in (old, new))
            notes[key] = f"{key}: {before} -> {after}"
    return notes


def _in_one_line(notes: Mapping[str, str], limit: int = 4) -> str:
    more = f"; and {len(notes) - limit} more" if len(notes) > limit else ""
    return "; ".join(list(notes.values())[:limit]) + more
