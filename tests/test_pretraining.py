"""The ImageNet stage as a whole: built-in images, batches, training, evaluation, and on to detection."""

import itertools
import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from toy import error_line, make_config, run_script, write_config

from auto_panoptic.data import ensure_shapes_objects
from auto_panoptic.errors import UserError
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AutoPanopticTrainer, build_train_loader, check_weights
from auto_panoptic.training import loader as loaders

pytestmark = pytest.mark.usefixtures("forget_data_sets")

# ------------------------------------------------------------------ the built-in set


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """A built-in set of three training and two validation images per class."""
    return ensure_shapes_objects(tmp_path_factory.mktemp("drawn") / "objects", sizes={"train": 3, "val": 2})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_the_built_in_set_is_always_the_same(tmp_path, objects):
    again = ensure_shapes_objects(tmp_path / "again", sizes={"train": 3, "val": 2})
    assert contents(again) == contents(objects)
    other = ensure_shapes_objects(tmp_path / "other", sizes={"train": 3, "val": 2}, seed=1)
    assert contents(other).keys() == contents(objects).keys() and contents(other) != contents(objects)


def test_the_built_in_set_has_a_folder_per_thing(objects):
    files = contents(objects)
    classes = ["ball", "balloon", "bar", "checked_box", "ring", "star", "striped_box"]
    counts = {"train": 3, "val": 2}
    assert set(files) == {f"{s}/{c}/{i:04d}.png" for s in counts for c in classes for i in range(counts[s])}
    assert len(set(files.values())) == len(files)
    assert Image.open(objects / "val/star/0001.png").size == (64, 64)


# ------------------------------------------------------------------ loaders


def write_stage(path, shapes, **changes):
    """A config file of the stage; what the toy config says of the panoptic network is its base's."""
    base = write_config(path.with_name(f"base_{path.name}"), shapes, **changes)
    path.write_text(f"_BASE_: {base.name}\n")
    return path


def stage(objects, architecture="", **solver):
    """Changes to the toy config that make it the ImageNet stage on the drawn objects."""
    folders = [{"name": f"toy_objects_{split}", "root": str(objects / split)} for split in ("train", "val")]
    datasets = {"IMAGE_FOLDERS": folders, "TRAIN": ["toy_objects_train"], "TEST": ["toy_objects_val"]}
    schedule = {"IMS_PER_BATCH": 4, "MAX_ITER": 3, "LR_SCHEDULER_NAME": "WarmupLinearLR", "WARMUP_ITERS": 0}
    return {
        "DATASETS": datasets | {"SEARCH": []},
        "MODEL": {
            "META_ARCHITECTURE": "BackboneClassifier",
            "BACKBONE": {"NAME": "build_shufflenet_backbone"},
            "CLASSIFIER": {"CONV_DIM": 16},
        },
        "INPUT": {"CLASSIFICATION": {"TRAIN_SIZE": 32, "TEST_RESIZE": 32, "TEST_SIZE": 32}},
        "NAS": {"SAMPLING": "uniform", "ARCHITECTURE": str(architecture)},
        "SOLVER": schedule | {"CHECKPOINT_PERIOD": 1} | solver,
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_and_position_only(tmp_path, shapes, objects, workers):
    cfg = make_config(tmp_path, shapes, **stage(objects))
    first = list(itertools.islice(build_train_loader(cfg, seed=4), 8))  # more than an epoch of 21 images
    cfg = make_config(tmp_path, shapes, "DATALOADER.NUM_WORKERS", workers, **stage(objects))
    torch.manual_seed(99)
    later = list(itertools.islice(build_train_loader(cfg, seed=4, start=3), 5))
    for ours, theirs in zip(later, first[3:], strict=True):
        assert [(x["file_name"], x["label"]) for x in ours] == [(x["file_name"], x["label"]) for x in theirs]
        for x, y in zip(ours, theirs, strict=True):
            torch.testing.assert_close(x["image"], y["image"], rtol=0, atol=0)
    names = [x["file_name"] for batch in first for x in batch]
    assert len(set(names[:21])) == 21
    images = [x["image"] for batch in first for x in batch]
    for place in range(21, 32):  # seen again, cut differently
        assert not torch.equal(images[place], images[names.index(names[place])])


def test_evaluation_sees_every_image_once_in_larger_batches(tmp_path, shapes, objects, monkeypatch):
    cfg = make_config(tmp_path, shapes, **stage(objects))
    monkeypatch.setattr(loaders, "TEST_BATCH", 6)
    batches = list(AutoPanopticTrainer.build_test_loader(cfg, "toy_objects_val"))
    assert [len(batch) for batch in batches] == [6, 6, 2]
    seen = [x["file_name"] for batch in batches for x in batch]
    assert seen == [r["file_name"] for r in DatasetCatalog.get("toy_objects_val")]


# ------------------------------------------------------------------ training, evaluation, detection


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, shapes, objects):
    """Folder of a finished run of train_net.py on the supernet."""
    folder = tmp_path_factory.mktemp("pretrained")
    run_script("train_net", "--config-file", write_stage(folder / "toy.yaml", shapes, **stage(objects)))
    return folder / "output"


