"""Bundles: one file, alone, predicts as the run that wrote it; what is none is refused."""

import json
import random
import shutil

import cv2
import numpy as np
import pytest
import torch
from toy import TOY_NET, answer_strongly, error_line, make_config, run_script, write_config

import auto_panoptic
from auto_panoptic import bundle
from auto_panoptic.data.classes import class_record
from auto_panoptic.errors import UserError
from auto_panoptic.space import Architecture, SearchSpace
from auto_panoptic.training import AutoPanopticTrainer
from auto_panoptic.training.bundle import write_bundle


@pytest.fixture(scope="module")
def world(tmp_path_factory, shapes):
    """A folder with config, architecture and weights of a network, and its bundle, alone in a folder."""
    folder = tmp_path_factory.mktemp("bundle")
    space = SearchSpace.from_config(make_config(folder, shapes))
    space.architecture([i % len(s.ops) for i, s in enumerate(space.sites)]).save(folder / "architecture.json")
    cfg = make_config(folder, shapes, "NAS.ARCHITECTURE", folder / "architecture.json")
    torch.manual_seed(0)
    model = AutoPanopticTrainer.build_model(cfg)
    answer_strongly(model)
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    (folder / "alone").mkdir()
    assert write_bundle(folder / "alone/bundle.pth", cfg, model, {"made_by": "a test"})
    return folder


@pytest.fixture
def photo(shapes):
    return cv2.imread(str(sorted((shapes / "val").iterdir())[0]))


def test_three_lines_give_named_segments(world, shapes, photo, tmp_path, monkeypatch):
    """From the file alone, in an empty folder: the segments of the network, with names."""
    shutil.copy(world / "alone/bundle.pth", tmp_path / "moved.pth")
    monkeypatch.chdir(tmp_path)
    predictor = auto_panoptic.load("moved.pth")
    output = predictor(photo)
    ids, segments = output["panoptic_seg"]
    assert ids.shape == photo.shape[:2] and {s["id"] for s in segments} == set(np.unique(ids)) - {0}
    truth = json.loads((shapes / "annotations/panoptic_val.json").read_text())["categories"]
    names = {kind: [c["name"] for c in truth if c["isthing"] == kind] for kind in (1, 0)}
    assert segments
    for segment in segments:
        of_kind = names[1] if segment["isthing"] else ["things", *names[0]]
        assert segment["name"] == of_kind[segment["category_id"]]
    assert output["sem_seg"].shape[1:] == photo.shape[:2] and len(output["instances"]) > 0
    drawn = predictor.draw(photo, output)
    times = drawn.shape[0] // photo.shape[0]
    assert drawn.shape == (times * photo.shape[0], times * photo.shape[1], 3) and drawn.dtype == np.uint8
    assert drawn.shape[1] >= 480 > (times - 1) * photo.shape[1]
    wide = np.zeros((20, 500, 3), np.uint8)
    drawn = predictor.draw(wide, {"panoptic_seg": (torch.zeros(20, 500, dtype=torch.int32), [])})
    assert np.array_equal(drawn, wide)


def test_it_predicts_what_the_network_predicts(world, shapes, photo):
    """Bit for bit; though NAS.ARCHITECTURE is a text in it, and no path of the run is."""
    cfg = make_config(world, shapes, "NAS.ARCHITECTURE", world / "architecture.json")
    model = AutoPanopticTrainer.build_model(cfg)
    model.load_state_dict(torch.load(world / "weights.pth", weights_only=True)["model"])
    ours = bundle.load(world / "alone")
    theirs = bundle.Predictor(cfg, model, ours.metadata)
    for a, b in ((ours, theirs), (theirs, ours)):
        first, second = a(photo), b(photo)
        assert torch.equal(first["panoptic_seg"][0], second["panoptic_seg"][0])
        assert torch.equal(first["sem_seg"], second["sem_seg"])
    text = (world / "alone/bundle.pth").read_bytes()
    assert str(world).encode() not in text and str(shapes).encode() not in text
    assert ours.cfg.NAS.ARCHITECTURE.startswith('json:{"sites"') and ours.cfg.DATASETS.TEST == ()


