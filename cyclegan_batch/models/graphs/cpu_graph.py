"""The same network in operators that the runtimes of a CPU compute faster.

`cpu_graph` takes a graph of the contract and returns one that computes the same function: each
pass below is an identity in real numbers, so only the rounding differs (models/parity.py: class
*exact*). The backends apply it as they open a file. Files are written without it, since what is
fast differs between runtimes: a GPU has its own version of it.

What does not match a pass is left as it is, so any graph is accepted.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
from onnx import TensorProto

from ...frames import SizeRequirements
from .contract import INPUT, OUTPUT
from .rewriting import PREFIX, Graph, Values, attribute_of, new_node, plain_convolution
from .winograd import wide_convolutions_by_winograd

_POINTWISE = {"Tanh", "Sigmoid", "Mul", "Add", "Sub", "Div", "Clip", "Identity", "Cast", "Floor"}
"""Operators behind the last convolution that compute each value by itself."""

_MOST_LANES = 16
"""The float32 values of the widest register (AVX-512)."""

_BELOW_256 = np.nextafter(np.float32(256), np.float32(0))

_CENTRE = 128.0
"""What is subtracted from bytes. The difference is exact in every type, bfloat16 included."""


def cpu_graph(content: bytes, sizes: SizeRequirements, *, in_float32: bool) -> bytes:
    """Return the contract graph ``content`` in faster operators.

    ``sizes``: what it accepts. ``in_float32``: whether float32 is computed as such. Where it is
    rounded to bfloat16, the convolutions stay, for which Winograd's transforms are too coarse then.
    """
    graph = Graph(onnx.ModelProto.FromString(content))
    if any(attribute.HasField("g") for node in graph.nodes for attribute in node.attribute):
        # The branches of an If read tensors of this graph by their names.
        return content
    even = all(side % 2 == 0 for side in sizes.fixed or (sizes.multiple_of,))
    _norms_in_one_operator(graph)
    _bytes_without_scaling(graph)
    _bytes_without_floor(graph)
    if even:
        _head_in_cells(graph)
    if in_float32:
        wide_convolutions_by_winograd(graph)
    return graph.content() if graph.changed else content


# Instance normalisation that is spelled out in small operators


def _norms_in_one_operator(graph: Graph) -> None:
    """Fuse each normalisation of an image's channels into one InstanceNormalization."""
    for node in list(graph.nodes):
        if node.op_type == "Sqrt":
            _fuse_norm(graph, node)


def _fuse_norm(graph: Graph, root: onnx.NodeProto) -> None:
    """Fuse the normalisation around its square root, where it is one; see the patterns below.

    ``(x - mean(x)) / sqrt(mean(d · (d + c)) + eps)`` with ``d = x - mean(x)``, and perhaps a scale
    and an offset for each channel. As the mean of d is 0, the constant c has no effect.
    """
    add = graph.producer(root.input[0], "Add")
    divide = graph.only_consumer(root.output[0])
    if add is None or divide is None or divide.op_type != "Div":
        return
    variance = next((name for name in add.input if graph.constant(name) is None), "")
    constant = graph.constant(graph.other_input(add, variance))
    # In half precision InstanceNormalization has other statistics, in doubles it is not computed.
    if constant is None or constant.size != 1 or constant.dtype != np.float32:
        return
    epsilon = float(constant.reshape(()))
    if not 0.0 < epsilon < 1.0:
        return
    inner = [root, add, divide]
    deviation = divide.input[0]
    subtract = graph.producer(deviation, "Sub")
    if subtract is None:
        return
    x, mean = subtract.input
    inner.append(subtract)
    channels = None
    for squares, of in ((False, mean), (True, variance)):
        found = _mean_of(graph, of)
        if found is None:
            return
        source, nodes, count = found
        channels = channels or count
        inner += nodes
        if squares:
            square = _square_of(graph, source, deviation)
            if square is None:
                return
            inner += square
        elif source != x:
            return
    # Each value inside is read inside only.
    outputs = {out for node in inner for out in node.output} - set(divide.output)
    ids = {id(node) for node in inner}
    if any(id(node) not in ids and outputs.intersection(node.input) for node in graph.nodes):
        return
    out, affine = divide.output[0], []
    factors: dict[str, Values] = {}
    for kind in ("Mul", "Add"):
        after = graph.only_consumer(out)
        if after is None or after.op_type != kind:
            continue
        factor = _per_channel(graph, graph.other_input(after, out))
        # One value alone may be a factor of all channels, however many.
        if factor is None or len(factor) != (channels or max(2, len(factor))):
            continue
        channels = len(factor)
        factors[kind] = factor.astype(np.float32)
        affine.append(after)
        out = after.output[0]
    if channels is None:
        return
    scale = graph.weight(factors.get("Mul", np.ones(channels, np.float32)))
    offset = graph.weight(factors.get("Add", np.zeros(channels, np.float32)))
    fused = new_node("InstanceNormalization", [x, scale, offset], out, epsilon=epsilon)
    graph.replace([*inner, *affine], [fused])


