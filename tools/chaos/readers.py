"""What reads the files of users: how to make a sound file, how to damage it, and how it is read.

A reader may write below its folder's ``out``; everything else is the user's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data_util import write_own
from detectron2.data import DatasetCatalog, MetadataCatalog
from toy import ROOT, TOY_NET, write_config

from auto_panoptic.data import build_mapper, register_coco_panoptic
from auto_panoptic.data.check import check_data_set
from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger
from auto_panoptic.files import WriterLock
from auto_panoptic.search import ledger_path
from auto_panoptic.search.costs import store_tables, stored_tables
from auto_panoptic.space import Architecture, CostTables, load_names
from auto_panoptic.training import AutoPanopticTrainer, build_config, check_weights, load_weights
from auto_panoptic.training.checkpoint import check_resume, newest_intact
from auto_panoptic.training.run_folder import check_unused

from . import corpus, pure


@dataclass(frozen=True)
class Reader:
    """Attributes:
    make: writes sound files into a folder; returns the one to be damaged.
    read: reads it as commands do, given (that file, the folder).
    mutate: damages its bytes.
    share: of the cases that the others get.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path, Path], object]
    mutate: Callable[[bytes, random.Random], bytes]
    share: float = 1.0


READERS: dict[str, Reader] = {}


def reader(mutate: Callable, make: Callable[[Path], Path], share: float = 1.0) -> Callable:
    """Register the function ``read`` under its name."""

    def keep(read):
        READERS[read.__name__] = Reader(make, read, mutate, share)
        return read

    return keep


@dataclass
class _Kept:
    """What is built once per process."""

    made: dict = field(default_factory=dict)

    def __call__(self, key, make: Callable):
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


kept = _Kept()


# ------------------------------------------------------------------ configs


def _config(folder: Path) -> Path:
    shapes = folder / "shapes"
    _own(folder)
    own = {"name": "own", **{k: str(v) for k, v in own_paths(folder).items() if k != "derived_root"}}
    data = {"COCO_PANOPTIC": [own], "TRAIN": ["own"], "TEST": ["own"], "SEARCH": ["own"]}
    return write_config(folder / "config.yaml", shapes, DATASETS=data)


