"""Modulated deformable convolution (v2): torchvision's operator on CUDA, an own formulation on CPU.

torchvision's CPU operator is 60 to 110 times slower than a plain convolution. Here the order is turned
around. With W_t the weight of tap t, a deformable convolution is

    out(p) = bias + sum_t mask_t(p) * W_t x(p + offset_t(p))
           = bias + sum over taps t and corners c of  weight_tc(p) * Z_t(pixel_tc(p)),   Z_t = W_t x,

because bilinear sampling commutes with the 1x1 map W_t. So one matrix product makes Z with the rows
Z_t(pixel), and each output row is a weighted sum of 4 k^2 rows of Z: an ``embedding_bag``. The backward pass
is the same two steps transposed. Images are processed in groups whose Z stays near the processor's cache;
the backward pass computes a large Z again instead of keeping it.

Shape shorthand: N images, C input channels, D output channels, k^2 taps, P = Ho * Wo output pixels.
"""

import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

# Of the C k^2 x N P columns: near 2^32 torchvision's CUDA kernels, whose threads count in 32 bits, failed.
COLUMN_ELEMENTS = (1 << 31) - 1
# Elements of Z in a group of images (4 MiB in float32), unless one image needs more.
GROUP_ELEMENTS = 1 << 20
# A Z of at most so many elements (32 MiB) is kept for the backward pass.
KEEP_ELEMENTS = 1 << 23


