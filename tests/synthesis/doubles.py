"""The same ONNX graph in float64, in which two ways to compute one function agree."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper


def in_doubles(graph: bytes) -> onnx.ModelProto:
    """Return a graph that computes in float64 what ``graph`` computes in float32."""
    proto = onnx.ModelProto.FromString(graph)

    def wide(tensor: onnx.TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    for weight in proto.graph.initializer:
        wide(weight)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
            if attribute.HasField("t"):
                wide(attribute.t)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return proto
