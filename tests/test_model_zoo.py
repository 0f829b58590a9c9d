"""MODEL_ZOO.md: every config is linked, costs are those of the linked config, published rows add up."""

import re

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from test_configs import FOLDER, RUNNABLE, read
from test_docs import missing_architectures, missing_paths
from toy import ROOT

from auto_panoptic.modeling.backbones.widths import width_from_config
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.space import (
    Architecture,
    SearchSpace,
    backbone_cost,
    resolve_architecture_path,
)

TEXT = (ROOT / "MODEL_ZOO.md").read_text()


def tables():
    """Every row of every table as {column: cell}."""
    for block in re.findall(r"(?:^\|.*\n)+", TEXT, re.M):
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
        for row in rows:
            yield dict(zip(head, row, strict=True))


ROWS = list(tables())


def linked(cell):
    return [ROOT / path for path in re.findall(r"\]\((configs/[^)]+)\)", cell)]


def cost_of(path):
    """(multiply-adds, parameters) of the backbone of a config's model."""
    cfg = read(path)
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone":
        assert cfg.MODEL.RESNETS.DEPTH == 50
        return resnet50_cost()
    architecture = Architecture.load(resolve_architecture_path(cfg.NAS.ARCHITECTURE))
    return tuple(backbone_cost(architecture, width_from_config(cfg)))


def resnet50_cost():
    """Counted on Detectron2's backbone, whose frozen normalisation holds its affine parameters as buffers."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    macs = []
    with torch.device("meta"):
        backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
        for module in backbone.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda m, _, out: macs.append(out.numel() * m.weight[0].numel()))
        backbone(torch.zeros(1, 3, 224, 224))
    affine = sum(b.numel() for name, b in backbone.named_buffers() if name.endswith(("weight", "bias")))
    return sum(macs), sum(p.numel() for p in backbone.parameters()) + affine


def test_links_and_names_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in link]
    assert len(links) > 30 and [link for link in links if not (ROOT / link).exists()] == []
    assert missing_paths(TEXT) == [] and missing_architectures(TEXT) == []


def test_every_config_is_linked():
    """Except those for a CPU, which only the tables of measured numbers have, for own data, the benchmark."""
    expected = {
        path
        for path in RUNNABLE
        if path.parent.name not in ("quick", "own", "bench") and not path.name.startswith("quick")
    }
    rows = [row for row in ROWS if not {"PQ, measured", "PQ, of a study"} & row.keys()]
    assert {path for row in rows for cell in row.values() for path in linked(cell)} == expected


def test_costs_of_the_measured_baselines():
    rows = [row for row in ROWS if "PQ, measured" in row and "Panoptic-FPN" in row["method"]]
    stated = [("0.309 G", "1.67 M"), ("1.317 G", "12.72 M"), ("0.671 G", "5.51 M")]
    for row, numbers in zip(rows, stated, strict=True):
        (path,) = linked(row["config"])
        cost = configured_costs(read(path)).cost(Architecture(SearchSpace(()), ()))
        expected = (f"{cost.macs / 1e9:.3f} G", f"{cost.params / 1e6:.2f} M")
        assert (row["MACs, whole"], row["params, whole"]) == expected == numbers
    rows = [row for row in ROWS if row.get("seeds") and "Panoptic-FPN" in row["network"]]
    for row, number in zip(rows, ("0.309 G", "0.671 G", "1.317 G", "0.309 G", "1.317 G"), strict=True):
        (path,) = linked(row["config"])
        cost = configured_costs(read(path)).cost(Architecture(SearchSpace(()), ()))
        assert row["MACs, whole"] == f"{cost.macs / 1e9:.3f} G" == number


def test_every_config_has_a_row_of_its_data_set():
    """A link in a column or section of COCO trains on COCO, and so for ADE20K."""
    for section in re.split(r"^##+ ", TEXT, flags=re.M):
        if section.startswith(("COCO", "ADE20K")):
            for path in linked(section):
                assert section.split()[0].lower() in path.name
    for row in ROWS:
        for data in ("COCO", "ADE20K"):
            targets = linked(row.get(data, "")) + (
                linked(row["config"]) if row.get("trained on") == data else []
            )
            for path in targets:
                assert path.parent.name == "pretrain" or read(path).DATASETS.TRAIN[0].startswith(data.lower())


def test_costs_are_exact():
    checked = 0
    for row in ROWS:
        if not row.get("MACs"):
            continue
        (path,) = linked(row["config"])
        if path.name == "random_coco.yaml":
            files = sorted((FOLDER / "architectures").glob("random_*.json"))
            assert len(files) == 5
            costs = [backbone_cost(Architecture.load(file), "3.8G") for file in files]
            macs, params = ([min(values), max(values)] for values in zip(*costs, strict=True))
            assert row["MACs"] == " to ".join(f"{v / 1e9:.3f}" for v in macs) + " G"
            assert row["params"] == " to ".join(f"{v / 1e6:.2f}" for v in params) + " M"
        else:
            macs, params = cost_of(path)
            assert (row["MACs"], row["params"]) == (f"{macs / 1e9:.3f} G", f"{params / 1e6:.2f} M")
        checked += 1
    assert checked == 18


@pytest.mark.parametrize("things, stuff", [(80, 53), (100, 50)])
def test_published_rows_add_up(things, stuff):
    """PQ is the mean over the classes of things and stuff. OANet's row does not add up in the paper."""
    data = {80: "COCO", 100: "ADE20K"}[things]
    checked = 0
    for section in re.split(r"^##+ ", TEXT, flags=re.M):
        name = section.split("\n")[0]
        for line in re.findall(r"^\|.*\n", section, re.M):
            cells = [cell.strip(" *") for cell in line.split("|")[1:-1]]
            numbers = [float(c) for c in cells if re.fullmatch(r"\d\d\.\d", c)]
            on = cells[1] if name == "Transfer" else "COCO" if name == "Components" else name
            if len(numbers) < 3 or on != data or "OANet" in cells[0]:
                continue
            mean = (things * numbers[1] + stuff * numbers[2]) / (things + stuff)
            assert abs(mean - numbers[0]) < 0.1, line
            checked += 1
    assert checked == {"COCO": 16, "ADE20K": 6}[data]


def test_published_numbers_are_called_published():
    with_numbers = [row for row in ROWS if any(re.fullmatch(r"\**\d\d\.\d\**", c) for c in row.values())]
    kinds = [{column.partition(", ")[2] for column in row} - {"", "whole"} for row in with_numbers]
    assert sum(kind == {"published"} for kind in kinds) == 30 + 21 + 9
    assert sum(kind == {"measured"} for kind in kinds) == 3 + 3
    assert sum(kind == {"of a study"} for kind in kinds) == 10 + 12 + 10 + 6
    assert len(with_numbers) == 30 + 21 + 9 + 3 + 3 + 10 + 12 + 10 + 6
