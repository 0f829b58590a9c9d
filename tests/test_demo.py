"""Photos without labels: overlays and predictions in COCO's format, the same as an evaluation's."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from toy import answer_strongly, error_line, make_config, run_script

from auto_panoptic.data.formats.panoptic_png import read_panoptic
from auto_panoptic.errors import UserError
from auto_panoptic.pictures.colours import PALETTE, rgb
from auto_panoptic.space import SearchSpace
from demo import panoptic, two_rows


@pytest.fixture(scope="module")
def world(tmp_path_factory, shapes):
    """A folder with a config, the weights of a fixed network, and photos of several kinds."""
    folder = tmp_path_factory.mktemp("demo")
    space = SearchSpace.from_config(make_config(folder, shapes))
    space.architecture([0] * len(space.sites)).save(folder / "architecture.json")
    torch.manual_seed(0)
    model = build_model(make_config(folder, shapes, "NAS.ARCHITECTURE", folder / "architecture.json"))
    answer_strongly(model)
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    (folder / "photos").mkdir()
    for path in sorted((shapes / "val").iterdir())[:2]:
        shutil.copy(path, folder / "photos")
    picture = Image.open(path)
    picture.convert("L").save(folder / "photos/grey.png")
    rotated = picture.resize((90, 50)).getexif()
    rotated[0x0112] = 6
    picture.resize((90, 50)).save(folder / "photos/rotated.jpg", exif=rotated)
    (folder / "photos/notes.txt").write_text("no photo")
    return folder


def demo(folder, *arguments, photos="photos", opts=()):
    opts = ("NAS.ARCHITECTURE", folder / "architecture.json", "MODEL.WEIGHTS", folder / "weights.pth", *opts)
    config = ("--config-file", folder / "toy.yaml", "--input", folder / photos)
    run_script("demo", *config, *arguments, "--opts", *opts)


def test_overlays_and_predictions(world, tmp_path, shapes):
    demo(world, "--output", tmp_path / "drawn", "--json", "--confidence-threshold", 0.3)
    content = json.loads((tmp_path / "drawn/panoptic_demo.json").read_text())
    truth = json.loads((shapes / "annotations/panoptic_val.json").read_text())
    assert content["categories"] == truth["categories"] and len(content["annotations"]) == 4
    known = {category["id"] for category in truth["categories"]}
    images = {image["id"]: image for image in content["images"]}
    assert {i["file_name"]: (i["width"], i["height"]) for i in images.values()}["rotated.jpg"] == (50, 90)
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        ids = read_panoptic(tmp_path / "drawn/panoptic_demo" / annotation["file_name"])
        assert ids.shape == (image["height"], image["width"])
        found = dict(zip(*(x.tolist() for x in np.unique(ids[ids > 0], return_counts=True)), strict=True))
        assert found == {s["id"]: s["area"] for s in annotation["segments_info"]}
        assert {s["category_id"] for s in annotation["segments_info"]} <= known
        overlay = Image.open(tmp_path / "drawn" / image["file_name"])
        times = -(-480 // image["width"])  # names need room
        assert overlay.size == (times * image["width"], times * image["height"])
    assert any(annotation["segments_info"] for annotation in content["annotations"])


def test_two_rows_show_the_panoptic_map_above_the_instances(world, tmp_path, capfd):
    """In the size of the photo, or enlarged; segments are those of the plain drawing."""
    demo(world, "--output", tmp_path / "plain")
    plain = capfd.readouterr().out
    demo(world, "--output", tmp_path / "rows", "--rows", "--confidence-threshold", 0.5)
    assert capfd.readouterr().out == plain
    names = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert len(names) == 4 and sorted(path.name for path in (tmp_path / "rows").iterdir()) == names
    for name in names:
        width, height = Image.open(tmp_path / "plain" / name).size
        scale = 640 / max(width, height)
        drawn = Image.open(tmp_path / "rows" / name).convert("RGB")
        assert drawn.size == (round(width * scale), 2 * (round(height * scale) + 32))
        upper, lower = (np.asarray(drawn)[i * drawn.height // 2 :][: drawn.height // 2] for i in (0, 1))
        assert upper[:32].mean() > 200 and lower[:32].mean() > 200  # titles
        assert not np.array_equal(upper[32:], lower[32:])


def test_instances_without_masks_are_boxes_whatever_their_score():
    """A box of half the grey photo, drawn in the first colour; the map has no segment."""
    photo = np.full((40, 64, 3), 100, np.uint8)
    instances = Instances((40, 64), pred_classes=torch.tensor([0]), scores=torch.tensor([0.03]))
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 31.0, 39.0]]))
    output = {"panoptic_seg": (torch.zeros(40, 64, dtype=torch.int32), []), "instances": instances}
    classes = SimpleNamespace(thing_classes=["ball", "ring"], stuff_classes=["things", "sky"])
    drawn = two_rows(photo, output, classes)
    assert drawn.shape == (2 * (400 + 32), 640, 3)
    upper, lower = drawn[32:432], drawn[464:]
    assert (upper == 100).all() and (lower[:, 330:] == 100).all()
    colour = 0.35 * 100 + 0.65 * np.array(rgb(PALETTE[0]))[::-1]
    assert np.abs(lower[20, 20] - colour).max() <= 1


def test_a_network_without_instances_has_no_second_row():
    class SemanticOnly:
        model = None

        def __call__(self, image, name):
            return {"panoptic_seg": None}

    with pytest.raises(UserError, match="a NoneType predicts no instances: leave --rows out"):
        panoptic(SemanticOnly(), None, "photo", "instances")


def test_predictions_are_those_of_an_evaluation(world, tmp_path):
    limits = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3)
    limits += ("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.3, "OUTPUT_DIR", tmp_path / "run")
    weights = ("NAS.ARCHITECTURE", world / "architecture.json", "MODEL.WEIGHTS", world / "weights.pth")
    script = ("train_net", "--config-file", world / "toy.yaml", "--eval-only", "--save-predictions")
    run_script(*script, *weights, *limits)
    demo(world, "--output", tmp_path / "drawn", "--json", "--confidence-threshold", "0.3")
    (saved,) = (tmp_path / "run/inference").glob("panoptic_*_val/")
    names = {path.stem for path in (world / "photos").glob("0*")}
    assert len(names) == 2
    for name in names:
        drawn = read_panoptic(tmp_path / f"drawn/panoptic_demo/{name}.png")
        assert np.array_equal(drawn, read_panoptic(saved / f"{name}.png"))


def test_what_cannot_be_segmented(world, tmp_path, capfd):
    def line(*arguments, **options):
        with pytest.raises(SystemExit) as end:
            demo(world, *arguments, **options)
        assert end.value.code == 2
        return error_line(capfd)

    out = ("--output", tmp_path / "drawn")
    assert "is no file and no folder" in line(*out, photos="nowhere")
    assert "would be overwritten" in line("--output", world / "photos")
    (world / "twice").mkdir()
    for name in ("a.png", "a.jpg"):
        shutil.copy(world / "photos/grey.png", world / "twice" / name)
    assert "would have results of one name" in line(*out, photos="twice")
    assert "expected a number" in line(*out, "--confidence-threshold", 2)
    assert "needs weights" in line(*out, opts=("MODEL.WEIGHTS", "''"))
    assert "builds a supernet" in line(*out, opts=("NAS.ARCHITECTURE", "''"))
    assert not (tmp_path / "drawn").exists()
    assert "cannot be read as a photo" in line(*out, photos="photos/notes.txt")


def test_a_network_that_gives_no_numbers_draws_nothing(world, tmp_path, capfd):
    data = torch.load(world / "weights.pth", weights_only=True)
    next(t for t in data["model"].values() if t.dim() == 4).fill_(1e38)  # finite, its products are not
    torch.save(data, tmp_path / "huge.pth")
    with pytest.raises(SystemExit) as end:
        demo(world, "--output", tmp_path / "drawn", "--json", opts=("MODEL.WEIGHTS", tmp_path / "huge.pth"))
    assert end.value.code == 3 and "NaN or infinity in the network's" in (line := error_line(capfd))
    assert str(world / "photos") in line and not list((tmp_path / "drawn").glob("0*"))
