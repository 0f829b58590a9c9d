"""Found networks of all systems as TorchScript and ONNX: merged maps and heads, for images of any size."""

import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from deeplab_util import OPS, SEPARABLE, deeplab_cfg
from deeplab_util import answer as answer_deeplab
from modeling_util import make_cfg, make_model
from PIL import Image
from toy import ROOT, answer_strongly, make_config
from unified_util import answer as answer_unified
from unified_util import unified_cfg

from auto_panoptic import export as command
from auto_panoptic.errors import UserError
from auto_panoptic.export import expected, export, opened, problem, same_pixels
from auto_panoptic.modeling import choice_blocks
from auto_panoptic.modeling.exportable import Exportable, tensors
from auto_panoptic.space import SearchSpace
from auto_panoptic.systems.panoptic_deeplab import panoptic_segmentation

SIZES = [(64, 96), (96, 64), (70, 90), (96, 96), (61, 43), (128, 40), (33, 35)]
SYSTEMS = ("fpn", "unified", "deeplab")
FORMS = ("torchscript", "onnx")
MERGING = "MODEL.PANOPTIC_FPN.COMBINE"


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def needs(form):
    if form == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")


def image(size, low=0, high=256):
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randint(low, high, (3, *size), generator=generator, dtype=torch.uint8)


def network(system, *options):
    """A network with all kinds of operators: every site takes another of its own."""
    if system == "fpn":
        model = make_model(make_cfg(f"{MERGING}.STUFF_AREA_LIMIT", 30, *options))
        answer_strongly(model)
    elif system == "unified":
        model = make_model(unified_cfg("MODEL.UNIFIED.SCORE_THRESH_TEST", 0.3, *options))
        answer_unified(model)
    else:
        model = make_model(deeplab_cfg("NAS.SPACE.DEEPLAB_OPS", OPS, *SEPARABLE, *options))
    for i, block in enumerate(choice_blocks(model).values()):
        block.select(list(block.candidates)[i % len(block.candidates)])
    if system == "deeplab":
        answer_deeplab(model)
    return model.eval().requires_grad_(False)


def stored(model, form, folder, merge=True):
    needs(form)
    path = folder / f"network.{form}"
    export(Exportable(model, merge).eval(), image(SIZES[0]), path, form, {"channels": "BGR"})
    return opened(path, form)


def assert_equal(model, found, x):
    """Numbers to rounding; maps and segments exactly, of Panoptic-DeepLab those of the stored maps."""
    wanted = expected(model, x)
    assert problem({k: v for k, v in found.items() if k not in ("panoptic_seg", "segments")}, wanted) == ""
    if "center" in found:  # equal neighbours of a centre may differ in the last bit
        own = tensors(model, x)
        for name in ("center", "offset"):
            torch.testing.assert_close(found[name], own[name], rtol=1e-3, atol=1e-3)
        labels = found["sem_seg"].argmax(dim=0)
        maps = (labels, found["center"], found["offset"], range(model.things))
        ids, segments, _ = panoptic_segmentation(*maps, **model.grouping)
        rows = [[s["id"], s["category_id"], int(s["isthing"])] for s in segments]
        wanted = wanted | {"panoptic_seg": ids, "segments": torch.tensor(rows).view(-1, 3)}
    for name in {"panoptic_seg", "segments"} & found.keys():
        assert torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype


SLOW = {("fpn", "onnx"), ("unified", "torchscript"), ("unified", "onnx")}
PAIRS = [
    pytest.param(system, form, marks=[pytest.mark.slow] * ((system, form) in SLOW))
    for system in SYSTEMS
    for form in FORMS
]


@pytest.mark.parametrize("system, form", PAIRS)
def test_equal_on_every_size(system, form, tmp_path):
    model = network(system)
    run = stored(model, form, tmp_path)
    segments = 0
    with torch.no_grad():
        for size in SIZES:
            found = run(image(size))
            assert_equal(model, found, image(size))
            segments += len(found["segments"])
    assert segments >= 2 * len(SIZES)


