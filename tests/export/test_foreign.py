"""A foreign ONNX becomes a contract file that draws what the file itself draws, or no file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from cyclegan_export import export_onnx
from cyclegan_export.gate import translated_by_file

from cyclegan_batch.errors import ModelError
from cyclegan_batch.models import contract
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import natural_frames
from tests.synthesis import generators


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    "said",
    [
        "mean=0.485,0.456,0.406 std=0.229,0.224,0.225 -> -1..1",
        "bgr 0..255 mean=103.939,116.779,123.68 std=60,61,70 -> 0..1 mean=0.6,0.5,0.4 std=2,3,4",
        "-1..1 std=0.5 -> 0..255 mean=127.5 std=127.5",
    ],
)
def test_a_mean_and_a_deviation_are_measured_apart_from_the_contract(tmp_path, layout, said):
    """The file that was given runs with numpy's arithmetic, and the contract must draw the same."""
    source = generators.foreign(tmp_path / "f.onnx", layout=layout, range="-1..1", end="tanh")
    exported = export_onnx(source, tmp_path / "a.onnx", model_io=said)
    assert exported.parity.cls == "exact"
    frames = natural_frames((16, 20), 2)
    out = generators.run(open_model(exported.path).graph, frames)
    assert out.std() > 20
    by_file = translated_by_file(source, open_model(source, model_io=said).io, frames)
    assert np.abs(by_file - out.astype(int)).max() <= 1
    # Another mean is seen.
    other = said.replace("0.485", "0.385").replace("103.939,", "110,").replace("std=0.5", "std=0.6")
    io = open_model(source, model_io=other).io
    assert np.abs(translated_by_file(source, io, frames) - out.astype(int)).max() > 2


def test_the_gate_sees_another_order_of_three_means(tmp_path, monkeypatch):
    """A contract that gives the means to the channels in reverse is not written."""
    source = generators.foreign(tmp_path / "f.onnx", end="tanh")
    right = contract.Values.line
    wrong = {"rgb": "bgr", "bgr": "rgb"}
    monkeypatch.setattr(contract.Values, "line", lambda self, order: right(self, wrong[order]))
    with pytest.raises(ModelError, match="not written: against the file that was given"):
        export_onnx(source, tmp_path / "a.onnx", model_io="mean=0.3,0.5,0.7 std=1,2,3 -> -1..1")


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("said", [None, "out=fake_A -1..1"])
def test_one_of_several_outputs_is_written(tmp_path, said):
    """The gate runs the whole file, its second input and outputs of other shapes included."""
    g = generators.Graph()
    g.op("Tanh", g.op("Neg", "real_A"), out="fake_B")
    g.op("ReduceMean", "real_A", out="brightness", axes=[1, 2, 3], keepdims=0)
    inputs = [("real_A", onnx.TensorProto.FLOAT, (1, 3, 32, 32))]
    outputs = [("brightness", onnx.TensorProto.FLOAT, (1,)), ("fake_B", *inputs[0][1:])]
    if said is not None:
        g.op("Tanh", "real_B", out="fake_A")
        inputs.append(("real_B", *inputs[0][1:2], (1, 3, 48, 48)))
        outputs.append(("fake_A", *inputs[-1][1:]))
    source = g.save(tmp_path / "f.onnx", inputs, outputs)
    exported = export_onnx(source, tmp_path / "a.onnx", model_io=said)
    assert exported.parity.cls == "exact"
    assert exported.card.sizes.fixed == ((32, 32) if said is None else (48, 48))
    written = onnx.load(exported.path).graph
    assert {"generator/" + out[0] for out in outputs}.intersection(
        out for node in written.node for out in node.output
    ) == {"generator/fake_B" if said is None else "generator/fake_A"}
