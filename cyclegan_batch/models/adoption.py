"""Someone else's float ONNX, brought inside the contract by what its own graph shows.

A generator made elsewhere says nowhere where its channels are, which values black and white have,
or which sizes it takes. That is found out here: from shapes, from the last activation and the
first arithmetic, and by inferring shapes at one size after the other. `adopt` is the door: it
gives a contract graph with a sentence on how the file was understood, or refuses with what to say
(``--model-io``) where the graph leaves it open. Where inference cannot follow a graph, its sizes
are a guess that a backend confirms. Nothing is known here of files or of the card.
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
    ends,
    fixed_size,
    is_inside,
    picture_axes,
    refuse_generator,
    say,
)

MODEL_IO_GRAMMAR = "[nchw|nhwc] [rgb|bgr] [0..255|0..1|-1..1] [-> 0..255|0..1|-1..1]"
"""What ``--model-io`` takes: any subset, in this order or another, the part after ``->`` last."""

_ADOPTABLE = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8}
)
"""The number types that a foreign file's pictures may have."""


@dataclass(frozen=True)
class Said:
    """What ``--model-io`` said; None is to be read from the graph."""

    layout: Layout | None = None
    order: Order | None = None
    takes: Range | None = None
    gives: Range | None = None


def parse_model_io(text: str | None) -> Said:
    """Return what ``--model-io`` says. Raises ModelError with the grammar."""

    def refuse(what: str) -> NoReturn:
        raise ModelError(f"--model-io {text!r}: {what}; it is {MODEL_IO_GRAMMAR}")

    if text is None:
        return Said()
    before, arrow, after = text.lower().partition("->")
    found: dict[str, str] = {}
    for word in before.replace(",", " ").split():
        kind = (
            "layout" if word in ("nchw", "nhwc")
            else "order" if word in ("rgb", "bgr")
            else "takes" if word in RANGES
            else refuse(f"{word!r} is not known")
        )  # fmt: skip
        if kind in found:
            refuse(f"{found[kind]!r} and {word!r} exclude each other")
        found[kind] = word
    if arrow:
        found["gives"] = after.strip()
        if found["gives"] not in RANGES:
            refuse(f"{found['gives']!r} is no range")
    if not found:
        refuse("nothing is said")
    return Said(
        layout=cast("Layout | None", found.get("layout")),
        order=cast("Order | None", found.get("order")),
        takes=RANGES.get(found.get("takes", "")),
        gives=RANGES.get(found.get("gives", "")),
    )


@dataclass(frozen=True)
class Adoption:
    """A foreign generator inside the contract, and how it was understood."""

    contract: onnx.ModelProto
    io: GeneratorIO
    sizes: SizeRequirements
    batch: int | None
    """The only batch size that it takes, or None."""
    note: Note
    """What the user should be told once."""


def adopt(path: Path, proto: onnx.ModelProto, said: Said) -> Adoption:
    """Bring the foreign generator ``proto``, read from ``path``, inside the contract.

    Its pixel type is then uint8. What ``proto`` leaves open of its two ends is filled in, in place;
    its nodes and weights stay as they are. Raises ModelError.
    """
    name = printable(path)
    entry, leave = ends(path, proto)
    for value, word in ((entry, "input"), (leave, "output")):
        dimensions = dimensions_of(value)
        if dimensions is None or len(dimensions) != 4:
            refuse_generator(
                path, f"its {word} is {say(value)} where a batch of pictures has four axes"
            )
        if value.type.tensor_type.elem_type not in _ADOPTABLE:
            refuse_generator(path, f"its {word} is {say(value)} where float or uint8 is expected")
    flow = _Flow(proto)
    layout = _layout(path, entry, said.layout, flow.layout_of_input(entry.name))
    gives_layout = _layout(path, leave, None, layout)
    gives = said.gives or _of_bytes(leave) or flow.range_of_output(leave.name)
    takes = said.takes or _of_bytes(entry) or flow.range_of_input(entry.name) or gives
    gives = gives or takes
    anything = RANGES["-1..1"]
    order = said.order or "rgb"

    def contract_of(io: GeneratorIO) -> onnx.ModelProto:
        try:
            contract = contract_from_generator(proto, io)
            onnx.checker.check_model(contract)
        except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"{name}: cannot be brought into the contract: {first_line(error)}; export it "
                f"with opset {CONVERTED_OPSET} or later"
            ) from error
        return contract

    # Sizes first: whoever brings an upscaler is not to be asked for its range.
    io = GeneratorIO(layout, order, takes or anything, gives or anything, gives_layout)
    contract = contract_of(io)
    batch, height, width = picture_axes(entry, layout)
    fixed = fixed_size(path, height, width)
    shapes = Shapes(contract)
    if fixed is None:
        sizes = _size_requirements(path, contract, shapes)
    else:
        sizes = SizeRequirements(fixed=fixed)
        check_output_size(path, shapes, fixed)
    if takes is None:
        last = flow.made.get(leave.name)
        raise ModelError(
            f"{name}: nothing in it says which values black and white have (it ends in "
            f"{last.op_type if last else 'its input'} where Tanh, Sigmoid or Clip would say); "
            "pass --model-io 0..255, --model-io 0..1 or --model-io=-1..1"
        )
    text = f"{printable(Path(path.name))} is a foreign model, adopted as {io}"
    if is_inside(proto, io):
        text += ", and run as it is"
    elif said.takes is None and not (_of_bytes(entry) and _of_bytes(leave)):
        text += "; the range is read from its graph, --model-io says otherwise"
    return Adoption(contract, io, sizes, batch, Note(None, text))


# Where the channels are