def _mean_of(graph: Graph, name: str) -> tuple[str, list[onnx.NodeProto], int | None] | None:
    """Return of what ``name`` is the mean over the pixels of each channel, and by which nodes.

    Either over the axes of height and width, or over the last axis behind a Reshape to
    ``(1, C, 1, H·W)``, which also tells C.
    """
    mean = graph.producer(name, "ReduceMean")
    if mean is None or attribute_of(mean, "keepdims", 1) != 1:
        return None
    axes: list[int] = attribute_of(mean, "axes", [])
    if len(mean.input) > 1 and (values := graph.constant(mean.input[1])) is not None:
        axes = values.tolist()
    if sorted(axis % 4 for axis in axes) == [2, 3]:
        return mean.input[0], [mean], None
    reshape = graph.producer(mean.input[0], "Reshape")
    if [axis % 4 for axis in axes] != [3] or reshape is None:
        return None
    shape = graph.constant(reshape.input[1])
    if shape is None or shape.shape != (4,) or shape[0] != 1 or shape[1] < 1:
        return None
    if shape[2] != 1 or shape[3] != -1:
        return None
    return reshape.input[0], [mean, reshape], int(shape[1])


def _square_of(graph: Graph, name: str, d: str) -> list[onnx.NodeProto] | None:
    """Return the nodes by which ``name`` is d · d, d · (d + constant) or d ** 2."""
    power = graph.producer(name, "Pow")
    if power is not None:
        is_square = power.input[0] == d and graph.scalar(power.input[1]) == 2.0
        return [power] if is_square else None
    product = graph.producer(name, "Mul")
    if product is None or d not in product.input:
        return None
    other = graph.other_input(product, d)
    if other == d:
        return [product]
    add = graph.producer(other, "Add")
    if add is None or d not in add.input or graph.scalar(graph.other_input(add, d)) is None:
        return None
    return [product, add]


def _per_channel(graph: Graph, name: str) -> Values | None:
    """Return a constant with one value for each channel of ``(N, C, H, W)``, else None."""
    reshape = graph.producer(name, "Reshape")
    value = graph.constant(reshape.input[0] if reshape is not None else name)
    if value is not None and reshape is not None:
        shape = graph.constant(reshape.input[1])
        if shape is None or 0 in shape:
            return None
        value = value.reshape(shape.tolist())
    if value is None or value.ndim not in (3, 4) or value.shape[-3] != value.size:
        return None
    return value.reshape(-1)


# Both ends


