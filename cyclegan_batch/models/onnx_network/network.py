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
from ..graphs.contract import INPUT, OUTPUT
from ..networks import InstanceNorm, without_halves
from .nodes import FLOATS, GraphNode, Step, UnknownNodeError, nodes_of
from .sizes import Resize, shape_of, slice_of, squeezed

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


class _Convolution(nn.Module):
    """Conv and ConvTranspose, in the type of the weights."""

    def __init__(self, node: GraphNode, dtype: torch.dtype) -> None:
        super().__init__()
        self._same = node.word("auto_pad", "NOTSET")
        same = () if node.kind == "ConvTranspose" else ("SAME_UPPER", "SAME_LOWER")
        node.only("auto_pad", "NOTSET", "VALID", *same)
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
        border = self._border_of_same(x) if self._same.startswith("SAME") else self._border
        if border is not None:
            x = F.pad(x, border)
        return F.conv2d(
            x, self.weight, self.bias, self._stride, self._padding, self._dilation, self._groups
        )

    def _border_of_same(self, x: Tensor) -> tuple[int, ...]:
        """Return the border by which the output has 1 / stride of the size, rounded up."""
        border: list[int] = []
        for axis in (3, 2):  # F.pad has the last axis first.
            stride, kernel = self._stride[axis - 2], self.weight.shape[axis]
            reach = (kernel - 1) * self._dilation[axis - 2] + 1
            steps = -(-x.shape[axis] // stride) - 1
            whole = max(steps * stride + reach - x.shape[axis], 0)
            less, more = whole // 2, whole - whole // 2
            border += (less, more) if self._same == "SAME_UPPER" else (more, less)
        return tuple(border)


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
        # Integers are sizes, which stay on the host (sizes.py).
        self._whole = None if constant.is_floating_point() else constant
        self.register_buffer("constant", without_halves(constant))

    def forward(self, x: Tensor) -> Tensor:
        constant = self.get_buffer("constant") if self._whole is None else self._whole
        x = without_halves(x)
        return self._compute(constant, x) if self._first else self._compute(x, constant)


class _Linear(nn.Module):
    """Gemm, in float32."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return without_halves(x) @ self.get_buffer("weight").T + self.get_buffer("bias")


class _Gather(nn.Module):
    """Gather by constant places along one axis: another order of channels, or one length."""

    def __init__(self, node: GraphNode) -> None:
        super().__init__()
        places = node.required(1).long()
        if places.ndim > 1:
            raise UnknownNodeError(node, f"Gather by {places.ndim} dimensions")
        self._axis, self._one = int(node.number("axis", 0)), places.ndim == 0
        self._places = [int(place) for place in places.view(-1)]
        self.register_buffer("places", places.view(-1))

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():  # sizes, on the host
            x = torch.stack([x.select(self._axis, place) for place in self._places], self._axis)
        else:
            x = torch.index_select(x, self._axis, self.get_buffer("places"))
        return x.squeeze(self._axis) if self._one else x


def _cast(node: GraphNode) -> nn.Module:
    to = int(node.number("to", 0))
    if to in FLOATS:
        return Step(lambda x: x if x.is_floating_point() else x.float())
    if to in (TensorProto.INT64, TensorProto.INT32):
        return Step(lambda x: x.trunc().long() if x.is_floating_point() else x)
    if to == TensorProto.UINT8:
        # Bytes stay floats until the end: every later node computes in floats.
        return Step(lambda x: x.trunc().clamp(0.0, 255.0), wide=True)
    kind = TensorProto.DataType.Name(to) if to in TensorProto.DataType.values() else str(to)
    raise UnknownNodeError(node, f"Cast to {kind}")


def _pad(node: GraphNode) -> nn.Module:
    mode = node.word("mode", "constant")
    if mode not in _PAD_MODES:
        raise UnknownNodeError(node, f"Pad with mode = {mode}")
    pads = node.integers("pads") or [int(value) for value in node.required(1)]
    filling = node.constant(2)
    value = float(filling) if filling is not None else node.number("value", 0.0)
    half = len(pads) // 2
    given = node.constant(3)
    axes = range(half) if given is None else [int(axis) % 4 for axis in given]
    # Since opset 18 the pads may be of some axes only.
    border = {axis: (pads[i], pads[i + half]) for i, axis in enumerate(axes) if any(pads[i::half])}
    if not border.keys() <= {1, 2, 3}:
        raise UnknownNodeError(node, "Pad of the batch")
    # F.pad reflects in the last two axes only, and has the last one first.
    order = (0, 1, 2, 3) if 1 not in border else (0, 3, 1, 2) if 3 not in border else None
    if order is None:
        raise UnknownNodeError(node, "Pad of the channels and of both sides")
    back = tuple(order.index(axis) for axis in range(4))
    sides = [side for axis in order[:1:-1] for side in border.get(axis, (0, 0))]

    def padded(x: Tensor) -> Tensor:
        if mode == "constant":
            return F.pad(x, sides, value=value)
        return F.pad(x, sides, mode=_PAD_MODES[mode])

    if order == back:
        return Step(padded)
    return Step(lambda x: padded(x.permute(order)).permute(back))


def _clip(node: GraphNode) -> nn.Module:
    bounds = [node.constant(1), node.constant(2)]
    low, high = (
        float(bound) if bound is not None else node.number(word, default)
        for bound, word, default in zip(bounds, ("min", "max"), (-math.inf, math.inf), strict=True)
    )
    return Step(lambda x: x.clamp(low, high))


def _average_pool(node: GraphNode) -> nn.Module:
    """Return the mean of windows, which pix2pixHD's local enhancer halves its pictures by."""
    node.only("auto_pad", "NOTSET")
    window, strides = node.integers("kernel_shape"), node.integers("strides", (1, 1))
    top, left, bottom, right = node.integers("pads", (0, 0, 0, 0))
    special = node.number("ceil_mode", 0) or node.integers("dilations", (1, 1)) != [1, 1]
    if len(window) != 2 or (top, left) != (bottom, right) or special:
        raise UnknownNodeError(node, "AveragePool with another border at each side, or dilated")
    pool = nn.AvgPool2d(
        (window[0], window[1]),
        (strides[0], strides[1]),
        (top, left),
        count_include_pad=bool(node.number("count_include_pad", 0)),
    )
    return Step(pool.forward)


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
}


