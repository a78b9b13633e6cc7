"""The shapes inside a graph for frames of a size, by inference; so whether it keeps the size.

Exporters write the widths of a border and the factors of an enlargement as arithmetic on constants,
which shape inference does not follow, and which is therefore computed first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ...frames import Size
from .contract import (
    INPUT,
    OUTPUT,
    Constants,
    Lengths,
    dimensions_of,
    opset_of,
    refuse_generator,
)

_LARGE = 256
"""Weights of more elements cannot be shapes; inference is quick without their values."""

_FOLDED = frozenset({"Add", "Cast", "Concat", "ConstantOfShape", "Div", "Gather", "Identity",
                     "Mul", "Neg", "Reshape", "Slice", "Squeeze", "Sub", "Transpose",
                     "Unsqueeze"})  # fmt: skip
"""The operators that compute borders and factors of constants, and that make nothing large."""


_FOLLOWED = 17
"""The first opset in which inference follows what a graph computes from its own shapes."""

_MOVED_IN_13 = {"Squeeze": "axes", "Unsqueeze": "axes", "ReduceSum": "axes", "Split": "split"}
"""The operators of opset 11 and 12 of which an attribute is an input since 13. No other argument of
an operator that a generator has was moved or lost from 11 to `_FOLLOWED`."""


class Shapes:
    """Shape inference on a graph, without its large weights."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = onnx.GraphProto()
        graph.name = proto.graph.name
        graph.node.extend(proto.graph.node)
        graph.input.extend(proto.graph.input)
        graph.output.extend(proto.graph.output)
        # The declared shapes of the outputs may be wrong, so they are inferred.
        for value in graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
        inputs = {value.name for value in graph.input}
        for weight in proto.graph.initializer:
            if int(np.prod(weight.dims)) <= _LARGE:
                graph.initializer.append(weight)
            elif weight.name not in inputs:
                graph.input.append(
                    helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
                )
        self._proto = onnx.ModelProto()
        self._proto.ir_version = max(proto.ir_version, 4)
        self._proto.opset_import.extend(proto.opset_import)
        self._proto.functions.extend(proto.functions)
        self._proto.graph.CopyFrom(graph)
        _fold_constants(self._proto)
        _raise_opset(self._proto)
        constants = Constants(self._proto)
        self._reflections = [
            (node.input[0], pads)
            for node in self._proto.graph.node
            if node.op_type == "Pad" and (pads := _reflection(node, constants)) is not None
        ]

    def output_size(self, size: Size) -> Size | Literal["unknown", "invalid"]:
        """Return the inferred size of a contract graph's ``translated`` for ``frames`` of ``size``.

        ``"unknown"`` where inference cannot follow the graph, ``"invalid"`` where ``size`` is too
        small for it.
        """
        frames = next(value for value in self._proto.graph.input if value.name == INPUT)
        batch = frames.type.tensor_type.shape.dim[0].dim_value or 1
        outputs = self.of_outputs({INPUT: [batch, *size, 3]})
        if outputs is None:
            return "invalid"
        out = outputs[OUTPUT]
        if out is None or len(out) != 4 or out[1] is None or out[2] is None:
            return "unknown"
        return out[1], out[2]

    def of_outputs(self, inputs: Mapping[str, Sequence[int]]) -> dict[str, Lengths | None] | None:
        """Return the inferred lengths of every output's axes, for ``inputs`` of these lengths.

        An output that inference cannot follow is None. The whole is None where the lengths are too
        small for the graph, or do not fit it.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        for value in proto.graph.input:
            if value.name in inputs:
                axes = value.type.tensor_type.shape.dim
                for axis, length in zip(axes, inputs[value.name], strict=True):
                    axis.dim_value = length
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError:
            return None
        values = {value.name: dimensions_of(value) for value in inferred.graph.value_info}
        values |= {name: [*lengths] for name, lengths in inputs.items()}
        # Of images only: an unused region of Resize is a list of length 0.
        for dimensions in (each for each in values.values() if each and len(each) == 4):
            if any(length is not None and length < 1 for length in dimensions):
                return None
        for name, pads in self._reflections:
            shape = values.get(name)
            for side, pad in zip(shape or [], pads, strict=False):
                if side is not None and pad >= side:
                    return None
        return {value.name: dimensions_of(value) for value in inferred.graph.output}


def _fold_constants(proto: onnx.ModelProto) -> None:
    """Compute, in place, the nodes of small constants; each becomes a weight."""
    known = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    opsets = {each.domain: each.version for each in proto.opset_import}
    constants = Constants(proto)
    folded: set[int] = set()
    for place, node in enumerate(proto.graph.node):
        if node.op_type == "Constant" and len(node.output) == 1:
            value = constants.value(node.output[0])
            if value is not None and value.size <= _LARGE:
                known[node.output[0]] = value
            continue
        inputs = {name: known[name] for name in node.input if name in known}
        names = {name for name in node.input if name}
        if node.op_type not in _FOLDED or node.domain not in ("", "ai.onnx"):
            continue
        if not names or names != inputs.keys() or len(node.output) != 1:
            continue
        if node.op_type == "ConstantOfShape" and np.prod(inputs[node.input[0]]) > _LARGE:
            continue
        try:
            evaluator = ReferenceEvaluator(node, opsets=opsets)
            result = np.asarray(next(iter(evaluator.run(None, inputs))))
        except Exception:  # A file may hold anything, of which inference has its own say.
            continue
        if result.size <= _LARGE:
            known[node.output[0]] = result
            folded.add(place)
    for place in sorted(folded, reverse=True):
        name = proto.graph.node[place].output[0]
        proto.graph.initializer.append(numpy_helper.from_array(known[name], name))
        del proto.graph.node[place]


def _raise_opset(proto: onnx.ModelProto) -> None:
    """Bring a graph of opset 11 or later to `_FOLLOWED` at least, in place."""
    version = opset_of(proto)
    if not 11 <= version < _FOLLOWED or proto.functions:
        return
    for node in proto.graph.node if version < 13 else ():
        moved = _MOVED_IN_13.get(node.op_type)
        for place, attribute in enumerate(node.attribute):
            if attribute.name == moved:
                name = f"{node.output[0]}/{moved}"
                values = np.array(attribute.ints, np.int64)
                proto.graph.initializer.append(numpy_helper.from_array(values, name))
                node.input.append(name)
                del node.attribute[place]
                break
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = _FOLLOWED


def _reflection(node: onnx.NodeProto, constants: Constants) -> list[int] | None:
    """Return the wider reflection of each axis of a Pad, None where it does not reflect."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("mode", b"constant") != b"reflect":
        return None
    pads = attributes.get("pads")
    if pads is None:
        constant = constants.value(node.input[1])
        if constant is None:
            return None
        pads = constant.tolist()
    half = len(pads) // 2
    wider = [max(begin, end) for begin, end in zip(pads[:half], pads[half:], strict=True)]
    if len(node.input) > 3 and node.input[3]:
        # Since opset 18 the pads may be of some axes only.
        axes = constants.value(node.input[3])
        if axes is None or len(axes) != half:
            return None
        of_axis = dict(zip((int(axis) % 4 for axis in axes), wider, strict=True))
        return [of_axis.get(axis, 0) for axis in range(4)]
    return wider


def check_output_size(path: Path, shapes: Shapes, size: Size) -> None:
    """Refuse a graph whose inferred output size differs from ``size``. Raises ModelError."""
    out = shapes.output_size(size)
    if isinstance(out, tuple) and out != size:
        refuse_generator(
            path,
            f"returns {out[0]}×{out[1]} for {size[0]}×{size[1]} (height × width) where a "
            "generator keeps the size",
        )
