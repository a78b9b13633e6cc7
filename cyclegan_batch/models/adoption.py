"""Bring a foreign ONNX inside the contract, by what its own graph shows.

A generator made elsewhere does not state where its channels are, which values black and white have,
or which sizes it accepts. This module derives the channels from the shapes, the values from the
last activation and the first arithmetic, and the sizes by inferring shapes at one size after the
other. `adopt` returns a contract
graph and a sentence on how the file was understood; where the graph leaves something open it raises
ModelError with the ``--model-io`` to pass. Where shape inference cannot follow a graph, its sizes
are estimated, and the backend reports a size that does not run. The module reads no file and no
card.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

import numpy as np
import onnx
from onnx import TensorProto

from ..errors import ModelError
from ..frames import SizeRequirements
from ..wording import Note, first_line, printable
from .contract import (
    CONVERTED_OPSET,
    RANGES,
    Constants,
    GeneratorIO,
    Layout,
    Order,
    Range,
    Shapes,
    channel_axis,
    check_output_size,
    contract_from_generator,
    dimensions_of,
    fixed_size,
    image_axes,
    input_and_output,
    is_inside,
    refuse_generator,
    value_in_words,
)

MODEL_IO_GRAMMAR = "[nchw|nhwc] [rgb|bgr] [0..255|0..1|-1..1] [-> 0..255|0..1|-1..1]"
"""The grammar of ``--model-io``: any subset in any order, the part after ``->`` last."""

_ADOPTABLE = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8}
)
"""The number types that a foreign file's input and output may have."""


@dataclass(frozen=True)
class ModelIO:
    """The parsed ``--model-io``; what is None is read from the graph."""

    layout: Layout | None = None
    order: Order | None = None
    input_range: Range | None = None
    output_range: Range | None = None


def parse_model_io(text: str | None) -> ModelIO:
    """Return ``--model-io`` parsed. Raises ModelError with the grammar."""

    def refuse(what: str) -> NoReturn:
        raise ModelError(f"--model-io {text!r}: {what}; it is {MODEL_IO_GRAMMAR}")

    if text is None:
        return ModelIO()
    before, arrow, after = text.lower().partition("->")
    words: dict[str, str] = {}
    for word in before.replace(",", " ").split():
        kind = (
            "layout" if word in ("nchw", "nhwc")
            else "order" if word in ("rgb", "bgr")
            else "input range" if word in RANGES
            else refuse(f"{word!r} is not known")
        )  # fmt: skip
        if kind in words:
            refuse(f"{words[kind]!r} and {word!r} exclude each other")
        words[kind] = word
    if arrow:
        words["output range"] = after.strip()
        if words["output range"] not in RANGES:
            refuse(f"{words['output range']!r} is no range")
    if not words:
        refuse("it is empty")
    return ModelIO(
        layout=cast("Layout | None", words.get("layout")),
        order=cast("Order | None", words.get("order")),
        input_range=RANGES.get(words.get("input range", "")),
        output_range=RANGES.get(words.get("output range", "")),
    )


@dataclass(frozen=True)
class Adoption:
    """A foreign generator inside the contract, and how it was understood."""

    contract: onnx.ModelProto
    io: GeneratorIO
    sizes: SizeRequirements
    batch: int | None
    """The only batch size that it accepts, or None."""
    note: Note
    """A note for the user on how it was understood."""


def adopt(path: Path, proto: onnx.ModelProto, model_io: ModelIO) -> Adoption:
    """Return the foreign generator ``proto``, read from ``path``, inside the contract, in uint8.

    ``model_io`` overrides what the graph shows. Where the input or output of ``proto`` does not
    declare its channels, they are filled in, in place; nodes and weights stay unchanged. Raises
    ModelError.
    """
    graph_input, graph_output = input_and_output(path, proto)
    _check_types(path, graph_input, graph_output)
    flow = _Flow(proto)
    layout = _layout(path, graph_input, model_io.layout, flow.layout_of_input(graph_input.name))
    output_layout = _layout(path, graph_output, None, layout)
    output_range = (
        model_io.output_range
        or _range_of_bytes(graph_output)
        or flow.range_of_output(graph_output.name)
    )
    input_range = (
        model_io.input_range
        or _range_of_bytes(graph_input)
        or flow.range_of_input(graph_input.name)
        or output_range
    )
    output_range = output_range or input_range
    unknown = RANGES["-1..1"]  # Any range will do for the check of the sizes.
    io = GeneratorIO(
        layout,
        model_io.order or "rgb",
        input_range or unknown,
        output_range or unknown,
        output_layout,
    )
    contract = _contract(path, proto, io)
    batch, height, width = image_axes(graph_input, layout)
    fixed = fixed_size(path, height, width)
    shapes = Shapes(contract)
    # Sizes before the range: an upscaler is refused without asking for its range.
    if fixed is None:
        sizes = _size_requirements(path, contract, shapes)
    else:
        sizes = SizeRequirements(fixed=fixed)
        check_output_size(path, shapes, fixed)
    if input_range is None:
        last = flow.producers.get(graph_output.name)
        raise ModelError(
            f"{printable(path)}: nothing in it shows which values black and white have (it ends in "
            f"{last.op_type if last else 'its input'} where Tanh, Sigmoid or Clip would show it); "
            "pass --model-io 0..255, --model-io 0..1 or --model-io=-1..1"
        )
    text = f"{printable(Path(path.name))} is a foreign model, adopted as {io}"
    is_uint8 = _range_of_bytes(graph_input) and _range_of_bytes(graph_output)
    if is_inside(proto, io):
        text += ", and run as it is"
    elif model_io.input_range is None and not is_uint8:
        text += "; the range is read from its graph, and --model-io overrides it"
    return Adoption(contract, io, sizes, batch, Note(None, text))