def _reduction(node: GraphNode) -> nn.Module:
    axes = node.integers("axes")
    if len(node.inputs) > 1 and node.inputs[1]:
        axes = [int(axis) for axis in node.required(1)]
    if not axes and node.number("noop_with_empty_axes", 0):
        return Step(lambda x: x)
    keeps, compute = bool(node.number("keepdims", 1)), _REDUCTIONS[node.kind]
    return Step(lambda x: compute(x, axes or tuple(range(x.ndim)), keepdim=keeps), wide=True)


def _product_of_lengths(node: GraphNode) -> nn.Module:
    """Return ReduceProd of a list, which is how many pixels there are."""
    keeps = bool(node.number("keepdims", 1))

    def product(x: Tensor) -> Tensor:
        if x.ndim != 1:
            raise ValueError(f"ReduceProd of {x.ndim} dimensions where one is expected")
        return x.prod(0, keepdim=keeps)

    return Step(product)


def _pool(node: GraphNode) -> nn.Module:
    compute = torch.mean if node.kind == "GlobalAveragePool" else torch.amax
    return Step(lambda x: compute(x, (2, 3), keepdim=True), wide=True)


def _linear(node: GraphNode) -> nn.Module:
    """Return Gemm of computed rows and constant weights, in float32."""
    if node.constant(0) is not None or node.number("transA", 0):
        raise UnknownNodeError(node, "Gemm of other than rows")
    weight = without_halves(node.required(1)) * node.number("alpha", 1.0)
    bias = node.required(2) if len(node.inputs) > 2 and node.inputs[2] else torch.zeros(1)
    bias = without_halves(bias) * node.number("beta", 1.0)
    return _Linear(weight if node.number("transB", 0) else weight.T, bias)


def _flatten(node: GraphNode) -> nn.Module:
    axis = int(node.number("axis", 1))
    return Step(lambda x: x.reshape(math.prod(x.shape[:axis]), -1))


def _reshape(node: GraphNode) -> nn.Module:
    zeros_are_lengths = bool(node.number("allowzero", 0))
    constant = node.constant(1)
    if constant is not None and zeros_are_lengths and 0 in constant:
        raise UnknownNodeError(node, "Reshape with allowzero")

    def reshape(x: Tensor, computed: Tensor | None = None) -> Tensor:
        shape = constant if computed is None else computed
        assert shape is not None
        sides = [int(side) for side in shape]
        return x.reshape([x.shape[i] if side == 0 else side for i, side in enumerate(sides)])

    return Step(reshape)