def deform_conv2d(
    input: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    padding: int = 0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Deformable convolution with stride 1, dilation 1, one group; equal to torchvision's operator.

    Args:
        input: (N, C, H, W); N may be 0.
        offset: (N, 2 * k * k, Ho, Wo): (y, x) per tap, in pixels. Samples outside the image are 0.
        weight: (D, C, k, k).
        bias: (D,) or None.
        padding: zero padding on each side; Ho = H + 2 * padding - k + 1.
        mask: (N, k * k, Ho, Wo) factor per tap, or None for v1.

    Returns:
        (N, D, Ho, Wo), differentiable once in all tensors.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if torch.jit.is_tracing() and (input.device.type == "cpu" or torch.onnx.is_in_onnx_export()):
        return _traced(input, offset, weight, bias, padding, mask)
    n, _, h, w = input.shape
    kh, kw = weight.shape[-2:]
    taps, size = kh * kw, (h + 2 * padding - kh + 1, w + 2 * padding - kw + 1)
    if offset.shape != (n, 2 * taps, *size) or (mask is not None and mask.shape != (n, taps, *size)):
        raise ValueError(
            f"deform_conv2d: input {tuple(input.shape)}, a {kh}x{kw} kernel and padding {padding} need "
            f"offset {(n, 2 * taps, *size)} and mask {(n, taps, *size)}, got {tuple(offset.shape)} and "
            f"{None if mask is None else tuple(mask.shape)}"
        )
    if n == 0:  # keep every argument in the graph
        empty = offset.sum() * 0 if mask is None else (offset.sum() + mask.sum()) * 0
        return F.conv2d(input, weight, bias, padding=padding) + empty
    if input.device.type != "cpu":
        return _by_torchvision(input, offset, weight, bias, padding, mask)
    tensors = (input, offset, weight, bias, mask)
    if any(t is not None and t.dtype in (torch.float16, torch.bfloat16) for t in tensors):
        # In 16 bits a position could not name the pixels of a wide image.
        full = (None if t is None else t.float() for t in tensors)
        input_, offset, weight, bias, mask = full
        return deform_conv2d(input_, offset, weight, bias, padding, mask).to(input.dtype)

    group = max(1, min(n, GROUP_ELEMENTS // (h * w * taps * weight.shape[0])))
    corner_weights, index = _corners(offset, mask, h, w, kh, kw, padding, group)
    out = _WeightedTaps.apply(input, corner_weights, index, weight, bias, group)
    return out.view(n, *size, -1).permute(0, 3, 1, 2)


def _by_torchvision(input, offset, weight, bias, padding: int, mask):
    """torchvision's operator, on groups of so many images that COLUMN_ELEMENTS suffice, at least one."""
    columns = weight[0].numel() * offset.shape[-2] * offset.shape[-1]
    group = max(1, COLUMN_ELEMENTS // columns)
    masks = [None] * len(input) if mask is None else mask.split(group)
    groups = zip(input.split(group), offset.split(group), masks, strict=False)
    parts = [torchvision_deform_conv2d(x, o, weight, bias, padding=padding, mask=m) for x, o, m in groups]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _traced(input, offset, weight, bias, padding: int, mask):
    """The same in operators that TorchScript and ONNX store, for any size: one sampled image per tap."""
    (h, w), (ho, wo), k = input.shape[-2:], offset.shape[-2:], weight.shape[-1]
    rows, columns = (torch.arange(size, dtype=offset.dtype, device=offset.device) for size in (ho, wo))
    out = 0
    for tap in range(weight.shape[-2] * k):
        y = rows[:, None] + (tap // k - padding) + offset[:, 2 * tap]
        x = columns + (tap % k - padding) + offset[:, 2 * tap + 1]
        grid = torch.stack([(2 * x + 1) / w - 1, (2 * y + 1) / h - 1], dim=-1)
        sampled = F.grid_sample(input, grid, align_corners=False)
        if mask is not None:
            sampled = sampled * mask[:, tap : tap + 1]
        out = out + F.conv2d(sampled, weight[:, :, tap // k, tap % k, None, None])
    return out if bias is None else out + bias.view(-1, 1, 1)


def _corners(offset, mask, h: int, w: int, kh: int, kw: int, padding: int, group: int):
    """The four pixels around every sampling point.

    Returns:
        Bilinear weights times mask, (N, P, 4, k^2), differentiable in offset and mask, 0 outside the image;
        and the rows of Z they belong to, int32 of the same shape: (image within its group, pixel, tap).
    """
    n, taps2, ho, wo = offset.shape
    taps = taps2 // 2
    limit = offset.new_tensor([h, w])
    last = torch.tensor([h - 1, w - 1], dtype=torch.int32)
    with torch.no_grad():
        axes = (torch.arange(size, dtype=offset.dtype) for size in (ho, wo, kh, kw))
        y, x, tap_y, tap_x = torch.meshgrid(*axes, indexing="ij")
        grid = torch.stack([y + tap_y, x + tap_x], dim=-1).view(ho, wo, taps, 2) - padding
    # (N, Ho, Wo, k^2, 2) as (y, x). Beyond [-1, size] all four corners are outside, as they are at -1; this
    # keeps far offsets within the range of integers.
    points = offset.permute(0, 2, 3, 1).reshape(n, ho, wo, taps, 2) + grid
    points = points.masked_fill((points < -1) | (points > limit), -1)
    with torch.no_grad():
        low = points.floor()
        positions = torch.stack([low, low + 1])  # (2 = low/high, N, Ho, Wo, k^2, 2)
        inside = ((positions >= 0) & (positions < limit)).to(offset.dtype)
        pixels = positions.to(torch.int32)  # a NaN becomes some integer, and stays a NaN in the weights
        pixels = pixels.clamp_(torch.zeros_like(last), last)
        image = torch.arange(n, dtype=torch.int32).remainder_(group).view(n, 1, 1, 1) * (h * w)
        rows = (pixels[..., 0] * w + image) * taps + torch.arange(taps, dtype=torch.int32)
        columns = pixels[..., 1] * taps
        index = torch.stack([rows[i] + columns[j] for i in (0, 1) for j in (0, 1)], dim=3)
    fraction = points - low
    high, low = fraction * inside[1], (1 - fraction) * inside[0]
    y, x = (low[..., 0], high[..., 0]), (low[..., 1], high[..., 1])
    if mask is not None:
        mask = mask.permute(0, 2, 3, 1)
        y = (y[0] * mask, y[1] * mask)
    weights = torch.stack([y[i] * x[j] for i in (0, 1) for j in (0, 1)], dim=3)
    return weights.view(n, ho * wo, 4, taps), index.view(n, ho * wo, 4, taps)


class _WeightedTaps(torch.autograd.Function):
    """out(p) = bias + sum of corner_weights(p) * Z[index(p)], with Z = input x weight for every tap."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, input, corner_weights, index, weight, bias, group):
        n, c, h, w = input.shape
        rows = input.permute(0, 2, 3, 1).reshape(n, h * w, c).contiguous()
        per_bag = index.shape[2] * index.shape[3]
        out = rows.new_empty(n, index.shape[1], weight.shape[0])
        flat = _flat_weight(weight)
        ctx.kept = [] if rows.shape[0] * rows.shape[1] * flat.shape[1] <= KEEP_ELEMENTS else None
        for start in range(0, n, group):
            part = slice(start, start + group)
            z = (rows[part].flatten(0, 1) @ flat).view(-1, weight.shape[0])
            if ctx.kept is not None and ctx.needs_input_grad[1]:
                ctx.kept.append(z)
            sums = F.embedding_bag(
                index[part].reshape(-1, per_bag),
                z,
                mode="sum",
                per_sample_weights=corner_weights[part].reshape(-1, per_bag),
            )
            out[part] = sums.view_as(out[part])
        if bias is not None:
            out += bias
        ctx.save_for_backward(rows, corner_weights, index, weight)
        ctx.input_shape, ctx.has_bias, ctx.group = input.shape, bias is not None, group
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        rows, corner_weights, index, weight = ctx.saved_tensors
        n, c, h, w = ctx.input_shape
        d, _, kh, kw = weight.shape
        grad = grad.contiguous()
        flat = _flat_weight(weight)
        grad_rows = torch.empty_like(rows)
        grad_corners = torch.empty_like(corner_weights, memory_format=torch.contiguous_format)
        grad_flat = torch.zeros_like(flat)
        for start in range(0, n, ctx.group):
            part = slice(start, start + ctx.group)
            pixels, grad_out = rows[part].flatten(0, 1), grad[part].flatten(0, 1)
            keys, weights = index[part].flatten(), corner_weights[part].flatten()
            bags = torch.arange(len(grad_out), dtype=keys.dtype)
            bags = bags[:, None].expand(-1, len(keys) // len(grad_out)).flatten()
            if ctx.needs_input_grad[1]:  # <grad_out(p), Z[index]> for every corner
                z = ctx.kept.pop(0) if ctx.kept else (pixels @ flat).view(-1, d)
                grad_corners[part] = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                    grad_out, z, keys, keys.new_empty(0), bags, 0
                ).view_as(grad_corners[part])
                del z
            # Z's gradient gathers, for every row, the outputs that read it: sort by row, then sum bags.
            order = torch.sort(keys, stable=True).indices
            ends = torch.bincount(keys, minlength=len(pixels) * kh * kw).cumsum(0)
            offsets = torch.cat([ends.new_zeros(1), ends]).to(keys.dtype)
            grad_z = F.embedding_bag(
                bags[order],
                grad_out,
                offsets,
                mode="sum",
                per_sample_weights=weights[order],
                include_last_offset=True,
            ).view(len(pixels), -1)
            grad_flat.addmm_(pixels.t(), grad_z)
            torch.mm(grad_z, flat.t(), out=grad_rows[part].view(-1, c))
        grad_input = grad_rows.view(n, h, w, c).permute(0, 3, 1, 2)
        grad_weight = grad_flat.view(c, kh, kw, d).permute(3, 0, 1, 2)
        grad_bias = grad.sum((0, 1)) if ctx.has_bias else None
        return grad_input, grad_corners, None, grad_weight, grad_bias, None


def _flat_weight(weight: torch.Tensor) -> torch.Tensor:
    """(D, C, k, k) -> (C, k * k * D)."""
    return weight.permute(1, 2, 3, 0).reshape(weight.shape[1], -1)
