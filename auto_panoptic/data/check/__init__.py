"""Read every file of a data set and list everything that is wrong with it.

    python -m auto_panoptic.data.check shapes_panoptic_val coco_2017_val_panoptic_separated
    python -m auto_panoptic.data.check my_train my_val --config-file configs/mine.yaml
    python -m auto_panoptic.data.check my_folder     # with panoptic.json, panoptic/ and images/
    python -m auto_panoptic.data.check --panoptic-json panoptic.json --panoptic-root png --image-root images
    python -m auto_panoptic.data.check imagenet_val

Ends with exit code 0 if there is no error (warnings and notes are allowed), 2 with the full list of errors
and what to do about each, 130 after Ctrl-C with what was found until then.

The rules are those of ``formats``, which loading obeys too: it stops at the first error, the check lists
all. ``formats.findings`` holds every kind of finding with its severity and remedy:

- an *error* stops training, or makes training or evaluation wrong;
- a *warning* is probably not meant, but has a defined effect;
- a *note* is allowed and good to know, such as images without objects.
"""

from .command import main
from .report import Report, format_report
from .run import check_data_set, run_check

__all__ = ["Report", "check_data_set", "format_report", "main", "run_check"]
