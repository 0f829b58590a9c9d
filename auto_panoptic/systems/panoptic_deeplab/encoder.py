"""What the encoders of this system have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TypeVar

from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import nn

from ...errors import UserError
from ...modeling.backbones.builders import norm_name

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def import_timm(key: str, value) -> ModuleType:
    """timm, which the setting ``key`` with ``value`` needs; UserError names the extra that brings it."""
    try:
        import timm.models
    except ImportError:
        raise UserError(
            f"{key} is {value!r}, which needs timm: pip install timm, or install this package with its extra "
            "'deeplab'"
        ) from None
    return timm


def synchronised(
    encoder: AnyModule,
    norm: str,
    cfg: CfgNode,
    convert: Callable[[AnyModule], AnyModule] = nn.SyncBatchNorm.convert_sync_batchnorm,
) -> AnyModule:
    """``encoder`` with the BatchNorm that ``norm`` names: "SyncBN" is "BN" on a CPU or meta device.

    ``convert`` makes it; torch's loses what subclasses of BatchNorm do beside it.
    """
    return encoder if norm_name(cfg, norm) == "BN" else convert(encoder)


class Encoder(Backbone):
    """A Detectron2 backbone; its weights fit only the settings they were trained with.

    Attributes:
        settings: {config key: value} of what weights depend on but do not show.
        classifier_layers: beginnings of the names that a published classifier has beside these weights; its
            file may be named in MODEL.WEIGHTS, see :func:`auto_panoptic.training.weights.select_weights`.
    """

    settings: Mapping[str, object] = {}
    classifier_layers: tuple[str, ...] = ()

    def set_outputs(self, outputs: Mapping[str, tuple[int, int]]) -> None:
        """State {name: (channels, stride)} of what ``forward`` returns."""
        self._out_features = list(outputs)
        self._out_feature_channels = {name: channels for name, (channels, _) in outputs.items()}
        self._out_feature_strides = {name: stride for name, (_, stride) in outputs.items()}

    def weights_meta(self) -> dict:
        """What a checkpoint says about this encoder."""
        return {"encoder": dict(self.settings)}

    def check_weights_meta(self, meta: dict) -> None:
        """Raise ValueError if weights of an encoder with this :meth:`weights_meta` do not fit."""
        for key, value in (meta.get("encoder") or {}).items():
            if key in self.settings and value != self.settings[key]:
                raise ValueError(f"a backbone with {key} {value}, this config has {self.settings[key]}")
