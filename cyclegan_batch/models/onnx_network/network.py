"""A contract graph as a torch module, node by node.

Number types are not the graph's but follow one rule, so that one file runs in float32, float16 and
bfloat16: convolutions compute in the type that is asked for; normalisations keep the type of their
input and compute their statistics in float32; what only moves or compares numbers keeps the type,
and so does the sum of two computed values; all other arithmetic is done in float32. So a Cast from
one float type to another has no effect here, and an image is converted to [-1, 1] and back in
float32 in every precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from ...errors import ModelError
from ...wording import printable
from ..contract import INPUT, OUTPUT
from ..networks import InstanceNorm, without_halves
from .nodes import FLOATS, GraphNode, UnknownNodeError, nodes_of

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


class _Step(nn.Module):
    """A node: a function of the values that are computed from the frames."""

    def __init__(self, compute: Callable[..., Tensor], *, wide: bool = False) -> None:
        super().__init__()
        self._compute, self._wide = compute, wide

    def forward(self, *values: Tensor) -> Tensor:
        """Compute the node; where it is ``wide``, in float32 at least."""
        if self._wide:
            values = tuple(without_halves(value) for value in values)
        return self._compute(*values)


class _Convolution(nn.Module):
    """Conv and ConvTranspose, in the type of the weights."""

    def __init__(self, node: GraphNode, dtype: torch.dtype) -> None:
        super().__init__()
        node.only("auto_pad", "NOTSET", "VALID")
        if node.has("output_shape"):
            raise UnknownNodeError(node, f"{node.kind} with output_shape")
        weight, bias = node.required(1), node.constant(2)
        if weight.ndim != 4:
            raise UnknownNodeError(node, f"{node.kind} of {weight.ndim - 2} dimensions")
        self.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
        self._transposed = node.kind == "ConvTranspose"
        top, left, bottom, right = node.integers("pads", (0, 0, 0, 0))
        self._border = None if (top, left) == (bottom, right) else (left, right, top, bottom)
        if self._border is not None and self._transposed:
            raise UnknownNodeError(node, f"{node.kind} with another border at each side")
        self._stride = tuple(node.integers("strides", (1, 1)))
        self._padding = (top, left) if self._border is None else (0, 0)
        self._dilation = tuple(node.integers("dilations", (1, 1)))
        self._extra = tuple(node.integers("output_padding", (0, 0)))
        self._groups = int(node.number("group", 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self._transposed:
            return F.conv_transpose2d(
                x, self.weight, self.bias, self._stride, self._padding, self._extra,
                self._groups, self._dilation,
            )  # fmt: skip
        if self._border is not None:
            x = F.pad(x, self._border)
        return F.conv2d(
            x, self.weight, self.bias, self._stride, self._padding, self._dilation, self._groups
        )


class _Norm(nn.Module):
    """InstanceNormalization; without an affine it is the project's own."""

    def __init__(self, node: GraphNode) -> None:
        super().__init__()
        scale, offset = without_halves(node.required(1)), without_halves(node.required(2))
        self.norm = InstanceNorm(len(scale))
        self.norm.eps = node.number("epsilon", 1e-5)
        self._plain = bool((scale == 1).all() and (offset == 0).all())
        # One row a channel, which torch broadcasts over (N, C, H, W).
        self.register_buffer("scale", scale.view(-1, 1, 1))
        self.register_buffer("offset", offset.view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self._plain:
            normal: Tensor = self.norm(x)
            return normal
        wide = self.norm(without_halves(x)) * self.get_buffer("scale") + self.get_buffer("offset")
        same: Tensor = wide.to(x.dtype)
        return same


class _BatchNorm(nn.Module):
    """BatchNormalization with the statistics of its training."""

    def __init__(self, node: GraphNode) -> None:
        super().__init__()
        scale, offset, mean, variance = (node.required(i).double() for i in range(1, 5))
        gain = scale / (variance + node.number("epsilon", 1e-5)).sqrt()
        self.register_buffer("gain", gain.float().view(-1, 1, 1))
        self.register_buffer("offset", (offset - mean * gain).float().view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (without_halves(x) * self.get_buffer("gain") + self.get_buffer("offset")).to(x.dtype)


class _WithConstant(nn.Module):
    """Arithmetic of two values of which one is a constant, in float32."""

    def __init__(self, node: GraphNode, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        first, second = node.constant(0), node.constant(1)
        constant = first if first is not None else second
        assert constant is not None
        self._compute, self._first = compute, first is not None
        self.register_buffer("constant", without_halves(constant))

    def forward(self, x: Tensor) -> Tensor:
        constant, x = self.get_buffer("constant"), without_halves(x)
        return self._compute(constant, x) if self._first else self._compute(x, constant)


class _Gather(nn.Module):
    """Gather by constant places along one axis: another order of the channels."""

    def __init__(self, node: GraphNode) -> None:
        super().__init__()
        places = node.required(1).long()
        if places.ndim != 1:
            raise UnknownNodeError(node, f"Gather by {places.ndim} dimensions")
        self._axis = int(node.number("axis", 0))
        self.register_buffer("places", places)

    def forward(self, x: Tensor) -> Tensor:
        return torch.index_select(x, self._axis, self.get_buffer("places"))


def _cast(node: GraphNode) -> nn.Module:
    to = int(node.number("to", 0))
    if to in FLOATS:
        return _Step(lambda x: x if x.is_floating_point() else x.float())
    if to == TensorProto.UINT8:
        # Bytes stay floats until the end: every later node computes in floats.
        return _Step(lambda x: x.trunc().clamp(0.0, 255.0), wide=True)
    kind = TensorProto.DataType.Name(to) if to in TensorProto.DataType.values() else str(to)
    raise UnknownNodeError(node, f"Cast to {kind}")


def _pad(node: GraphNode) -> nn.Module:
    mode = node.word("mode", "constant")
    if mode not in _PAD_MODES:
        raise UnknownNodeError(node, f"Pad with mode = {mode}")
    pads = node.integers("pads") or [int(value) for value in node.required(1)]
    filling = node.constant(2)
    value = float(filling) if filling is not None else node.number("value", 0.0)
    if len(pads) != 8 or any(pads[i] for i in (0, 1, 4, 5)):
        raise UnknownNodeError(node, "Pad of other axes than height and width")
    top, left, bottom, right = pads[2], pads[3], pads[6], pads[7]
    border = (left, right, top, bottom)
    if mode == "constant":
        return _Step(lambda x: F.pad(x, border, value=value))
    return _Step(lambda x: F.pad(x, border, mode=_PAD_MODES[mode]))


def _clip(node: GraphNode) -> nn.Module:
    bounds = [node.constant(1), node.constant(2)]
    low, high = (
        float(bound) if bound is not None else node.number(word, default)
        for bound, word, default in zip(bounds, ("min", "max"), (-math.inf, math.inf), strict=True)
    )
    return _Step(lambda x: x.clamp(low, high))


def _enlarge(node: GraphNode) -> nn.Module:
    """Return nearest neighbour by whole factors, which the reference's networks use."""
    node.only("mode", "nearest")
    # Upsample and the first Resize have the factors behind the values, later ones behind a region.
    oldest = node.kind == "Upsample" or len(node.inputs) == 2
    scales = node.constant(1 if oldest else 2)
    factors = node.numbers("scales") if scales is None else [float(value) for value in scales]
    if len(factors) != 4 or factors[:2] != [1, 1] or any(f % 1 or f < 1 for f in factors):
        raise UnknownNodeError(node, f"{node.kind} by {factors or 'a size'}")
    if not oldest:
        # For whole factors these two pairs of modes give the same pixels.
        node.only("coordinate_transformation_mode", "half_pixel", "asymmetric")
        if node.word("coordinate_transformation_mode", "half_pixel") == "asymmetric":
            node.only("nearest_mode", "floor")
        else:
            node.only("nearest_mode", "round_prefer_floor", "round_prefer_ceil")
    rows, columns = int(factors[2]), int(factors[3])
    return _Step(lambda x: F.interpolate(x, scale_factor=(rows, columns), mode="nearest"))


def _reduce_mean(node: GraphNode) -> nn.Module:
    axes = node.integers("axes") or [int(value) for value in node.required(1)]
    keeps = bool(node.number("keepdims", 1))
    return _Step(lambda x: x.mean(axes, keepdim=keeps), wide=True)


def _reshape(node: GraphNode) -> nn.Module:
    shape = [int(value) for value in node.required(1)]
    if 0 in shape and int(node.number("allowzero", 0)):
        raise UnknownNodeError(node, "Reshape with allowzero")

    def reshape(x: Tensor) -> Tensor:
        return x.reshape([x.shape[i] if side == 0 else side for i, side in enumerate(shape)])

    return _Step(reshape)


def _slope(node: GraphNode) -> nn.Module:
    slope = node.number("alpha", 0.01)
    return _Step(lambda x: F.leaky_relu(x, slope))


def _concatenation(node: GraphNode) -> nn.Module:
    axis = int(node.number("axis", 1))
    return _Step(lambda *values: torch.cat(values, axis))


def _transposition(node: GraphNode) -> nn.Module:
    order = node.integers("perm")
    return _Step(lambda x: x.permute(order or tuple(reversed(range(x.ndim)))))


def _arithmetic(compute: Callable[[Tensor, Tensor], Tensor], *, keeps: bool) -> _Maker:
    def made(node: GraphNode) -> nn.Module:
        if node.constant(0) is None and node.constant(1) is None:
            return _Step(compute, wide=not keeps)
        return _WithConstant(node, compute)

    return made


def _simple(compute: Callable[[Tensor], Tensor], *, wide: bool = False) -> _Maker:
    return lambda node: _Step(compute, wide=wide)


_Maker: TypeAlias = Callable[[GraphNode], nn.Module]

_MAKERS: dict[str, _Maker] = {
    "Add": _arithmetic(torch.add, keeps=True),
    "BatchNormalization": _BatchNorm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concatenation,
    "Div": _arithmetic(torch.div, keeps=False),
    "Dropout": _simple(lambda x: x),
    "Floor": _simple(torch.floor, wide=True),
    "Gather": _Gather,
    "Identity": _simple(lambda x: x),
    "InstanceNormalization": _Norm,
    "LeakyRelu": _slope,
    "MatMul": _arithmetic(torch.matmul, keeps=False),
    "Mul": _arithmetic(torch.mul, keeps=False),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _simple(torch.relu),
    "Reshape": _reshape,
    "Resize": _enlarge,
    "Sigmoid": _simple(torch.sigmoid, wide=True),
    "Sqrt": _simple(torch.sqrt, wide=True),
    "Sub": _arithmetic(torch.sub, keeps=False),
    "Tanh": _simple(torch.tanh, wide=True),
    "Transpose": _transposition,
    "Upsample": _enlarge,
}
"""How each kind of node but a convolution is computed."""


class OnnxNetwork(nn.Module):
    """A contract graph: ``frames`` in, ``translated`` out, both ``(N, H, W, 3)``.

    Computed constants are folded when it is built, and a value is freed after its last reader.
    """

    def __init__(self, path: Path, proto: onnx.ModelProto, dtype: torch.dtype) -> None:
        """Build the nodes; convolutions compute in ``dtype``.

        ``path`` names the file in an error. Raises ModelError for a node that is not known here.
        """
        super().__init__()
        self._values_name = name_of_values(proto)
        self._steps = nn.ModuleList()
        self._inputs: list[list[str]] = []
        self._outputs: list[str] = []
        try:
            for node in nodes_of(proto):
                self._steps.append(_made(node, dtype))
                self._inputs.append(node.computed())
                self._outputs.append(node.output)
        except UnknownNodeError as error:
            raise ModelError(
                f"{printable(path)}: its node {printable(error.node.output)} is {error}, which "
                "torch does not run here; leave --backend torch out"
            ) from error
        self._last_reader = {name: i for i, names in enumerate(self._inputs) for name in names}
        self._last_reader |= {OUTPUT: len(self._steps), self._values_name: len(self._steps)}

    def forward(self, frames: Tensor) -> Tensor:
        """Translate ``frames``, uint8 or float16 as in the contract."""
        return self.with_values(frames)[0]

    def with_values(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Translate ``frames``; return the float32 values before clamping and rounding, too."""
        values = {INPUT: frames.float()}
        for i, (step, names, output) in enumerate(
            zip(self._steps, self._inputs, self._outputs, strict=True)
        ):
            values[output] = step(*(values[name] for name in names))
            for name in set(names):
                if self._last_reader[name] == i:
                    del values[name]
        return values[OUTPUT].to(frames.dtype).contiguous(), values[self._values_name].float()


def name_of_values(proto: onnx.ModelProto) -> str:
    """Return the name of the floats that become ``translated`` by clamping and rounding."""
    producers = {out: node for node in proto.graph.node for out in node.output}
    name = OUTPUT
    while name in producers and producers[name].op_type in ("Cast", "Clip", "Floor"):
        name = producers[name].input[0]
    return name


def _made(node: GraphNode, dtype: torch.dtype) -> nn.Module:
    if node.domain not in ("", "ai.onnx"):
        raise UnknownNodeError(node, f"{node.kind} of {node.domain}")
    if node.kind in ("Conv", "ConvTranspose"):
        return _Convolution(node, dtype)
    if node.kind not in _MAKERS:
        raise UnknownNodeError(node, node.kind)
    return _MAKERS[node.kind](node)