def _check_types(
    path: Path, graph_input: onnx.ValueInfoProto, graph_output: onnx.ValueInfoProto
) -> None:
    """Refuse another rank than four, or another number type. Raises ModelError."""
    for value, word in ((graph_input, "input"), (graph_output, "output")):
        words = f"its {word} is {value_in_words(value)}"
        dimensions = dimensions_of(value)
        if dimensions is None or len(dimensions) != 4:
            refuse_generator(path, f"{words} where a batch of images has four axes")
        if value.type.tensor_type.elem_type not in _ADOPTABLE:
            refuse_generator(path, f"{words} where float or uint8 is expected")


def _contract(path: Path, proto: onnx.ModelProto, io: GeneratorIO) -> onnx.ModelProto:
    """Return `contract_from_generator`, checked. Raises ModelError."""
    try:
        contract = contract_from_generator(proto, io)
        onnx.checker.check_model(contract)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{printable(path)}: cannot be brought into the contract: {first_line(error)}; export "
            f"it with opset {CONVERTED_OPSET} or later"
        ) from error
    return contract


# Where the channels are


def _layout(
    path: Path, value: onnx.ValueInfoProto, requested: Layout | None, fallback: Layout | None
) -> Layout:
    """Return where the channels are: ``requested``, else the one axis of 3 or 1, else ``fallback``.

    An axis of channels of unknown length is set to 3, in place. Raises ModelError.
    """
    dimensions = dimensions_of(value) or []
    fits: list[Layout] = []
    if dimensions[1] in (1, 3, None):
        fits.append("nchw")
    if dimensions[3] in (1, 3, None):
        fits.append("nhwc")
    certain: list[Layout] = [
        layout for layout in fits if dimensions[channel_axis(layout)] is not None
    ]
    axes = [dimensions[1], dimensions[3]]
    words = value_in_words(value)
    if not fits or (not certain and requested is None and fallback not in fits and any(axes)):
        # (N, 5, H, W): the only axis of known length is taken for the channels, and 5 are too many.
        refuse_generator(path, f"has {words} where 1 or 3 channels are expected")
    if requested is not None:
        if requested not in fits:
            refuse_generator(path, f"has {words}, which is not {requested} with 1 or 3 channels")
        layout = requested
    elif len(certain) == 1:
        layout = certain[0]
    elif fallback is not None and fallback in fits:
        layout = fallback
    else:
        raise ModelError(
            f"{printable(path)}: has {words}, which does not show where the channels are; "
            "pass --model-io nchw or --model-io nhwc"
        )
    axis = value.type.tensor_type.shape.dim[channel_axis(layout)]
    if not axis.dim_value:
        axis.dim_value = 3
    return layout


# Which values black and white have


def _range_of_bytes(value: onnx.ValueInfoProto) -> Range | None:
    """Return the range of uint8, None for a value of another number type."""
    return RANGES["0..255"] if value.type.tensor_type.elem_type == TensorProto.UINT8 else None


