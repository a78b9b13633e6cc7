"""The operations of a network, against numbers that were worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cyclegan_batch.bench import products
from cyclegan_batch.bench.work import gflop
from cyclegan_batch.models.model import Model, open_model
from tests.synthesis import generators


def graph(kind: str, out: list[int], *inputs: Any, **attributes: Any) -> Model:
    """Return a graph of one node; the first input is ``frames``, (1, 8, 8, 3) as floats NCHW."""
    constants = [numpy_helper.from_array(each, f"w{n}") for n, each in enumerate(inputs)]
    names = ["x", *(each.name for each in constants)]
    shape = ["N", "H", "W", 3]
    nodes = [
        helper.make_node("Cast", ["frames"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node(kind, names, ["y"], **attributes),
    ]
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("frames", TensorProto.UINT8, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            initializer=constants,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return Model(None, proto.SerializeToString())  # type: ignore[arg-type]


def weights(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("model", "operations"),
    [
        # 5 outputs of 3×3×3 products at 8×8 places
        (graph("Conv", [], weights(5, 3, 3, 3), pads=[1, 1, 1, 1]), 2 * 5 * 27 * 64),
        # A stride of 2: at 4×4 places
        (graph("Conv", [], weights(5, 3, 3, 3), pads=[1] * 4, strides=[2, 2]), 2 * 5 * 27 * 16),
        # Depthwise: each channel meets its own 3×3
        (graph("Conv", [], weights(3, 1, 3, 3), pads=[1] * 4, group=3), 2 * 27 * 64),
        # Transposed: each of the 8×8 places of the input meets all weights
        (graph("ConvTranspose", [], weights(3, 4, 2, 2), strides=[2, 2]), 2 * 48 * 64),
        # Rows of 8: 3 × 8 rows times (8, 6)
        (graph("MatMul", [], weights(8, 6)), 2 * 24 * 8 * 6),
    ],
)
def test_one_node_has_as_many_operations_as_its_definition(model, operations):
    assert gflop(model, (8, 8)) == pytest.approx(operations / 1e9)


def test_a_whole_generator_grows_with_its_frame(tmp_path: Path):
    model = open_model(generators.tiny_resnet(tmp_path / "m.onnx"))
    small, large = gflop(model, (32, 32)), gflop(model, (64, 96))
    assert small is not None
    assert large == pytest.approx(6 * small)


def test_the_matrix_products_have_as_many_as_their_sizes_say():
    for precision in ("fp32", "fp16", "int8"):
        model = products.product_model(precision)  # type: ignore[arg-type]
        assert gflop(model, (products.SIDE, products.SIDE)) == pytest.approx(products.GFLOP)


def test_without_a_graph_or_shapes_there_is_no_number():
    assert gflop(Model(None, b""), (8, 8)) is None  # type: ignore[arg-type]
    proto = onnx.ModelProto.FromString(graph("Conv", [], weights(5, 3, 3, 3)).graph)
    proto.graph.node[2].domain = "unknown"
    proto.opset_import.append(helper.make_opsetid("unknown", 1))
    assert gflop(Model(None, proto.SerializeToString()), (8, 8)) is None  # type: ignore[arg-type]
