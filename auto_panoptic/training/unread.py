"""Settings that nothing reads, such as MODEL.RESNETS.DEPTH where there is no ResNet."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from unittest import mock

from detectron2.config import CfgNode

from ..data import build_mapper
from ..errors import UserError
from ..modeling import choice_blocks, meta_model
from ..read_config import find_config, read_config, read_files
from ..validate import defaults, flat, shortened
from .gradients import build_optimizer
from .schedule import build_lr_scheduler
from .trainer import AutoPanopticTrainer

# Read at other times than when the network, its optimizer and its images are made.
_ELSEWHERE = {
    *("MODEL.WEIGHTS", "MODEL.WEIGHTS_CLASS_LAYERS", "MODEL.DEVICE", "MODEL.META_ARCHITECTURE"),
    *("MODEL.CHANNELS_LAST", "MODEL.MASK_ON", "SOLVER.IMS_PER_BATCH", "SOLVER.CHECKPOINT_PERIOD"),
    *("SOLVER.CHECKPOINTS_KEPT", "SOLVER.REFERENCE_WORLD_SIZE", "SOLVER.AMP.ENABLED", "SOLVER.AMP.DTYPE"),
    *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "SOLVER.CLIP_GRADIENTS.NORM_TYPE", "INPUT.DATASET_MAPPER_NAME"),
}


def check_unread(
    cfg: CfgNode, config_file: str | CfgNode, opts: Sequence[str], trainer=AutoPanopticTrainer
) -> None:
    """Check that what is made of ``cfg``, of :func:`build_config`, reads what the user has given.

    That concerns every key under MODEL, SOLVER and INPUT, and all those in a section that is not ENABLED. A
    ``KEY VALUE`` pair must have an effect, and so must a line of the config file (not of its bases) without
    those pairs; with them, or in a file that states most keys, it gives a warning. A ``trainer`` that has
    another loader or optimizer may read anything of INPUT or SOLVER. Of a config that a program has made, the
    pairs alone are checked.

    Raises:
        UserError: such a key that is read nowhere and is not the default, or as :func:`meta_model`.
    """
    unread, name = _unread(cfg, trainer), cfg.MODEL.META_ARCHITECTURE
    given = given_keys(config_file)
    refused, lines = unread.keys() & opts[::2], unread.keys() & given
    if lines and len(given) < len(defaults()) / 2:
        with contextlib.suppress(UserError):  # it may need the pairs
            refused = refused or _unread(read_config(config_file), trainer).keys() & lines
    if refused:
        key = min(refused)
        raise UserError(
            f"{key} is {shortened(unread[key])}, but no part of this config's {name} reads it: leave it out"
        )
    if lines:
        logging.getLogger(__name__).warning(
            "%s: without effect on this %s: %s", config_file, name, ", ".join(sorted(lines))
        )


def given_keys(config_file: str | CfgNode) -> list[str]:
    """The keys of the file's own lines, not of its bases; none of a config that a program has made."""
    if isinstance(config_file, CfgNode):
        return []
    return [key for key, _ in flat(read_files(find_config(config_file))[0])]


def _unread(cfg: CfgNode, trainer) -> dict[str, object]:
    """The keys, and values, that are neither the default nor empty nor read; who keeps a config may do so."""
    copy, sections, usual, now = cfg.clone(), [], defaults(), dict(flat(cfg))

    def ours(*methods: str) -> bool:
        return all(getattr(trainer, m).__func__ is getattr(AutoPanopticTrainer, m).__func__ for m in methods)

    def keeps_config(part) -> bool:
        return any(isinstance(value, CfgNode) for value in getattr(part, "__dict__", {}).values())

    with _watching(copy) as read:
        model = meta_model(copy)
        if not any(map(keeps_config, model.modules())):
            sections.append("MODEL.")
            sections += [] if choice_blocks(model) else ["NAS.ARCHITECTURE"]
        if ours("build_optimizer", "build_lr_scheduler") and any(True for _ in model.parameters()):
            sections.append("SOLVER.")
            build_lr_scheduler(copy, build_optimizer(copy, model))
        mappers = [build_mapper(copy, is_train) for is_train in (True, False)]
        if ours("build_train_loader", "build_test_loader") and not any(map(keeps_config, mappers)):
            sections.append("INPUT.")

    def has_effect(key: str) -> bool:
        switch = f"{key.rpartition('.')[0]}.ENABLED"
        if now.get(switch) is False:
            return key == switch
        return key in read | _ELSEWHERE or not key.startswith(tuple(sections))

    asked = {k: v for k, v in now.items() if k in usual and v != usual[k] and v not in ((), [], "", None)}
    return {k: v for k, v in asked.items() if not has_effect(k)}


def is_read(cfg: CfgNode, key: str) -> bool:
    """Whether the network that is made of ``cfg`` reads ``key``, such as "MODEL.RESNETS.DEPTH"."""
    copy = cfg.clone()
    with _watching(copy) as read:
        meta_model(copy)
    return key in read


@contextlib.contextmanager
def _watching(cfg: CfgNode) -> Iterator[set[str]]:
    """The keys that are read meanwhile from ``cfg`` and its copies, which inherit the names of its nodes."""
    read: set[str] = set()
    attribute, item = CfgNode.__getattr__, CfgNode.__getitem__

    def name_nodes(node: CfgNode, prefix: str) -> None:
        node.__dict__["_prefix"] = prefix
        for key, value in dict.items(node):
            if isinstance(value, CfgNode):
                name_nodes(value, f"{prefix}{key}.")

    def noting(original):
        def get(node, key, *default):
            read.add(f"{node.__dict__.get('_prefix', '?')}{key}")
            return original(node, key, *default)

        return get

    name_nodes(cfg, "")
    with (
        mock.patch.object(CfgNode, "__getattr__", noting(attribute)),
        mock.patch.object(CfgNode, "__getitem__", noting(item)),
        mock.patch.object(CfgNode, "get", noting(dict.get)),
    ):
        yield read
