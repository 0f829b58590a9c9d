"""Costs of the published networks by formula: an oracle of counting, independent of any built model.

k x k convolutions count k * k * C_in / groups * C_out multiply-adds per output position, parameters include
norms and biases. All follows from the config, as the paper, its reference code and Detectron2 state it.
"""

import math

ZERO = (0, 0)
WIDTHS = {  # stem, stages C2..C5, blocks per stage, classifier
    "300M": (16, (64, 160, 320, 640), (4, 4, 8, 4), 1024),
    "1.3G": (48, (96, 240, 480, 960), (8, 8, 16, 8), 1024),
    "3.8G": (72, (172, 432, 864, 1728), (8, 8, 16, 8), 1728),
}


def add(*costs):
    return tuple(map(sum, zip(ZERO, *costs, strict=True)))


def conv(c_in, c_out, taps, positions, groups=1, norm="BN"):
    """(MACs, parameters) of a convolution and of what follows it: a norm, or a bias if ``norm`` is ""."""
    weights = taps * (c_in // groups) * c_out
    return weights * positions, weights + c_out * (2 if norm else 1)


def positions(size, *levels):
    """Positions of feature maps of stride 2**level; sizes halve rounding up."""
    return sum(math.prod(-(-side // 2**level) for side in size) for level in levels)


def backbone(width, size):
    """(cost of the stem, [{operator: cost}] of the blocks, cost of the ImageNet classifier)."""
    stem, channels, repeats, last = width
    rows, c_in = [], stem
    for level, (c_out, blocks) in enumerate(zip(channels, repeats, strict=True), start=2):
        for i in range(blocks):
            before, after = positions(size, level - (i == 0)), positions(size, level)
            branch, mid = (c_in if i == 0 else c_in // 2), c_out // 2
            out = c_out - branch
            row = {
                f"shuffle_{k}x{k}": add(
                    conv(branch, mid, 1, before), conv(mid, mid, k * k, after, mid), conv(mid, out, 1, after)
                )
                for k in (3, 5, 7)
            }
            pairs = [(branch, mid), (mid, mid), (mid, out)]
            row["xception_3x3"] = add(
                *(conv(a, a, 9, after, a) for a, _ in pairs), *(conv(a, b, 1, after) for a, b in pairs)
            )
            if i == 0:  # every operator has its own projection
                for name in row:
                    taps = int(name[-1]) ** 2
                    projection = conv(c_in, c_in, taps, after, c_in), conv(c_in, c_in, 1, after)
                    row[name] = add(row[name], *projection)
            rows.append(row)
            c_in = c_out
    first = add(conv(3, stem, 9, positions(size, 1)), (0, stem))
    classifier = add(conv(c_in, last, 1, positions(size, 5)), (0, last), (last * 1000, (last + 1) * 1000))
    return first, rows, classifier


def head_op(name, c_in, c_out, at):
    """An operator of a head with its GroupNorm, at ``at`` positions."""
    kind, taps = name[:-4], int(name[-1]) ** 2
    parts = {
        "dwconv": [(c_in, c_in, taps, at, c_in), (c_in, c_out, 1, at)],
        "dfconv": [(c_in, c_out, taps, at), (c_in, 3 * taps, taps, at)],
    }.get(kind, [(c_in, c_out, taps, at)])
    return add(*(conv(*part, norm="") for part in parts), (0, 2 * c_out))


def gate(c_in, c_out, ratio):
    return add(conv(c_in, c_out // ratio, 1, 1, norm=""), conv(c_out // ratio, c_out, 1, 1, norm=""))


def width_of(cfg):
    node = cfg.MODEL.SHUFFLENET
    custom = (node.STEM_CHANNELS, node.STAGE_CHANNELS, node.STAGE_REPEATS, 1024)
    return custom if node.WIDTH == "custom" else WIDTHS[node.WIDTH]


def panoptic_fpn(cfg, size):
    """({part: cost of what no choice changes}, {site: {operator: cost}}) of a config's network."""
    model, size = cfg.MODEL, tuple(-(-side // 32) * 32 for side in size)
    fpn, seg, mask, box = model.FPN.OUT_CHANNELS, model.SEM_SEG_HEAD, model.ROI_MASK_HEAD, model.ROI_BOX_HEAD
    proposals, detections = model.RPN.POST_NMS_TOPK_TEST, cfg.TEST.DETECTIONS_PER_IMAGE
    classes = model.ROI_HEADS.NUM_CLASSES
    body, blocks, _ = backbone(width_of(cfg), size)
    sites = {f"backbone.{i}": row for i, row in enumerate(blocks)}
    for c, level in zip(width_of(cfg)[1], (2, 3, 4, 5), strict=True):
        at = positions(size, level)
        body = add(body, conv(c, fpn, 1, at, norm=model.FPN.NORM), conv(fpn, fpn, 9, at, norm=model.FPN.NORM))

    at, c_in, rpn = positions(size, 2, 3, 4, 5, 6), fpn, ZERO
    for dim in model.RPN.CONV_DIMS:
        rpn, c_in = add(rpn, conv(c_in, fpn if dim == -1 else dim, 9, at, norm="")), fpn if dim == -1 else dim
    anchors = len(model.ANCHOR_GENERATOR.SIZES[0]) * len(model.ANCHOR_GENERATOR.ASPECT_RATIOS[0])
    rpn = add(rpn, conv(c_in, anchors, 1, at, norm=""), conv(c_in, 4 * anchors, 1, at, norm=""))

    c_in, regions = fpn * box.POOLER_RESOLUTION**2, ZERO
    for _ in range(box.NUM_FC):  # without bias, but with GroupNorm
        regions, c_in = add(regions, conv(c_in, box.FC_DIM, 1, proposals)), box.FC_DIM
    for outputs in (classes + 1, 4 * (1 if box.CLS_AGNOSTIC_BBOX_REG else classes)):
        regions = add(regions, conv(c_in, outputs, 1, proposals, norm=""))

    if model.MASK_ON:
        at, c_in, dim = detections * mask.POOLER_RESOLUTION**2, fpn, mask.CONV_DIM
        for i in range(mask.NUM_CONV):
            sites[f"mask.{i}"] = {op: head_op(op, c_in, dim, at) for op in cfg.NAS.SPACE.HEAD_OPS}
            c_in = dim
        outputs = 1 if mask.CLS_AGNOSTIC_MASK else classes
        deconv = (4 * c_in * dim * at, 4 * c_in * dim + dim)
        regions = add(regions, deconv, conv(dim, outputs, 1, 4 * at, norm=""))

    levels, dim = [int(name[-1]) for name in seg.IN_FEATURES], seg.CONVS_DIM
    at = positions(size, *levels)
    for i in range(seg.NUM_LAYERS):
        ops = cfg.NAS.SPACE.HEAD_OPS
        sites[f"sem_seg.{i}"] = {op: head_op(op, dim if i else fpn, dim, at) for op in ops}
    semantic = (dim * seg.NUM_CLASSES * at, (len(levels) * dim + 1) * seg.NUM_CLASSES)

    attention = model.CROSS_ATTENTION
    if model.META_ARCHITECTURE == "AutoPanopticFPN" and attention.ENABLED:
        f2b, b2f = len(attention.F2B_LEVELS) * fpn, len(levels) * dim
        for direction, count, *channels in (("f2b", len(levels), f2b, dim), ("b2f", 5, b2f, fpn)):
            # The reference code reads a ratio's last digit.
            ratios = {f"r{r}": r % 10 if attention.LEGACY_RATIO else r for r in attention.RATIOS}
            row = {name: gate(*channels, ratio) for name, ratio in ratios.items()}
            sites |= {f"attention.{direction}.{i}": row for i in range(count)}
    fixed = {"backbone": body, "proposal_generator": rpn, "roi_heads": regions, "sem_seg_head": semantic}
    return fixed, sites