def _forget() -> None:
    for name in [n for n in DatasetCatalog.list() if n.startswith("own")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@reader(corpus.of_yaml, _config)
def config(path: Path, folder: Path):
    _forget()
    build_config(str(path), ["OUTPUT_DIR", str(folder / "out")])


# ------------------------------------------------------------------ data sets


def own_paths(folder: Path) -> dict:
    return {
        "panoptic_json": str(folder / "panoptic.json"),
        "panoptic_root": str(folder / "panoptic"),
        "image_root": str(folder / "images"),
        "derived_root": str(folder / "out/derived"),
    }


def _own(folder: Path) -> Path:
    write_own(folder)
    return folder / "panoptic.json"


def _instances(folder: Path) -> Path:
    _own(folder)
    _load(folder, derived_root=str(folder / "out/first"))
    (made,) = (folder / "out/first").glob("*/instances.json")
    target = folder / "instances.json"
    target.write_bytes(made.read_bytes())
    return target


def _load(folder: Path, **paths) -> list:
    _forget()
    register_coco_panoptic("own", **{**own_paths(folder), **paths}, show_ids=False)
    return DatasetCatalog.get("own")


def _check_and_load(folder: Path, **more) -> None:
    check_data_set(
        processes=1, **{k: v for k, v in (own_paths(folder) | more).items() if k != "derived_root"}
    )
    _load(folder, **more)


@reader(corpus.of_json, _own)
def panoptic_json(path: Path, folder: Path):
    _check_and_load(folder)


@reader(corpus.of_json, _instances)
def instances_json(path: Path, folder: Path):
    _check_and_load(folder, instances_json=str(path))


@reader(corpus.of_png, lambda folder: _own(folder).parent / "panoptic/sub/b.png")
def panoptic_png(path: Path, folder: Path):
    _check_and_load(folder)


def _photo(kind: str):
    def make(folder: Path) -> Path:
        from PIL import Image

        photo = _own(folder).parent / "images/sub/b.jpg"
        noise = random.Random(0).randbytes(30 * 20 * 3)
        Image.frombytes("RGB", (30, 20), noise).save(photo, kind)
        return photo

    return make


def _read_photo(path: Path, folder: Path):
    cfg = kept("config", lambda: build_config(str(_config(folder / "out"))))
    records = kept(folder, lambda: _load(folder))
    check_data_set(processes=1, **{k: v for k, v in own_paths(folder).items() if k != "derived_root"})
    for is_train in (True, False):
        mapper = kept(is_train, functools.partial(build_mapper, cfg, is_train))
        mapper({**records[0], "sample_seed": 0})


@reader(corpus.of_bytes, _photo("JPEG"))
def photo_jpg(path: Path, folder: Path):
    _read_photo(path, folder)


@reader(corpus.of_png, _photo("PNG"))
def photo_png(path: Path, folder: Path):
    _read_photo(path, folder)


# ------------------------------------------------------------------ search


def _architecture(folder: Path) -> Path:
    space = pure.SPACE
    path = folder / "architecture.json"
    space.architecture([0] * len(space.sites)).save(path)
    return path


@reader(corpus.of_json, _architecture)
def architecture(path: Path, folder: Path):
    for read in (load_names, Architecture.load, functools.partial(Architecture.load, space=pure.SPACE)):
        read(path)


def _searched(folder: Path) -> Path:
    pure.search(folder / "out", pure.Evaluate(folder / "evaluations.log"), cycles=1)
    return ledger_path(folder / "out")


def _sealed(record):
    """A record or header with the right checksum."""
    if isinstance(record, dict):
        rest = {key: value for key, value in record.items() if key != "checksum"}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        return {**rest, "checksum": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()}
    return record


@reader(corpus.of_lines(_sealed), _searched)
def ledger(path: Path, folder: Path):
    from auto_panoptic.search.records import recorded_space
    from auto_panoptic.search.selection import Request, select_again

    tables = kept("costs", small_tables)
    header = recorded_space(path, pure.SPACE)
    with Ledger.open(path, header, resume=True) as opened:
        select_again(opened, tables, Request())


@reader(corpus.of_lines(_sealed), _searched)
def ledger_resumed(path: Path, folder: Path):
    pure.search(folder / "out", lambda architecture: ({"PQ": 1.0}, {}), cycles=1)


def _scoreboard(folder: Path) -> Path:
    return _searched(folder).with_name("scoreboard.json")


@reader(corpus.of_json, _scoreboard)
def scoreboard(path: Path, folder: Path):
    pure.search(folder / "out", None, cycles=1)
    json.loads(path.read_text())["sites"]  # made anew


def small_tables() -> CostTables:
    sites = {s.name: {op: [10 + i, 2] for i, op in enumerate(s.names)} for s in pure.SPACE.sites}
    return CostTables.from_json({"fixed": {"stem": [1, 1]}, "sites": sites})


def _costs(folder: Path) -> Path:
    (folder / "out").mkdir()
    store_tables(folder / "out", "key", small_tables())
    return folder / "out/costs.json"


def _sealed_tables(tree):
    try:
        tree["key"]["sha256"] = hashlib.sha256(json.dumps(tree["key"]["tables"]).encode()).hexdigest()
    except (KeyError, TypeError):
        pass
    return tree


@reader(corpus.of_sealed_json(_sealed_tables), _costs)
def stored_costs(path: Path, folder: Path):
    stored_tables(path.parent, "key")
    store_tables(path.parent, "other", kept("costs", small_tables))


# ------------------------------------------------------------------ training


def _toy_config(folder: Path):
    own = {"name": "own", **{k: v for k, v in own_paths(folder).items()}}
    data = {"COCO_PANOPTIC": [own], "TRAIN": ["own"], "TEST": ["own"], "SEARCH": []}
    path = write_config(folder / "toy.yaml", folder, DATASETS=data)
    options = [*TOY_NET, "OUTPUT_DIR", str(folder / "out/run"), "SOLVER.MAX_ITER", "3"]
    return build_config(str(path), [*map(str, options), "SOLVER.CHECKPOINT_PERIOD", "1"])


def _run(folder: Path) -> Path:
    _own(folder)
    AutoPanopticTrainer(cfg := _toy_config(folder)).train()
    return Path(cfg.OUTPUT_DIR, "model_final.pth")


def _trainer(folder: Path) -> AutoPanopticTrainer:
    return kept((folder, "trainer"), lambda: AutoPanopticTrainer(_toy_config(folder)))


@reader(corpus.of_archive, _run)
def checkpoint(path: Path, folder: Path):
    trainer = _trainer(folder)
    check_resume(trainer.cfg)
    trainer.resume_or_load(resume=True)


@reader(corpus.of_bytes, lambda folder: _run(folder).with_name("last_checkpoint"))
def last_checkpoint(path: Path, folder: Path):
    cfg = kept("toy", lambda: _toy_config(folder))
    assert newest_intact(str(path.parent))[0] and check_resume(cfg)


def _weights(folder: Path) -> Path:
    target = folder / "weights.pth"
    target.write_bytes(_run(folder).read_bytes())
    return target


@reader(corpus.of_archive, _weights)
def weights(path: Path, folder: Path):
    trainer = _trainer(folder)
    check_weights(trainer.cfg, str(path))
    load_weights(trainer.model, str(path))


def _metrics(folder: Path) -> Path:
    path = folder / "out/metrics.json"
    path.parent.mkdir()
    lines = [
        {"iteration": i, "total_loss": 1.0, "panoptic_seg/PQ": 2.0 * i, "eta_seconds": 0.1} for i in range(4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@functools.cache
def _quickstart():
    sys.path.append(str(ROOT / "tools"))
    import quickstart

    return quickstart


@reader(corpus.of_lines(), _metrics)
def metrics(path: Path, folder: Path):
    with contextlib.suppress(UserError):
        check_unused(str(path.parent))
    _quickstart().final_results(path)


def _stage(folder: Path) -> Path:
    stage = _quickstart().Stage("train", folder / "out/stage", "inputs")
    stage.mark(done=True)
    return stage.state


@reader(corpus.of_json, _stage)
def stage_file(path: Path, folder: Path):
    _quickstart().Stage("train", path.parent, "inputs")


def _lock(folder: Path) -> Path:
    (folder / "out").mkdir()
    WriterLock(folder / "out/run.lock", protects="it").release()
    return folder / "out/run.lock"


@reader(corpus.of_json, _lock)
def lock_file(path: Path, folder: Path):
    WriterLock(path, protects="it").release()
