"""The Triton kernels of the fused operator, and of both ends of the fused generator.

All tensors are contiguous ``(N, H, W, C)``. Statistics and sums are float32.
"""

# Triton compiles the source of a kernel, so its arguments have no types that mypy knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

EPS = tl.constexpr(1e-5)


@triton.jit
def reflect(i, size):
    """Return the index that a reflected border repeats at ``i``."""
    return size - 1 - tl.abs(size - 1 - tl.abs(i))


@triton.jit
def statistics_of_parts(x, part, P, per, S, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Write the mean of one part of an image, and the sum of squared deviations from it.

    An image has P pixels in S parts of ``per``; a program takes BC of its C channels.
    """
    s = tl.program_id(0)
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    x += n * P * C
    first = s * per
    last = tl.minimum(first + per, P)
    inside = c < C
    # Subtract one of the values before summing: where the mean is far from 0, no digits are lost.
    shift = tl.load(x + tl.minimum(first, P - 1) * C + c, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros((BP, BC), tl.float32)
    squares = tl.zeros((BP, BC), tl.float32)
    for start in range(first, last, BP):
        p = start + tl.arange(0, BP)
        live = (p < last)[:, None] & inside[None, :]
        v = tl.load(x + p[:, None] * C + c[None, :], mask=live, other=0.0).to(tl.float32)
        v = tl.where(live, v - shift[None, :], 0.0)
        sums += v
        squares += v * v
    count = tl.maximum(last - first, 1).to(tl.float32)
    mean = tl.sum(sums, 0) / count
    at = part + (n * S + s) * 2 * C + c
    tl.store(at, mean + shift, mask=inside)
    tl.store(at + C, tl.maximum(tl.sum(squares, 0) - mean * mean * count, 0.0), mask=inside)


@triton.jit
def statistics_of_images(part, stat, P, per, C: tl.constexpr, S: tl.constexpr, BC: tl.constexpr):
    """Write the mean and 1 / standard deviation of a whole image, from its S parts."""
    n = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    i = tl.arange(0, S)
    count = tl.minimum(tl.maximum(P - i * per, 0), per).to(tl.float32)[:, None]
    at = part + (n * S + i[:, None]) * 2 * C + c[None, :]
    live = (c < C)[None, :] & (i >= 0)[:, None]
    means = tl.load(at, mask=live, other=0.0)
    squares = tl.load(at + C, mask=live, other=0.0)
    mean = tl.sum(means * count, 0) / P
    away = means - mean[None, :]
    variance = tl.sum(squares + away * away * count, 0) / P
    tl.store(stat + n * 2 * C + c, mean, mask=c < C)
    tl.store(stat + n * 2 * C + C + c, 1.0 / tl.sqrt(variance + EPS), mask=c < C)


@triton.jit
def normalized(
    x, residual, stat, out, P, H, W,
    C: tl.constexpr, RELU: tl.constexpr, PAD: tl.constexpr, ADDS: tl.constexpr,
    RESIDUAL_PAD: tl.constexpr, CELLS_IN: tl.constexpr, CELLS_OUT: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write BC channels of TILES × BP pixels of the result, border included."""
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    wide = W + 2 * PAD
    pixels = (H + 2 * PAD) * wide
    mean = tl.load(stat + n * 2 * C + c, mask=inside, other=0.0)
    scale = tl.load(stat + n * 2 * C + C + c, mask=inside, other=0.0)
    x += n * P * C
    out += n * pixels * C
    residual += n * (H + 2 * RESIDUAL_PAD) * (W + 2 * RESIDUAL_PAD) * C
    for tile in tl.static_range(TILES):
        q = (tl.program_id(0) * TILES + tile) * BP + tl.arange(0, BP)
        live = (q < pixels)[:, None] & inside[None, :]
        y = q // wide
        z = q % wide
        r = reflect(y - PAD, H)
        k = reflect(z - PAD, W)
        source = (r * W + k) * C
        target = q * C
        if CELLS_IN:
            source = ((r // 2) * (W // 2) + k // 2) * (4 * C) + ((r % 2) * 2 + k % 2) * C
        if CELLS_OUT:
            target = ((y // 2) * (wide // 2) + z // 2) * (4 * C) + ((y % 2) * 2 + z % 2) * C
        v = tl.load(x + source[:, None] + c[None, :], mask=live, other=0.0).to(tl.float32)
        v = (v - mean[None, :]) * scale[None, :]
        if RELU:
            v = tl.maximum(v, 0.0)
        if ADDS:
            beside = ((r + RESIDUAL_PAD) * (W + 2 * RESIDUAL_PAD) + k + RESIDUAL_PAD) * C
            more = tl.load(residual + beside[:, None] + c[None, :], mask=live, other=0.0)
            v += more.to(tl.float32)
        tl.store(out + target[:, None] + c[None, :], v.to(out.dtype.element_ty), mask=live)


@triton.jit
def first_input(
    u8, out, H, W, HO, WO, CELL: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr
):  # fmt: skip
    """Write bytes as float16 in [-1, 1] with a border of 3, in cells or not, in CP channels."""
    n = tl.program_id(1).to(tl.int64)
    q = tl.program_id(0) * BP + tl.arange(0, BP)
    k = tl.arange(0, CP)
    live = (q < HO * WO)[:, None] & (k < 3 * CELL * CELL)[None, :]
    y = reflect((q // WO)[:, None] * CELL + (k // 3 // 2)[None, :] - 3, H)
    z = reflect((q % WO)[:, None] * CELL + (k // 3 % 2)[None, :] - 3, W)
    v = tl.load(u8 + n * H * W * 3 + (y * W + z) * 3 + (k % 3)[None, :], mask=live, other=0)
    v = tl.where(live, v.to(tl.float32) * (2.0 / 255.0) - 1.0, 0.0).to(out.dtype.element_ty)
    inside = (q < HO * WO)[:, None] & (k >= 0)[None, :]
    tl.store(out + n * HO * WO * CP + q[:, None] * CP + k[None, :], v, mask=inside)


@triton.jit
def last_output(y, bias, u8, H, W, CELL: tl.constexpr, CP: tl.constexpr, B: tl.constexpr):
    """Write the output of the head as bytes: add the bias, tanh, round; from cells or not."""
    n = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * B + tl.arange(0, B)
    live = e < H * W * 3
    c = e % 3
    r = e // 3 // W
    k = e // 3 % W
    source = ((r // CELL) * (W // CELL) + k // CELL) * CP + ((r % CELL) * CELL + k % CELL) * 3 + c
    v = tl.load(y + n * (H // CELL) * (W // CELL) * CP + source, mask=live, other=0.0)
    v = v.to(tl.float32) + tl.load(bias + c, mask=live, other=0.0)
    # tanh by way of exp, which Triton has on every device.
    v = (1.0 - 2.0 / (tl.exp(2.0 * v) + 1.0)) * 127.5 + 128.0
    tl.store(u8 + n * H * W * 3 + e, tl.floor(v).to(tl.int32).to(tl.uint8), mask=live)
