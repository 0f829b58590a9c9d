"""Mapillary Vistas v1.2 for panoptic segmentation: 37 thing and 28 stuff classes.

Its release has panoptic annotations in COCO's format, which are read as they are; instances and label maps
are derived. The names of the sets are those of Mask2Former.
"""

from __future__ import annotations

from ..derive.once import datasets_root
from ..source import PanopticSource

# By category id, from 1. "+" marks things.
_CLASSES = """
+Bird, +Ground Animal, Curb, Fence, Guard Rail, Barrier, Wall, Bike Lane, +Crosswalk - Plain, Curb Cut,
Parking, Pedestrian Area, Rail Track, Road, Service Lane, Sidewalk, Bridge, Building, Tunnel, +Person,
+Bicyclist, +Motorcyclist, +Other Rider, +Lane Marking - Crosswalk, Lane Marking - General, Mountain, Sand,
Sky, Snow, Terrain, Vegetation, Water, +Banner, +Bench, +Bike Rack, +Billboard, +Catch Basin, +CCTV Camera,
+Fire Hydrant, +Junction Box, +Mailbox, +Manhole, +Phone Booth, Pothole, +Street Light, +Pole,
+Traffic Sign Frame, +Utility Pole, +Traffic Light, +Traffic Sign (Back), +Traffic Sign (Front), +Trash Can,
+Bicycle, +Boat, +Bus, +Car, +Caravan, +Motorcycle, On Rails, +Other Vehicle, +Trailer, +Truck,
+Wheeled Slow, Car Mount, Ego Vehicle
"""
CATEGORIES = tuple(
    {"id": i, "name": name.removeprefix("+"), "isthing": int(name.startswith("+"))}
    for i, name in enumerate((name.strip() for name in _CLASSES.split(",")), start=1)
)
FOLDERS = {"train": "training", "val": "validation"}
REMEDY = (
    "Unpack Mapillary Vistas v1.2, or of v2.0 link training/panoptic and validation/panoptic to the panoptic "
    "folders in their v1.2"
)


def mapillary_sources() -> list[PanopticSource]:
    """Both parts under the current ``$DETECTRON2_DATASETS``; nothing is read."""
    root = datasets_root() / "mapillary_vistas"
    return [
        PanopticSource(
            name=f"mapillary_vistas_panoptic_{part}",
            panoptic_json=str(root / folder / "panoptic" / "panoptic_2018.json"),
            panoptic_root=str(root / folder / "panoptic"),
            image_root=str(root / folder / "images"),
            categories=CATEGORIES,
            remedy=REMEDY,
            derived_name=f"mapillary_{part}",
        )
        for part, folder in FOLDERS.items()
    ]
