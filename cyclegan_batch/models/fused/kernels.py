"""The Triton kernels of the fused operator, of its gradient, and of both ends of a generator.

All tensors are contiguous, ``(N, H, W, C)`` where nothing else is said, in any float type up to
float32; arithmetic, statistics and sums are float32. No kernel uses atomic operations, so the same
input always gives the same bits.

An image has P = H × W pixels, divided into S parts of ``per`` pixels. A program takes BC of the C
channels, and tiles of BP pixels. LONG: an image has 2³¹ values or more, so indices within an image
have 64 bits. The indices of images always have.
"""

# Triton compiles the source of a kernel, so its arguments have no types that mypy knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit
def reflected(i, size):
    """Return which of ``size`` pixels a border shows at ``i``, counted from the image's edge."""
    return size - 1 - tl.abs(size - 1 - tl.abs(i))


@triton.jit
def copy_of(i, size, PAD: tl.constexpr, COPY: tl.constexpr):
    """Return where a border of PAD shows pixel ``i`` again, and whether it does.

    Copy 0 is the pixel itself, 1 is the one in the border before the image, 2 the one behind it.
    """
    if COPY == 0:
        at = i + PAD
        exists = i >= 0
    elif COPY == 1:
        at = PAD - i
        exists = (i >= 1) & (i <= PAD)
    else:
        at = PAD + 2 * (size - 1) - i
        exists = (i <= size - 2) & (i >= size - 1 - PAD)
    return at, exists


@triton.jit
def gradient_at(
    gradient, r, k, c, live, H, W, C: tl.constexpr, PAD: tl.constexpr, LONG: tl.constexpr
):  # fmt: skip
    """Return the gradient of pixels before the border of PAD: the sum over all their copies."""
    total = tl.zeros(live.shape, tl.float32)
    for row in tl.static_range(3 if PAD > 0 else 1):
        y, y_exists = copy_of(r, H, PAD, row)
        for column in tl.static_range(3 if PAD > 0 else 1):
            z, z_exists = copy_of(k, W, PAD, column)
            at = y * (W + 2 * PAD) + z
            if LONG:
                at = at.to(tl.int64)
            mask = live & (y_exists & z_exists)[:, None]
            values = tl.load(gradient + at[:, None] * C + c[None, :], mask=mask, other=0.0)
            total += values.to(tl.float32)
    return total