def test_classes_colours_and_ids_are_the_data_sets(world):
    name = "toy_panoptic_val_separated"
    record = class_record(name)
    data = bundle.read_bundle(world / "alone/bundle.pth")
    assert data["classes"] == record
    metadata = bundle.metadata_of(record)
    from detectron2.data import MetadataCatalog

    theirs = MetadataCatalog.get(name)
    for kind in ("thing", "stuff"):
        for what in ("classes", "colors", "dataset_id_to_contiguous_id"):
            assert metadata.get(f"{kind}_{what}") == theirs.get(f"{kind}_{what}")
    truth = json.loads(open(theirs.panoptic_json).read())["categories"]
    ours = bundle.categories_of(metadata)
    assert [(c["id"], c["name"], c["isthing"], c["color"]) for c in ours] == [
        (c["id"], c["name"], c["isthing"], c["color"]) for c in sorted(truth, key=lambda c: c["id"])
    ]


def test_images_in_rgb_are_turned_for_the_network(world, photo):
    """The predictor takes BGR, whatever the network reads."""
    usual = bundle.load(world / "alone")
    turned = bundle.load(world / "alone", ["INPUT.FORMAT", "RGB"])
    assert torch.equal(turned.inputs(photo)["image"], usual.inputs(photo)["image"].flip(0))


@pytest.mark.parametrize("image", [
    np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), "photo.jpg",
])  # fmt: skip
def test_what_is_no_image_is_refused(world, image):
    with pytest.raises(UserError, match=r"expected uint8 \(H, W, 3\) in BGR"):
        bundle.load(world / "alone")(image)


def test_training_and_search_end_with_a_bundle(tmp_path, shapes, capsys):
    """Of the trained network, and of the selected path; a supernet has none; the report does not mind."""
    config = write_config(tmp_path / "toy.yaml", shapes)
    common = ("--config-file", config, "OUTPUT_DIR")
    run_script("train_net", *common, tmp_path / "super")
    assert not list((tmp_path / "super").rglob("bundle.pth"))
    weights = tmp_path / "super/model_final.pth"
    run_script("search_net", "--config-file", config, "--weights", weights, "OUTPUT_DIR", tmp_path / "found")
    found = tmp_path / "found/search"
    assert f"bundle        {found / 'bundle.pth'}" in capsys.readouterr().out
    selected = Architecture.load(found / "architecture.json").names()
    data = bundle.read_bundle(found / "bundle.pth")
    assert data["meta"]["architecture"] == selected
    assert data["bundle"]["provenance"]["made_by"] == "search"
    supernet = torch.load(weights, weights_only=True)["model"]
    changed = {name for name, value in data["model"].items() if not torch.equal(value, supernet[name])}
    assert changed and all(".running_" in name or "num_batches" in name for name in changed)

    # another selection makes it that of another path: it goes
    run_script("search_net", "--rescore", "--config-file", config, "OUTPUT_DIR", tmp_path / "found")
    again = Architecture.load(found / "architecture.json").names()
    assert (found / "bundle.pth").exists() == (again == selected)

    fixed = ("NAS.ARCHITECTURE", found / "architecture.json", "MODEL.WEIGHTS", weights)
    run_script("train_net", *common, tmp_path / "fixed", *fixed)
    data = bundle.read_bundle(tmp_path / "fixed/bundle.pth")
    final = torch.load(tmp_path / "fixed/model_final.pth", weights_only=True)
    assert all(torch.equal(value, final["model"][name]) for name, value in data["model"].items())
    made = data["bundle"]["provenance"]
    assert (made["made_by"], made["iterations"], made["seed"]) == ("training", 2, 0)
    assert made["started_from"]["file"] == "model_final.pth" and made["architecture"]["evaluated"] == 12
    assert set(made["results"]) == {"panoptic_seg", "bbox", "segm", "sem_seg"}
    first = (tmp_path / "fixed/bundle.pth").read_bytes()

    # killed just before, the run ends so when it is resumed
    (tmp_path / "fixed/bundle.pth").unlink()
    run_script("train_net", "--resume", *common, tmp_path / "fixed", *fixed)
    assert (tmp_path / "fixed/bundle.pth").read_bytes() == first

    # and it is weights to start or to evaluate from
    evaluate = ("--eval-only", *common, tmp_path / "again", *fixed[:3], tmp_path / "fixed/bundle.pth")
    run_script("train_net", *evaluate)


