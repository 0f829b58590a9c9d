"""Affinities of chosen pixels: the network's rows, the picture that a command draws, what it refuses."""

import sys

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model
from PIL import Image
from torch.nn import functional as F
from toy import ROOT, error_line, merged, run_script, write_config

from auto_panoptic.systems.unified.affinity import affinity
from auto_panoptic.training import build_config

sys.path.insert(0, str(ROOT / "tools"))
import show_affinity

MODEL = {
    "META_ARCHITECTURE": "UnifiedPanoptic",
    "ROI_HEADS": {"NAME": "UnifiedROIHeads", "SCORE_THRESH_TEST": 0.0, "NUM_CLASSES": 7},
    "SEM_SEG_HEAD": {"NAME": "UnifiedSemSegHead", "NUM_CLASSES": 12},
    "UNIFIED": {
        "DECODER_DIMS": [32],
        "POTENTIAL": "B",
        "SCORE_THRESH_TEST": 0.1,
        "AFFINITY": {"DIM": 8, "STRIDE": 8},
    },
}
FIXED = {"BACKBONE_OPS": ["shuffle_3x3"], "HEAD_OPS": ["conv_3x3"]}


def write_unified(path, shapes, **unified):
    """The toy config with another system: without the keys that only the toy's reads."""
    write_config(path, shapes, MODEL=MODEL, NAS={"SPACE": FIXED})
    content = yaml.safe_load(path.read_text())
    model = content["MODEL"]
    del model["PANOPTIC_FPN"], model["SEM_SEG_HEAD"]["NUM_LAYERS"], model["SEM_SEG_HEAD"]["CONVS_DIM"]
    if not unified.get("MASK_ON", True):
        del model["ROI_MASK_HEAD"]
    content["MODEL"] = merged(model, unified)
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory, shapes):
    """A folder with a config of a fixed network, its weights and a photo."""
    folder = tmp_path_factory.mktemp("affinity")
    config = write_unified(folder / "toy.yaml", shapes)
    torch.manual_seed(0)
    model = build_model(build_config(str(config), []))
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    Image.open(sorted((shapes / "val").iterdir())[0]).resize((90, 60)).save(folder / "photo.png")
    return folder


def show(folder, *points, photo="photo.png", output="drawn.png", opts=(), config="toy.yaml"):
    files = ("--config-file", folder / config, "--input", folder / photo, "--output", folder / output)
    run_script("show_affinity", *files, "--points", *points, *opts)


def weights(folder):
    return "MODEL.WEIGHTS", folder / "weights.pth"


# ------------------------------------------------------------------ the network's affinities


def test_affinities_are_the_rows_of_the_cells_of_the_points(world):
    """A photo of 48 x 80 and an output twice as large; stride 8, padded to 64 x 96."""
    model = build_model(build_config(str(world / "toy.yaml"), [])).eval()
    model.affinity_head.predictor.weight.data *= 5
    image = torch.randint(0, 256, (3, 48, 80), generator=torch.Generator().manual_seed(0)).float()
    inputs, kept = {"image": image, "height": 96, "width": 160}, []
    model.affinity_head.register_forward_hook(lambda *args: kept.append(args[-1][0].detach()))
    points = [(0, 0), (159, 95), (17, 31), (15, 32)]
    maps = model.affinity_of(inputs, points)
    assert maps.shape == (4, 96, 160)
    (q,) = kept
    assert q.shape == (8, 8, 12)
    rows = affinity(torch.stack([q[:, 0, 0], q[:, 5, 9], q[:, 1, 1], q[:, 2, 0]]), q.flatten(1))
    assert torch.pdist(rows).min() > 0.01  # the network tells these pixels apart
    resized = F.interpolate(rows.view(1, 4, 8, 12), scale_factor=8, mode="bilinear")[..., :48, :80]
    torch.testing.assert_close(maps, F.interpolate(resized, size=(96, 160), mode="bilinear")[0])
    model.affinity = None
    with pytest.raises(ValueError, match="add MODEL.UNIFIED.AFFINITY.ENABLED True"):
        model.affinity_of(inputs, points)


