"""The contract's nodes around a generator, run with numpy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from cyclegan_batch.models.graphs.contract import BYTES, GeneratorIO, contract_from_generator
from tests.synthesis import generators
from tests.synthesis.generators import Graph, run


def test_the_contract_begins_and_ends_with_the_cast_of_the_pixels(tmp_path: Path) -> None:
    generator = onnx.load(generators.foreign_resnet(tmp_path / "g.onnx", half=True))
    graph = contract_from_generator(generator, GeneratorIO()).graph
    first, last = graph.node[0], graph.node[-1]
    assert (first.op_type, list(first.input)) == ("Cast", ["frames"])
    assert (last.op_type, list(last.output)) == ("Cast", ["translated"])
    between = [list(node.input) + list(node.output) for node in list(graph.node)[1:-1]]
    assert not {"frames", "translated"} & {name for names in between for name in names}


def test_rounding_is_half_up_and_values_beyond_the_range_are_clamped(tmp_path: Path) -> None:
    g = Graph()
    g.op("Mul", "image", g.constant(0.5), out="x")
    g.op("Sub", "x", g.constant(20.0), out="y")
    g.op("Mul", "y", g.constant(3.0), out="picture")
    shape = (1, 3, "H", "W")
    path = g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.FLOAT, shape)], [("picture", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    contract = contract_from_generator(onnx.load(path), GeneratorIO(takes=BYTES, returns=BYTES))
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    exact = (frames.astype(np.float64) / 2 - 20) * 3
    expected = np.clip(np.floor(exact + 0.5), 0, 255)
    assert np.array_equal(run(contract, frames), expected)