def read(folder, name="model_final.pth"):
    return torch.load(folder / name, weights_only=True)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_the_run_says_what_it_is(pretrained):
    data, lines = read(pretrained), metrics(pretrained)
    assert data["meta"]["meta_architecture"] == "BackboneClassifier"
    assert data["meta"]["pixel_mean"] == [102.9801, 115.9465, 122.7717]
    assert data["model"]["classifier.fc.weight"].shape == (7, 16)
    assert set(data["space"]) == {f"backbone.{i}" for i in range(5)}
    assert "loss_cls" in lines[-1]
    assert not any("classification/top1" in line for line in lines)  # a supernet has no score of its own


@pytest.fixture
def architecture(tmp_path, shapes):
    """File of an architecture of the whole toy network."""
    space = SearchSpace.from_config(make_config(tmp_path, shapes))
    space.random(np.random.default_rng(3)).save(tmp_path / "architecture.json")
    return tmp_path / "architecture.json"


@torch.no_grad()
def set_statistics(model, batches):
    """Mean and variance of what each BatchNorm layer sees while all normalise by their batch."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    seen = {norm: [] for norm in norms}
    handles = [norm.register_forward_pre_hook(lambda m, x: seen[m].append(x[0])) for norm in norms]
    model.train()
    model.classifier.dropout.eval()
    for batch in batches:
        model(batch)
    for norm, handle in zip(norms, handles, strict=True):
        handle.remove()
        values = torch.cat(seen[norm]).transpose(0, 1).flatten(1)
        norm.running_mean, norm.running_var = values.mean(1), values.var(1, correction=0)


@pytest.mark.parametrize("recalibrated", [False, True])
def test_a_path_of_the_supernet_is_evaluated(
    tmp_path, shapes, objects, pretrained, architecture, capsys, recalibrated
):
    """With statistics of its own from 8 training images, unless that is off."""
    path = write_stage(tmp_path / "toy.yaml", shapes, **stage(objects, architecture))
    options = ("MODEL.WEIGHTS", pretrained / "model_final.pth", "NAS.BN_RECALIBRATION.ENABLED", recalibrated)
    run_script("train_net", "--config-file", path, "--eval-only", *options)
    line = metrics(tmp_path / "output")[-1]
    assert set(line) == {"classification/top1", "classification/top5"}
    assert "top-1" in capsys.readouterr().out
    # Independent of the evaluator: the class of each of the 14 images, one by one.
    cfg = make_config(tmp_path, shapes, *options, **stage(objects, architecture))
    trainer = AutoPanopticTrainer(cfg)
    trainer.resume_or_load(resume=False)
    model, mapper = trainer.model, loaders.build_mapper(cfg, is_train=False)
    if recalibrated:
        records = DatasetCatalog.get("toy_objects_train")
        images = [mapper(records[i]) for i in np.random.default_rng(0).permutation(21)[:8]]
        set_statistics(model, [images[:4], images[4:]])
    model.eval()
    hits = []
    with torch.no_grad():
        for record in DatasetCatalog.get("toy_objects_val"):
            order = model([mapper(record)])[0]["logits"].argsort(descending=True).tolist()
            hits.append(order.index(record["label"]))
    assert line["classification/top1"] == pytest.approx(100 * sum(h < 1 for h in hits) / 14)
    assert line["classification/top5"] == pytest.approx(100 * sum(h < 5 for h in hits) / 14)


def test_a_fixed_network_is_evaluated_after_training(tmp_path, shapes, objects, architecture):
    path = write_stage(tmp_path / "toy.yaml", shapes, **stage(objects, architecture))
    run_script("train_net", "--config-file", path)
    assert read(tmp_path / "output")["meta"]["architecture"].keys() == {f"backbone.{i}" for i in range(5)}
    (line,) = [line for line in metrics(tmp_path / "output") if "classification/top1" in line]
    assert line["classification/top5"] >= line["classification/top1"]


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, msg=name)


def test_a_killed_run_resumes_bit_for_bit(tmp_path, shapes, objects):
    """Paths, images, crops, dropout, momentum and learning rate go on where they were."""

    class Killed(Exception):
        pass

    def killed(number):
        raise Killed

    finals = []
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
        cfg = make_config(tmp_path, shapes, "OUTPUT_DIR", tmp_path / name, **stage(objects))
        torch.manual_seed(0)
        trainer = AutoPanopticTrainer(cfg)
        if name == "killed":
            batch = trainer._trainer.batch
            trainer._trainer.batch = lambda number, batch=batch: (batch if number < 2 else killed)(number)
            with pytest.raises(Killed):
                trainer.train()
            torch.manual_seed(777)  # a new process starts with another generator
            trainer = AutoPanopticTrainer(cfg)
            trainer.resume_or_load(resume=True)
            assert trainer.start_iter == 2
        trainer.train()
        finals.append(read(tmp_path / name)["model"])
    same(*finals)


def test_the_backbone_moves_to_the_detection_supernet(tmp_path, shapes, pretrained):
    """Every weight and statistic of the backbone, of all paths; training then starts with exit code 0."""
    options = ("MODEL.WEIGHTS", pretrained / "model_final.pth")
    cfg = make_config(tmp_path, shapes, *options)
    torch.manual_seed(5)
    trainer = AutoPanopticTrainer(cfg)
    untouched = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    own = trainer.model.state_dict()
    pretrained_model = read(pretrained)["model"]
    names = {k for k in pretrained_model if k.startswith("backbone.bottom_up.")}
    assert names == {k for k in own if k.startswith("backbone.bottom_up.")}
    same({k: own[k] for k in names}, {k: pretrained_model[k] for k in names})
    same({k: own[k] for k in own if k not in names}, {k: untouched[k] for k in own if k not in names})
    path = write_stage(tmp_path / "toy.yaml", shapes, SOLVER={"MAX_ITER": 1, "BASE_LR": 1e-30, "STEPS": []})
    run_script("train_net", "--config-file", path, *options)
    after = read(tmp_path / "output")["model"]
    kept = [k for k in names if k.endswith((".weight", ".bias"))]  # statistics move without a learning rate
    assert len(kept) > 100
    same({k: after[k] for k in kept}, {k: pretrained_model[k] for k in kept})


def test_a_path_moves_to_the_retraining(tmp_path, shapes, pretrained, architecture):
    weights = str(pretrained / "model_final.pth")
    cfg = make_config(tmp_path, shapes, "NAS.ARCHITECTURE", architecture, "MODEL.WEIGHTS", weights)
    trainer = AutoPanopticTrainer(cfg)
    trainer.resume_or_load(resume=False)
    own, theirs = trainer.model.state_dict(), read(pretrained)["model"]
    names = [k for k in own if k.startswith("backbone.bottom_up.")]
    same({k: own[k] for k in names}, {k: theirs[k] for k in names})


def test_another_normalisation_is_refused(tmp_path, shapes, pretrained):
    cfg = make_config(tmp_path, shapes, "MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0])
    with pytest.raises(UserError, match="MODEL.PIXEL_MEAN"):
        check_weights(cfg, str(pretrained / "model_final.pth"), to_train=True)


@pytest.mark.parametrize(
    "options, message",
    [
        (("DATASETS.TRAIN", ("absent",)), "/absent must hold one folder of images per class"),
        (("DATASETS.TEST", ("toy_panoptic_val",)), "toy_panoptic_val is no folder of classified images"),
        (("MODEL.META_ARCHITECTURE", "AutoPanopticFPN"), "toy_objects_train holds classified images"),
    ],
)
def test_the_wrong_data_end_with_code_2(tmp_path, shapes, objects, capfd, options, message):
    changes = stage(objects)
    changes["DATASETS"]["IMAGE_FOLDERS"] += [{"name": "absent", "root": str(tmp_path / "absent")}]
    path = write_stage(tmp_path / "toy.yaml", shapes, **changes)
    for mode in ((), ("--eval-only", "MODEL.WEIGHTS", "any.pth")):
        with pytest.raises(SystemExit) as stop:
            run_script("train_net", "--config-file", path, *mode, *options)
        assert stop.value.code == 2 and not (tmp_path / "output").exists()
        assert message in error_line(capfd)


def test_a_damaged_training_image_is_named(tmp_path, shapes, capfd):
    objects = ensure_shapes_objects(tmp_path / "objects", sizes={"train": 1, "val": 1})
    (objects / "train/bar/0000.png").write_bytes(b"no image")
    changes = stage(objects, IMS_PER_BATCH=7, MAX_ITER=1)
    folders = [{"name": "damaged", "root": str(objects / "train")}]
    changes["DATASETS"] |= {"IMAGE_FOLDERS": folders, "TRAIN": ["damaged"], "TEST": []}
    path = write_stage(tmp_path / "toy.yaml", shapes, **changes)
    with pytest.raises(SystemExit) as stop:
        run_script("train_net", "--config-file", path)
    assert stop.value.code == 2
    assert f"error: image {objects}/train/bar/0000.png cannot be read" in capfd.readouterr().err
