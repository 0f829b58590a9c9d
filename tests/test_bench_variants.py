"""Variants of the benchmark's supernets, and what else may tell what paths are worth."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils.env import seed_all_rng
from toy import Scale, _own_logging, write_config

from auto_panoptic.bench import path_of
from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger, fair_cycle
from auto_panoptic.modeling import ChoiceBlock
from auto_panoptic.search.executors.in_process import InProcess
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AtomicCheckpointer, AutoPanopticTrainer, build_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/nas_bench"))

import build  # noqa: E402
import variants  # noqa: E402
from jobs import Supernet  # noqa: E402
from proxies import MoreWork, OneMorePath, WarmSupernet, gradient_norm, spread  # noqa: E402
from scoring import METRICS  # noqa: E402
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
    with _own_logging():
        yield MoreWork(str(config), str(config), tmp_path / "out")


def test_all_is_measured_once_and_goes_on(tmp_path, work, monkeypatch):
    calls = []

    def counted(job):
        calls.append(job.key)
        return work(job)

    warm = (WarmSupernet, (), ("SOLVER.BASE_LR", 0.02))
    sandwich = (variants.SandwichSupernet, ())
    monkeypatch.setattr(variants, "VARIANTS", {"warm": warm, "sandwich": sandwich})
    monkeypatch.setattr(variants, "TUNING", 2)
    monkeypatch.setattr(variants, "ONE_BACKBONE", 4)
    monkeypatch.setattr(build, "space_and_costs", lambda: (None, np.array([1, 2, 5, 4]), None))
    base = WarmSupernet("warm", (), 3, 2, ())
    monkeypatch.setattr(
        build, "base_supernets", lambda n: [Namespace(seed=0, key="", name="", weights=base.weights)]
    )
    known = []
    monkeypatch.setattr(variants, "known_paths", lambda *_: tuple(known))
    args = Namespace(seeds=1, workers=1, output=work.output, paths=3, file=None, only=["warm"])

    def run():
        with Ledger.open(work.output / "variants.jsonl", {}, resume=True) as ledger:
            return variants.run(args, build.Journal(ledger), InProcess(counted))

    assert run() == [] and calls == ["supernet warm 3"]
    args.only = None
    assert run() == [] and calls[1:] == ["supernet sandwich 3", "supernet momentum_0.01 3"]
    known[:] = [3, 0, 6]
    found = {(m.name, m.seed): m for m in run()}
    raw = ("not calibrated, momentum 0.01", 3)
    assert found.keys() == {("gradient norm", 3), ("not calibrated", 0), ("tuned for 2 steps", 0)} | {
        ("warm", 3), ("sandwich", 3), raw
    }  # fmt: skip
    assert all(list(m.values) == known and np.isfinite([*m.values.values()]).all() for m in found.values())
    assert found["warm", 3].minutes > 0 and found["gradient norm", 3].minutes is None
    assert read_variants(variants_beside(work.output / "shapes4096.npz")) == [*found.values()]
    before, known[:] = len(calls), [3, 0, 6, 5]
    more = {(m.name, m.seed): m for m in run()}
    assert all(more[name].values.items() >= m.values.items() for name, m in found.items())
    # Only what was unknown: groups that are not as they were, and one path to be tuned.
    kinds = [key.split()[0] for key in calls[before:]]
    assert kinds == ["gradients", "scores", "tuned", "scores", "scores", "scores"]
    args.only = ["sandwich"]
    assert run() == [*more.values()] and len(calls) == before + len(kinds)


def test_paths_are_known_as_soon_as_all_supernets_are_scored(tmp_path):
    operators = ["conv_3x3", "identity", "dwconv_3x3", "atconv_3x3"]
    space = SearchSpace.from_dict({site: operators for site in ("backbone.0", "mask.0", "sem_seg.0")})
    macs, scores = np.arange(64), np.random.default_rng(0).normal(size=(3, 64))
    assert variants.known_paths(tmp_path, space, macs, 16) == ()
    for net, row in zip(build.base_supernets(3), scores, strict=True):
        for job, part in zip(build.score_jobs(net, space), np.split(row, 4), strict=True):
            assert variants.known_paths(tmp_path, space, macs, 16) == ()
            metrics = dict.fromkeys(METRICS, part.tolist())
            outcome = {"key": job.key, "status": "ok", "metrics": metrics, "seconds": {"all": 1.0}}
            with Ledger.open(tmp_path / "journal.jsonl", {}, resume=True) as ledger:
                ledger.append(outcome)
    expected = build.strata(scores.mean(axis=0), macs, 16)
    assert variants.known_paths(tmp_path, space, macs, 16) == tuple(expected) and len(expected) == 16


def test_the_momentum_of_statistics_changes_no_weight(work):
    states = []
    for name, options in (("base", ()), ("momentum", variants.MOMENTUM)):
        net = Supernet(name, options, 3)
        work(net)
        states.append(torch.load(net.weights(work.output), weights_only=False)["model"])
    different = {key for key, value in states[0].items() if not torch.equal(value, states[1][key])}
    assert different and all(key.endswith(("running_mean", "running_var")) for key in different)


def test_one_path_more_in_every_cycle(work):
    cfg = work._config(work.supernet_config)
    trainer = type("Sandwich", (OneMorePath,), {"path": 5})(cfg)
    space = SearchSpace.from_config(cfg)
    for iteration in range(3):
        *cycle, more = trainer._trainer.draw(iteration)
        assert cycle == fair_cycle(space, cfg.NAS.SEED, iteration) and more == path_of(space, 5)


def test_a_path_lends_its_weights_to_operators_of_the_same_shapes(tmp_path, work):
    cfg = work._config(work.supernet_config, seed=4)
    space = SearchSpace.from_config(cfg)
    architecture, file = path_of(space, 7), tmp_path / "architecture.json"  # xception, dwconv, atconv
    architecture.save(file)
    fixed = build_config(work.supernet_config, ["NAS.ARCHITECTURE", str(file), "OUTPUT_DIR", str(tmp_path)])
    trained = AutoPanopticTrainer.build_model(fixed)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.fill_(0.5)
    AtomicCheckpointer(trained, str(tmp_path), cfg=fixed).save("path")
    supernet = spread(cfg, file, tmp_path / "path.pth")
    seed_all_rng(4)
    fresh = dict(AutoPanopticTrainer.build_model(cfg).named_parameters())
    kept = {name for name, value in supernet.named_parameters() if not (value == 0.5).all()}
    assert all(torch.equal(dict(supernet.named_parameters())[name], fresh[name]) for name in kept)
    fixed_names = {name for name, _ in trained.named_parameters()}
    # The semantic head's conv_3x3 has the shapes of atconv_3x3, the mask head's not those of dwconv_3x3.
    assert kept == {n for n in fresh if n not in fixed_names and ("sem_seg" not in n)} and kept
    assert {name.split("candidates.")[1].split(".")[0] for name in kept} == {"conv_3x3"}


def test_the_norm_of_a_gradient_is_that_of_the_path(work):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
            operators = {"identity": Scale(2.0), "conv_3x3": Scale(3.0)}
            self.site = ChoiceBlock("a.0", operators)

        def forward(self, batch):
            return {"loss": self.site(self.stem.sum() * batch), "other": 3 * self.stem[0]}

    space = SearchSpace.from_dict({"a.0": ["identity", "conv_3x3"]})
    # Of two batches, 1 and 2: stem (2 * 3 + 2 * 3, 2 * 3), the operator 2 * 3.
    norm = gradient_norm(Net(), path_of(space, 0), [1.0, 2.0], seed=0)
    assert norm == pytest.approx(np.hypot(12, 6) + 6)
    assert gradient_norm(Net(), path_of(space, 1), [1.0], seed=0) == pytest.approx(np.hypot(6, 3) + 2)


def test_files_of_variants(tmp_path):
    some = [Measured("a", 3, 1.5, {4: 50.25, 1: 51.5}), Measured("b", 3, None, {1: 2.0, 9: 3.0})]
    write_variants(tmp_path / "v.json", some)
    assert read_variants(tmp_path / "v.json") == some
    (tmp_path / "v.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="no file of tools/nas_bench/variants.py"):
        read_variants(tmp_path / "v.json")
