"""Which output of a foreign graph is the picture, and the graph without the others.

A generator may return more than its picture: U-GAT-IT's returns the logits and the heatmap of its
attention, too. The picture is the output that has the size of the input and 1 or 3 channels, by
shape inference at two sizes; where several are such, the user names one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import TypeVar

import onnx
from onnx import TensorProto

from ...errors import ModelError
from ...frames import Size
from ...wording import printable
from .contract import (
    Layout,
    Lengths,
    channel_axis,
    dimensions_of,
    image_axes,
    inputs_of,
    refuse_generator,
    values_in_words,
)
from .shapes import Shapes

T = TypeVar("T")

ADOPTABLE = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8}
)
"""The number types that a foreign file's input and output may have."""

_SIZES: tuple[Size, ...] = ((256, 512), (512, 768))
"""Two sizes that every generator of a free size takes. Height and width differ, and so do the
sizes, so that no axis of a fixed length has both."""


def picture_of(
    path: Path, proto: onnx.ModelProto, requested: str | None, layouts: Mapping[str, Layout]
) -> str:
    """Return the name of the output of ``proto`` that is the picture, ``requested`` if any.

    ``layouts``: where the channels of each input of four axes are. Raises ModelError with the
    outputs to choose from.
    """
    outputs = list(proto.graph.output)
    if requested is not None:
        if all(value.name != requested for value in outputs):
            raise ModelError(
                f"{printable(path)}: has no output {requested!r}; pass --model-io out=NAME with "
                f"one of these: {_listed(outputs)}"
            )
        return requested
    if len(outputs) == 1:
        return outputs[0].name
    fits = _fits(proto, layouts)
    possible = [value for value in outputs if fits[value.name] is not False]
    if not possible:
        refuse_generator(
            path,
            f"has {len(outputs)} outputs, and none of them is an image of the input's size: "
            f"{_listed(outputs)}",
        )
    if len(possible) > 1:
        raise ModelError(
            f"{printable(path)}: has {len(outputs)} outputs, and {len(possible)} of them may be "
            f"the picture: {_listed(possible)}; name the one to take: --model-io out=NAME"
        )
    return possible[0].name


def keep_output(proto: onnx.ModelProto, name: str) -> None:
    """Remove, in place, every output but ``name``, and the nodes, weights and inputs behind them.

    What stays is as it was.
    """
    graph = proto.graph
    producers = {out: place for place, node in enumerate(graph.node) for out in node.output}
    needed, unfollowed = {name}, [name]
    kept: set[int] = set()
    while unfollowed:
        place = producers.get(unfollowed.pop())
        if place is None or place in kept:
            continue
        kept.add(place)
        read = _read_by(graph.node[place]) - needed
        needed |= read
        unfollowed += read
    _keep(graph.node, [place in kept for place in range(len(graph.node))])
    _keep(graph.input, [value.name in needed for value in graph.input])
    _keep(graph.initializer, [weight.name in needed for weight in graph.initializer])
    _keep(graph.sparse_initializer, [w.values.name in needed for w in graph.sparse_initializer])
    _keep(graph.output, [value.name == name for value in graph.output])


def _keep(items: MutableSequence[T], wanted: Sequence[bool]) -> None:
    """Delete, in place, the items that are not wanted."""
    for place in range(len(items) - 1, -1, -1):
        if not wanted[place]:
            del items[place]


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, the branches of an If and the like included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names.update(value.name for value in graph.output)
            for inner in graph.node:
                names |= _read_by(inner)
    names.discard("")
    return names


def _fits(proto: onnx.ModelProto, layouts: Mapping[str, Layout]) -> dict[str, bool | None]:
    """Return of each output whether it is an image of the input's size, None if that is unknown."""
    shapes = Shapes(proto)
    findings: dict[str, set[bool | None]] = {
        value.name: {value.type.tensor_type.elem_type in ADOPTABLE} for value in proto.graph.output
    }
    images = [value for value in inputs_of(proto) if value.name in layouts]
    for size in _SIZES:
        inputs: dict[str, list[int]] = {}
        sides: list[Size] = []
        for value in images:
            layout = layouts[value.name]
            batch, height, width = image_axes(value, layout)
            channels = (dimensions_of(value) or [])[channel_axis(layout)] or 3
            sides.append((height or size[0], width or size[1]))
            axes = [channels, *sides[-1]] if layout == "nchw" else [*sides[-1], channels]
            inputs[value.name] = [batch or 1, *axes]
        outputs = shapes.of_outputs(inputs) or {}
        for name, found in findings.items():
            found.add(_is_image(outputs.get(name), sides))
    return {
        name: False if False in found else None if None in found else True
        for name, found in findings.items()
    }


def _is_image(lengths: Lengths | None, sides: Iterable[Size]) -> bool | None:
    """Return whether a tensor of ``lengths`` is an image of one of the sizes; None if unknown."""
    if lengths is None:
        return None
    if len(lengths) != 4:
        return False
    forms = [
        form
        for height, width in sides
        for channels in (1, 3)
        for form in ([channels, height, width], [height, width, channels])
    ]
    if lengths[1:] in forms:
        return True
    is_possible = any(
        all(length in (None, wanted) for length, wanted in zip(lengths[1:], form, strict=True))
        for form in forms
    )
    return None if is_possible else False


def _listed(values: Sequence[onnx.ValueInfoProto]) -> str:
    return printable(values_in_words(values))
