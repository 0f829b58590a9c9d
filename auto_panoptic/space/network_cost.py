"""Exact multiply-adds and parameters of every architecture of a whole network, from additive tables.

One multiply-add (MAC) is one multiplication with the addition that follows, in convolutions, deconvolutions
and fully connected layers. A deformable convolution counts as its k x k kernel plus its offset convolution.
Not counted: sampling and resizing, pooling, normalisation, biases, and the products of attention gates with
features or classifier weights. Parameters are all that a model's ``parameters()`` returns.

The cost of an architecture is a fixed cost plus one entry per site (:class:`CostTables`): sites never
interact, since no operator changes the shape of what comes after it.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import UserError
from .cost import Cost, block_cost, classifier_cost, level_size, stem_cost
from .cost_tables import ZERO, CostTables
from .detectron2_cost import conv_cost, linear_cost, positions_of, resnet_cost, sem_seg_cost
from .network import Network
from .ops import OpSpec, effective_ratio
from .space import ChoiceSite, SearchSpace


def cost_tables_from_config(
    cfg, size: tuple[int, int] | None = None, space: SearchSpace | None = None
) -> CostTables:
    """Tables of the network that ``cfg`` describes; supernet and fixed model have the same.

    Args:
        cfg: a config. Its proposals and detections per image in inference are the regions that count.
        size: height and width of the image in pixels. Default: a square of the size of evaluation,
            ``INPUT.CLASSIFICATION.TEST_SIZE`` for the classifier, ``INPUT.MIN_SIZE_TEST`` otherwise.
        space: the search space, by default that of ``cfg``.

    Raises:
        UserError: a part of the network is not one of ours.
    """
    network = Network.from_config(cfg)
    side = cfg.INPUT.CLASSIFICATION.TEST_SIZE if network.classifier else cfg.INPUT.MIN_SIZE_TEST
    return network_cost_tables(
        space or SearchSpace.from_config(cfg),
        network,
        size or (side, side),
        proposals=cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        detections=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def network_cost_tables(
    space: SearchSpace,
    network: Network,
    size: tuple[int, int] = (800, 1333),
    proposals: int = 1000,
    detections: int = 100,
) -> CostTables:
    """Build the tables of a network.

    Args:
        space: a search space with the network's sites; operators may be any of the published ones or more.
        network: its measures.
        size: height and width of the image in pixels; with an FPN it is padded as Detectron2 does, to
            multiples of the coarsest backbone stride.
        proposals: regions per image that the box head sees.
        detections: regions per image that the mask head sees.

    Raises:
        UserError: the space is not one of this network.
    """
    network.check_space(space)
    if network.fpn is not None:
        stride = 2 ** max(network.fpn.levels)
        size = tuple(-(-side // stride) * stride for side in level_size(size, 0))
    fixed = {}
    if network.resnet is None:
        fixed["backbone"] = stem_cost(network.width, size)
    else:
        fixed["backbone"] = resnet_cost(network.resnet, size)
    if network.fpn is not None:
        fixed["fpn"] = _fpn(network, size)
    if network.rpn is not None:
        fixed["rpn"] = _rpn(network, size)
    if network.box is not None:
        fixed["box"] = _times(_box(network), proposals)
    if network.mask is not None:
        fixed["mask"] = _times(_mask(network), detections)
    if network.sem_seg is not None:
        fixed["sem_seg"] = _sem_seg(network, size)
    if network.classifier is not None:
        width = replace(network.width, classifier=network.classifier.dim)
        fixed["classifier"] = classifier_cost(width, size, network.classifier.num_classes)
    blocks = _backbone_blocks(network, size)
    layers = _head_layers(network, size, detections)
    sites = {}
    for site in space.sites:
        _check_group(site)
        if site.part == "backbone":
            block = next(blocks)
            sites[site.name] = {spec.name: block_cost(spec, *block) for spec in site.ops}
        elif site.part == "attention":
            channels = _gate_channels(network, site)
            legacy = network.attention.legacy_ratio
            sites[site.name] = {spec.name: _gate(spec, *channels, legacy) for spec in site.ops}
        else:
            sites[site.name] = {spec.name: head_op_cost(spec, *layers[site.name]) for spec in site.ops}
    return CostTables(space, fixed, sites)


def head_op_cost(spec: OpSpec, c_in: int, c_out: int, positions: int) -> Cost:
    """Cost of an operator of a head, GroupNorm included.

    Args:
        spec: a head operator.
        c_in, c_out: channels.
        positions: output positions, over all levels or regions.
    """
    taps = spec.kernel**2
    if spec.kind == "dwconv":
        convs = [conv_cost(c_in, c_in, taps, positions, groups=c_in), conv_cost(c_in, c_out, 1, positions)]
    elif spec.kind == "dfconv":
        convs = [conv_cost(c_in, c_out, taps, positions), conv_cost(c_in, 3 * taps, taps, positions)]
    else:
        convs = [conv_cost(c_in, c_out, taps, positions)]
    return sum(convs, Cost(0, 2 * c_out))


def _times(cost: Cost, count: int) -> Cost:
    """The same layers run ``count`` times."""
    return Cost(cost.macs * count, cost.params)


def _backbone_blocks(network: Network, size: tuple[int, int]):
    """(input channels, output channels, stride, size of the input) of every block."""
    level = 1
    for c_in, c_out, stride in network.width.blocks():
        yield c_in, c_out, stride, level_size(size, level)
        level += stride == 2


def _fpn(network: Network, size: tuple[int, int]) -> Cost:
    """1x1 and 3x3 convolution per level, each with a norm or a bias."""
    fpn, total = network.fpn, ZERO
    for level in fpn.levels:
        positions = positions_of(size, [level])
        total += conv_cost(network.backbone_channels[level - 2], fpn.channels, 1, positions, norm=fpn.norm)
        total += conv_cost(fpn.channels, fpn.channels, 9, positions, norm=fpn.norm)
    return total


def _rpn(network: Network, size: tuple[int, int]) -> Cost:
    """3x3 convolutions, objectness, box deltas; the same on every level."""
    rpn, channels, total = network.rpn, network.fpn.channels, ZERO
    positions = positions_of(size, rpn.levels)
    for dim in rpn.conv_dims:
        total += conv_cost(channels, dim, 9, positions)
        channels = dim
    for outputs in (rpn.num_anchors, 4 * rpn.num_anchors):
        total += conv_cost(channels, outputs, 1, positions)
    return total


def _box(network: Network) -> Cost:
    """Layers, class scores and box deltas of one region."""
    box, channels, total = network.box, network.fpn.channels, ZERO
    for _ in range(box.num_conv):
        total += conv_cost(channels, box.conv_dim, 9, box.pool**2, norm=box.conv_norm)
        channels = box.conv_dim
    channels *= box.pool**2
    for _ in range(box.num_fc):
        total += linear_cost(channels, box.fc_dim, box.fc_norm)
        channels = box.fc_dim
    boxes = 1 if box.class_agnostic else box.num_classes
    return total + linear_cost(channels, box.num_classes + 1) + linear_cost(channels, 4 * boxes)


def _mask(network: Network) -> Cost:
    """One region without the searched layers: 2x2 deconvolution of stride 2 and 1x1 predictor."""
    mask, channels, positions, total = network.mask, network.fpn.channels, network.mask.pool**2, ZERO
    for _ in range(mask.num_layers):
        if not mask.searched:
            total += conv_cost(channels, mask.dim, 9, positions, norm=mask.norm)
        channels = mask.dim
    # Every input position meets the whole kernel.
    weights = 4 * channels * mask.dim
    deconvolution = Cost(weights * positions, weights + mask.dim)
    return total + deconvolution + conv_cost(mask.dim, mask.num_classes, 1, 4 * positions)


def _sem_seg(network: Network, size: tuple[int, int]) -> Cost:
    """The classifier, whose slice for a level acts at the level's own resolution; one bias for all.

    Detectron2's head as a whole.
    """
    head, channels = network.sem_seg, network.fpn.channels
    if not head.searched:
        return sem_seg_cost(head, channels, size)
    channels = head.dim if head.num_layers else channels
    macs = channels * head.num_classes * positions_of(size, head.levels)
    return Cost(macs, channels * len(head.levels) * head.num_classes + head.num_classes)


def _gate(spec: OpSpec, c_in: int, c_out: int, legacy: bool) -> Cost:
    hidden = c_out // effective_ratio(spec, legacy)
    return linear_cost(c_in, hidden) + linear_cost(hidden, c_out)


def _gate_channels(network: Network, site: ChoiceSite) -> tuple[int, int]:
    """Input and output channels of an attention gate."""
    foreground, background = network.fpn.channels, network.sem_seg.dim
    if site.name.startswith("attention.f2b."):
        return foreground * len(network.attention.f2b_levels), background
    return background * len(network.sem_seg.levels), foreground


def _head_layers(network: Network, size: tuple[int, int], detections: int) -> dict[str, tuple[int, int, int]]:
    """{site of a head: (input channels, output channels, output positions)}."""
    layers = {}
    for part, head in (("mask", network.mask), ("sem_seg", network.sem_seg)):
        if head is None or not head.searched:
            continue
        positions = detections * head.pool**2 if part == "mask" else positions_of(size, head.levels)
        for i in range(head.num_layers):
            layers[f"{part}.{i}"] = (head.dim if i else network.fpn.channels, head.dim, positions)
    return layers


def _check_group(site: ChoiceSite) -> None:
    group = {"backbone": "backbone", "attention": "inter"}.get(site.part, "head")
    if site.group != group:
        raise UserError(f"site '{site.name}' has operators of {site.group!r}: expected those of {group!r}")