# ------------------------------------------------------------------ the picture


def test_a_picture_of_both_ways_of_inference(world, capsys, monkeypatch):
    panels = []
    draw = show_affinity.draw
    merging = ("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 1)  # read by the second way alone
    monkeypatch.setattr(show_affinity, "draw", lambda p, *args: (panels.extend(p), draw(p, *args)))
    show(world, "30,20", "89,59", opts=(*weights(world), *merging))
    said = capsys.readouterr().out
    assert "panoptic: " in said and "heuristic: " in said and "drawn.png" in said
    titles = ["detections", "affinities of 30,20", "affinities of 89,59"]
    assert [p[0] for p in panels] == [*titles, "panoptic inference", "heuristic inference"]
    assert [p[3] for p in panels] == [[(30, 20), (89, 59)], [(30, 20)], [(89, 59)], [], []]
    photo = np.asarray(Image.open(world / "photo.png").convert("RGB"))
    for _, picture, heat, _ in panels[1:3]:
        assert np.array_equal(picture, photo) and heat.shape == (60, 90) and heat.min() >= 0
    assert not np.array_equal(panels[0][1], photo)
    drawn = np.asarray(Image.open(world / "drawn.png").convert("RGB"))
    assert drawn.shape[0] > 500 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100


def test_without_masks_there_is_one_way_of_inference(world, shapes, capsys):
    config = write_unified(world / "free.yaml", shapes, MASK_ON=False, UNIFIED={"POTENTIAL": "A"})
    model = build_model(build_config(str(config), []))
    torch.save({"model": model.state_dict()}, world / "free.pth")
    show(world, "0,0", output="free.png", config="free.yaml", opts=("MODEL.WEIGHTS", world / "free.pth"))
    said = capsys.readouterr().out
    assert "panoptic: " in said and "heuristic" not in said and (world / "free.png").is_file()


# ------------------------------------------------------------------ what it refuses


def test_bad_input_gives_one_line(world, shapes, capfd):
    def line(*points, **options):
        with pytest.raises(SystemExit) as end:
            show(world, *points, **{"opts": weights(world), "output": "refused.png", **options})
        assert end.value.code == 2
        return error_line(capfd)

    assert "nowhere.png is no file" in line("1,1", photo="nowhere.png")
    assert "cannot be read as a photo" in line("1,1", photo="toy.yaml")
    assert "90,1 lies outside the photo of 90 x 60 pixels" in line("89,59", "90,1")
    assert "-1,1 lies outside the photo" in line(" -1,1")
    for wrong in ("5", "1,2,3", "1.5,2", "1,b"):
        assert f"{wrong!r} is no pixel; expected x,y" in line(wrong)
    assert "names no pixel" in line()
    assert "needs weights" in line("1,1", opts=())
    assert "ends in .png" in line("1,1", output="drawn.jpg")
    assert "no folder" in line("1,1", output="nowhere/drawn.png")
    assert "is the photo or a folder" in line("1,1", output="photo.png")
    write_config(world / "other.yaml", shapes)
    assert "has no instance affinities; name a config of configs/unified" in line("1,1", config="other.yaml")
    assert not (world / "refused.png").exists()


@pytest.mark.parametrize("x, y", [(20, 10), (5, 25)])
def test_points_are_marked_where_they_are(tmp_path, x, y):
    """Also over a picture of more pixels than the photo: the centre as a share of the black area."""
    black = np.zeros((4 * 30, 4 * 40, 3), np.uint8)
    show_affinity.draw([("", black, None, [(x, y)])], (30, 40), tmp_path / "drawn.png")
    drawn = np.asarray(Image.open(tmp_path / "drawn.png").convert("RGB")).astype(int)
    rows, columns = np.nonzero(drawn.sum(2) < 100)
    mark = np.nonzero((drawn[..., 0] > 200) & (drawn[..., 1] < 60))
    for inside, found, at, size in ((rows, mark[0], y, 30), (columns, mark[1], x, 40)):
        share = (found.mean() + 0.5 - inside.min()) / (inside.max() + 1 - inside.min())
        assert share == pytest.approx((at + 0.5) / size, abs=0.01)
