"""The work of the benchmark: supernets, their scores, and networks trained on their own."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.utils.env import seed_all_rng
from scoring import PathScorer

from auto_panoptic.bench import path_of
from auto_panoptic.evaluation import panoptic_quality_of
from auto_panoptic.modeling import choice_blocks
from auto_panoptic.search.final_training import Final, FinalTraining
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import (
    AtomicCheckpointer,
    AutoPanopticTrainer,
    build_config,
    load_weights,
    train,
)

ROOT = Path(__file__).resolve().parents[2]
TRUNK_OPTIONS = ("SOLVER.MAX_ITER", 320, "SOLVER.STEPS", "(257, 298)")  # half of a supernet of the table
TRUNK_SEEDS = 1000  # no supernet of the benchmark has these


class Job:
    """Something to be done, with a ``key`` in the journal."""

    def indices(self) -> str:
        """What executors show of work that failed."""
        return self.key


@dataclass(frozen=True)
class Supernet(Job):
    """The training of a supernet: a name, options of the config, and a seed."""

    name: str
    options: tuple
    seed: int

    @property
    def key(self) -> str:
        return f"supernet {self.name} {self.seed}"

    def folder(self, output: Path) -> Path:
        """Where it lies."""
        return output / f"supernet_{self.name}_{self.seed}"

    def weights(self, output: Path) -> str:
        """Its checkpoint."""
        return str(self.folder(output) / "model_final.pth")


@dataclass(frozen=True)
class AllScores(Job):
    """The scores of all paths of a supernet with one choice of backbone."""

    supernet: Supernet
    backbone: int

    @property
    def key(self) -> str:
        return f"scores {self.supernet.name} {self.supernet.seed} {self.backbone}"


@dataclass(frozen=True)
class Scores(Job):
    """The scores of some paths of a supernet, under options of the config."""

    supernet: Supernet
    name: str
    options: tuple
    paths: tuple[int, ...]

    @property
    def key(self) -> str:
        return f"scores {self.supernet.name} {self.supernet.seed} {self.name}"


@dataclass(frozen=True)
class Trunk(Job):
    """What all paths share, as a supernet has learned it whose scores are not in the table.

    Trainings start from it as they would from weights of other data; no operator has an advantage.
    """

    seed: int

    @property
    def key(self) -> str:
        return f"trunk {self.seed}"

    @property
    def supernet(self) -> Supernet:
        """The one that learns it."""
        return Supernet("trunk", TRUNK_OPTIONS, self.seed + TRUNK_SEEDS)

    def weights(self, output: Path) -> str:
        """A supernet's checkpoint whose operators are as initialised."""
        return str(output / f"trunk_{self.seed}" / "trunk.pth")


@dataclass(frozen=True)
class Standalone(Job):
    """A path trained on its own, from the :class:`Trunk` of its seed; operators start from scratch."""

    path: int
    seed: int
    steps: int

    @property
    def key(self) -> str:
        return f"trained {self.path} {self.seed} {self.steps}"


class Work:
    """Does any of the jobs; a training that was stopped goes on where it was.

    Args:
        supernet_config, trained_config: config files.
        output: folder of all.
        options: KEY, VALUE pairs for both configs.
    """

    def __init__(self, supernet_config: str, trained_config: str, output: Path, options: Sequence[str] = ()):
        self.supernet_config, self.trained_config = supernet_config, trained_config
        self.output, self.options = output, list(options)
        self._scorers: dict[tuple, PathScorer] = {}

    def __call__(self, job) -> tuple[dict, dict]:
        """(results, seconds)."""
        start = time.perf_counter()
        results = getattr(self, "_" + type(job).__name__.lower())(job)
        return results, {"all": round(time.perf_counter() - start, 2)}

    def _supernet(self, job: Supernet) -> dict:
        return self._train(job, job.folder(self.output))

    def _train(self, job: Supernet, folder: Path, kind: type = AutoPanopticTrainer) -> dict:
        """The CPU time of the whole training, from that of the iterations that were done now."""
        if (folder / "model_final.pth").is_file():
            return {}
        options = [*self.options, *job.options, "SEED", job.seed, "OUTPUT_DIR", folder, "DATASETS.TEST", "()"]
        start = time.process_time()
        config = str(ROOT / self.supernet_config)
        trainer = train(config, list(map(str, options)), resume=folder.is_dir(), trainer=kind)
        share = (trainer.max_iter - trainer.start_iter) / trainer.max_iter
        return {"cpu": round((time.process_time() - start) / share, 2)} if share else {}

    def _allscores(self, job: AllScores) -> dict:
        return self._scorer(())(job.supernet.weights(self.output), job.backbone)

    def _scores(self, job: Scores) -> dict:
        return self._scorer(job.options).scores(job.supernet.weights(self.output), job.paths)

    def _scorer(self, options: tuple) -> PathScorer:
        if options not in self._scorers:
            cfg = build_config(str(ROOT / self.supernet_config), [*self.options, *map(str, options)])
            self._scorers[options] = PathScorer(cfg)
        return self._scorers[options]

    def _trunk(self, job: Trunk) -> dict:
        net, weights = job.supernet, Path(job.weights(self.output))
        times = self._train(net, net.folder(self.output))
        cfg = build_config(str(ROOT / self.supernet_config), [*self.options, "SEED", str(net.seed)])
        seed_all_rng(net.seed)
        model = AutoPanopticTrainer.build_model(cfg)
        searched = [block for block in choice_blocks(model).values() if len(block.ops) > 1]
        initial = [copy.deepcopy(block.state_dict()) for block in searched]
        load_weights(model, net.weights(self.output))
        for block, state in zip(searched, initial, strict=True):
            block.load_state_dict(state)
        AtomicCheckpointer(model, str(weights.parent), cfg=cfg).save(weights.stem)
        return times

    def _standalone(self, job: Standalone) -> dict:
        # The architecture that the config names is written by each training, into its own folder.
        options = [*self.options, "NAS.ARCHITECTURE", ""]
        cfg = build_config(str(ROOT / self.trained_config), options).clone()
        cfg.defrost()
        cfg.DATASETS.SEARCH = cfg.DATASETS.TEST
        cfg.freeze()
        space = SearchSpace.from_config(cfg)
        trunk = Trunk(job.seed).weights(self.output)
        training = FinalTraining(cfg, trunk, self.output / "trained", ("pq",))
        final = Final(path_of(space, job.path), job.steps, job.seed)
        evaluator = training.trained(final)
        metrics, _ = evaluator(final.architecture)
        qualities = [panoptic_quality_of(evaluators) for _, evaluators in evaluator.data]
        training.clean(final)
        metrics.pop("bootstrap", None)
        return {**metrics, "counts": [row for q in qualities for row in q.record()["images"]]}
