#!/usr/bin/env python
"""Make ADE20K's panoptic annotations, instances and label maps from the challenges' release.

    python datasets/prepare_ade20k.py

reads   ADEChallengeData2016/{images,annotations,annotations_instance}/{training,validation}/
writes  ADEChallengeData2016/ade20k_panoptic_{train,val}.json and ade20k_panoptic_{train,val}/
        ADEChallengeData2016/ade20k_instance_{train,val}.json, the 100 thing classes
        derived/ade20k_stuff_{train,val}/, label maps: things 0, the 50 stuff classes 1..50, void 255

A JSON that is there (as made by Mask2Former's scripts) is used as it is. Interrupted, the command goes on
where it stopped; what is there and valid is kept. All of it is read back at the end.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from auto_panoptic.data.prepare import prepare_splits  # noqa: E402
from auto_panoptic.data.sets.ade20k import ade20k_files, prepare_ade20k  # noqa: E402
from auto_panoptic.errors import run_command  # noqa: E402

if __name__ == "__main__":
    run_command(lambda: prepare_splits(__doc__, ade20k_files, prepare_ade20k))
