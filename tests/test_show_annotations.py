"""Both annotations of an image: the instances of the drawn scenes overlap, and the picture shows it."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import show_annotations  # noqa: E402

from auto_panoptic.errors import run_command  # noqa: E402
from auto_panoptic.pictures.colours import OUTLINE, PALETTE, rgb  # noqa: E402
from auto_panoptic.pictures.overlay import OPACITY, overlay, stacked  # noqa: E402


def show(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["show_annotations.py", *map(str, words)])
    code = 0
    try:
        run_command(show_annotations.run)
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def test_whole_objects_share_pixels_visible_ones_do_not(tmp_path, monkeypatch, capsys):
    """The image is found that has the largest overlap; both halves show the same photo."""
    picture = tmp_path / "a.png"
    code, out, _ = show(monkeypatch, capsys, "shapes_panoptic_val_overlapping", "--output", picture)
    assert code == 0 and out.endswith(f"wrote {picture}\n")
    number, segments, things, shared = re.match(
        r"image (\d+): (\d+) segments, (\d+) instances that share ([\d,]+) pixels", out
    ).groups()
    assert int(shared.replace(",", "")) > 500 and int(segments) > int(things) > 1
    width, height = Image.open(picture).size
    assert width > 2 * height and min(width, height) >= 480
    code, out, _ = show(
        monkeypatch, capsys, "shapes_panoptic_val", "--image", number, "--output", tmp_path / "b.png"
    )
    assert code == 0 and out.startswith(f"image {number}: {segments} segments, ")
    assert "share 0 pixels" in out


@pytest.mark.parametrize("words, problem", [
    (("nowhere",), "nowhere"),
    (("shapes_panoptic_val", "--image", "7"), "--image: shapes_panoptic_val has no image 7; it has 100"),
    (("shapes_panoptic_val", "--output", "a.jpg"), "--output: a.jpg is no name of a picture; expected one"),
    (("shapes_panoptic_val", "--output", "no/a.png"), "--output: no/a.png cannot be written"),
    (("shapes_objects_val",), "shapes_objects_val holds no panoptic annotation; name a panoptic set"),
])  # fmt: skip
def test_what_cannot_be_shown_gives_one_line(monkeypatch, capsys, words, problem):
    code, out, err = show(monkeypatch, capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1) and problem in err


def test_the_smaller_mask_lies_over_the_larger_one():
    """A photo of one grey, enlarged ten times; the masks' order does not matter, outlines lie at the rims."""
    photo = np.full((40, 64, 3), 100, np.uint8)
    masks = np.zeros((2, 40, 64), bool)
    masks[0, 10:20, 10:20] = True
    masks[1, 5:35, 5:50] = True
    drawn = overlay(photo, masks, [0, 3], ["", ""])
    assert np.array_equal(drawn, overlay(photo, masks[::-1], [3, 0], ["", ""]))
    assert drawn.shape == (400, 640, 3)
    large = (1 - OPACITY) * 100 + OPACITY * np.array(rgb(PALETTE[3]))
    both = (1 - OPACITY) * large + OPACITY * np.array(rgb(PALETTE[0]))
    assert np.abs(drawn[300, 300] - large).max() <= 1 and np.abs(drawn[150, 150] - both).max() <= 1
    assert (drawn[2, 2] == 100).all() and (drawn[49, 200] == rgb(OUTLINE)).all()
    named = overlay(photo, masks, [0, 3], ["", "a name"])
    assert (named == 255).all(-1).any() and not (drawn == 255).all(-1).any()


def test_titles_stand_above_pictures_of_one_size():
    pictures = [np.zeros((100, 200, 3), np.uint8)] * 2
    rows = stacked(pictures, ["one", "two"])
    assert rows.shape == (2 * (100 + 24), 200, 3) and rows[:24].max() == 255 and rows[24:124].max() == 0
    assert stacked(pictures, ["one", "two"], side_by_side=True).shape == (124, 2 * 200 + 12, 3)
