"""Ground truth through targets and post-processing of Panoptic-DeepLab: what perfect outputs would score."""

import json
import sys

import numpy as np
import pytest
from data_util import write_own
from test_real_photos import PHOTOS, SETS
from toy import ROOT

from auto_panoptic.data.formats.panoptic_png import segment_records, write_panoptic
from auto_panoptic.errors import UserError

sys.path.insert(0, str(ROOT / "tools"))
import deeplab_oracle

CATEGORIES = [{"id": 3, "name": "ring", "isthing": 1}, {"id": 5, "name": "ground", "isthing": 0}]


def run(capsys, monkeypatch, *arguments) -> dict:
    """The last line of the command."""
    monkeypatch.setattr(sys, "argv", ["deeplab_oracle.py", *map(str, arguments)])
    deeplab_oracle.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def write_rings(folder):
    """A disk of 5 x 5 pixels in a ring of 9 x 9, on ground: two things, the centres of both on one pixel."""
    ids = np.full((20, 30), 5, np.int32)
    ids[4:13, 6:15], ids[6:11, 8:13] = 1, 2
    (folder / "panoptic").mkdir()
    write_panoptic(str(folder / "panoptic/a.png"), ids)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 30, "height": 20}],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "a.png",
                "segments_info": segment_records(ids, {1: 3, 2: 3, 5: 5}, crowds=set()),
            }
        ],
        "categories": CATEGORIES,
    }
    (folder / "panoptic.json").write_text(json.dumps(content))


def test_separate_objects_are_all_found(tmp_path, capsys, monkeypatch):
    """A cat, a crowd of dogs, stuff and void."""
    write_own(tmp_path)
    assert run(capsys, monkeypatch, tmp_path) == {tmp_path.name: 100.0}


def test_centres_on_one_pixel_merge(tmp_path, capsys, monkeypatch):
    """The ring, 56 of 81 pixels, is matched by both together, the disk by nothing: IoU 56/81 of 1.5."""
    write_rings(tmp_path)
    quality = deeplab_oracle.perfect_quality(*deeplab_oracle.locate(str(tmp_path)), 10, stuff_area=0)
    found = quality.compute()
    assert found["PQ_th"] == pytest.approx(100 * 56 / 81 / 1.5)
    assert found["PQ_st"] == 100
    assert run(capsys, monkeypatch, tmp_path)[tmp_path.name] == pytest.approx((found["PQ_th"] + 100) / 2)
    with pytest.raises(SystemExit) as end:
        run(capsys, monkeypatch, tmp_path, "--least", 95)
    assert end.value.code == 1


def test_as_many_centres_as_top_k_are_all_left_out(tmp_path, capsys, monkeypatch):
    """Detectron2's rule: a centre scores more than the k-th; here all score 1."""
    write_own(tmp_path)
    found = run(capsys, monkeypatch, tmp_path, "--top-k", 2)  # the cat and the dogs
    assert found[tmp_path.name] == pytest.approx(200 / 3)  # of cat, wall and floor; dogs are a crowd


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["shapes_panoptic_vall"],
            "unknown data set 'shapes_panoptic_vall'; did you mean shapes_panoptic_val",
        ),
        (["--nms-kernel", 4], "--nms-kernel is 4; expected an odd number"),
        (["--sigma", 0], "--sigma is 0; expected a whole number of at least 1"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(capsys, monkeypatch, arguments, message):
    with pytest.raises(UserError, match=message):
        run(capsys, monkeypatch, *arguments)


@pytest.mark.skipif(not (PHOTOS / "coco133").is_dir(), reason="annotated photographs are not here")
@pytest.mark.parametrize("name", SETS)
def test_photographs_lose_less_than_five_points(name, capsys, monkeypatch):
    assert run(capsys, monkeypatch, PHOTOS / name, "--least", 95)[name] >= 95
