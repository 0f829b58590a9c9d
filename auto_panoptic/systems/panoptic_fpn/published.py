"""The published cost of the paper's backbone."""

from collections.abc import Mapping
from functools import lru_cache

from auto_panoptic.errors import one_of
from auto_panoptic.modeling.backbones.widths import WIDTHS, Width
from auto_panoptic.space import Architecture, Cost, CostTables, OpSpec


def backbone_cost(
    indices,
    width: str | Width = "1.3G",
    size: tuple[int, int] = (224, 224),
    classifier: bool = False,
) -> Cost:
    """Multiply-adds and parameters of the backbone with one operator per block, counted on the built network.

    Args:
        indices: one index (published order) or :class:`OpSpec` per block, or an :class:`Architecture`, or
            the three index lists, of which ``backbone`` counts.
        width: a name in ``WIDTHS`` or a :class:`Width`.
        size: height and width of the image in pixels.
        classifier: add the ImageNet classifier (1x1 convolution, pooling, 1000 outputs).

    Raises:
        ValueError: another number of operators than the width has blocks, an unknown operator, no size.
    """
    if isinstance(width, str):
        width = WIDTHS[one_of("width", width, WIDTHS)]
    tables = _backbone_tables(width, tuple(size))
    if isinstance(indices, Architecture):
        indices = [indices[site.name] for site in indices.space.group("backbone")]
    elif isinstance(indices, Mapping):
        indices = indices["backbone"]
    if len(indices) != len(tables.sites):
        raise ValueError(
            f"{len(indices)} backbone operators: this width has {len(tables.sites)} blocks, give one for each"
        )
    choices = [entry.name if isinstance(entry, OpSpec) else entry for entry in indices]
    cost, tail = tables.cost(tables.space.architecture(choices)), tables.fixed["classifier"]
    return cost if classifier else Cost(cost.macs - tail.macs, cost.params - tail.params)


@lru_cache(maxsize=32)
def _backbone_tables(width: Width, size: tuple[int, int]) -> CostTables:
    """Tables of the network of the ImageNet stage: the backbone and "classifier"."""
    from detectron2.config import get_cfg

    from auto_panoptic.config import add_auto_panoptic_config
    from auto_panoptic.modeling.choice import meta_model
    from auto_panoptic.modeling.counting import count

    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "BackboneClassifier"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_shufflenet_backbone", 0
    node = cfg.MODEL.SHUFFLENET
    node.WIDTH, node.STEM_CHANNELS = "custom", width.stem
    node.STAGE_CHANNELS, node.STAGE_REPEATS = list(width.channels), list(width.repeats)
    cfg.MODEL.CLASSIFIER.CONV_DIM = width.classifier
    return count(meta_model(cfg), size)