def test_a_network_without_segments_has_no_bundle(world, shapes, tmp_path, monkeypatch):
    cfg = make_config(world, shapes, "NAS.ARCHITECTURE", world / "architecture.json", *TOY_NET)
    model = AutoPanopticTrainer.build_model(cfg)
    monkeypatch.setattr("auto_panoptic.training.bundle.config_classes", lambda cfg: {"labels": "classes"})
    assert not write_bundle(tmp_path / "bundle.pth", cfg, model, {}) and not list(tmp_path.iterdir())


def _edited(data: dict, old: str, new: str) -> str:
    """The config of a bundle with other words."""
    return data["bundle"]["config"].replace(f"- {old}\n", f"- {new}\n")


@pytest.mark.parametrize("damage, message", [
    (lambda d: d.pop("bundle"), "holds weights, but is no bundle; python -m auto_panoptic.bundle"),
    (lambda d: d["bundle"].pop("config"), "is damaged, or no bundle"),
    (lambda d: d["bundle"]["provenance"].update(data=b"x"), "is damaged, or no bundle"),
    (lambda d: d.update(bundle=[1]), "is damaged, or no bundle"),
    (lambda d: d.pop("classes"), "is damaged, or no bundle"),
    (lambda d: d.pop("meta"), "is damaged, or no bundle"),
    (lambda d: d.update(versions=3), "is damaged, or no bundle"),
    (lambda d: d["classes"].pop("stuff"), "is damaged, or no bundle"),
    (lambda d: d["classes"]["things"][0].__setitem__(2, [1, 2]), "is damaged, or no bundle"),
    (lambda d: d["classes"]["things"][0].__setitem__(0, "a"), "is damaged, or no bundle"),
    (lambda d: d["classes"]["things"][0].__setitem__(1, 5), "malformed"),
    (lambda d: d["bundle"].update(format=9), "which is newer; install that one"),
    (lambda d: d["bundle"].update(config="NAS: [1"), "bundle .*: while parsing"),
    (lambda d: d["bundle"].update(config="VIS_PERIOD: !!python/name:os.system"), "no code is run"),
    (lambda d: d["bundle"].update(config="NAS: {CYCELS: 1}"), "unknown config key"),
    (lambda d: d["bundle"].update(config="IMPORTS: [never.imported]"), "which only you may import"),
    (lambda d: d["bundle"].update(config="IMPORTS: never.imported"), "which only you may import"),
    (lambda d: d["bundle"].update(config=_edited(d, "p4", "x")), "the model of bundle .* cannot be built"),
    (lambda d: d["model"].popitem(), "lacks"),
    (lambda d: next(iter(d["model"].values())).fill_(float("nan")), "NaN"),
])  # fmt: skip
def test_what_is_no_bundle_is_refused(world, tmp_path, damage, message):
    data = torch.load(world / "alone/bundle.pth", weights_only=True)
    damage(data)
    torch.save(data, tmp_path / "bundle.pth")
    with pytest.raises(UserError, match=message):
        bundle.load(tmp_path)


