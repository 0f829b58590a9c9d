"""Settings of the network that nothing reads, such as MODEL.RESNETS.DEPTH where there is no ResNet."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from unittest import mock

from detectron2.config import CfgNode, get_cfg

from ..config import add_auto_panoptic_config
from ..errors import UserError
from ..modeling import meta_model
from ..read_config import find_config, read_files

# Read after the network is built, or before.
_ELSEWHERE = {
    "MODEL.WEIGHTS",
    "MODEL.WEIGHTS_CLASS_LAYERS",
    "MODEL.DEVICE",
    "MODEL.META_ARCHITECTURE",
    "MODEL.CHANNELS_LAST",
    "MODEL.MASK_ON",
}


def check_unread(cfg: CfgNode, config_file: str, opts: Sequence[str]) -> None:
    """Check that the network of ``cfg`` reads every key under MODEL that the user has given.

    A ``KEY VALUE`` pair must have an effect. A line of the config file that has none gives a warning: the
    file may serve several networks. What its bases say need not concern this one.

    Raises:
        UserError: a pair that the network never reads and that is not the default, or as :func:`meta_model`.
    """
    defaults = get_cfg()
    add_auto_panoptic_config(defaults)
    usual, now = dict(_flat(defaults)), dict(_flat(cfg))
    copy = cfg.clone()
    with _watching(copy) as read:
        meta_model(copy)

    def without_effect(keys: Iterable[str]) -> list[str]:
        candidates = {key for key in keys if key.startswith("MODEL.")} - read - _ELSEWHERE
        return sorted(key for key in candidates if key in usual and now.get(key) != usual[key])

    name = cfg.MODEL.META_ARCHITECTURE
    if unread := without_effect(opts[::2]):
        raise UserError(
            f"{unread[0]} is {now[unread[0]]!r}, but no part of this config's {name} reads it: leave it out"
        )
    if unread := without_effect(key for key, _ in _flat(read_files(find_config(config_file))[0])):
        logging.getLogger(__name__).warning(
            "%s: without effect on this %s: %s", config_file, name, ", ".join(unread)
        )


def _flat(node: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(full key, value) of a config, or of the content of a YAML file."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
