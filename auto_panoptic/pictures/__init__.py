"""What people look at: segments and mistakes as pictures. Needs neither torch nor Detectron2."""

# Files of the pictures of an evaluation, in a folder of their own.
RECORD = "pictures.json"
PANELS = {"photo": "jpg", "truth": "png", "prediction": "png", "differences": "png"}


def picture_name(rank: str, panel: str) -> str:
    """File of one panel of the image of this rank, e.g. of "best 1"."""
    return f"{rank.replace(' ', '_')}_{panel}.{PANELS[panel]}"
