"""Bring a foreign ONNX inside the contract, by what its own graph shows.

A generator made elsewhere does not state where its channels are, which values black and white have,
or which sizes it accepts. This module derives the channels from the shapes, the values from the
last activation and the first arithmetic, the picture from the outputs (outputs.py), and the sizes
by inferring shapes at one size after the other (shapes.py). `adopt` returns a contract graph, what
was read, what was assumed, and a sentence on how the file was understood; where the graph leaves
something open it raises ModelError with the ``--model-io`` to pass. Where shape inference cannot
follow a graph, its sizes are estimated, and the backend reports a size that does not run. The
module reads no file and no card.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from ...errors import ModelError
from ...frames import SizeRequirements
from ...wording import Note, first_line, printable
from .contract import (
    BYTES,
    CONVERTED_OPSET,
    RANGES,
    Constants,
    GeneratorIO,
    Layout,
    Range,
    Values,
    channel_axis,
    contract_from_generator,
    dimensions_of,
    fixed_size,
    image_axes,
    input_and_output,
    inputs_of,
    is_inside,
    refuse_generator,
    value_in_words,
    values_in_words,
)
from .model_io import ModelIO
from .outputs import ADOPTABLE, keep_output, picture_of
from .shapes import Shapes, check_output_size


@dataclass(frozen=True)
class Adoption:
    """A foreign generator inside the contract, and how it was understood."""

    contract: onnx.ModelProto
    io: GeneratorIO
    spec: ModelIO
    """All of it as the user would state it: with this in place of ``model_io`` `adopt` returns the
    same contract graph."""
    sizes: SizeRequirements
    batch: int | None
    """The only batch size that it accepts, or None."""
    read: tuple[str, ...]
    """What the graph shows, each with what shows it."""
    assumed: tuple[str, ...]
    """What nothing shows and nobody stated."""
    note: Note
    """A note for the user on how it was understood."""


def adopt(path: Path, proto: onnx.ModelProto, model_io: ModelIO) -> Adoption:
    """Return the foreign generator ``proto``, read from ``path``, inside the contract, in uint8.

    ``model_io`` overrides what the graph shows. In ``proto`` itself the other outputs are removed
    with what only they need, and channels that input or output do not declare are filled in; the
    nodes and weights of the picture stay unchanged. Raises ModelError.
    """
    _free_axes(*inputs_of(proto), *proto.graph.output)
    has_several_inputs = len(inputs_of(proto)) > 1
    output, read = _take_picture(path, proto, model_io)
    assumed: list[str] = []
    graph_input, graph_output = input_and_output(path, proto)
    _check_types(path, graph_input, graph_output)
    flow = _Flow(proto)
    layout = _layout(path, graph_input, model_io.layout, flow.layout_of_input(graph_input.name))
    output_layout = _layout(path, graph_output, None, layout)
    if model_io.layout is None:
        read.append(f"its input is {layout.upper()}: {value_in_words(graph_input)}")
    if output_layout != layout:
        read.append(f"its output is {output_layout.upper()}: {value_in_words(graph_output)}")
    if model_io.order is None:
        assumed.append("its channels are R, G and B in this order, which no graph shows")
    taken, returned = _shown_values(flow, graph_input, graph_output)
    takes, returns = _values(model_io, taken, returned)
    for word, stated, shown, used, other in (
        ("takes", model_io.takes, taken, takes, "returns"),
        ("returns", model_io.returns, returned, returns, "takes"),
    ):
        if stated is None and shown is not None:
            read.append(f"it {word} {shown[0].range_name}, as {shown[1]}")
        elif stated is None and used is not None:
            assumed.append(f"it {word} {used.range_name}, as it {other}")
    io = GeneratorIO(
        layout,
        model_io.order or "rgb",
        takes or Values(),  # Any values will do for the check of the sizes.
        returns or Values(),
        output_layout,
        graph_input.name if has_several_inputs else None,
        output,
    )
    _check_values(path, graph_input, io.takes, layout, "input")
    _check_values(path, graph_output, io.returns, output_layout, "output")
    contract = _contract(path, proto, io)
    batch, height, width = image_axes(graph_input, layout)
    fixed = fixed_size(path, height, width)
    shapes = Shapes(contract)
    # Sizes before the values: an upscaler is refused without asking for its values.
    if fixed is None:
        sizes, inferred = _size_requirements(path, contract, shapes)
        (read if inferred else assumed).append(_sizes_in_words(sizes, inferred=inferred))
    else:
        sizes = SizeRequirements(fixed=fixed)
        check_output_size(path, shapes, fixed)
    if takes is None or returns is None:
        raise _no_values(path, flow, graph_output, model_io, takes, returns)
    # Values that are returned as they are taken need no word where they are found again.
    found_again = _values(ModelIO(takes=takes), taken, returned)[1]
    no_word = takes == returns == found_again
    spec = ModelIO(layout, io.order, takes, None if no_word else returns, output)
    text = f"{printable(Path(path.name))} is a foreign model, adopted as {printable(str(spec))}"
    is_uint8 = _is_uint8(graph_input) and _is_uint8(graph_output)
    if is_inside(proto, io):
        text += ", and run as it is"
    elif model_io.takes is None and not is_uint8:
        if model_io.returns is None and (taken is None or returned is None):
            one, other = ("input", "output") if returned is None else ("output", "input")
            text += f"; its graph shows the range of its {one}, and its {other} is taken to have "
            text += "the same"
        else:
            text += "; the range is read from its graph"
        text += ", and --model-io overrides it"
    elif takes.normalised and taken is not None:
        text += (
            f"; its own first arithmetic is that of a generator that takes "
            f"{taken[0].range_name}, so the mean and the std may be applied twice"
        )
    return Adoption(
        contract, io, spec, sizes, batch, tuple(read), tuple(assumed), Note(None, text)
    )  # fmt: skip


def _take_picture(
    path: Path, proto: onnx.ModelProto, model_io: ModelIO
) -> tuple[str | None, list[str]]:
    """Remove, in place, the outputs that are not the picture, and what only they need.

    Returns the name of the picture, None where the file has one output, and what showed it.
    Raises ModelError.
    """
    several = len(proto.graph.output) > 1
    name: str | None = None
    if several or model_io.output is not None:
        flow = _Flow(proto)
        layouts = {
            value.name: _likely_layout(value, model_io.layout or flow.layout_of_input(value.name))
            for value in inputs_of(proto)
            if len(dimensions_of(value) or []) == 4
        }
        name = picture_of(path, proto, model_io.output, layouts)
    elif proto.graph.output:
        name = proto.graph.output[0].name
    found = []
    if several and model_io.output is None:
        found.append(
            f"its picture is {name!r}, the only one of its {len(proto.graph.output)} outputs that "
            "is an image of the input's size"
        )
    if name is not None and (several or len(inputs_of(proto)) > 1):
        keep_output(proto, name)
    inputs = inputs_of(proto)
    if len(inputs) > 1:
        raise ModelError(
            f"{printable(path)}: takes {len(inputs)} inputs "
            f"({printable(values_in_words(inputs))}) where a generator takes one image; export it "
            "with the others set to constants"
        )
    return name if several else None, found


def _free_axes(*values: onnx.ValueInfoProto) -> None:
    """Undeclare, in place, the length of axes that an exporter has declared free by 0 or -1."""
    for value in values:
        for axis in value.type.tensor_type.shape.dim:
            if axis.HasField("dim_value") and axis.dim_value < 1:
                axis.ClearField("value")


def _likely_layout(value: onnx.ValueInfoProto, otherwise: Layout | None) -> Layout:
    """Return where the channels of an input of four axes are, without a refusal."""
    _, first, _, last = dimensions_of(value) or []
    if (first in (1, 3)) != (last in (1, 3)):
        return "nchw" if first in (1, 3) else "nhwc"
    return otherwise or "nchw"


def _check_types(
    path: Path, graph_input: onnx.ValueInfoProto, graph_output: onnx.ValueInfoProto
) -> None:
    """Refuse another rank than four, or another number type. Raises ModelError."""
    for value, word in ((graph_input, "input"), (graph_output, "output")):
        words = f"its {word} is {value_in_words(value)}"
        dimensions = dimensions_of(value)
        if dimensions is None or len(dimensions) != 4:
            refuse_generator(path, f"{words} where a batch of images has four axes")
        if value.type.tensor_type.elem_type not in ADOPTABLE:
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


_Shown = tuple[Values, str]
"""Values that a graph shows, and what shows them."""


def _is_uint8(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.UINT8)


def _shown_values(
    flow: _Flow, graph_input: onnx.ValueInfoProto, graph_output: onnx.ValueInfoProto
) -> tuple[_Shown | None, _Shown | None]:
    """Return the values that the graph shows at its input and at its output."""

    def shown(value: onnx.ValueInfoProto, values: Range | None, what: str) -> _Shown | None:
        if _is_uint8(value):
            return BYTES, "uint8 does"
        return None if values is None else (Values(values), what)

    return (
        shown(graph_input, flow.range_of_input(graph_input.name), "its first arithmetic shows"),
        shown(
            graph_output,
            flow.range_of_output(graph_output.name),
            "its last activation and the arithmetic behind it show",
        ),
    )


def _values(
    model_io: ModelIO, taken: _Shown | None, returned: _Shown | None
) -> tuple[Values | None, Values | None]:
    """Return the values of input and output: as stated, else as shown, else those of the other end.

    Values with a mean and a deviation at one end say nothing about the other end.
    """
    takes = model_io.takes or (taken[0] if taken else None)
    returns = model_io.returns or (returned[0] if returned else None)
    if takes is None and returns is not None and not returns.normalised:
        takes = returns
    if returns is None and takes is not None and not takes.normalised:
        returns = takes
    return takes, returns


def _check_values(
    path: Path, value: onnx.ValueInfoProto, values: Values, layout: Layout, word: str
) -> None:
    """Refuse values that an input or output cannot have. Raises ModelError."""
    if _is_uint8(value) and values != BYTES:
        raise ModelError(
            f"{printable(path)}: its {word} is uint8, whose values are 0..255, and --model-io "
            "states others; leave them out"
        )
    count = max(len(values.mean), len(values.std))
    channels = (dimensions_of(value) or [])[channel_axis(layout)]
    if channels == 1 < count:
        raise ModelError(
            f"{printable(path)}: its {word} has one channel, and --model-io states a mean or a std "
            f"of {count}; pass one number of each"
        )


def _no_values(
    path: Path,
    flow: _Flow,
    graph_output: onnx.ValueInfoProto,
    given: ModelIO,
    takes: Values | None,
    returns: Values | None,
) -> ModelError:
    """Return the error for a graph that does not show its values, nor does ``given``."""
    last = flow.producers.get(graph_output.name)
    ending = (
        f"it ends in {last.op_type if last else 'its input'} where Tanh, Sigmoid or Clip would "
        "show it"
    )
    if takes is not None:
        found = f"nothing in it shows which values it returns ({ending})"
        remedy = f"add them to --model-io behind an arrow: '{ModelIO(takes=takes)} -> 0..1'"
    elif returns is not None:
        found = "nothing in it shows which values it takes"
        remedy = f"add them to --model-io before the arrow: '0..1 {ModelIO(returns=returns)}'"
    else:
        found = f"nothing in it shows which values black and white have ({ending})"
        remedy = "pass --model-io 0..255, --model-io 0..1 or --model-io=-1..1"
        if given != ModelIO():
            remedy = (
                f"add 0..255, 0..1 or -1..1 to what was given, as in --model-io '{given} -1..1'"
            )
    return ModelError(f"{printable(path)}: {found}; {remedy}")


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


def _size_requirements(
    path: Path, contract: onnx.ModelProto, shapes: Shapes
) -> tuple[SizeRequirements, bool]:
    """Return the multiple and the minimum of a file of free size, and whether shapes showed them.

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
        return SizeRequirements(multiple_of=multiple, minimum=multiple), False
    too_small, enough = 0, odd
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        side = middle * multiple
        if shapes.output_size((side, side)) == (side, side):
            enough = middle
        else:
            too_small = middle
    return SizeRequirements(multiple_of=multiple, minimum=enough * multiple), True


def _sizes_in_words(sizes: SizeRequirements, *, inferred: bool) -> str:
    words = f"its sizes are multiples of {sizes.multiple_of} from {sizes.minimum} on"
    if inferred:
        return f"{words}, as the shapes inside it show"
    return f"{words}, by its strides, as its shapes cannot be inferred"


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
