"""The contract, version 1: its graph, and how that graph is put around a generator.

A graph of the contract has one input ``frames`` and one output ``translated``, both RGB
``(N, H, W, 3)`` of the same size, and both uint8 or both float16 in [0, 1]. Conversions to the
network's range, layout, channel order and number type are nodes of the graph, which
`contract_from_generator` adds, for foreign files and for the exporter alike.

Other programs take planes. So there is a second form of file, a *planar* one, with the same names
and ``(N, 3, H, W)`` of float32 or float16 in [0, 1]. Nothing here runs it as it is: `PLANAR_IO` is
its form as a generator, around which the contract's nodes are put when it is opened.

To do so this module reads from any graph its input and output, its axes and its constants. It reads
no file and no card; a ``path`` argument only names the file in an error message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...errors import ModelError
from ...frames import FileIO, PixelType, Size
from ...wording import printable

CONTRACT_VERSION = 1
INPUT, OUTPUT = "frames", "translated"

_ELEMENTS: dict[FileIO, int] = {
    "uint8": TensorProto.UINT8,
    "float16": TensorProto.FLOAT16,
    "nchw-float32": TensorProto.FLOAT,
    "nchw-float16": TensorProto.FLOAT16,
}

_PIXEL_TYPES: tuple[PixelType, ...] = ("uint8", "float16")

_OLDEST_OPSET = 7
"""The contract's nodes broadcast as numpy does, which ONNX does since opset 7."""

CONVERTED_OPSET = 13
"""The opset that an older file is converted to."""

BT601 = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the luma of gamma-coded RGB: ITU-R BT.601-7, 2.5.1."""

Layout = Literal["nchw", "nhwc"]
Order = Literal["rgb", "bgr"]
Range = tuple[float, float]
"""The values of black and of white."""
Numbers: TypeAlias = npt.NDArray[np.float64]
Lengths: TypeAlias = list[int | None]
"""The lengths of a tensor's axes, None for a free one."""

RANGES: dict[str, Range] = {"0..255": (0.0, 255.0), "0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0)}
"""The ranges that have a name in ``--model-io``."""


@dataclass(frozen=True)
class Values:
    """The numbers that a network has for the channels of a pixel: ``(v - mean) / std``.

    v is the channel on the scale ``range``, where black and white have its two values. ``mean`` and
    ``std``: one number for all channels, or three, in the order in which the network has them.
    """

    range: Range = (-1.0, 1.0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def normalised(self) -> bool:
        """Whether there is a mean or a deviation, so that black and white have other values."""
        return any(self.mean) or any(each != 1.0 for each in self.std)

    @property
    def range_name(self) -> str:
        """The name of its range in ``--model-io``: ``-1..1``."""
        return next(name for name, named in RANGES.items() if named == self.range)

    def line(self, order: Order) -> tuple[Numbers, Numbers]:
        """Return (gain, offset) of the number ``gain * p + offset`` for a channel p in 0..1.

        Each is of shape (1,), for all channels, or (3,), for R, G and B where the network has its
        channels in ``order``.
        """
        low, high = self.range
        mean, std = np.array(self.mean), np.array(self.std)
        gain, offset = (high - low) / std, (low - mean) / std
        return (gain, offset) if order == "rgb" else (gain[::-1], offset[::-1])


BYTES = Values(RANGES["0..255"])
"""The values of uint8."""


@dataclass(frozen=True)
class GeneratorIO:
    """The form of a generator's images, which the contract's nodes convert to and from."""

    layout: Layout = "nchw"
    order: Order = "rgb"
    takes: Values = Values()
    """The values of its input."""
    returns: Values = Values()
    """The values of its output."""
    output_layout: Layout | None = None
    """None: the same as ``layout``."""
    input: str | None = None
    """The name of the input that is the image; None where the file has one only."""
    output: str | None = None
    """The name of the output that is the picture; None where the file has one only."""


PLANAR_IO = GeneratorIO("nchw", "rgb", Values(RANGES["0..1"]), Values(RANGES["0..1"]))
"""The form of a planar file's images."""


# The graph around a generator


def contract_from_generator(
    generator: onnx.ModelProto, io: GeneratorIO, *, pixel_type: FileIO = "uint8"
) -> onnx.ModelProto:
    """Return ``generator``, of one input and one output, with the contract's nodes around it.

    ``pixel_type``: that of the contract graph, or a planar one, for a planar file.

    Input and output of the generator are ``(N, C, H, W)`` or ``(N, H, W, C)``, with C = 1 or 3, in
    a float type or uint8. Its nodes and weights are copied unchanged, under the prefix
    ``generator/``; the nodes around them compute in float32. The first node is the Cast from the
    pixel type and the last node the Cast to it, since TensorRT accepts uint8 nowhere else. Rounding
    is half up (floor of x + 0.5), because ONNX's own Round rounds half to even. A generator of one
    channel receives BT.601 luma, and its output is repeated. Raises ModelError.

    Where the generator's input or output is uint8 of 0..255 already, only layout and channel order
    are converted there, and a generator inside the contract gets no nodes at all (two passes over a
    frame in float32 take 8 ms at 1280×720).
    """
    if opset_of(generator) < _OLDEST_OPSET:
        generator = onnx.version_converter.convert_version(generator, CONVERTED_OPSET)
    whole = is_inside(generator, io) and pixel_type == "uint8"
    contract = onnx.ModelProto()
    contract.CopyFrom(generator)
    graph = contract.graph
    if not whole:
        _add_prefix(graph, "generator/")
    (graph_input,), (graph_output,) = inputs_of(contract), graph.output
    batch, height, width = image_axes(graph_input, io.layout)
    nodes = _Nodes(opset_of(contract))
    before = [] if whole else _nodes_before(nodes, graph_input, io, pixel_type)
    after = [] if whole else _nodes_after(nodes, graph_output, io, pixel_type)

    shape = [batch or "N", height or "H", width or "W"]
    shape.insert(channel_axis(_layout_of(pixel_type)), 3)
    kind = _ELEMENTS[pixel_type]
    # Below IR version 4 every weight must be an input too, which forbids a runtime to fold it.
    contract.ir_version = max(contract.ir_version, 4)
    # Shapes that were inferred for the generator alone may be wrong in the new graph.
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, kind, shape))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, kind, shape))
    within = onnx.GraphProto()
    within.node.extend([*before, *graph.node, *after])
    del graph.node[:]
    graph.node.extend(within.node)
    graph.initializer.extend(nodes.weights)
    return contract


