"""``python -m auto_panoptic.data.check``."""

from ...errors import run_command
from .command import main

if __name__ == "__main__":
    run_command(main)
