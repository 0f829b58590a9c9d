"""A new operator is a module of one's own and a config, and takes part in everything."""

import torch
import yaml
from toy import run_script, write_config

from auto_panoptic.explore import Ledger
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.space import Architecture
from auto_panoptic.training import build_config

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
    options = ("OUTPUT_DIR",)

    supernet = tmp_path / "supernet"
    run_script("train_net", "--config-file", config, *options, supernet)
    space = torch.load(supernet / "model_final.pth", weights_only=True)["space"]
    assert space["mask.0"] == space["sem_seg.0"] == ["dwconv_3x3", "pool_3x3"]

    tables = configured_costs(build_config(str(config)))
    for site in ("mask.0", "sem_seg.0"):
        row = tables.sites[[s.name for s in tables.space.sites].index(site)]
        # The depthwise layer has 9 weights and a bias per channel, and their multiply-adds, more.
        assert row["dwconv_3x3"].params - row["pool_3x3"].params == 10 * 32
        assert row["dwconv_3x3"].macs > row["pool_3x3"].macs > 0

    limit = (tables.minimum.macs + tables.maximum.macs) // 2
    search = ("--weights", supernet / "model_final.pth", "--max-macs", limit, "OUTPUT_DIR", tmp_path)
    run_script("search_net", "--config-file", config, *search)
    records = Ledger(tmp_path / "search/ledger.jsonl").records
    assert len(records) == 12 and {r["status"] for r in records} == {"ok"}
    selected = Architecture.load(tmp_path / "search/architecture.json")
    assert selected.space.site("mask.0").names == ("dwconv_3x3", "pool_3x3")
    assert tables.cost(selected).macs <= limit

    names = selected.names() | {"mask.0": "pool_3x3"}
    selected.space.architecture(names).save(tmp_path / "fixed.json")
    fixed = ("NAS.ARCHITECTURE", tmp_path / "fixed.json")
    run_script("train_net", "--config-file", config, *fixed, *options, tmp_path / "fixed")
    kept = torch.load(tmp_path / "fixed/model_final.pth", weights_only=True)["space"]
    assert kept["mask.0"] == ["pool_3x3"]