def _expand(node: GraphNode) -> nn.Module:
    constant = node.constant(1)

    def expand(x: Tensor, computed: Tensor | None = None) -> Tensor:
        shape = constant if computed is None else computed
        assert shape is not None
        # Either of two lengths may be the 1 that is repeated.
        sides = [int(side) for side in shape]
        sides = [1] * (x.ndim - len(sides)) + sides
        own = [1] * (len(sides) - x.ndim) + list(x.shape)
        return x.expand([a if b == 1 else b for a, b in zip(own, sides, strict=True)])

    return Step(expand)


def _slope(node: GraphNode) -> nn.Module:
    slope = node.number("alpha", 0.01)
    return Step(lambda x: F.leaky_relu(x, slope))


class _Concat(nn.Module):
    """Concat of what is computed and of constants."""

    def __init__(self, node: GraphNode) -> None:
        super().__init__()
        self._axis = int(node.number("axis", 1))
        constants = [node.constant(place) for place in range(len(node.inputs))]
        # Integers are sizes, which stay on the host (sizes.py).
        self._sizes = {i: c for i, c in enumerate(constants) if c is not None
                       and not c.is_floating_point()}  # fmt: skip
        self._names = {i: f"constant_{i}" for i, c in enumerate(constants) if c is not None}
        for place, name in self._names.items():
            self.register_buffer(name, constants[place])

    def forward(self, *computed: Tensor) -> Tensor:
        values = list(computed)
        for place, name in self._names.items():
            constant = self._sizes.get(place)
            values.insert(place, self.get_buffer(name) if constant is None else constant)
        return torch.cat(values, self._axis)


def _transposition(node: GraphNode) -> nn.Module:
    order = node.integers("perm")
    return Step(lambda x: x.permute(order or tuple(reversed(range(x.ndim)))))


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    """Divide; integers towards zero."""
    whole = not x.is_floating_point() and not y.is_floating_point()
    return torch.div(x, y, rounding_mode="trunc" if whole else None)


def _arithmetic(compute: Callable[[Tensor, Tensor], Tensor], *, keeps: bool) -> _Maker:
    def made(node: GraphNode) -> nn.Module:
        if node.constant(0) is None and node.constant(1) is None:
            return Step(compute, wide=not keeps)
        return _WithConstant(node, compute)

    return made


def _simple(compute: Callable[[Tensor], Tensor], *, wide: bool = False) -> _Maker:
    return lambda node: Step(compute, wide=wide)


_Maker: TypeAlias = Callable[[GraphNode], nn.Module]

_MAKERS: dict[str, _Maker] = {
    "Abs": _simple(torch.abs),
    "Add": _arithmetic(torch.add, keeps=True),
    "AveragePool": _average_pool,
    "BatchNormalization": _BatchNorm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _Concat,
    "Div": _arithmetic(_quotient, keeps=False),
    "Dropout": _simple(lambda x: x),
    "Exp": _simple(torch.exp, wide=True),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _simple(torch.floor, wide=True),
    "Gather": _Gather,
    "Gemm": _linear,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "Identity": _simple(lambda x: x),
    "InstanceNormalization": _Norm,
    "LeakyRelu": _slope,
    "MatMul": _arithmetic(torch.matmul, keeps=False),
    "Mul": _arithmetic(torch.mul, keeps=False),
    "Neg": _simple(torch.neg),
    "Pad": _pad,
    "Pow": _arithmetic(torch.pow, keeps=False),
    "ReduceProd": _product_of_lengths,
    "Relu": _simple(torch.relu),
    "Reciprocal": _simple(torch.reciprocal, wide=True),
    "Reshape": _reshape,
    "Resize": Resize,
    "Shape": shape_of,
    "Sigmoid": _simple(torch.sigmoid, wide=True),
    "Slice": slice_of,
    "Sqrt": _simple(torch.sqrt, wide=True),
    "Squeeze": squeezed,
    "Sub": _arithmetic(torch.sub, keeps=False),
    "Tanh": _simple(torch.tanh, wide=True),
    "Transpose": _transposition,
    "Unsqueeze": squeezed,
    "Upsample": Resize,
}
"""How each kind of node but a convolution is computed."""

_MAKERS |= dict.fromkeys(_REDUCTIONS, _reduction)


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
