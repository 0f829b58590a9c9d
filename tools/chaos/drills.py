"""Which drills there are, and the faults that each stands for."""

from __future__ import annotations

from collections.abc import Callable

from .boundaries import boundaries
from .changed import changed
from .clock import clock
from .damage import damage
from .finals import finals
from .full import full
from .fuzz import fuzz
from .images import images
from .journal import journal
from .kill import kill
from .lock import lock
from .malformed import malformed
from .memory import memory
from .nan import nan
from .order import order
from .orphans import orphans
from .pickles import pickles
from .preflight import preflight
from .quickstart_kill import quickstart
from .ranks import ranks
from .real import real
from .report import Outcome, Plan
from .signals import signals
from .train_kill import train_kill
from .worker import worker

# Several run at a time: the longest come first.
DRILLS: dict[str, Callable[[Plan], Outcome]] = {
    "fuzz": fuzz,
    "worker": worker,
    "train_kill": train_kill,
    "kill": kill,
    "finals": finals,
    "boundaries": boundaries,
    "signals": signals,
    "malformed": malformed,
    "ranks": ranks,
    "full": full,
    "pickles": pickles,
    "nan": nan,
    "order": order,
    "memory": memory,
    "clock": clock,
    "damage": damage,
    "journal": journal,
    "lock": lock,
    "images": images,
    "orphans": orphans,
    "changed": changed,
    "preflight": preflight,
    "quickstart": quickstart,
    "real": real,
}
ASKED_FOR = ("quickstart", "real")  # with --only
FAULTS = {
    "kill": "F1 F4",
    "finals": "F1 F4",
    "train_kill": "F2",
    "boundaries": "F3",
    "damage": "F5",
    "journal": "F6",
    "full": "F7",
    "images": "F8",
    "nan": "F9",
    "worker": "F10",
    "ranks": "F11",
    "lock": "F12",
    "clock": "F13",
    "malformed": "F14",
    "fuzz": "F14",
    "pickles": "F15",
    "signals": "F16",
    "changed": "F17",
    "preflight": "F18",
    "memory": "F19",
    "order": "F20",
    "orphans": "",
    "quickstart": "F1 F2 F16",
    "real": "F1",
}
