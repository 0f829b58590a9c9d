"""A new operator is a module of one's own and a config, and takes part in everything."""

import json

import torch
import yaml
from toy import run_script, write_config

from auto_panoptic.explore import Ledger
from auto_panoptic.space import Architecture

OPERATOR = """\
from torch import nn

from auto_panoptic.modeling.layers.head_ops import HEAD_OP_BUILDERS
from auto_panoptic.space import OpSpec, register_ops

register_ops(OpSpec("pool_3x3", "pool", "head", kernel=3))


def pool(in_channels, out_channels, kernel):
    return nn.Sequential(nn.AvgPool2d(kernel, 1, kernel // 2), nn.Conv2d(in_channels, out_channels, 1))


HEAD_OP_BUILDERS["pool"] = pool
"""
CONFIG = """\
IMPORTS: [pooling_of_my_own]
NAS:
  SPACE:
    HEAD_OPS: [dwconv_3x3, pool_3x3]
"""


def test_it_is_trained_counted_searched_selected_and_retrained(tmp_path, shapes, monkeypatch):
    assert len((OPERATOR + CONFIG).splitlines()) <= 30
    (tmp_path / "pooling_of_my_own.py").write_text(OPERATOR)
    monkeypatch.syspath_prepend(tmp_path)
    base = write_config(tmp_path / "base.yaml", shapes)
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"_BASE_": str(base), **yaml.safe_load(CONFIG)}))
    options = ("SOLVER.MAX_ITER", 1, "OUTPUT_DIR")

    supernet = tmp_path / "supernet"
    run_script("train_net", "--config-file", config, *options, supernet)
    space = torch.load(supernet / "model_final.pth", weights_only=True)["space"]
    assert space["mask.0"] == space["sem_seg.0"] == ["dwconv_3x3", "pool_3x3"]

    weights = ("--weights", supernet / "model_final.pth")
    run_script("search_net", "--config-file", config, *weights, "OUTPUT_DIR", tmp_path)
    records = Ledger(tmp_path / "search/ledger.jsonl").records
    assert len(records) == 12 and {r["status"] for r in records} == {"ok"}
    # 1x1 weights instead of depthwise 3x3 ones and the same 1x1: fewer multiply-adds at equal other choices.
    costs = {}
    for record in records:
        indices = record["architecture"]
        costs.setdefault(json.dumps({**indices, "head": []}), {})[tuple(indices["head"])] = record["macs"]
    limit = min(r["macs"] for r in records)
    run_script(
        "search_net", "--config-file", config, "--rescore", "--max-macs", limit, "OUTPUT_DIR", tmp_path
    )
    selected = Architecture.load(tmp_path / "search/architecture.json")
    assert selected.space.site("mask.0").names == ("dwconv_3x3", "pool_3x3")

    names = selected.names() | {"mask.0": "pool_3x3"}
    selected.space.architecture(names).save(tmp_path / "fixed.json")
    fixed = ("NAS.ARCHITECTURE", tmp_path / "fixed.json")
    run_script("train_net", "--config-file", config, *fixed, *options, tmp_path / "fixed")
    kept = torch.load(tmp_path / "fixed/model_final.pth", weights_only=True)["space"]
    assert kept["mask.0"] == ["pool_3x3"]
