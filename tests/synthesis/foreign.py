"""Generators as the exporters of other frameworks write them, and the same ones in numpy.

Each function writes a graph by hand and returns, with its path, a function that computes it without
onnx: ``(N, H, W, 3)`` floats in -1..1 in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto

from tests.synthesis.generators import Graph

Array = np.ndarray[Any, Any]
Translate = Callable[[Array], Array]

Enlarged = Literal["nearest", "half_pixel", "align_corners", "asymmetric"]
"""How a picture is enlarged: by repeating pixels, or bilinearly with this kind of coordinates."""

# The operators in numpy, on (N, C, H, W)


def convolved(x: Array, weight: Array, bias: Array, stride: int = 1) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]


def bordered(x: Array, before: int, after: int, mode: Any = "constant") -> Array:
    return np.pad(x, [(0, 0), (0, 0), (before, after), (before, after)], mode=mode)


def normalised(x: Array, scale: Array, offset: Array) -> Array:
    mean, variance = (each(x, axis=(2, 3), keepdims=True) for each in (np.mean, np.var))
    rows = scale[:, None, None], offset[:, None, None]
    return (x - mean) / np.sqrt(variance + 1e-5) * rows[0] + rows[1]


def leaky(x: Array) -> Array:
    return np.where(x < 0, 0.2 * x, x)


def doubled(x: Array, how: Enlarged) -> Array:
    """Return ``x`` at twice its height and width."""
    for axis in (2, 3):
        side = x.shape[axis]
        place = np.arange(2 * side)
        if how == "nearest":
            x = np.take(x, place // 2, axis)
            continue
        at = {
            "half_pixel": (place + 0.5) / 2 - 0.5,
            "align_corners": place * (side - 1) / (2 * side - 1),
            "asymmetric": place / 2,
        }[how]
        at = np.clip(at, 0, side - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if each == axis else 1 for each in range(4)])
        above = np.take(x, np.minimum(low + 1, side - 1), axis)
        x = np.take(x, low, axis) * (1 - share) + above * share
    return x


# The generators


def _weights(seed: int) -> Callable[..., Array]:
    random = np.random.default_rng(seed)
    return lambda *shape: random.normal(0, 0.35, shape).astype(np.float32)


def enlarge(g: Graph, x: str, how: Enlarged, *, by_sizes: bool = False) -> str:
    """Append the operator that doubles height and width in the opset of ``g``.

    ``by_sizes``: to sizes that the graph computes from the shape of ``x``, since opset 11.
    """
    mode = {"mode": "nearest" if how == "nearest" else "linear"}
    factors = [1.0, 1.0, 2.0, 2.0]
    if g.opset < 9:
        return g.op("Upsample", x, scales=factors, **mode)
    if g.opset < 11:
        kind = "Upsample" if g.opset == 9 else "Resize"
        return g.op(kind, x, g.constant(factors), **mode)
    coordinates = "asymmetric" if how == "nearest" else how
    mode["coordinate_transformation_mode"] = coordinates
    if how == "nearest":
        mode["nearest_mode"] = "floor"
    region = g.constant(np.zeros(0)) if g.opset < 13 else ""
    if not by_sizes:
        return g.op("Resize", x, region, g.constant(factors), **mode)
    shape = g.op("Shape", x)
    first, sides = (
        g.op("Slice", shape, *(g.constant([n], np.int64) for n in (start, end, 0)))
        for start, end in ((0, 2), (2, 4))
    )
    sides = g.op("Mul", sides, g.constant([2, 2], np.int64))
    sizes = g.op("Concat", first, sides, axis=0)
    no_scales = g.constant(np.zeros(0)) if g.opset < 13 else ""
    return g.op("Resize", x, region, no_scales, sizes, **mode)


def of_opset(
    path: Path,
    opset: int,
    how: Enlarged = "nearest",
    *,
    by_sizes: bool = False,
    batch: int | None = None,
    side: int | None = None,
) -> Translate:
    """Write a generator of NCHW whose operators changed most between opsets, 7 to 21.

    Pad (reflecting, and with zeros), InstanceNormalization, Upsample or Resize, Clip. ``batch``,
    ``side``: the only batch and square that it takes.
    """
    g, made = Graph(opset), _weights(opset)
    first, between, last = made(6, 3, 3, 3), made(6), made(6)
    head, bias, shift = made(3, 6, 3, 3), made(3), made(6)
    x = _padded(g, "image", 1, "reflect")
    x = g.op("Conv", x, g.constant(first), g.constant(shift), strides=[2, 2])
    x = g.op("InstanceNormalization", x, g.constant(between), g.constant(last), epsilon=1e-5)
    x = g.op("LeakyRelu", x, alpha=0.2)
    x = enlarge(g, x, how, by_sizes=by_sizes)
    x = _padded(g, x, 1, "constant")
    x = g.op("Conv", x, g.constant(head), g.constant(bias))
    g.clip(x, -1.0, 1.0)
    g.nodes[-1].output[0] = "picture"
    shape = (batch or "N", 3, side or "H", side or "W")
    ends = [[(name, TensorProto.FLOAT, shape)] for name in ("image", "picture")]
    g.save(path, *ends)

    def translate(frames: Array) -> Array:
        x = convolved(bordered(frames.transpose(0, 3, 1, 2), 1, 1, "reflect"), first, shift, 2)
        x = doubled(leaky(normalised(x, between, last)), how)
        return np.clip(convolved(bordered(x, 1, 1), head, bias), -1, 1).transpose(0, 2, 3, 1)

    return translate


def _padded(g: Graph, x: str, width: int, mode: str) -> str:
    pads = [0, 0, width, width, 0, 0, width, width]
    if g.opset < 11:
        return g.op("Pad", x, mode=mode, pads=pads)
    if g.opset < 18:
        return g.op("Pad", x, g.constant(pads, np.int64), mode=mode)
    sides, axes = g.constant([width] * 4, np.int64), g.constant([2, 3], np.int64)
    return g.op("Pad", x, sides, "", axes, mode=mode)


def by_tf2onnx(
    path: Path,
    *,
    opset: int = 13,
    how: Enlarged = "asymmetric",
    free: Sequence[int | str | None] = ("unk__6", "unk__7", "unk__8"),
    names: tuple[str, str] = ("input_1:0", "generator/main/out_layer:0"),
    norm: bool = True,
) -> Translate:
    """Write a generator of TensorFlow as tf2onnx does: NHWC, with a Transpose around each Conv.

    Names have colons and slashes, "SAME" convolutions stay ``auto_pad``, the norm is written out in
    NHWC, and sizes are computed from shapes. ``free``: batch, height and width as they are
    declared.
    """
    g, made = Graph(opset), _weights(1)
    first, second, head = made(4, 3, 3, 3), made(4, 4, 3, 3), made(3, 4, 3, 3)
    biases = made(4), made(4), made(3)
    gain, shift = made(4), made(4)
    numbers = iter(range(1000))

    def between(x: str, append: Callable[[str], str]) -> str:
        """Append operators of NCHW between two Transposes."""
        turned = g.op("Transpose", x, perm=[0, 3, 1, 2])
        return g.op("Transpose", append(turned), perm=[0, 2, 3, 1])

    def conv(x: str, weight: Array, bias: Array, **attributes: Any) -> str:
        name = f"generator/Conv_{next(numbers)}/Conv2D__{next(numbers)}:0"
        return between(
            x,
            lambda x: g.op(
                "Conv", x, g.constant(weight), g.constant(bias), out=name,
                kernel_shape=[3, 3], **attributes,
            ),
        )  # fmt: skip

    pads = [0, 1, 1, 0, 0, 1, 1, 0]
    if opset < 11:
        x = g.op("Pad", names[0], mode="reflect", pads=pads)
    else:
        x = g.op("Pad", names[0], g.constant(pads, np.int64), mode="reflect")
    x = g.op("LeakyRelu", conv(x, first, biases[0], auto_pad="VALID"), alpha=0.2)
    x = conv(x, second, biases[1], auto_pad="SAME_UPPER", strides=[2, 2])
    if norm:
        x = _norm_of_tensorflow(g, x, gain, shift)
    x = g.op("LeakyRelu", x, alpha=0.2)
    x = between(x, lambda x: enlarge(g, x, how, by_sizes=opset >= 11))
    x = conv(x, head, biases[2], auto_pad="SAME_UPPER")
    g.op("Tanh", x, out=names[1])
    shape = (*free, 3)
    ends = [[(name, TensorProto.FLOAT, shape)] for name in names]
    g.save(path, *ends)

    def translate(frames: Array) -> Array:
        x = bordered(frames.transpose(0, 3, 1, 2), 1, 1, "reflect")
        x = leaky(convolved(x, first, biases[0]))
        # "SAME" at stride 2 puts the odd row and column of an even size behind.
        x = convolved(bordered(x, 0, 1), second, biases[1], 2)
        x = doubled(leaky(normalised(x, gain, shift) if norm else x), how)
        return np.tanh(convolved(bordered(x, 1, 1), head, biases[2])).transpose(0, 2, 3, 1)

    return translate


def _norm_of_tensorflow(g: Graph, x: str, gain: Array, shift: Array) -> str:
    """Append InstanceNorm of NHWC as TensorFlow's ``moments`` and ``batch_normalization``."""

    def mean(x: str) -> str:
        if g.opset < 18:
            return g.op("ReduceMean", x, axes=[1, 2], keepdims=1)
        return g.op("ReduceMean", x, g.constant([1, 2], np.int64), keepdims=1)

    centre = mean(x)
    apart = g.op("Sub", x, centre)
    variance = mean(g.op("Mul", apart, apart))
    root = g.op("Sqrt", g.op("Add", variance, g.constant(1e-5)))
    scale = g.op("Mul", g.op("Reciprocal", root), g.constant(gain))
    offset = g.op("Sub", g.constant(shift), g.op("Mul", centre, scale))
    return g.op("Add", g.op("Mul", x, scale), offset)


def with_free_axes(path: Path, length: int) -> None:
    """Declare every free axis of input and output by ``length``, as some exporters do (0, -1)."""
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if not axis.HasField("dim_value"):
                axis.dim_value = length
    path.write_bytes(proto.SerializeToString())