def _bytes_without_scaling(graph: Graph) -> None:
    """Let the first convolution scale the bytes instead of two passes over the frame.

    Behind ``a · x + b`` and a reflected border a convolution with weights w gives what one with
    weights ``a · w`` gives for ``x - 128``, plus ``(128 · a + b) · sum(w)``, which an
    InstanceNormalization behind it subtracts again.
    """
    cast = graph.only_consumer(INPUT)
    if cast is None or cast.op_type != "Cast" or attribute_of(cast, "to", 0) != TensorProto.FLOAT:
        return
    (frames,) = (value for value in graph.proto.graph.input if value.name == INPUT)
    if frames.type.tensor_type.elem_type != TensorProto.UINT8:
        return
    gone, gain, shift, x, turned = [cast], 1.0, 0.0, cast.output[0], False
    node = graph.only_consumer(x)
    while node is not None:
        line = _line_of(graph, node, x)
        if line is not None:
            gain, shift = gain * line[0], shift * line[0] + line[1]
        elif not turned and _turns(node):
            turned = True
        else:
            break
        gone.append(node)
        x = node.output[0]
        node = graph.only_consumer(x)
    if not turned or len(gone) == 2:
        return
    pads: list[onnx.NodeProto] = []
    while node is not None and node.op_type in ("Pad", "Identity"):
        if node.op_type == "Pad" and attribute_of(node, "mode", b"constant") == b"constant":
            return
        pads.append(node)
        node = graph.only_consumer(node.output[0])
    weights = None if node is None else plain_convolution(graph, node)
    if node is None or weights is None:
        return
    wide = weights.astype(np.float64)
    bias = (shift + gain * _CENTRE) * wide.sum(axis=(1, 2, 3))
    if len(node.input) > 2:
        given = graph.constant(node.input[2])
        if given is None:
            return
        bias += given
    inputs = [node.input[0], graph.weight((gain * wide).astype(np.float32))]
    after = graph.only_consumer(node.output[0])
    if after is None or after.op_type != "InstanceNormalization":
        inputs.append(graph.weight(bias.astype(np.float32)))
    convolution = onnx.NodeProto()
    convolution.CopyFrom(node)
    del convolution.input[:]
    convolution.input.extend(inputs)
    planes, floats = PREFIX + "planes", PREFIX + "floats"
    first = [
        new_node("Transpose", [INPUT], planes, perm=[0, 3, 1, 2]),
        new_node("Cast", [planes], floats, to=TensorProto.FLOAT),
        new_node("Sub", [floats, graph.weight(np.array(_CENTRE, np.float32))], x),
    ]
    graph.replace([*gone, *pads, node], [*first, *pads, convolution])


def _turns(node: onnx.NodeProto) -> bool:
    """Return whether a node turns (N, H, W, C) into (N, C, H, W)."""
    return node.op_type == "Transpose" and attribute_of(node, "perm", [0]) == [0, 3, 1, 2]


def _line_of(graph: Graph, node: onnx.NodeProto, x: str) -> tuple[float, float] | None:
    """Return (gain, offset) of a node that computes ``gain · x + offset``, None for any other."""
    if node.op_type not in ("Mul", "Div", "Add", "Sub"):
        return None
    number = graph.scalar(graph.other_input(node, x))
    if number is None or (node.input[0] != x and node.op_type in ("Div", "Sub")):
        return None
    match node.op_type:
        case "Mul":
            return number, 0.0
        case "Div":
            return (1.0 / number, 0.0) if number else None
        case "Add":
            return 1.0, number
        case _:
            return 1.0, -number


def _bytes_without_floor(graph: Graph) -> None:
    """Leave out the Floor before the last Cast, which cuts off what is behind the point itself."""
    cast = graph.producer(OUTPUT, "Cast")
    if cast is None or attribute_of(cast, "to", 0) != TensorProto.UINT8:
        return
    clip = graph.producer(cast.input[0], "Clip")
    floor = None if clip is None else graph.producer(clip.input[0], "Floor")
    if clip is None or floor is None or len(clip.input) != 3:
        return
    if any(graph.uses[node.output[0]] != 1 for node in (clip, floor)):
        return
    if graph.scalar(clip.input[1]) != 0.0 or graph.scalar(clip.input[2]) != 255.0:
        return
    inputs = [floor.input[0], clip.input[1], graph.weight(np.array(_BELOW_256))]
    graph.replace([floor, clip], [new_node("Clip", inputs, clip.output[0])])