def test_a_missing_or_torn_file_is_told(world, tmp_path, capfd):
    with pytest.raises(UserError, match="there is no such bundle; a training ends by writing"):
        bundle.load(tmp_path)
    content = (world / "alone/bundle.pth").read_bytes()
    (tmp_path / "bundle.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="bundle: "):
        bundle.load(tmp_path)


def test_the_command_makes_and_shows(world, tmp_path, capsys):
    pairs = ("NAS.ARCHITECTURE", world / "architecture.json", "MODEL.WEIGHTS", world / "weights.pth")
    output = tmp_path / "made.pth"
    bundle.main([str(w) for w in ("--config-file", world / "toy.yaml", "--output", output, *pairs)])
    shown = capsys.readouterr().out
    made, given = (bundle.read_bundle(path) for path in (output, world / "alone/bundle.pth"))
    assert made["bundle"]["config"] == given["bundle"]["config"] and made["classes"] == given["classes"]
    assert f"bundle        {output}" in shown and "AutoPanopticFPN" in shown and "weights.pth" in shown
    for part, message in ((pairs[:2], "a bundle needs weights"), (pairs[2:], "builds a supernet")):
        with pytest.raises(UserError, match=message):
            bundle.main([str(w) for w in ("--config-file", world / "toy.yaml", *part)])


def test_the_demo_takes_a_bundle(world, shapes, tmp_path, monkeypatch, capfd):
    """The same pictures and predictions as of its config; neither data nor run are needed."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((shapes / "val").iterdir())[:2]:
        shutil.copy(path, photos)
    network = {
        "config": ("--config-file", world / "toy.yaml"),
        "bundle": ("--bundle", world / "alone/bundle.pth"),
    }
    opts = {"config": ("--opts", "NAS.ARCHITECTURE", world / "architecture.json")}
    opts["config"] += ("MODEL.WEIGHTS", world / "weights.pth")
    for name in network:
        where = ("--input", photos, "--output", tmp_path / name, "--json", "--confidence-threshold", 0.3)
        run_script("demo", *network[name], *where, *opts.get(name, ()))
    assert "segments (" in capfd.readouterr().out
    (config, made) = (json.loads((tmp_path / name / "panoptic_demo.json").read_text()) for name in network)
    assert made["annotations"] == config["annotations"] and made["images"] == config["images"]
    assert [c["name"] for c in made["categories"]] == [c["name"] for c in config["categories"]]
    for path in (tmp_path / "config/panoptic_demo").iterdir():
        assert path.read_bytes() == (tmp_path / "bundle/panoptic_demo" / path.name).read_bytes()
    with pytest.raises(SystemExit):
        run_script("demo", "--bundle", tmp_path / "no.pth", "--input", photos, "--output", tmp_path / "x")
    assert "there is no such bundle" in error_line(capfd)


# ------------------------------------------------------------------ damaged at random

# name -> what it does to the bytes of a file, at random.
RANDOM_DAMAGES = {
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "bit": lambda data, rng: flipped(data, rng.randrange(len(data)), rng),
    "bit of the directory": lambda data, rng: flipped(data, len(data) - rng.randrange(1, 20_000), rng),
    "bit of the records": lambda data, rng: flipped(data, rng.randrange(64, 20_000), rng),
    "zeros": lambda data, rng: overwritten(data, rng.randrange(len(data) - 512), bytes(512)),
    "inserted": lambda data, rng: data[: (at := rng.randrange(len(data)))] + rng.randbytes(7) + data[at:],
    "lost": lambda data, rng: data[: (at := rng.randrange(len(data) - 64))] + data[at + 64 :],
    "appended": lambda data, rng: data + rng.randbytes(100),
}


def flipped(data, at, rng):
    return overwritten(data, at, bytes([data[at] ^ 1 << rng.randrange(8)]))


def overwritten(data, at, by):
    return data[:at] + by + data[at + len(by) :]


def equal(a, b):
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b and type(a) is type(b)


@pytest.mark.parametrize("kind", RANDOM_DAMAGES)
def test_a_damaged_file_is_refused_in_one_line_or_holds_the_same(world, tmp_path, kind):
    """Every number has a checksum. What has none, such as fillers of the archive, changes nothing."""
    rng = random.Random(kind)
    content = (world / "alone/bundle.pth").read_bytes()
    intact = bundle.read_bundle(world / "alone/bundle.pth")
    refused = 0
    for _ in range(12):
        (tmp_path / "bundle.pth").write_bytes(RANDOM_DAMAGES[kind](content, rng))
        try:
            data = bundle.read_bundle(tmp_path / "bundle.pth")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(tmp_path) in str(error)
        else:
            assert equal(data, intact)
    assert refused or kind == "appended"