def _add_prefix(graph: onnx.GraphProto, prefix: str) -> None:
    """Put ``prefix`` before every name in a graph, in place, those in the branches of an If too.

    onnx.compose leaves the names that a branch reads from outside of it.
    """
    for weight in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        weight.name = prefix + weight.name
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = prefix + value.name
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = prefix + annotation.tensor_name
    for node in graph.node:
        node.name = node.name and prefix + node.name
        for names in (node.input, node.output):
            # An empty name stands for an input that is left out.
            names[:] = [prefix + name if name else "" for name in names]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _add_prefix(inner, prefix)


def is_inside(generator: onnx.ModelProto, io: GeneratorIO) -> bool:
    """Return whether a generator of the form ``io`` is inside the contract already, in uint8."""
    return (
        (io.layout, io.order, io.takes, io.returns) == ("nhwc", "rgb", BYTES, BYTES)
        and io.output_layout in (None, "nhwc")
        and pixel_type_of(inputs_of(generator)[0], generator.graph.output[0]) == "uint8"
    )


def _nodes_before(
    nodes: _Nodes, graph_input: onnx.ValueInfoProto, io: GeneratorIO, pixel_type: FileIO
) -> list[onnx.NodeProto]:
    """Return the nodes that convert ``frames`` to the generator's input."""
    element = graph_input.type.tensor_type.elem_type
    luma = _channels(graph_input, io.layout) == 1
    x, kind, layout = INPUT, _ELEMENTS[pixel_type], _layout_of(pixel_type)
    if luma or element != TensorProto.UINT8 or kind != element or io.takes != BYTES:
        x, kind = nodes.cast(x, TensorProto.FLOAT, source=kind), TensorProto.FLOAT
        gain, offset = io.takes.line(io.order)
        x = nodes.affine(x, gain / _white(pixel_type), offset, layout)
    if luma:
        # ``io.order`` does not matter here: frames are RGB.
        x, layout = nodes.laid_out(x, layout, "nhwc"), "nhwc"
        x = nodes.add("MatMul", [x, nodes.constant(np.array(BT601)[:, np.newaxis])])
    elif io.order == "bgr":
        x = nodes.reversed_channels(x, layout)
    x = nodes.laid_out(x, layout, io.layout)
    x = nodes.cast(x, element, source=kind)
    if x == INPUT:
        nodes.add("Identity", [x])
    before = nodes.take()
    before[-1].output[0] = graph_input.name
    return before


