"""How much a network computes: the operations of its convolutions and matrix products."""

from __future__ import annotations

import math

import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, ValueInfoProto

from ..frames import Size
from ..models.model import Model

_WEIGHT = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
"""Which input of a convolution holds the weights."""

_FACTOR = {"MatMul": 1, "Gemm": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
"""Which input of a matrix product is the second factor."""

Shape = tuple[int, ...]


def gflop(model: Model, size: Size) -> float | None:
    """Return the billions of operations for a frame of ``size`` (height, width) in the network.

    A multiplication and an addition are two operations. Only convolutions and matrix products are
    counted, as by the formulas of their definition: what normalises, adds or converts is left out,
    and a runtime that computes a convolution by Winograd's method needs fewer.

    None where there is no graph (a checkpoint, an engine), and where its shapes cannot be inferred.
    """
    if not model.graph:
        return None
    proto = onnx.ModelProto.FromString(model.graph)
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    for side, length in zip(
        proto.graph.input[0].type.tensor_type.shape.dim, (1, *size, 3), strict=True
    ):
        side.dim_value = length
    del proto.graph.value_info[:]
    try:
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return None
    shapes = _shapes(proto)
    try:
        return sum(_operations(node, shapes) for node in proto.graph.node) / 1e9
    except KeyError:
        return None


def _operations(node: NodeProto, shapes: dict[str, Shape]) -> int:
    """Return the operations of one node. Raises KeyError where a shape is not known."""
    kind = node.op_type
    if kind in _WEIGHT:
        weights = math.prod(shapes[node.input[_WEIGHT[kind]]])
        # Each weight meets each pixel of the output; of the input where it is transposed.
        pixels = shapes[node.input[0] if kind == "ConvTranspose" else node.output[0]]
        return 2 * weights * pixels[0] * math.prod(pixels[2:])
    if kind in _FACTOR:
        factor = shapes[node.input[_FACTOR[kind]]]
        is_transposed = any(each.name == "transB" and each.i for each in node.attribute)
        inner = factor[-1] if is_transposed or len(factor) == 1 else factor[-2]
        return 2 * math.prod(shapes[node.output[0]]) * inner
    return 0


def _shapes(proto: ModelProto) -> dict[str, Shape]:
    graph = proto.graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = _shape(value)
        if shape is not None:
            shapes[value.name] = shape
    return shapes


def _shape(value: ValueInfoProto) -> Shape | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    sides = value.type.tensor_type.shape.dim
    return (
        tuple(s.dim_value for s in sides) if all(s.HasField("dim_value") for s in sides) else None
    )