def test_without_merging(tmp_path):
    """The heads alone: nothing of the panoptic map is stored."""
    model = network("deeplab")
    found = stored(model, "torchscript", tmp_path, merge=False)(image(SIZES[1]))
    assert set(found) == {"sem_seg", "center", "offset"}
    assert_equal(model, found, image(SIZES[1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "form, system, options",
    [
        ("onnx", "deeplab", ["MODEL.PANOPTIC_DEEPLAB.TOP_K_INSTANCE", 5]),
        ("onnx", "deeplab", ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [96, 128]]),
        ("onnx", "fpn", [f"{MERGING}.METHOD", "reference"]),
        (
            "torchscript",
            "unified",
            ["MODEL.UNIFIED.INFERENCE", "heuristic", f"{MERGING}.STUFF_AREA_LIMIT", 30],
        ),
        ("torchscript", "unified", ["MODEL.UNIFIED.POTENTIAL", "A", "MODEL.MASK_ON", False]),
        ("onnx", "unified", ["MODEL.UNIFIED.POTENTIAL", "C", "MODEL.UNIFIED.AFFINITY.NORMALISE", "sigmoid"]),
    ],
    ids=str,
)
def test_variants(form, system, options, tmp_path):
    model = network(system, *options)
    run = stored(model, form, tmp_path)
    with torch.no_grad():
        for size in SIZES:
            assert_equal(model, run(image(size)), image(size))


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS[:2])
def test_where_nothing_is_found(system, tmp_path):
    """Traced where there are objects, run where there are none."""
    needs("onnx")
    model, path = network(system), tmp_path / "network.onnx"
    images = [*map(image, SIZES), *(image((64, 64), level, level + 1) for level in (0, 60, 130, 255))]
    best = [expected(model, x)["scores"].max().item() for x in images]
    assert min(best) < max(best)
    model.roi_heads.box_predictor.test_score_thresh = (min(best) + max(best)) / 2
    full, empty = images[int(np.argmax(best))], images[int(np.argmin(best))]
    export(Exportable(model).eval(), full, path, "onnx", {})
    run = opened(path, "onnx")
    found = run(empty)
    assert len(found["scores"]) == 0 and len(run(full)["scores"])
    assert_equal(model, found, empty)


# ------------------------------------------------------------------ comparing


def outputs(ids, segments):
    return {"panoptic_seg": torch.tensor(ids, dtype=torch.int32), "segments": torch.tensor(segments)}


def test_segments_are_the_same_whatever_their_ids():
    a = outputs([[1, 1, 2, 0]], [[1, 4, 1], [2, 4, 0]])
    assert same_pixels(a, outputs([[2, 2, 1, 0]], [[1, 4, 0], [2, 4, 1]])) == 1.0
    assert same_pixels(a, outputs([[2, 2, 1, 0]], [[1, 4, 0], [2, 5, 1]])) == 0.5  # of another class
    assert same_pixels(a, outputs([[1, 3, 2, 0]], [[1, 4, 1], [2, 4, 0], [3, 4, 1]])) == 1.0  # cut in two
    assert same_pixels(a, outputs([[1, 1, 2]], [[1, 4, 1], [2, 4, 0]])) == 0.0