def _nodes_after(
    nodes: _Nodes, graph_output: onnx.ValueInfoProto, io: GeneratorIO, pixel_type: FileIO
) -> list[onnx.NodeProto]:
    """Return the nodes that convert the generator's output to ``translated``."""
    element, own_layout = graph_output.type.tensor_type.elem_type, io.output_layout or io.layout
    kind, layout = _ELEMENTS[pixel_type], _layout_of(pixel_type)
    ready = element == TensorProto.UINT8 == kind and io.returns == BYTES
    x = graph_output.name
    if not ready:
        x = nodes.cast(x, TensorProto.FLOAT, source=element)
    x = nodes.laid_out(x, own_layout, layout)
    if _channels(graph_output, own_layout) == 1:
        x = nodes.add("Concat", [x, x, x], axis=channel_axis(layout))
    elif io.order == "bgr":
        x = nodes.reversed_channels(x, layout)
    if ready:
        if x == graph_output.name:
            nodes.add("Identity", [x])
    else:
        white = _white(pixel_type)
        gain, offset = io.returns.line(io.order)
        back = white / gain
        if pixel_type == "uint8":
            x = nodes.affine(x, back, 0.5 - offset * back, layout)
            x = nodes.add("Floor", [x])
        else:
            x = nodes.affine(x, back, -offset * back, layout)
        nodes.cast(nodes.clip(x, 0.0, white), kind)
    after = nodes.take()
    after[-1].output[0] = OUTPUT
    return after


def _white(pixel_type: FileIO) -> float:
    """Return the value of white."""
    return 255.0 if pixel_type == "uint8" else 1.0


def _layout_of(io: FileIO) -> Layout:
    return "nchw" if io.startswith("nchw") else "nhwc"


class _Nodes:
    """Collects the contract's nodes and weights; every name begins with ``contract/``."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.weights: list[TensorProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._count = 0

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        self._count += 1
        name = f"contract/{self._count}_{kind}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        name = f"contract/constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def affine(self, x: str, gain: Numbers, offset: Numbers, layout: Layout) -> str:
        """Append ``gain·x + offset``, both of shape (1,) or (3,), for the channels of ``layout``.

        There is no Mul by 1 and no Add of 0, which cost a pass each.
        """
        for kind, numbers, neutral in (("Mul", gain, 1.0), ("Add", offset, 0.0)):
            if (numbers != neutral).any():
                # One number for all channels stays a scalar, which `cpu_graph` looks for.
                same = bool((numbers == numbers[0]).all())
                of_channels = numbers.reshape(-1, 1, 1) if layout == "nchw" else numbers
                x = self.add(kind, [x, self.constant(numbers[0] if same else of_channels)])
        return x

    def laid_out(self, x: str, layout: Layout, wanted: Layout) -> str:
        if layout == wanted:
            return x
        return self.add("Transpose", [x], perm=[0, 3, 1, 2] if wanted == "nchw" else [0, 2, 3, 1])

    def reversed_channels(self, x: str, layout: Layout) -> str:
        order = self.constant([2, 1, 0], np.int64)
        return self.add("Gather", [x, order], axis=channel_axis(layout))

    def clip(self, x: str, low: float, high: float) -> str:
        if self.opset < 11:
            return self.add("Clip", [x], min=low, max=high)
        return self.add("Clip", [x, self.constant(low), self.constant(high)])

    def cast(self, x: str, to: int, source: int = TensorProto.FLOAT) -> str:
        return x if to == source else self.add("Cast", [x], to=to)

    def take(self) -> list[onnx.NodeProto]:
        nodes, self._nodes = self._nodes, []
        return nodes


# Reading a graph


def inputs_of(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs of a graph that are no weights with a default."""
    weights = {weight.name for weight in proto.graph.initializer}
    weights |= {weight.values.name for weight in proto.graph.sparse_initializer}
    return [value for value in proto.graph.input if value.name not in weights]


def input_and_output(
    path: Path, proto: onnx.ModelProto
) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """Return the one image input and the one image output of a graph. Raises ModelError."""
    inputs, outputs = inputs_of(proto), list(proto.graph.output)
    for values, word in ((inputs, "inputs"), (outputs, "outputs")):
        if len(values) != 1:
            refuse_generator(
                path, f"has {len(values)} {word} ({values_in_words(values)}) where a generator has "
                "one"
            )  # fmt: skip
    for value, word in ((inputs[0], "input"), (outputs[0], "output")):
        if not value.type.HasField("tensor_type"):
            refuse_generator(path, f"its {word} {value.name!r} is no tensor")
    return inputs[0], outputs[0]


