"""What a network's parts cost: counted as everywhere, measured by hand on a network of two layers."""

import pytest
import torch
from deeplab_util import FIXED, deeplab_cfg
from detectron2.utils.analysis import FlopCountAnalysis
from modeling_util import make_cfg, make_model
from torch import nn
from toy import make_config, write_config
from unified_util import FIXED as UNIFIED_FIXED
from unified_util import unified_cfg

from auto_panoptic import analyze
from auto_panoptic.analyze import Figures, bytes_of, costs_of, lines
from auto_panoptic.errors import UserError
from auto_panoptic.modeling import meta_model, timing
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.modeling.timing import REST, seconds_of
from auto_panoptic.space import SearchSpace

SIZE = (64, 96)


class Two(nn.Module):
    """A part that is called, and one of which only a layer is called."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.first = nn.ReLU()
        self.second = nn.ModuleDict({"layer": nn.Linear(256, 512)})

    def forward(self, inputs):
        kept = self.first(inputs[0]["image"])  # (1, 256), 1024 bytes
        wide = self.second["layer"](kept)  # (1, 512), 2048 bytes
        return wide.sum() + torch.zeros(1024).sum()  # 4096 bytes beside both


def test_bytes_by_hand():
    """Weights, 525 312 bytes, and the input do not count; what was made before and is still alive does."""
    found = bytes_of(Two(), [{"image": torch.ones(1, 256)}])
    assert found["first"] == 1024
    assert found["second"] == 1024 + 2048
    assert 1024 + 2048 + 4096 <= found[REST] == found[""] <= 1024 + 2048 + 4096 + 16


def test_seconds_add_up(monkeypatch):
    """A clock that goes on by one at every look: one second in a part, the rest between the looks."""
    ticks = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(ticks)))
    found = seconds_of(Two(), [{"image": torch.ones(1, 256)}], repeats=3)
    assert found == {"first": 1.0, "second": 1.0, REST: 3.0, "": 5.0}


FOUND = {
    "fpn": lambda: make_cfg(*UNIFIED_FIXED, "MODEL.CROSS_ATTENTION.RATIOS", [4]),
    "unified": lambda: unified_cfg(*UNIFIED_FIXED),
    "deeplab": lambda: deeplab_cfg(*FIXED),
}


@pytest.mark.parametrize("name", FOUND)
def test_detectron2s_flop_counter_agrees(name):
    """On the convolutions of the backbone; it counts in every part of the network."""
    cfg = FOUND[name]()
    flops = FlopCountAnalysis(make_model(cfg).eval(), [{"image": torch.zeros(3, *SIZE)}])
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    found, ours = flops.by_module_and_operator(), costs_of(meta_model(cfg).eval(), SIZE)
    assert found["model.backbone"]["conv"] == ours["backbone"][0]
    assert all(sum(found[f"model.{part}"].values()) for part in ours if part and ours[part][0])


@pytest.fixture
def config(tmp_path, shapes):
    """A config of the toy network with an architecture, and that architecture."""
    cfg = make_config(tmp_path, shapes)
    space = SearchSpace.from_config(cfg)
    architecture = space.architecture([1] * len(space.sites))
    architecture.save(tmp_path / "architecture.json")
    nas = {"ARCHITECTURE": str(tmp_path / "architecture.json")}
    return write_config(tmp_path / "fixed.yaml", shapes, NAS=nas), architecture


def test_costs_are_those_of_the_search(config):
    path, architecture = config
    cfg = analyze.read_config(str(path))
    model = meta_model(cfg).eval()
    parts = costs_of(model, SIZE)
    assert parts[""] == tuple(configured_costs(cfg, SIZE).cost(architecture))
    assert set(parts) == {"", *dict(model.named_children())}
    assert all(sum(values) == 2 * parts[""][i] for i, values in enumerate(zip(*parts.values(), strict=True)))


def test_the_command(config, capsys):
    path, *_ = config
    analyze.main(["--config-file", str(path), "--beside", str(path), "--size", "64", "96", "--repeats", "1"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"A: {path}, AutoPanopticFPN, 5 objects" and shown[1].startswith(f"B: {path}")
    assert shown[2].startswith("one image of 64 x 96, cpu")
    assert shown[3].split() == "G MACs A G MACs B M parameters A M parameters B ms A ms B MiB A MiB B".split()
    rows = {line.split()[0]: line.split()[1:] for line in shown[4:-1]}
    parts = ["backbone", "proposal_generator", "roi_heads", "sem_seg_head", "attention", REST, "all"]
    assert list(rows) == parts
    assert all(cells[0] == cells[1] and cells[2] == cells[3] for cells in rows.values())
    assert shown[-1].split()[:5] == ["B", "/", "A", "1.000", "1.000"]


def test_parts_that_only_one_network_has():
    one = {"backbone": Figures(2 * 10**9, 10**6, 0.5, 1 << 20), "": Figures(2 * 10**9, 10**6, 0.5, 1 << 20)}
    other = {"decoder": Figures(10**9, 0, 0.25, 0), "": Figures(10**9, 10**6, 0.25, 1 << 20)}
    _, *rows, ratio = lines([one, other])
    assert [row.split()[:3] for row in rows] == [
        ["backbone", "2.00", "-"],
        ["decoder", "-", "1.00"],
        ["all", "2.00", "1.00"],
    ]
    assert ratio.split()[3:] == ["0.500", "1.000", "0.500", "1.000"]


def test_a_supernet_is_no_network(tmp_path, shapes):
    path = str(write_config(tmp_path / "toy.yaml", shapes))
    with pytest.raises(UserError, match="this config builds a supernet; add NAS.ARCHITECTURE FILE"):
        analyze.main(["--config-file", path])
    with pytest.raises(UserError, match="--repeats is 0"):
        analyze.main(["--config-file", path, "--repeats", "0"])


@pytest.mark.parametrize("name", ["baselines/panoptic_fpn_coco", "auto_panoptic_coco"])
def test_as_many_objects_as_the_config_allows(name):
    """Random weights move boxes out of the image, or onto each other, the more so the deeper the network."""
    cfg = analyze.read_config(f"configs/{name}.yaml")
    model, inputs = timing.timed_model(cfg, (256, 256))
    with torch.no_grad():
        output = model(inputs)[0]
    assert len(output["instances"]) == cfg.TEST.DETECTIONS_PER_IMAGE == 100
