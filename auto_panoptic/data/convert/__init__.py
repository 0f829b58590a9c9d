"""Write a set in COCO-panoptic format from the annotations of other tools.

    python -m auto_panoptic.data.convert coco --instances-json my.json --image-root photos --output my
    python -m auto_panoptic.data.convert labelme my_labelme --stuff road sky --output my
    python -m auto_panoptic.data.convert png --labels png --image-root photos --classes my.json --output my

``--output`` then holds ``panoptic.json``, ``panoptic/`` and ``images``, a link to the photographs. The result
is checked as ``python -m auto_panoptic.data.check`` does. Stopped, the same command goes on; changed sources
are converted anew. Sources are only read.
"""
