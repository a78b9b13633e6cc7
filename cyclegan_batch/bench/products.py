"""What a device reaches in plain matrix products: the limit to which networks are compared.

The products are a generator file like any other, so that a runtime opens and runs them as it does a
network, in the same precision, with the same threads and contexts. The matrices are square blocks
of 768, a call multiplies 1024 rows eight times: large enough for any CPU, and within its caches. On
a GPU a call has 32 times as many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..frames import SizeRequirements
from ..models.model import INPUT, OUTPUT, Model, model_from_contract
from ..options import FilePrecision

SIDE = 256
"""Height and width of the frames whose bytes become the rows of the first matrix."""

BATCH_ON_CPU, BATCH_ON_GPU = 4, 128

_WIDTH = 768
"""Columns of every matrix: a frame has 256 rows of them."""

_PRODUCTS = 8

GFLOP = 2e-9 * _PRODUCTS * (SIDE * SIDE * 3) * _WIDTH
"""Billions of operations for one frame."""

_FAINT = 1e-6
"""By how much the products change the picture: not at all, so that it passes as a generator in any
precision. A runtime cannot know that and computes them."""


def product_model(precision: FilePrecision) -> Model:
    """Return a contract file that consists of matrix products.

    In int8 both factors are quantised as the exporter quantises a network.
    """
    weights = np.random.default_rng(0).normal(0, _WIDTH**-0.5, (_WIDTH, _WIDTH))
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []

    def constant(name: str, values: object, dtype: type[np.generic]) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def add(kind: str, inputs: list[str], output: str, **attributes: int) -> str:
        node = helper.make_node(kind, inputs, [output])
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        nodes.append(node)
        return output

    frames = add("Cast", [INPUT], "floats", to=TensorProto.FLOAT)
    rows = add("Reshape", [frames, constant("as rows", [-1, _WIDTH], np.int64)], "rows")
    matrix = add("Mul", [rows, constant("scale", 1 / 255, np.float32)], "scaled")
    if precision == "fp16":
        matrix = add("Cast", [matrix], "halves", to=TensorProto.FLOAT16)
        factor = constant("factor", weights, np.float16)
    elif precision == "int8":
        step = constant("factor's step", np.abs(weights).max() / 127, np.float32)
        whole = np.round(weights / np.abs(weights).max() * 127)
        integers = constant("integers", whole, np.int8)
        factor = add("DequantizeLinear", [integers, step], "factor")
    else:
        factor = constant("factor", weights, np.float32)
    for number in range(_PRODUCTS):
        if precision == "int8":
            if number == 0:
                constant("step", 4 / 255, np.float32)
                constant("zero", 128, np.uint8)
            small = add("QuantizeLinear", [matrix, "step", "zero"], f"bytes {number}")
            matrix = add("DequantizeLinear", [small, "step", "zero"], f"matrix {number}")
        matrix = add("MatMul", [matrix, factor], f"product {number}")
    product = add("Cast", [matrix], "product", to=TensorProto.FLOAT)
    faint = add("Mul", [product, constant("faint", _FAINT, np.float32)], "faint product")
    as_frames = constant("as frames", [-1, SIDE, SIDE, 3], np.int64)
    change = add("Reshape", [faint, as_frames], "change")
    values = add("Add", [frames, change], "changed")
    nearest = add("Add", [values, constant("half", 0.5, np.float32)], "nearest")
    bounds = constant("black", 0, np.float32), constant("white", 255, np.float32)
    clamped = add("Clip", [add("Floor", [nearest], "whole"), *bounds], "clamped")
    add("Cast", [clamped], OUTPUT, to=TensorProto.UINT8)
    return model_from_contract(
        Path(f"matrix products in {precision}"),
        _contract(nodes, constants),
        architecture="matrix products",
        sizes=SizeRequirements(multiple_of=1, minimum=1, fixed=(SIDE, SIDE)),
        precision=precision,
        trained_size=SIDE,
    )


def _contract(nodes: Sequence[NodeProto], constants: Sequence[TensorProto]) -> ModelProto:
    shape: list[str | int | None] = ["N", SIDE, SIDE, 3]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name in (INPUT, OUTPUT)
    ]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], initializer=constants)
    opset = helper.make_opsetid("", 17)
    contract: ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return contract