def pixel_type_of(
    graph_input: onnx.ValueInfoProto, graph_output: onnx.ValueInfoProto
) -> PixelType | None:
    """Return the pixel type of a graph that is inside the contract, None for one outside it."""
    return next((each for each in _PIXEL_TYPES if has_ends(graph_input, graph_output, each)), None)


def has_ends(
    graph_input: onnx.ValueInfoProto, graph_output: onnx.ValueInfoProto, io: FileIO
) -> bool:
    """Return whether a graph takes and returns images of the form ``io``, by the right names."""
    for value, name in ((graph_input, INPUT), (graph_output, OUTPUT)):
        axes = dimensions_of(value) or []
        if value.name != name or value.type.tensor_type.elem_type != _ELEMENTS[io]:
            return False
        if len(axes) != 4 or axes[channel_axis(_layout_of(io))] != 3:
            return False
    return True


def fixed_size(path: Path, height: int | None, width: int | None) -> Size | None:
    """Return the only size a graph accepts, None where both axes are free. Raises ModelError."""
    if height is not None and width is not None:
        return height, width
    if height is not None or width is not None:
        refuse_generator(
            path,
            f"fixes its height to {height or 'any'} and its width to {width or 'any'} where both "
            "or neither are fixed",
        )
    return None


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the opset of ONNX's own operators, 0 where none is stated."""
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def dimensions_of(value: onnx.ValueInfoProto) -> Lengths | None:
    """Return the length of every axis, None for a free one; None where the rank is unknown."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]


def image_axes(
    value: onnx.ValueInfoProto, layout: Layout
) -> tuple[int | None, int | None, int | None]:
    """Return batch, height and width, each None where it is free."""
    batch, *rest = dimensions_of(value) or []
    height, width = rest[1:] if layout == "nchw" else rest[:2]
    # Some exporters write a free axis as 0 or -1.
    return tuple(n if n is not None and n > 0 else None for n in (batch, height, width))  # type: ignore[return-value]


def channel_axis(layout: Layout) -> int:
    """Return the index of the channels among the four axes."""
    return 1 if layout == "nchw" else 3


def _channels(value: onnx.ValueInfoProto, layout: Layout) -> int | None:
    dimensions = dimensions_of(value)
    return dimensions[channel_axis(layout)] if dimensions else None


def value_in_words(value: onnx.ValueInfoProto) -> str:
    """Return name, shape and type of a graph's value: ``'image' (1, 3, H, W) float32``."""
    tensor = value.type.tensor_type
    is_dtype = tensor.elem_type in helper.get_all_tensor_dtypes()
    kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if is_dtype else "?"
    if not tensor.HasField("shape"):
        return f"{value.name!r} of {kind} and unknown shape"
    axes = (str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?"
            for d in tensor.shape.dim)  # fmt: skip
    return f"{value.name!r} ({', '.join(axes)}) {kind}"


def values_in_words(values: Sequence[onnx.ValueInfoProto]) -> str:
    """Return `value_in_words` of the first eight of ``values``, and how many more there are."""
    words = ", ".join(value_in_words(value) for value in values[:8])
    return f"{words} and {len(values) - 8} more" if len(values) > 8 else words


class Constants:
    """The values in a graph that do not depend on its input."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._producers = {out: node for node in proto.graph.node for out in node.output}
        self._weights = {weight.name: weight for weight in proto.graph.initializer}

    def value(self, name: str) -> npt.NDArray[Any] | None:
        """Return the value of a weight or of a Constant node, None for anything else."""
        if name in self._weights:
            return numpy_helper.to_array(self._weights[name])
        node = self._producers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        for attribute in node.attribute:
            if attribute.name == "value":
                return numpy_helper.to_array(attribute.t)
            if attribute.name in ("value_float", "value_int"):
                return np.asarray(helper.get_attribute_value(attribute))
        return None


def refuse_generator(path: Path, finding: str) -> NoReturn:
    """Raise ModelError for a graph that is no generator, with the ``finding`` that shows it."""
    raise ModelError(
        f"{printable(path)}: {finding}; it is no generator that this tool can translate with: one "
        "image in, one of the same size out, 1 or 3 channels"
    )
