#!/usr/bin/env python
"""Make Cityscapes' panoptic annotations, instances and label maps from the fine annotations.

    python datasets/prepare_cityscapes.py

reads   cityscapes/gtFine/{train,val}/<city>/*_gtFine_instanceIds.png and cityscapes/leftImg8bit/
writes  cityscapes/gtFine/cityscapes_panoptic_{train,val}.json and cityscapes_panoptic_{train,val}/,
        with the ids of the official createPanopticImgs.py: 11 stuff and 8 thing classes, groups as crowds
        derived/cityscapes_{train,val}/: instances.json and semantic/ (things 0, stuff 1..11, void 255)

A JSON that is there (as made by createPanopticImgs.py) is used as it is. Interrupted, the command goes on
where it stopped; what is there and valid is kept. All of it is read back at the end.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from auto_panoptic.data.prepare import prepare_splits  # noqa: E402
from auto_panoptic.data.sets.cityscapes import cityscapes_files, prepare_cityscapes  # noqa: E402
from auto_panoptic.errors import run_command  # noqa: E402

if __name__ == "__main__":
    run_command(lambda: prepare_splits(__doc__, cityscapes_files, prepare_cityscapes))
