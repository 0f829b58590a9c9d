"""Work beside that of the benchmark: supernets that start from one trained path, and other scores of paths.

A warm supernet starts from the weights of one path that was trained on its own. Another operator of a site
starts from that path's operator where all its weights have the same names and shapes, else as initialised.
"""

from __future__ import annotations

import itertools
import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from jobs import ROOT, Job, Supernet, Work

from auto_panoptic.bench import path_of
from auto_panoptic.modeling import apply_architecture, choice_blocks
from auto_panoptic.screen import only_warnings
from auto_panoptic.search.candidate import CandidateEvaluator, SearchImages, search_images
from auto_panoptic.search.final_training import Final, final_config
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import (
    AtomicCheckpointer,
    AutoPanopticTrainer,
    build_config,
    build_train_loader,
    load_weights,
)
from auto_panoptic.training.hooks import FairnessAudit

BATCHES = 4  # of a gradient


@dataclass(frozen=True)
class WarmSupernet(Supernet):
    """A supernet that starts from ``path``, trained before under ``path_options``."""

    path: int
    path_options: tuple


@dataclass(frozen=True)
class SandwichSupernet(Supernet):
    """A supernet whose every cycle trains ``path``, too."""

    path: int


@dataclass(frozen=True)
class Tuned(Job):
    """The score of a path on the search images, a few steps of its own after its weights in a supernet."""

    supernet: Supernet
    path: int
    steps: int

    @property
    def key(self) -> str:
        return f"tuned {self.path} {self.steps} from {self.supernet.name} {self.supernet.seed}"


@dataclass(frozen=True)
class GradientNorms(Job):
    """Of paths of a supernet that is initialised from ``seed``, and not trained; ``name`` tells which."""

    seed: int
    name: str
    paths: tuple[int, ...]

    @property
    def key(self) -> str:
        return f"gradients {self.seed} {self.name}"


class OneMorePath(AutoPanopticTrainer):
    """Trains the path of number ``path`` after those of every cycle; so it is fair no more, nor audited."""

    path: int

    def __init__(self, cfg):
        super().__init__(cfg)
        cycle, more = self._trainer.draw, path_of(self._trainer.space, self.path)
        self._trainer.draw = lambda iteration: [*cycle(iteration), more]
        self._hooks = [hook for hook in self._hooks if not isinstance(hook, FairnessAudit)]


class MoreWork(Work):
    """Does these jobs, too."""

    def _warmsupernet(self, job: WarmSupernet) -> dict:
        folder = job.folder(self.output)
        start = folder.with_name(f"start_of_{folder.name}")
        cfg, network = self._config(self.supernet_config, job.seed), start / "architecture.json"
        path_of(SearchSpace.from_config(cfg), job.path).save(network)
        alone = Supernet(job.name, (*job.path_options, "NAS.ARCHITECTURE", network), job.seed)
        times = [self._train(alone, start / "path")]
        if not (start / "supernet.pth").is_file():
            supernet = spread(cfg, network, start / "path/model_final.pth")
            AtomicCheckpointer(supernet, str(start), cfg=cfg).save("supernet")
        warm = Supernet(job.name, (*job.options, "MODEL.WEIGHTS", start / "supernet.pth"), job.seed)
        times.append(self._train(warm, folder))
        return {"cpu": sum(t["cpu"] for t in times)} if all(times) else {}

    def _sandwichsupernet(self, job: SandwichSupernet) -> dict:
        trainer = type("Sandwich", (OneMorePath,), {"path": job.path})
        return self._train(job, job.folder(self.output), trainer)

    def _tuned(self, job: Tuned) -> dict:
        cfg = self._config(self.trained_config)
        final = Final(path_of(SearchSpace.from_config(cfg), job.path), job.steps, job.supernet.seed)
        folder = self.output / "tuned" / final.folder
        shutil.rmtree(folder, ignore_errors=True)
        final.architecture.save(folder / "architecture.json")
        start = time.process_time()
        cfg = final_config(cfg, job.supernet.weights(self.output), final, folder)
        with only_warnings():
            seed_all_rng(cfg.SEED)
            trainer = AutoPanopticTrainer(cfg)
            trainer.resume_or_load(resume=False)
            trainer.train()
        cpu = round(time.process_time() - start, 2)
        metrics, _ = CandidateEvaluator(cfg, trainer.model, ("pq",), self._images)(final.architecture)
        shutil.rmtree(folder)
        return {"PQ": round(metrics["PQ"], 6), "cpu": cpu}

    def _gradientnorms(self, job: GradientNorms) -> dict:
        cfg = self._config(self.supernet_config, job.seed)
        space = SearchSpace.from_config(cfg)
        seed_all_rng(job.seed)
        model = AutoPanopticTrainer.build_model(cfg).train()
        batches = list(itertools.islice(build_train_loader(cfg), BATCHES))
        with EventStorage():  # Detectron2's losses write to it
            norms = [gradient_norm(model, path_of(space, path), batches, job.seed) for path in job.paths]
        return {"norm": norms}

    def _config(self, config: str, seed: int = 0) -> CfgNode:
        """That of a supernet, or of a path that has no architecture yet, scored on the search images."""
        search = build_config(str(ROOT / self.supernet_config), self.options).DATASETS.SEARCH
        cfg = build_config(str(ROOT / config), [*self.options, "SEED", str(seed), "NAS.ARCHITECTURE", ""])
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.SEARCH = search
        cfg.freeze()
        return cfg

    @cached_property
    def _images(self) -> SearchImages:
        return search_images(self._config(self.supernet_config))


def spread(cfg: CfgNode, network: Path, weights: Path) -> torch.nn.Module:
    """The supernet of ``cfg`` with the trained ``weights`` of a path, whose architecture is in ``network``.

    What the path does not have is initialised from SEED, or is a copy of its operator where all fits.
    """
    fixed = cfg.clone()
    fixed.defrost()
    fixed.NAS.ARCHITECTURE = str(network)
    alone = AutoPanopticTrainer.build_model(fixed)
    load_weights(alone, str(weights))
    seed_all_rng(cfg.SEED)
    supernet = AutoPanopticTrainer.build_model(cfg)
    supernet.load_state_dict(alone.state_dict(), strict=False)
    blocks = choice_blocks(supernet)
    for site, trained in choice_blocks(alone).items():
        known = trained.candidates[trained.active].state_dict()
        for candidate in blocks[site].candidates.values():
            own = candidate.state_dict()
            if own.keys() == known.keys() and all(own[k].shape == v.shape for k, v in known.items()):
                candidate.load_state_dict(known)
    return supernet


def gradient_norm(model: torch.nn.Module, architecture, batches, seed: int) -> float:
    """Sum over the parameters of a path of the norms of their gradients, of the loss of ``batches``."""
    apply_architecture(model, architecture)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    for batch in batches:
        sum(model(batch).values()).backward()
    return sum(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)
