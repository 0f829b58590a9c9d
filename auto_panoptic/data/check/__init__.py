"""Read every file of a data set and list everything that is wrong with it.

    python -m auto_panoptic.data.check shapes_panoptic_val coco_2017_val_panoptic_separated
    python -m auto_panoptic.data.check my_train my_val --config-file configs/mine.yaml
    python -m auto_panoptic.data.check --panoptic-json panoptic.json --panoptic-root png --image-root images
    python -m auto_panoptic.data.check imagenet_val

Ends with exit code 0 if there is no error (warnings and notes are allowed), 2 with the full list of errors
and what to do about each, 130 after Ctrl-C with what was found until then.

``sets`` finds the paths in the config or the registered source. ``run`` reads the JSON files by the rules of
``formats``, which loading obeys too: it stops at the first error, the check lists all. One job per image,
spread over processes, reads its photograph, panoptic PNG, label map and instances to the last byte
(``images``, ``instances``). ``formats.findings`` holds every kind of finding with its severity
and remedy:

- an *error* stops training, or makes training or evaluation wrong; those of the JSON files stop any command
  that reads the set;
- a *warning* is probably not meant, but has a defined effect;
- a *note* is allowed and good to know, such as images without objects.

Files are compared with the JSON and with each other: sizes (of photographs after the EXIF orientation that
Detectron2 applies), segment ids in both directions, areas and boxes counted from the PNG's runs of equal
pixels, label maps with those that the PNG implies, instance masks with the segments of the PNG. Memory holds
the JSON files, one image per process and the findings.
"""

from .command import main
from .report import Report, format_report
from .run import check_data_set, run_check

__all__ = ["Report", "check_data_set", "format_report", "main", "run_check"]
