#!/usr/bin/env python
"""Make COCO's label maps for the semantic head from the panoptic annotations.

    python datasets/prepare_coco_panoptic.py

reads   coco/annotations/panoptic_{train,val}2017.json and coco/panoptic_{train,val}2017/
writes  coco/panoptic_stuff_{train,val}2017/, as Detectron2's prepare_panoptic_fpn.py:
        things 0, the 53 stuff classes 1..53 by ascending category id, void 255

Interrupted, it goes on where it stopped; what is there and valid is kept. All of it is read back at the end.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from auto_panoptic.data.prepare import prepare_splits  # noqa: E402
from auto_panoptic.data.sets.coco import coco_files, prepare_coco  # noqa: E402
from auto_panoptic.errors import run_command  # noqa: E402

if __name__ == "__main__":
    run_command(lambda: prepare_splits(__doc__, coco_files, prepare_coco))
