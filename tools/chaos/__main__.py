"""Fault drills of the search: what a search does when it is killed, crowded or damaged.

    python tools/chaos                     # full numbers, without the drill 'real'
    python tools/chaos --quick --only kill --only lock
    python tools/chaos --only real --weights FILE --config-file FILE

Prints a table, then one line of JSON. The exit code is 1 if a drill fails. Needs Linux and tests/toy.py.
"""

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forked processes have no threads; equal sums everywhere
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A shell starts what runs in the background with Ctrl-C ignored, nohup ignores SIGHUP: drills send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tests")]

from auto_panoptic.training import run_command  # noqa: E402
from chaos.command import main  # noqa: E402

if __name__ == "__main__":
    run_command(lambda: sys.exit(main(sys.argv[1:])))
