"""Small generators, and models that are no generators, written with onnx.helper alone.

The cards of contract files (`identity`, `invert`, `one_channel`, `tiny_resnet`) are made here, so
that the product's reader is tested against the contract and not against the product's writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

PixelType = Literal["uint8", "float16"]
Shape = Sequence[int | str | None]

_ELEMENT = {"uint8": TensorProto.UINT8, "float16": TensorProto.FLOAT16}
_FRAMES: Shape = ("N", "H", "W", 3)


class Graph:
    """A graph under construction: every call appends a node and returns its output's name."""

    def __init__(self, opset: int = 17) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        out = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def clip(self, x: str, low: float, high: float) -> str:
        if self.opset < 11:
            return self.op("Clip", x, min=low, max=high)
        return self.op("Clip", x, self.constant(low), self.constant(high))

    def reflect(self, x: str, width: int) -> str:
        pads = [0, 0, width, width, 0, 0, width, width]
        if self.opset < 11:
            return self.op("Pad", x, mode="reflect", pads=pads)
        return self.op("Pad", x, self.constant(pads, np.int64), mode="reflect")

    def save(
        self,
        path: Path,
        inputs: Sequence[tuple[str, int, Shape]],
        outputs: Sequence[tuple[str, int, Shape]],
        card: dict[str, str] | None = None,
    ) -> Path:
        values = [
            [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in group]
            for group in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "generator", *values, initializer=self.weights)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )
        helper.set_model_props(model, {f"cyclegan_batch.{k}": v for k, v in (card or {}).items()})
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def card(**changes: str) -> dict[str, str]:
    """Return the smallest valid card, without the prefix of its keys."""
    fields = {
        "contract_version": "1",
        "architecture": "hand-made",
        "multiple_of": "1",
        "minimum": "1",
        "precision": "fp32",
    }
    return {key: value for key, value in (fields | changes).items() if value}


def frames_io(
    io: PixelType, fixed: tuple[int, int] | None = None, batch: int | None = None
) -> tuple[list[tuple[str, int, Shape]], list[tuple[str, int, Shape]]]:
    shape = (batch or "N", *(fixed or ("H", "W")), 3)
    return [("frames", _ELEMENT[io], shape)], [("translated", _ELEMENT[io], shape)]


def _leave(g: Graph, x: str, io: PixelType) -> None:
    """Append the contract's last nodes to ``x``, (N, H, W, 3) in the pixel type's range."""
    if io == "uint8":
        x = g.op("Floor", g.op("Add", x, g.constant(0.5)))
        x = g.clip(x, 0.0, 255.0)
    else:
        x = g.clip(x, 0.0, 1.0)
    g.op("Cast", x, out="translated", to=_ELEMENT[io])


def identity(path: Path, io: PixelType = "uint8", **changes: str) -> Path:
    """Write a contract generator whose output is its input."""
    g = Graph()
    _leave(g, g.op("Cast", "frames", to=TensorProto.FLOAT), io)
    return g.save(path, *frames_io(io), card=card(**changes))


def invert(
    path: Path,
    io: PixelType = "uint8",
    fixed: tuple[int, int] | None = None,
    batch: int | None = None,
    **changes: str,
) -> Path:
    """Write a contract generator that computes 255 − x (float16: 1 − x)."""
    g = Graph()
    x = g.op("Cast", "frames", to=TensorProto.FLOAT)
    _leave(g, g.op("Sub", g.constant(255.0 if io == "uint8" else 1.0), x), io)
    return g.save(path, *frames_io(io, fixed, batch), card=card(**changes))


def not_a_number(path: Path, io: PixelType = "uint8") -> Path:
    """Write a contract generator with finite weights that computes NaN: √(−1)."""
    g = Graph()
    x = g.op("Cast", "frames", to=TensorProto.FLOAT)
    root = g.op("Sqrt", g.op("Sub", g.op("Mul", x, g.constant(0.0)), g.constant(1.0)))
    _leave(g, g.op("Add", x, root), io)
    return g.save(path, *frames_io(io), card=card())


def tiny_resnet(
    path: Path,
    *,
    seed: int = 0,
    io: PixelType = "uint8",
    width: int = 4,
    channels: int = 3,
    fixed: tuple[int, int] | None = None,
    batch: int | None = None,
) -> Path:
    """Write a contract generator with all parts of a ResNet generator, on a few channels.

    Reflect padding, InstanceNorm, one stride of 2 down, one residual block, ConvTranspose up, Tanh.
    """
    g = Graph()
    x = g.op("Cast", "frames", to=TensorProto.FLOAT)
    scale = 127.5 if io == "uint8" else 0.5
    x = g.op("Sub", g.op("Div", x, g.constant(scale)), g.constant(1.0))
    if channels == 1:
        x = g.op("MatMul", x, g.constant([[0.299], [0.587], [0.114]]))
    x = g.op("Transpose", x, perm=[0, 3, 1, 2])
    x = _resnet(g, x, np.random.default_rng(seed), width, channels)
    if channels == 1:
        x = g.op("Concat", x, x, x, axis=1)
    x = g.op("Transpose", x, perm=[0, 2, 3, 1])
    x = g.op("Mul", g.op("Add", x, g.constant(1.0)), g.constant(scale))
    _leave(g, x, io)
    fields = card(architecture="tiny resnet", multiple_of="2", minimum="4", trained_size="64")
    return g.save(path, *frames_io(io, fixed, batch), card=fields)