def _layout(
    path: Path, value: onnx.ValueInfoProto, said: Layout | None, otherwise: Layout | None
) -> Layout:
    """Tell where the channels are: as said, where the 3 or the 1 is, or else as the graph shows."""
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
    if not fits or (not certain and said is None and otherwise not in fits and any(axes)):
        # (N, 5, H, W): with nothing else to go by, the axis that is known is the channels'.
        refuse_generator(path, f"has {say(value)} where 1 or 3 channels are expected")
    if said is not None:
        if said not in fits:
            refuse_generator(path, f"has {say(value)}, which is not {said} with 1 or 3 channels")
        layout = said
    elif len(certain) == 1:
        layout = certain[0]
    elif otherwise is not None and otherwise in fits:
        layout = otherwise
    else:
        raise ModelError(
            f"{printable(path)}: has {say(value)}, which does not show where the channels are; "
            "pass --model-io nchw or --model-io nhwc"
        )
    axis = value.type.tensor_type.shape.dim[channel_axis(layout)]
    if not axis.dim_value:
        # Every generator that does not say has three.
        axis.dim_value = 3
    return layout


# Which values black and white have


def _of_bytes(value: onnx.ValueInfoProto) -> Range | None:
    """Return the range of pixels in uint8, None for another number type."""
    return RANGES["0..255"] if value.type.tensor_type.elem_type == TensorProto.UINT8 else None


class _Flow:
    """Walk along a graph's values, from its input on or from its output back."""

    _PASSES = frozenset({"Identity", "Cast", "Transpose", "Pad", "Floor", "Round", "Squeeze",
                         "Unsqueeze", "Reshape", "Dropout"})  # fmt: skip
    """Operators that leave the values in their range."""

    _TARGETS = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.5, 0.5), (-127.0, 127.0), (-2.1, 2.5))
    """What networks normalise to; the last is ImageNet's mean and deviation."""

    _NEAR = 0.25
    """How far two ranges may be apart, in parts of their width, to mean the same."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.made = {out: node for node in proto.graph.node for out in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.constants = Constants(proto)

    def layout_of_input(self, name: str) -> Layout | None:
        """Tell the layout by what reads the input: convolutions are NCHW."""
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
            if node.op_type not in self._PASSES and self._affine(node, name) is None:
                return None
            name = node.output[0]
        return None

    def range_of_output(self, name: str) -> Range | None:
        """Return the range that the last activation and what follows it give, or None."""
        maps: list[tuple[float, float]] = []
        for _ in range(16):
            node = self.made.get(name)
            if node is None:
                return None
            bounds = self._bounds(node)
            if bounds is not None:
                low, high = bounds
                for gain, offset in reversed(maps):
                    low, high = gain * low + offset, gain * high + offset
                return _nearest((low, high), RANGES.values(), self._NEAR)
            for candidate in node.input:
                step = self._affine(node, candidate)
                if step is not None:
                    maps.append(step)
                    name = candidate
                    break
            else:
                if node.op_type not in self._PASSES:
                    return None
                name = node.input[0]
        return None

    def range_of_input(self, name: str) -> Range | None:
        """Return the range that the arithmetic before the first layer brings to a usual one."""
        gain, offset, steps = 1.0, 0.0, 0
        for _ in range(16):
            nodes = self.readers.get(name, [])
            if len(nodes) != 1:
                break
            step = self._affine(nodes[0], name)
            if step is not None:
                gain, offset = step[0] * gain, step[0] * offset + step[1]
                steps += 1
            elif nodes[0].op_type not in self._PASSES:
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
        return distances[best] if best <= self._NEAR else None

    def _affine(self, node: onnx.NodeProto, name: str) -> tuple[float, float] | None:
        """Return (gain, offset) if ``node`` maps ``name`` so; means where the channels differ."""
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
        named = {a.name: a.f for a in node.attribute}
        for word, value in zip(("min", "max"), node.input[1:], strict=False):
            constant = self.constants.value(value)
            if constant is not None:
                named[word] = float(constant)
        return (named["min"], named["max"]) if {"min", "max"} <= named.keys() else None


def _distance(one: Range, other: Range) -> float:
    return (abs(one[0] - other[0]) + abs(one[1] - other[1])) / (other[1] - other[0])


def _nearest(found: Range, ranges: Iterable[Range], near: float) -> Range | None:
    best = min(ranges, key=lambda known: _distance(found, known))
    return best if _distance(found, best) <= near else None


# Which sizes it takes


def _size_requirements(path: Path, contract: onnx.ModelProto, shapes: Shapes) -> SizeRequirements:
    """Find the multiple and the minimum of a foreign file of free size by inferring its shapes.

    The multiple is the least power of two, up to 256, of which odd multiples keep their size; the
    minimum is the least multiple at which every reflection finds enough pixels and nothing is
    empty.
    Where inference cannot follow the graph, the strides say the multiple, and a backend finds the
    rest out when it runs. Raises ModelError.
    """
    for multiple in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        # Odd multiples only: even ones would also be right for a larger multiple.
        odd = 128 // multiple | 1
        size = odd * multiple, (odd + 2) * multiple
        found = shapes.output_size(size)
        if found == size:
            break
    else:
        if isinstance(found, tuple):
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
    """Return the largest reduction that any path through the graph reaches."""
    scale: dict[str, float] = {}
    most = 1.0
    for node in contract.graph.node:
        strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [1])
        own = max((scale.get(name, 1.0) for name in node.input), default=1.0)
        if node.op_type in ("Conv", "MaxPool", "AveragePool", "LpPool"):
            own *= max(strides)
        elif node.op_type == "ConvTranspose":
            own /= max(strides)
        elif node.op_type in ("Resize", "Upsample", "DepthToSpace"):
            own = max(1.0, own / 2)
        for name in node.output:
            scale[name] = own
        most = max(most, own)
    return round(most)