class _Flow:
    """Follows a graph's values from its input onwards, or from its output backwards."""

    _RANGE_KEEPING = frozenset({"Identity", "Cast", "Transpose", "Pad", "Floor", "Round", "Squeeze",
                                "Unsqueeze", "Reshape", "Dropout"})  # fmt: skip
    """Operators whose output has the range of their input."""

    _TARGETS = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.5, 0.5), (-127.0, 127.0), (-2.1, 2.5))
    """The ranges that networks normalise to; the last is from ImageNet's mean and deviation."""

    _TOLERANCE = 0.25
    """The largest distance, in widths of a range, at which two ranges count as the same."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.producers = {out: node for node in proto.graph.node for out in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.constants = Constants(proto)

    def layout_of_input(self, name: str) -> Layout | None:
        """Return the layout by the first operator that needs one: convolutions are NCHW."""
        for _ in range(8):
            nodes = self.readers.get(name, [])
            if len(nodes) != 1:
                return None
            node = nodes[0]
            if node.op_type == "Transpose":
                perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
                return "nhwc" if perm == [0, 3, 1, 2] else None
            if node.op_type == "Conv":
                return "nchw"
            if node.op_type not in self._RANGE_KEEPING and self._affine(node, name) is None:
                return None
            name = node.output[0]
        return None

    def range_of_output(self, name: str) -> Range | None:
        """Return the range after the last activation and the arithmetic behind it, or None."""
        maps: list[tuple[float, float]] = []
        for _ in range(16):
            node = self.producers.get(name)
            if node is None:
                return None
            bounds = self._bounds(node)
            if bounds is not None:
                low, high = bounds
                for gain, offset in reversed(maps):
                    low, high = gain * low + offset, gain * high + offset
                return _nearest((low, high), RANGES.values(), self._TOLERANCE)
            for candidate in node.input:
                step = self._affine(node, candidate)
                if step is not None:
                    maps.append(step)
                    name = candidate
                    break
            else:
                if node.op_type not in self._RANGE_KEEPING:
                    return None
                name = node.input[0]
        return None

    def range_of_input(self, name: str) -> Range | None:
        """Return the range that the arithmetic before the first layer maps to one of `_TARGETS`."""
        gain, offset, steps = 1.0, 0.0, 0
        for _ in range(16):
            nodes = self.readers.get(name, [])
            if len(nodes) != 1:
                break
            step = self._affine(nodes[0], name)
            if step is not None:
                gain, offset = step[0] * gain, step[0] * offset + step[1]
                steps += 1
            elif nodes[0].op_type not in self._RANGE_KEEPING:
                break
            name = nodes[0].output[0]
        if not steps:
            return None
        distances = {
            _distance((gain * low + offset, gain * high + offset), target): (low, high)
            for low, high in RANGES.values()
            for target in self._TARGETS
        }
        best = min(distances)
        return distances[best] if best <= self._TOLERANCE else None

    def _affine(self, node: onnx.NodeProto, name: str) -> tuple[float, float] | None:
        """Return the (gain, offset) that ``node`` applies to ``name``, averaged over channels."""
        if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
            return None
        first = node.input[0] == name
        if not first and node.input[1] != name:
            return None
        constant = self.constants.value(node.input[1 if first else 0])
        if constant is None or constant.size not in (1, 3):
            return None
        value = float(np.mean(constant))
        match node.op_type:
            case "Add":
                return 1.0, value
            case "Sub":
                return (1.0, -value) if first else (-1.0, value)
            case "Mul":
                return value, 0.0
            case _:
                return (1.0 / value, 0.0) if first and value else None

    def _bounds(self, node: onnx.NodeProto) -> Range | None:
        if node.op_type == "Tanh":
            return -1.0, 1.0
        if node.op_type in ("Sigmoid", "HardSigmoid"):
            return 0.0, 1.0
        if node.op_type != "Clip":
            return None
        bounds = {a.name: a.f for a in node.attribute}
        for word, value in zip(("min", "max"), node.input[1:], strict=False):
            constant = self.constants.value(value)
            if constant is not None:
                bounds[word] = float(constant)
        return (bounds["min"], bounds["max"]) if {"min", "max"} <= bounds.keys() else None


def _distance(one: Range, other: Range) -> float:
    return (abs(one[0] - other[0]) + abs(one[1] - other[1])) / (other[1] - other[0])


def _nearest(values: Range, ranges: Iterable[Range], tolerance: float) -> Range | None:
    best = min(ranges, key=lambda each: _distance(values, each))
    return best if _distance(values, best) <= tolerance else None


# Which sizes the graph accepts


def _size_requirements(path: Path, contract: onnx.ModelProto, shapes: Shapes) -> SizeRequirements:
    """Return the multiple and the minimum of a file of free size, by inferring its shapes.

    The multiple is the least power of two, up to 256, of which odd multiples keep their size; the
    minimum is the least multiple at which every reflection has enough pixels and nothing is empty.
    Where inference cannot follow the graph, the multiple is estimated from the strides, and the
    backend reports a size that does not run. Raises ModelError.
    """
    for multiple in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        # Odd multiples only: an even one would also pass for a network of twice the multiple.
        odd = 128 // multiple | 1
        size = odd * multiple, (odd + 2) * multiple
        out = shapes.output_size(size)
        if out == size:
            break
    else:
        if isinstance(out, tuple):
            check_output_size(path, shapes, size)
        multiple = _multiple_by_strides(contract)
        return SizeRequirements(multiple_of=multiple, minimum=multiple)
    too_small, enough = 0, odd
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        side = middle * multiple
        if shapes.output_size((side, side)) == (side, side):
            enough = middle
        else:
            too_small = middle
    return SizeRequirements(multiple_of=multiple, minimum=enough * multiple)


def _multiple_by_strides(contract: onnx.ModelProto) -> int:
    """Return the largest reduction in size along any path through the graph."""
    reductions: dict[str, float] = {}
    largest = 1.0
    for node in contract.graph.node:
        strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [1])
        reduction = max((reductions.get(name, 1.0) for name in node.input), default=1.0)
        if node.op_type in ("Conv", "MaxPool", "AveragePool", "LpPool"):
            reduction *= max(strides)
        elif node.op_type == "ConvTranspose":
            reduction /= max(strides)
        elif node.op_type in ("Resize", "Upsample", "DepthToSpace"):
            reduction = max(1.0, reduction / 2)
        for name in node.output:
            reductions[name] = reduction
        largest = max(largest, reduction)
    return round(largest)