def one_channel(path: Path) -> Path:
    """Write a `tiny_resnet` of one channel: luma in, repeated out."""
    return tiny_resnet(path, channels=1, seed=1)


def _resnet(
    g: Graph, x: str, random: np.random.Generator, width: int, channels: int, half: bool = False
) -> str:
    dtype = np.float16 if half else np.float32

    def conv(x: str, into: int, out: int, size: int, **attributes: Any) -> str:
        turned = attributes.pop("transposed", False)
        shape = (into, out, size, size) if turned else (out, into, size, size)
        weights = random.normal(0, (into * size * size) ** -0.5, shape)
        bias = random.normal(0, 0.1, out)
        kind = "ConvTranspose" if turned else "Conv"
        return g.op(kind, x, g.constant(weights, dtype), g.constant(bias, dtype), **attributes)

    def norm(x: str, channels: int) -> str:
        ones, zeros = np.ones(channels), np.zeros(channels)
        return g.op(
            "InstanceNormalization",
            x,
            g.constant(ones, dtype),
            g.constant(zeros, dtype),
            epsilon=1e-5,
        )

    x = g.op("Relu", norm(conv(g.reflect(x, 3), channels, width, 7), width))
    down = conv(x, width, 2 * width, 3, strides=[2, 2], pads=[1, 1, 1, 1])
    x = g.op("Relu", norm(down, 2 * width))
    block = g.op("Relu", norm(conv(g.reflect(x, 1), 2 * width, 2 * width, 3), 2 * width))
    block = norm(conv(g.reflect(block, 1), 2 * width, 2 * width, 3), 2 * width)
    x = g.op("Add", x, block)
    up = conv(
        x, 2 * width, width, 3, transposed=True, strides=[2, 2], pads=[1, 1, 1, 1],
        output_padding=[1, 1],
    )  # fmt: skip
    x = g.op("Relu", norm(up, width))
    return g.op("Tanh", conv(g.reflect(x, 3), width, channels, 7))


End = Literal["tanh", "sigmoid", "clip", "conv"]


def foreign(
    path: Path,
    *,
    layout: Literal["nchw", "nhwc"] = "nchw",
    range: Literal["-1..1", "0..1", "0..255"] = "-1..1",  # noqa: A002
    fixed: tuple[int, int] | None = None,
    batch: int | None = None,
    channels: int = 3,
    half: bool = False,
    end: End | None = None,
    opset: int = 17,
) -> Path:
    """Write a float generator outside the contract, which inverts the image in its own range.

    It gives ``low + high − x`` per channel, with the first channel (red, or blue for BGR) at
    0.4 of that, so that a wrong order, layout or range shows. ``end``: what the graph ends in
    (None: a Clip to the range).
    """
    low, high = {"-1..1": (-1.0, 1.0), "0..1": (0.0, 1.0), "0..255": (0.0, 255.0)}[range]
    dtype = np.float16 if half else np.float32
    g = Graph(opset)
    x = "image"
    if layout == "nhwc":
        x = g.op("Transpose", x, perm=[0, 3, 1, 2])
    weight = np.zeros((channels, channels, 1, 1))
    gains = [0.4, 1.0, 1.0][:channels]
    for channel, gain in enumerate(gains):
        weight[channel, channel] = -gain
    bias = [low + gain * high for gain in gains]
    x = g.op("Conv", x, g.constant(weight, dtype), g.constant(bias, dtype))
    if end in (None, "clip"):
        if opset < 11:
            x = g.op("Clip", x, min=low, max=high)
        else:
            x = g.op("Clip", x, g.constant(low, dtype), g.constant(high, dtype))
    elif end == "tanh":
        x = g.op("Tanh", x)
    elif end == "sigmoid":
        x = g.op("Sigmoid", x)
    if layout == "nhwc":
        x = g.op("Transpose", x, perm=[0, 2, 3, 1])
    g.nodes[-1].output[0] = "picture"
    height, width = fixed or ("height", "width")
    rows: Shape = (batch or "batch", channels, height, width)
    if layout == "nhwc":
        rows = (rows[0], height, width, channels)
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    return g.save(path, [("image", kind, rows)], [("picture", kind, rows)])


