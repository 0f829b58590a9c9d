"""Variants of the benchmark's supernets, and what else may tell what paths are worth."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import write_config

from auto_panoptic.bench import path_of
from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger
from auto_panoptic.modeling import choice_blocks
from auto_panoptic.search.executors.in_process import InProcess
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AutoPanopticTrainer, build_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/nas_bench"))

import build  # noqa: E402
import variants  # noqa: E402
from jobs import Supernet  # noqa: E402
from proxies import MoreWork, WarmSupernet, gradient_norm, spread  # noqa: E402
from variant_file import Measured, read_variants, variants_beside, write_variants  # noqa: E402

SITES = [
    ["backbone.*", ["shuffle_3x3"]],
    ["backbone.3", ["skip", "xception_3x3"]],
    ["mask.*", ["conv_3x3", "dwconv_3x3"]],
    ["sem_seg.*", ["conv_3x3", "atconv_3x3"]],
]


@pytest.fixture
def work(tmp_path, shapes):
    """Does the jobs of a space of 8 paths."""
    changes = {"MODEL": {"CROSS_ATTENTION": {"ENABLED": False}}, "NAS": {"SPACE": {"SITES": SITES}}}
    config = write_config(tmp_path / "toy.yaml", shapes, **changes)
    (tmp_path / "out").mkdir()
    return MoreWork(str(config), str(config), tmp_path / "out")


def test_all_is_measured_once_and_goes_on(tmp_path, work, monkeypatch):
    calls = []

    def counted(job):
        calls.append(job.key)
        return work(job)

    warm = (WarmSupernet, ("SOLVER.MAX_ITER", 1), ("SOLVER.MAX_ITER", 1))
    monkeypatch.setattr(variants, "VARIANTS", {"1 image a pass": ("SOLVER.IMS_PER_BATCH", 1), "warm": warm})
    monkeypatch.setattr(variants.build, "space_and_costs", lambda: (None, np.array([1, 5, 2]), None))
    known = [(), (3, 0, 6), (3, 0, 6, 5)]
    monkeypatch.setattr(variants, "known_paths", lambda *_: known[0])
    monkeypatch.setattr(build, "GROUP", 2)
    monkeypatch.setattr(build, "base_supernets", lambda n: [Supernet("1_image_a_pass", (), 3)] * n)
    args = Namespace(seeds=1, workers=1, output=work.output, paths=3, file=None)
