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
RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def add(*costs):
    return tuple(map(sum, zip(ZERO, *costs, strict=True)))


def conv(c_in, c_out, taps, positions, groups=1, norm="BN"):
    """(MACs, parameters) of a convolution and of what follows it: a norm, or a bias if ``norm`` is ""."""
    weights = taps * (c_in // groups) * c_out
    return weights * positions, weights + c_out * {"": 1, "FrozenBN": 0}.get(norm, 2)


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


def resnet(node, freeze_at, size):
    """(cost, channels of C2..C5) of Detectron2's ResNet."""

    def norm(level):
        return "FrozenBN" if level <= freeze_at and node.NORM == "BN" else node.NORM

    c_in, outs = node.STEM_OUT_CHANNELS, [node.RES2_OUT_CHANNELS * 2**i for i in range(4)]
    costs = [conv(3, c_in, 49, positions(size, 1), norm=norm(1))]
    for level, (blocks, c_out) in enumerate(zip(RESNETS[node.DEPTH], outs, strict=True), start=2):
        n, after, before = norm(level), positions(size, level), positions(size, max(level - 1, 2))
        mid = node.NUM_GROUPS * node.WIDTH_PER_GROUP * 2 ** (level - 2)
        for i in range(blocks):
            if c_in != c_out:
                costs.append(conv(c_in, c_out, 1, after, norm=n))
            if node.DEPTH < 50:
                costs += [conv(c_in, c_out, 9, after, norm=n), conv(c_out, c_out, 9, after, norm=n)]
            else:
                first = before if i == 0 and not node.STRIDE_IN_1X1 else after
                costs += [conv(c_in, mid, 1, first, norm=n), conv(mid, mid, 9, after, node.NUM_GROUPS, n)]
                costs.append(conv(mid, c_out, 1, after, norm=n))
            c_in = c_out
    return add(*costs), outs


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
    classes, sites = model.ROI_HEADS.NUM_CLASSES, {}
    if "resnet" in model.BACKBONE.NAME:
        body, channels = resnet(model.RESNETS, model.BACKBONE.FREEZE_AT, size)
    else:
        body, rows, _ = backbone(width_of(cfg), size)
        channels = width_of(cfg)[1]
        sites = {f"backbone.{i}": row for i, row in enumerate(rows)}
    for c, level in zip(channels, (2, 3, 4, 5), strict=True):
        at = positions(size, level)
        body = add(body, conv(c, fpn, 1, at, norm=model.FPN.NORM), conv(fpn, fpn, 9, at, norm=model.FPN.NORM))

    at, c_in, rpn = positions(size, 2, 3, 4, 5, 6), fpn, ZERO
    for dim in model.RPN.CONV_DIMS:
        rpn, c_in = add(rpn, conv(c_in, fpn if dim == -1 else dim, 9, at, norm="")), fpn if dim == -1 else dim
    anchors = len(model.ANCHOR_GENERATOR.SIZES[0]) * len(model.ANCHOR_GENERATOR.ASPECT_RATIOS[0])
    rpn = add(rpn, conv(c_in, anchors, 1, at, norm=""), conv(c_in, 4 * anchors, 1, at, norm=""))

    theirs, c_in, regions = box.NAME == "FastRCNNConvFCHead", fpn, ZERO
    for _ in range(box.NUM_CONV if theirs else 0):
        at = proposals * box.POOLER_RESOLUTION**2
        regions = add(regions, conv(c_in, box.CONV_DIM, 9, at, norm=box.NORM))
        c_in = box.CONV_DIM
    c_in *= box.POOLER_RESOLUTION**2
    for _ in range(box.NUM_FC):  # ours have no bias, but GroupNorm
        regions = add(regions, conv(c_in, box.FC_DIM, 1, proposals, norm="" if theirs else "GN"))
        c_in = box.FC_DIM
    for outputs in (classes + 1, 4 * (1 if box.CLS_AGNOSTIC_BBOX_REG else classes)):
        regions = add(regions, conv(c_in, outputs, 1, proposals, norm=""))

    if model.MASK_ON:
        at, c_in, dim = detections * mask.POOLER_RESOLUTION**2, fpn, mask.CONV_DIM
        for i in range(mask.NUM_CONV):
            if mask.NAME == "SearchableMaskHead":
                sites[f"mask.{i}"] = {op: head_op(op, c_in, dim, at) for op in cfg.NAS.SPACE.HEAD_OPS}
            else:
                regions = add(regions, conv(c_in, dim, 9, at, norm=mask.NORM))
            c_in = dim
        outputs = 1 if mask.CLS_AGNOSTIC_MASK else classes
        deconv = (4 * c_in * dim * at, 4 * c_in * dim + dim)
        regions = add(regions, deconv, conv(dim, outputs, 1, 4 * at, norm=""))

    levels, dim = [int(name[-1]) for name in seg.IN_FEATURES], seg.CONVS_DIM
    if seg.NAME == "SemSegFPNHead":  # own convolutions per level, each but the last at twice the resolution
        semantic = conv(dim, seg.NUM_CLASSES, 1, positions(size, 2), norm="")
        for level in levels:
            for i in range(max(1, level - 2)):
                at = positions(size, level - i)
                semantic = add(semantic, conv(dim if i else fpn, dim, 9, at, norm=seg.NORM))
    else:
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