def foreign_resnet(
    path: Path,
    *,
    seed: int = 0,
    half: bool = False,
    fixed: tuple[int, int] | None = None,
) -> Path:
    """Write the network of `tiny_resnet` as a float NCHW file in −1..1, outside the contract."""
    g = Graph()
    _resnet(g, "image", np.random.default_rng(seed), 4, 3, half)
    g.nodes[-1].output[0] = "picture"
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    shape: Shape = ("N", 3, *(fixed or ("H", "W")))
    return g.save(path, [("image", kind, shape)], [("picture", kind, shape)])


def upscaler(path: Path, *, fixed: tuple[int, int] | None = None) -> Path:
    """Write a super-resolution model: twice the size out."""
    g = Graph()
    weights = g.constant(np.full((12, 3, 1, 1), 0.1))
    g.op("DepthToSpace", g.op("Tanh", g.op("Conv", "image", weights)), out="large", blocksize=2)
    height, width = fixed or ("H", "W")
    large = (2 * height, 2 * width) if fixed else ("H2", "W2")
    return g.save(
        path,
        [("image", TensorProto.FLOAT, (1, 3, height, width))],
        [("large", TensorProto.FLOAT, (1, 3, *large))],
    )


def secret_upscaler(path: Path) -> Path:
    """Write a contract file that doubles the width, which only shows when it runs."""
    g = Graph()
    x = g.op("Cast", "frames", to=TensorProto.FLOAT)
    nothing = g.op("Mul", g.op("ReduceMax", x, axes=[0, 1, 2, 3], keepdims=0), g.constant(0.0))
    repeats = g.op("Add", nothing, g.constant([1.0, 1.0, 2.0, 1.0]))
    _leave(g, g.op("Tile", x, g.op("Cast", repeats, to=TensorProto.INT64)), "uint8")
    return g.save(path, *frames_io("uint8"), card=card())


def classifier(path: Path) -> Path:
    """Write a model that computes ten scores of an image."""
    g = Graph()
    pooled = g.op("Flatten", g.op("GlobalAveragePool", "image"))
    g.op("MatMul", pooled, g.constant(np.ones((3, 10))), out="scores")
    return g.save(
        path,
        [("image", TensorProto.FLOAT, ("N", 3, 224, 224))],
        [("scores", TensorProto.FLOAT, ("N", 10))],
    )


def two_inputs(path: Path) -> Path:
    """Write a model with two inputs, an image and a style."""
    g = Graph()
    g.op("Tanh", g.op("Add", "image", "style"), out="picture")
    shape: Shape = ("N", 3, "H", "W")
    return g.save(
        path,
        [("image", TensorProto.FLOAT, shape), ("style", TensorProto.FLOAT, shape)],
        [("picture", TensorProto.FLOAT, shape)],
    )


def two_outputs(path: Path) -> Path:
    """Write a model with two outputs, an image and a mask."""
    g = Graph()
    g.op("Tanh", "image", out="picture")
    g.op("Sigmoid", "image", out="mask")
    shape: Shape = ("N", 3, "H", "W")
    return g.save(
        path,
        [("image", TensorProto.FLOAT, shape)],
        [("picture", TensorProto.FLOAT, shape), ("mask", TensorProto.FLOAT, shape)],
    )


def five_channels(path: Path) -> Path:
    """Write a float model of five channels."""
    g = Graph()
    g.op("Tanh", "image", out="picture")
    shape: Shape = ("N", 5, "H", "W")
    kind = TensorProto.FLOAT
    return g.save(path, [("image", kind, shape)], [("picture", kind, shape)])


def natural(size: tuple[int, int], count: int = 1, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return ``(count, H, W, 3)`` uint8 images with the spectrum of natural ones (1/f)."""
    height, width = size
    random = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    spectrum = 1.0 / np.maximum(np.hypot(rows, columns), 1.0 / max(size))
    noise = random.normal(size=(count, 3, *spectrum.shape)) * spectrum
    phase = np.exp(2j * np.pi * random.random((count, 3, *spectrum.shape)))
    # The channels of a photograph are correlated.
    mixed = noise * phase
    mixed[:, 1:] = 0.3 * mixed[:, 1:] + mixed[:, :1]
    picture = np.fft.irfft2(mixed, s=size).transpose(0, 2, 3, 1)
    picture = (picture - picture.mean()) / (picture.std() or 1.0)
    return np.clip(picture * 55 + 120, 0, 255).astype(np.uint8)


def run(graph: onnx.ModelProto | bytes, frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Run a contract graph with numpy alone."""
    proto = onnx.ModelProto.FromString(graph) if isinstance(graph, bytes) else graph
    out: np.ndarray[Any, Any] = ReferenceEvaluator(proto).run(None, {"frames": frames})[0]
    return out