@triton.jit
def statistics_of_parts(
    x, parts, P, per, S,
    C: tl.constexpr, LONG: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write the mean of each part, and the sum of squared deviations from it: ``(N, S, 2, C)``."""
    s = tl.program_id(0)
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    x += n * P * C
    first = s * per
    last = tl.minimum(first + per, P)
    inside = c < C
    # Subtract one of the values before summing: where the mean is far from 0, no digits are lost.
    begin = tl.minimum(first, P - 1)
    if LONG:
        begin = begin.to(tl.int64)
    shift = tl.load(x + begin * C + c, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros((BP, BC), tl.float32)
    squares = tl.zeros((BP, BC), tl.float32)
    for start in range(first, last, BP):
        p = start + tl.arange(0, BP)
        live = (p < last)[:, None] & inside[None, :]
        if LONG:
            p = p.to(tl.int64)
        v = tl.load(x + p[:, None] * C + c[None, :], mask=live, other=0.0).to(tl.float32)
        v = tl.where(live, v - shift[None, :], 0.0)
        sums += v
        squares += v * v
    count = tl.maximum(last - first, 1).to(tl.float32)
    mean = tl.sum(sums, 0) / count
    at = parts + (n * S + s) * 2 * C + c
    tl.store(at, mean + shift, mask=inside)
    tl.store(at + C, tl.maximum(tl.sum(squares, 0) - mean * mean * count, 0.0), mask=inside)


@triton.jit
def statistics_of_images(
    parts, statistics, P, per, eps, C: tl.constexpr, S: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Write the mean and 1 / √(variance + eps) of each image, ``(N, 2, C)``, from its parts."""
    n = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    i = tl.arange(0, S)
    count = tl.minimum(tl.maximum(P - i * per, 0), per).to(tl.float32)[:, None]
    at = parts + (n * S + i[:, None]) * 2 * C + c[None, :]
    live = (c < C)[None, :] & (i >= 0)[:, None]
    means = tl.load(at, mask=live, other=0.0)
    squares = tl.load(at + C, mask=live, other=0.0)
    mean = tl.sum(means * count, 0) / P
    away = means - mean[None, :]
    variance = tl.sum(squares + away * away * count, 0) / P
    tl.store(statistics + n * 2 * C + c, mean, mask=c < C)
    tl.store(statistics + n * 2 * C + C + c, 1.0 / tl.sqrt(variance + eps), mask=c < C)


@triton.jit
def normalized(
    x, residual, statistics, out, P, H, W,
    C: tl.constexpr, RELU: tl.constexpr, PAD: tl.constexpr, ADDS: tl.constexpr,
    RESIDUAL_PAD: tl.constexpr, CELLS_IN: tl.constexpr, CELLS_OUT: tl.constexpr,
    LONG: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write TILES tiles of the result: the norm, ReLU, the residual, the border of PAD."""
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    wide = W + 2 * PAD
    pixels = (H + 2 * PAD) * wide
    mean = tl.load(statistics + n * 2 * C + c, mask=inside, other=0.0)
    scale = tl.load(statistics + n * 2 * C + C + c, mask=inside, other=0.0)
    x += n * P * C
    out += n * pixels * C
    residual += n * (H + 2 * RESIDUAL_PAD) * (W + 2 * RESIDUAL_PAD) * C
    for tile in tl.static_range(TILES):
        q = (tl.program_id(0) * TILES + tile) * BP + tl.arange(0, BP)
        live = (q < pixels)[:, None] & inside[None, :]
        if LONG:
            q = q.to(tl.int64)
        y = q // wide
        z = q % wide
        r = reflected(y - PAD, H)
        k = reflected(z - PAD, W)
        source = (r * W + k) * C
        target = q * C
        if CELLS_IN:
            source = ((r // 2) * (W // 2) + k // 2) * (4 * C) + ((r % 2) * 2 + k % 2) * C
        if CELLS_OUT:
            target = ((y // 2) * (wide // 2) + z // 2) * (4 * C) + ((y % 2) * 2 + z % 2) * C
        v = tl.load(x + source[:, None] + c[None, :], mask=live, other=0.0).to(tl.float32)
        v = (v - mean[None, :]) * scale[None, :]
        if RELU:
            v = tl.where(v < 0.0, 0.0, v)  # NaN stays NaN, which a maximum would turn into 0
        if ADDS:
            beside = ((r + RESIDUAL_PAD) * (W + 2 * RESIDUAL_PAD) + k + RESIDUAL_PAD) * C
            more = tl.load(residual + beside[:, None] + c[None, :], mask=live, other=0.0)
            v += more.to(tl.float32)
        tl.store(out + target[:, None] + c[None, :], v.to(out.dtype.element_ty), mask=live)


@triton.jit
def gradient_sums_of_parts(
    gradient, x, statistics, parts, P, H, W, per, S,
    C: tl.constexpr, RELU: tl.constexpr, PAD: tl.constexpr, LONG: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write two sums over each part, ``(N, S, 2, C)``: of the norm's gradient d, and of d × norm.

    ``gradient`` is that of the result of `normalized`, border included.
    """
    s = tl.program_id(0)
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    mean = tl.load(statistics + n * 2 * C + c, mask=inside, other=0.0)
    scale = tl.load(statistics + n * 2 * C + C + c, mask=inside, other=0.0)
    x += n * P * C
    gradient += n * (H + 2 * PAD) * (W + 2 * PAD) * C
    first = s * per
    last = tl.minimum(first + per, P)
    sums = tl.zeros((BP, BC), tl.float32)
    products = tl.zeros((BP, BC), tl.float32)
    for start in range(first, last, BP):
        p = start + tl.arange(0, BP)
        live = (p < last)[:, None] & inside[None, :]
        d = gradient_at(gradient, p // W, p % W, c, live, H, W, C, PAD, LONG)
        if LONG:
            p = p.to(tl.int64)
        v = tl.load(x + p[:, None] * C + c[None, :], mask=live, other=0.0).to(tl.float32)
        v = tl.where(live, (v - mean[None, :]) * scale[None, :], 0.0)
        if RELU:
            d = tl.where(v <= 0.0, 0.0, d)
        sums += d
        products += d * v
    at = parts + (n * S + s) * 2 * C + c
    tl.store(at, tl.sum(sums, 0), mask=inside)
    tl.store(at + C, tl.sum(products, 0), mask=inside)


@triton.jit
def gradients(
    gradient, x, statistics, sums, of_x, of_residual, P, H, W,
    C: tl.constexpr, RELU: tl.constexpr, PAD: tl.constexpr, ADDS: tl.constexpr,
    RESIDUAL_PAD: tl.constexpr, LONG: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write the gradient of x, and that of the residual, which is 0 in its border.

    With d the gradient of the norm, that of x is (d − mean(d) − norm × mean(d × norm)) / √(variance
    + eps). ``sums`` ``(N, 2, C)`` are those over all parts of `gradient_sums_of_parts`.
    """
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    at = n * 2 * C + c
    mean = tl.load(statistics + at, mask=inside, other=0.0)
    scale = tl.load(statistics + at + C, mask=inside, other=0.0)
    mean_of_d = tl.load(sums + at, mask=inside, other=0.0) / P
    mean_of_product = tl.load(sums + at + C, mask=inside, other=0.0) / P
    wide = W + 2 * RESIDUAL_PAD
    pixels = (H + 2 * RESIDUAL_PAD) * wide
    x += n * P * C
    of_x += n * P * C
    of_residual += n * pixels * C
    gradient += n * (H + 2 * PAD) * (W + 2 * PAD) * C
    for tile in tl.static_range(TILES):
        q = (tl.program_id(0) * TILES + tile) * BP + tl.arange(0, BP)
        r = q // wide - RESIDUAL_PAD
        k = q % wide - RESIDUAL_PAD
        within = (r >= 0) & (r < H) & (k >= 0) & (k < W)
        live = within[:, None] & inside[None, :]
        d = gradient_at(gradient, r, k, c, live, H, W, C, PAD, LONG)
        p = r * W + k
        there = (q < pixels)[:, None] & inside[None, :]
        if LONG:
            p = p.to(tl.int64)
            q = q.to(tl.int64)
        if ADDS:
            beside = of_residual + q[:, None] * C + c[None, :]
            tl.store(beside, d.to(of_residual.dtype.element_ty), mask=there)
        v = tl.load(x + p[:, None] * C + c[None, :], mask=live, other=0.0).to(tl.float32)
        v = (v - mean[None, :]) * scale[None, :]
        if RELU:
            d = tl.where(v <= 0.0, 0.0, d)
        d = (d - mean_of_d[None, :] - v * mean_of_product[None, :]) * scale[None, :]
        tl.store(of_x + p[:, None] * C + c[None, :], d.to(of_x.dtype.element_ty), mask=live)


@triton.jit
def first_input(
    frames, out, H, W, HO, WO, factor,
    CHANNELS: tl.constexpr, CELL: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write frames ``(N, H, W, 3)`` times ``factor`` less 1, with a reflected border of 3.

    The result ``(N, HO, WO, CP)`` has cells of CELL × CELL pixels with CHANNELS each, 3 or the luma
    of BT.601, and zeros in the rest of CP.
    """
    n = tl.program_id(1).to(tl.int64)
    q = tl.program_id(0) * BP + tl.arange(0, BP)
    k = tl.arange(0, CP)
    live = (q < HO * WO)[:, None] & (k < CHANNELS * CELL * CELL)[None, :]
    pixel = k // CHANNELS
    y = reflected((q // WO)[:, None] * CELL + (pixel // CELL)[None, :] - 3, H)
    z = reflected((q % WO)[:, None] * CELL + (pixel % CELL)[None, :] - 3, W)
    at = frames + n * H * W * 3 + (y * W + z) * 3
    if CHANNELS == 1:
        v = 0.299 * tl.load(at, mask=live, other=0).to(tl.float32)
        v += 0.587 * tl.load(at + 1, mask=live, other=0).to(tl.float32)
        v += 0.114 * tl.load(at + 2, mask=live, other=0).to(tl.float32)
    else:
        v = tl.load(at + (k % CHANNELS)[None, :], mask=live, other=0).to(tl.float32)
    v = tl.where(live, v * factor - 1.0, 0.0).to(out.dtype.element_ty)
    inside = (q < HO * WO)[:, None] & (k >= 0)[None, :]
    tl.store(out + n * HO * WO * CP + q[:, None] * CP + k[None, :], v, mask=inside)


@triton.jit
def last_output(
    y, bias, frames, H, W, factor, shift,
    CHANNELS: tl.constexpr, CELL: tl.constexpr, CP: tl.constexpr, ROUNDS: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """Write frames ``(N, H, W, 3)`` of the head's output: tanh(y + bias) × factor + shift.

    ``y`` has cells of CELL × CELL pixels in CP channels, of which the first CHANNELS of each pixel
    count, 3 or 1. ROUNDS: rounded down.
    """
    n = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * B + tl.arange(0, B)
    live = e < H * W * 3
    c = e % 3 % CHANNELS
    r = e // 3 // W
    k = e // 3 % W
    at = ((r // CELL) * (W // CELL) + k // CELL) * CP + ((r % CELL) * CELL + k % CELL) * CHANNELS
    v = tl.load(y + n * (H // CELL) * (W // CELL) * CP + at + c, mask=live, other=0.0)
    v = v.to(tl.float32) + tl.load(bias + c, mask=live, other=0.0)
    # tanh by way of exp, which Triton has on every device.
    v = (1.0 - 2.0 / (tl.exp(2.0 * v) + 1.0)) * factor + shift
    if ROUNDS:
        v = tl.floor(v).to(tl.int32)
    tl.store(frames + n * H * W * 3 + e, v.to(frames.dtype.element_ty), mask=live)
