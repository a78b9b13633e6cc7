"""A graph whose nodes are replaced by others that compute the same; cpu_graph.py has the passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import onnx
from onnx import helper

from ...frames import Pixels
from .contract import Constants

T = TypeVar("T")

Values: TypeAlias = Pixels
"""Numbers of any shape and type."""

PREFIX = "cpu/"
"""The first part of the name of all that is added."""


class Graph:
    """A graph that is rewritten: its nodes in order, by what they produce and what they consume."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto, self.changed = proto, False
        self.nodes: list[onnx.NodeProto] = list(proto.graph.node)
        self.opset = next(
            (each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), 0
        )
        self._names = {weight.name for weight in proto.graph.initializer}
        self._index()

    def _index(self) -> None:
        self._constants = Constants(self.proto)
        self.producers = {out: node for node in self.nodes for out in node.output}
        self.uses = Counter(name for node in self.nodes for name in node.input)
        self.uses.update(value.name for value in self.proto.graph.output)
        self._consumers: dict[str, onnx.NodeProto] = {
            name: node for node in self.nodes for name in node.input
        }

    def constant(self, name: str) -> Values | None:
        """Return the value of a weight or of a Constant node, None for anything else."""
        return self._constants.value(name)

    def scalar(self, name: str) -> float | None:
        """Return a constant of one element, None for anything else."""
        value = self.constant(name)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def producer(self, name: str, kind: str) -> onnx.NodeProto | None:
        """Return the node of this kind that computes ``name``, None where there is none."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == kind else None

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """Return the node that alone reads ``name``, None where there is none or are several."""
        return self._consumers.get(name) if self.uses[name] == 1 else None

    def other_input(self, node: onnx.NodeProto, name: str) -> str:
        """Return the input beside ``name`` of a node of two inputs."""
        first, second = node.input
        return second if first == name else first

    def weight(self, values: Values) -> str:
        """Add a weight and return its name."""
        name = f"{PREFIX}constant_{len(self._names)}"
        while name in self._names:
            name += "'"
        self._names.add(name)
        tensor = self.proto.graph.initializer.add()
        tensor.name, tensor.data_type = name, helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor.dims.extend(values.shape)
        tensor.raw_data = values.tobytes()
        return name

    def replace(self, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Put the nodes ``new`` into the place of the last of the nodes ``old``."""
        gone = {id(node) for node in old}
        at = max(i for i, node in enumerate(self.nodes) if id(node) in gone)
        after = self.nodes[at + 1 :]
        self.nodes = [node for node in self.nodes[:at] if id(node) not in gone]
        self.rebuild([*self.nodes, *new, *after])

    def rebuild(self, nodes: list[onnx.NodeProto]) -> None:
        """Make ``nodes`` the nodes of the graph, in this order."""
        self.nodes, self.changed = nodes, True
        self._index()

    def content(self) -> bytes:
        """Return the graph with its nodes as they are now, without weights that none reads.

        Nothing else can be done with the graph afterwards.
        """
        graph = self.proto.graph
        used = {name for node in self.nodes for name in node.input}
        weights = {weight.name for weight in graph.initializer}
        for place in range(len(graph.initializer) - 1, -1, -1):
            if graph.initializer[place].name not in used:
                del graph.initializer[place]
        for place in range(len(graph.input) - 1, -1, -1):
            if graph.input[place].name in weights:
                del graph.input[place]
        nodes = onnx.GraphProto()
        nodes.node.extend(
            node for node in self.nodes if node.op_type != "Constant" or node.output[0] in used
        )
        # The shapes that were stated for the tensors between are those of other operators.
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes.node)
        return self.proto.SerializeToString()


def new_node(kind: str, inputs: Sequence[str], out: str, **attributes: object) -> onnx.NodeProto:
    """Return a node of one output, whose name tells that it was added here."""
    node = helper.make_node(kind, inputs, [out], PREFIX + kind + "/" + out)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return node


def attribute_of(node: onnx.NodeProto, name: str, otherwise: T) -> T:
    """Return the attribute of a node, ``otherwise`` where it is not given."""
    for attribute in node.attribute:
        if attribute.name == name:
            value: T = helper.get_attribute_value(attribute)
            return value
    return otherwise


def plain_convolution(graph: Graph, node: onnx.NodeProto) -> Values | None:
    """Return the weights of a Conv of stride 1 without border and groups, None for another node."""
    if node.op_type != "Conv":
        return None
    weights = graph.constant(node.input[1])
    plain = (
        attribute_of(node, "group", 1) == 1
        and set(attribute_of(node, "strides", [1])) == {1}
        and set(attribute_of(node, "dilations", [1])) == {1}
        and set(attribute_of(node, "pads", [0])) == {0}
        and attribute_of(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    )
    if not plain or weights is None or weights.dtype != np.float32 or weights.ndim != 4:
        return None
    return weights