def _head_in_cells(graph: Graph) -> None:
    """Compute the last convolution between cells of 2×2 pixels, stored as channels of one pixel.

    Three outputs fill 3 of the 16 lanes of a register, twelve fill 12. The kernel of k×k pixels
    becomes one of (k + 1) / 2 squared cells. What follows is computed in cells as well, and the
    bytes are put in order at the end.
    """
    behind: list[onnx.NodeProto] = []
    node = graph.producers.get(OUTPUT)
    turned = False
    while node is not None and node.op_type in (*_POINTWISE, "Transpose"):
        if graph.uses[node.output[0]] != 1:
            return
        if node.op_type == "Transpose":
            if turned or attribute_of(node, "perm", [0]) != [0, 2, 3, 1]:
                return
            turned = True
        elif any(graph.scalar(name) is None for name in node.input if not _computed(graph, name)):
            return
        behind.append(node)
        computed = [name for name in node.input if _computed(graph, name)]
        if len(computed) != 1:
            # A sum with the frames, or a product with a mask, whose pixels are in no cells.
            return
        node = graph.producers.get(computed[0])
    weights = None if node is None else plain_convolution(graph, node)
    if node is None or weights is None or not turned:
        return
    outputs, _, height, width = weights.shape
    is_square = height == width and height % 2 == 1 and height > 1
    if 4 * outputs > _MOST_LANES or not is_square or graph.uses[node.output[0]] != 1:
        return
    x, y = PREFIX + "cells", PREFIX + "head"
    inputs = [x, graph.weight(in_cells(weights))]
    if len(node.input) > 2:
        bias = graph.constant(node.input[2])
        if bias is None:
            return
        inputs.append(graph.weight(np.tile(bias, 4)))
    side = (height + 1) // 2
    new = [
        new_node("SpaceToDepth", [node.input[0]], x, blocksize=2),
        new_node("Conv", inputs, y, kernel_shape=[side, side]),
    ]
    *pointwise, last = [each for each in reversed(behind) if each.op_type != "Transpose"]
    # onnxruntime has DepthToSpace for bytes since opset 13, and for half precision it has none.
    bytes_last = graph.opset >= 13 and attribute_of(last, "to", 0) == TensorProto.UINT8
    for each in [*pointwise, *([last] if bytes_last else [])]:
        copied = onnx.NodeProto()
        copied.CopyFrom(each)
        source = next(name for name in each.input if _computed(graph, name))
        copied.input[list(each.input).index(source)] = y
        y = copied.output[0] = f"{PREFIX}in_cells/{len(new)}"
        new.append(copied)
    planes = PREFIX + "picture"
    new.append(new_node("DepthToSpace", [y], planes, blocksize=2))
    end = OUTPUT if bytes_last else PREFIX + "image"
    new.append(new_node("Transpose", [planes], end, perm=[0, 2, 3, 1]))
    if not bytes_last:
        copied = onnx.NodeProto()
        copied.CopyFrom(last)
        copied.input[0] = end
        new.append(copied)
    graph.replace([node, *behind], new)


def _computed(graph: Graph, name: str) -> bool:
    """Return whether ``name`` depends on the frames; an empty one is an input left out."""
    return bool(name) and graph.constant(name) is None


def in_cells(weights: Values) -> Values:
    """Return weights between pixels as weights between cells of 2×2 pixels.

    ``(O, I, k, k)`` with odd k → ``(4·O, 4·I, (k + 1) / 2, (k + 1) / 2)``. The channels of a cell
    are those of its pixels row by row, as SpaceToDepth orders them.
    """
    outputs, inputs, kernel, _ = weights.shape
    side = (kernel + 1) // 2
    cells = np.zeros((2, 2, outputs, 2, 2, inputs, side, side), weights.dtype)
    for a, b, i, j in itertools.product(range(2), range(2), range(kernel), range(kernel)):
        row, column = a + i, b + j
        cells[a, b, :, row % 2, column % 2, :, row // 2, column // 2] = weights[:, :, i, j]
    return cells.reshape(4 * outputs, 4 * inputs, side, side)
