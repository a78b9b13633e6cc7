"""The nodes of an ONNX graph as they are read: attributes, and inputs that are constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from ..networks import without_halves

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
"""ONNX's numbers for the float types."""


class UnknownNodeError(Exception):
    """A node that torch is not made to compute here; the message tells what it is."""

    def __init__(self, node: GraphNode, what: str) -> None:
        super().__init__(what)
        self.node = node


class GraphNode:
    """One node of a graph, its attributes, and those of its inputs that are constants."""

    def __init__(self, proto: onnx.NodeProto, constants: dict[str, Tensor]) -> None:
        self.kind = proto.op_type
        self.domain = proto.domain
        self.inputs = list(proto.input)
        self.output = proto.output[0]
        self._attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        self._constants = constants

    def computed(self) -> list[str]:
        """Return the names of the inputs that are computed from the frames."""
        return [name for name in self.inputs if name and name not in self._constants]

    def constant(self, index: int) -> Tensor | None:
        """Return the value of input ``index``; None where it is absent or computed from frames."""
        if index >= len(self.inputs) or not self.inputs[index]:
            return None
        return self._constants.get(self.inputs[index])

    def required(self, index: int) -> Tensor:
        """Return `constant`. Raises UnknownNodeError where there is none."""
        value = self.constant(index)
        if value is None:
            raise UnknownNodeError(
                self, f"{self.kind} whose input {index} is computed from the frames"
            )
        return value

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """Return the attribute ``name``, a list of integers."""
        return [int(value) for value in self._attributes.get(name, default)]

    def numbers(self, name: str) -> list[float]:
        """Return the attribute ``name``, a list of floats; empty where it is absent."""
        return [float(value) for value in self._attributes.get(name, ())]

    def number(self, name: str, default: float) -> float:
        """Return the attribute ``name``, a number."""
        return float(self._attributes.get(name, default))

    def word(self, name: str, default: str) -> str:
        """Return the attribute ``name``, a word."""
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def only(self, name: str, *accepted: str) -> None:
        """Raise UnknownNodeError where the attribute ``name`` is none of ``accepted``."""
        word = self.word(name, accepted[0])
        if word not in accepted:
            raise UnknownNodeError(self, f"{self.kind} with {name} = {word}")

    def has(self, name: str) -> bool:
        """Return whether there is an attribute ``name``."""
        return name in self._attributes


class Step(nn.Module):
    """A node: a function of the values that are computed from the frames."""

    def __init__(self, compute: Callable[..., Tensor], *, wide: bool = False) -> None:
        super().__init__()
        self._compute, self._wide = compute, wide

    def forward(self, *values: Tensor) -> Tensor:
        """Compute the node; where it is ``wide``, in float32 at least."""
        if self._wide:
            values = tuple(without_halves(value) for value in values)
        return self._compute(*values)


def nodes_of(proto: onnx.ModelProto) -> Iterator[GraphNode]:
    """Yield the nodes that depend on the frames, in their order; the others are evaluated.

    Raises UnknownNodeError where a node that does not depend on them cannot be evaluated.
    """
    constants = {weight.name: _tensor(numpy_helper.to_array(weight)) for weight in
                 proto.graph.initializer}  # fmt: skip
    opsets = {each.domain: each.version for each in proto.opset_import}
    for node_proto in proto.graph.node:
        node = GraphNode(node_proto, constants)
        if node.computed():
            yield node
            continue
        values = {name: constants[name].numpy() for name in node.inputs if name}
        try:
            evaluator = ReferenceEvaluator(node_proto, opsets=opsets)
            results = evaluator.run(None, values)
        except (KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise UnknownNodeError(node, f"{node.kind} of constants") from error
        for name, value in zip(node_proto.output, results, strict=True):
            constants[name] = _tensor(np.asarray(value))


def _tensor(values: npt.NDArray[np.generic]) -> Tensor:
    """Return a copy as a tensor; a weight's own memory belongs to the file."""
    return torch.from_numpy(np.array(values))