def test_what_differs_is_named():
    one = {"scores": torch.tensor([0.5, 0.25]), **outputs([[1, 1]], [[1, 0, 1]])}
    assert problem(one, one) == ""
    assert problem({**one, "scores": torch.tensor([0.5, 0.26])}, one) == "scores differs by up to 0.01"
    assert problem({**one, "scores": torch.tensor([0.5])}, one) == "scores has the shape (1,), not (2,)"
    assert "only 50.00 %" in problem({**one, **outputs([[1, 0]], [[1, 0, 1]])}, one)


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes):
    """Words of a command line with the config, architecture and weights of a network."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = make_config(folder, shapes)
    space = SearchSpace.from_config(cfg)
    space.architecture([0] * len(space.sites)).save(folder / "architecture.json")
    model = make_model(make_config(folder, shapes, "NAS.ARCHITECTURE", folder / "architecture.json"))
    answer_strongly(model)
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    options = ["NAS.ARCHITECTURE", folder / "architecture.json", "MODEL.WEIGHTS", folder / "weights.pth"]
    return ["--config-file", folder / "toy.yaml"], options


def call(trained, *words):
    source, options = trained
    command.main([str(word) for word in (*source, *words, *options)])


@pytest.mark.parametrize("form", FORMS)
def test_the_command(trained, form, tmp_path, capsys):
    """It compares on photos of the data set, and the file tells what goes in and comes out."""
    needs(form)
    path = tmp_path / f"network{command.FORMATS[form]}"
    call(trained, "--output", path)
    *sizes, last = capsys.readouterr().out.splitlines()
    assert len(sizes) == len(command.SHAPES) >= 5 and all(" equal, 5 detections" in line for line in sizes)
    assert re.match(
        rf"{re.escape(str(path))}: {form}, [\d.]+ MB; image .* BGR -> pred_boxes, .*segments$", last
    )
    found = opened(path, form)(image((50, 60)))
    assert found["panoptic_seg"].shape == (50, 60) and found["segments"].shape[1] == 3
    if form == "torchscript":
        files = {command.INFO: ""}
        torch.jit.load(path, _extra_files=files)
        info = json.loads(files[command.INFO])
    else:
        import onnx

        info = json.loads({p.key: p.value for p in onnx.load(path).metadata_props}[command.INFO])
    assert info["outputs"][-2:] == ["panoptic_seg", "segments"] and len(info["thing_classes"]) == 7


@pytest.mark.slow
def test_the_page_as_shown(trained, tmp_path):
    """Its programs run beside the files, in a process that has nothing of ours."""
    needs("onnx")
    for suffix in command.FORMATS.values():
        call(trained, "--output", tmp_path / f"network{suffix}")
    Image.fromarray(image((90, 120)).permute(1, 2, 0).numpy()).save(tmp_path / "photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.S)
    assert len(blocks) == 2
    for block in blocks:
        words = [sys.executable, "-P", "-c", block + "\nassert 'auto_panoptic' not in sys.modules and found"]
        words[-1] = "import sys\n" + words[-1]
        shown = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert "pixels" in shown or "torch" in block


def test_a_file_that_differs_is_not_kept(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "opened", lambda *_: lambda x: {"scores": torch.zeros(5)})
    monkeypatch.setattr(command, "export", lambda *_: None)
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(photo)
    with pytest.raises(UserError, match="scores differs .* not kept: try --format onnx"):
        call(trained, "--output", tmp_path / "network.pt", "--input", photo)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_mistakes_cost_one_line(trained, tmp_path):
    source, options = trained
    with pytest.raises(UserError, match="add --format torchscript or onnx"):
        call(trained, "--output", tmp_path / "network.bin")
    with pytest.raises(UserError, match="there is no folder"):
        call(trained, "--output", tmp_path / "none" / "network.pt")
    with pytest.raises(UserError, match="this config builds a supernet; add NAS.ARCHITECTURE FILE"):
        call((source, options[2:]), "--output", tmp_path / "network.pt")
    with pytest.raises(UserError, match="without weights .* add MODEL.WEIGHTS"):
        call((source, options[:2]), "--output", tmp_path / "network.pt")
    with pytest.raises(UserError, match="--input: .*none.jpg cannot be read"):
        call(trained, "--output", tmp_path / "network.pt", "--input", tmp_path / "none.jpg")
    with pytest.raises(UserError, match="one of the arguments --config-file --bundle is required"):
        call(([], []), "--output", tmp_path / "network.pt")
    assert not list(tmp_path.iterdir())


def test_onnx_needs_its_libraries(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnx onnxruntime, or write TorchScript"):
        call(trained, "--output", tmp_path / "network.onnx")
