"""Checkpoints that a kill cannot tear, and weights that load strictly or not at all."""

from __future__ import annotations

import os
import pickle
import re
import zipfile

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import META_ARCH_REGISTRY

from ..errors import UserError
from ..modeling import choice_blocks

_CANDIDATE = re.compile(r"(?P<block>.*\.candidates)\.(?P<op>[^.]+)\.")
# Buffers that follow from the config, never from a checkpoint.
_DERIVED = ("pixel_mean", "pixel_std")


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, except that a file appears under its name only when it is complete."""

    def save(self, name: str, **kwargs) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(
            kwargs, space={site: list(block.candidates) for site, block in choice_blocks(self.model).items()}
        )
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with _replacing(path) as stream:
            torch.save(data, stream)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with _replacing(os.path.join(self.save_dir, "last_checkpoint")) as stream:
            stream.write(last_filename_basename.encode())


class _replacing:
    """A binary file that takes its final name, durably, when the block ends without an error."""

    def __init__(self, path: str):
        self.path, self.partial = path, f"{path}.partial.{os.getpid()}"

    def __enter__(self):
        self.stream = open(self.partial, "wb")
        return self.stream

    def __exit__(self, kind, *_):
        if kind is None:
            self.stream.flush()
            os.fsync(self.stream.fileno())
        self.stream.close()
        if kind is None:
            os.replace(self.partial, self.path)
        else:
            os.unlink(self.partial)


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """Read the model weights of a checkpoint.

    Raises:
        UserError: the file is missing or is not a checkpoint.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"MODEL.WEIGHTS: no file {path!r}; give the path of a checkpoint (a training run writes "
            "OUTPUT_DIR/model_final.pth)"
        )
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"MODEL.WEIGHTS: {path!r} cannot be read as a checkpoint ({reason})") from None
    weights = data.get("model", data) if isinstance(data, dict) else None
    if not weights or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise UserError(
            f"MODEL.WEIGHTS: {path!r} holds no model weights; expected a dict of tensors under 'model'"
        )
    return weights


def match_weights(
    model: torch.nn.Module, weights: dict[str, torch.Tensor], path: str
) -> dict[str, torch.Tensor]:
    """Select from ``weights`` what ``model`` needs, by name.

    Operators that the model does not hold are left out: so a fixed model takes its path from a supernet.

    Raises:
        UserError: a weight is missing, has another shape, or belongs to nothing in the model.
    """
    own = model.state_dict()
    blocks = {match["block"] for match in map(_CANDIDATE.match, own) if match}
    missing = [k for k in own if k not in weights and k not in _DERIVED]
    foreign = [
        k
        for k in weights
        if k not in own
        and not ((match := _CANDIDATE.match(k)) and match["block"] in blocks)
        and k not in _DERIVED
    ]
    shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    for problem, keys in (
        ("lacks", missing),
        ("has another shape for", shapes),
        ("holds the unknown", foreign),
    ):
        if keys:
            detail = (
                f" ({tuple(weights[keys[0]].shape)} instead of {tuple(own[keys[0]].shape)})"
                if keys is shapes
                else ""
            )
            raise UserError(
                f"MODEL.WEIGHTS: {path!r} {problem} {keys[0]!r}{detail}"
                + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
                + "; it belongs to another search space, width or data set: give the weights of this config, "
                "or change the config"
            )
    return {k: weights[k] for k in own if k in weights}


def load_weights(model: torch.nn.Module, path: str) -> None:
    """Load weights by name, strictly. Raises UserError as :func:`match_weights`."""
    model.load_state_dict(match_weights(model, read_weights(path), path), strict=False)


def check_model(cfg) -> torch.nn.Module:
    """The model of ``cfg`` without memory for its weights, on the meta device.

    Raises:
        UserError: a component or a device of this name does not exist, or settings do not fit together.
    """
    meta = cfg.clone()
    meta.defrost()
    meta.MODEL.DEVICE = "meta"
    try:
        torch.device(cfg.MODEL.DEVICE)
        with torch.device("meta"):
            return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(meta)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"the model of this config cannot be built: {str(error).splitlines()[0]}") from None


def check_weights(cfg, path: str) -> None:
    """Raise UserError unless ``path`` fits the model of ``cfg``; allocates no model."""
    match_weights(check_model(cfg), read_weights(path), path)
