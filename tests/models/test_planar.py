"""A planar file is for other programs; a translation with it draws what the uint8 file draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

import onnxruntime

from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import Pixels, SizeRequirements
from cyclegan_batch.inspection import inspect_file
from cyclegan_batch.models.graphs.contract import GeneratorIO, contract_from_generator
from cyclegan_batch.models.model import open_model, write_model
from cyclegan_batch.models.parity import natural_frames
from tests.needs import need
from tests.synthesis import generators

SIZES = SizeRequirements(multiple_of=2, minimum=4)


def written(
    path: Path, io: Any, *, half: bool = False, sizes: SizeRequirements = SIZES, batch: int = 0
) -> Path:
    """Write one network as a file that takes and returns ``io``."""
    source = generators.foreign_resnet(path.with_suffix(".f"), half=half, fixed=sizes.fixed)
    generator = onnx.load(source)
    if batch:
        for end in (generator.graph.input[0], generator.graph.output[0]):
            end.type.tensor_type.shape.dim[0].dim_value = batch
    contract = contract_from_generator(generator, GeneratorIO(), pixel_type=io)
    planar: Any = {"planar": io} if io.startswith("nchw") else {}
    precision: Any = "fp16" if half else "fp32"
    write_model(path, contract, architecture="r", sizes=sizes, precision=precision, **planar)
    return path


def planes(frames: Pixels, dtype: Any) -> Pixels:
    return np.ascontiguousarray((frames / 255.0).transpose(0, 3, 1, 2).astype(dtype))


def translated(path: Path, backend: str, frames: Pixels) -> Pixels:
    opened = open_backend(open_model(path), backend=backend, device="cpu")
    try:
        return opened.infer(frames).astype(int)
    finally:
        opened.close()


@pytest.mark.behaviour(50)
@pytest.mark.parametrize(
    ("io", "half", "backend"),
    [
        ("nchw-float32", False, "onnxruntime"),
        ("nchw-float32", True, "onnxruntime"),
        ("nchw-float16", False, "onnxruntime"),
        ("nchw-float32", False, "openvino"),
        ("nchw-float16", False, "openvino"),
        ("nchw-float32", False, "torch"),
    ],
)
def test_a_planar_file_draws_what_the_uint8_file_draws_within_one_level(
    tmp_path, io, half, backend
):
    """Half precision both of the planes and of the network may add up to two levels, rarely."""
    need(backend)
    planar = written(tmp_path / "p.onnx", io, half=half)
    pixels = written(tmp_path / "u.onnx", "uint8", half=half)
    for size, count in (((4, 4), 1), ((30, 22), 3), ((64, 48), 2)):
        frames = natural_frames(size, count)
        out = translated(planar, backend, frames)
        assert np.abs(out - translated(pixels, backend, frames)).max() <= 1, size
        assert np.ptp(out) > 20


@pytest.mark.parametrize(("io", "dtype"), [("nchw-float32", "f4"), ("nchw-float16", "f2")])
def test_a_program_that_knows_only_planes_in_0_to_1_draws_the_same(tmp_path, io, dtype):
    session = onnxruntime.InferenceSession(written(tmp_path / "p.onnx", io).read_bytes())
    (taken,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.shape) == ("frames", ["N", 3, "H", "W"])
    assert (returned.name, returned.shape) == ("translated", ["N", 3, "H", "W"])
    frames = natural_frames((20, 28), 2)
    (out,) = session.run(None, {"frames": planes(frames, dtype)})
    assert out.dtype == np.dtype(dtype)
    assert out.min() >= 0
    assert out.max() <= 1
    expected = translated(written(tmp_path / "u.onnx", "uint8"), "onnxruntime", frames)
    assert np.abs(out.astype(float).transpose(0, 2, 3, 1) * 255 - expected).max() <= 1


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_planar_file_of_fixed_shape_takes_any_number_of_frames(tmp_path, backend):
    need(backend)
    fixed = SizeRequirements(multiple_of=2, minimum=4, fixed=(16, 24))
    path = written(tmp_path / "p.onnx", "nchw-float32", sizes=fixed, batch=2)
    card = open_model(path).card
    assert (card.sizes.fixed, card.batch) == ((16, 24), 2)
    frames = natural_frames((16, 24), 3)
    free = written(tmp_path / "free.onnx", "uint8")
    expected = translated(free, "onnxruntime", frames)
    assert np.abs(translated(path, backend, frames) - expected).max() <= 1


def test_the_card_says_what_a_planar_file_takes(tmp_path):
    path = written(tmp_path / "p.onnx", "nchw-float16")
    told = inspect_file(path)
    assert (told["planar"], told["pixel_type"]) == ("nchw-float16 rgb 0..1", "uint8")
    assert told["kind"] == "planar ONNX"
    model = open_model(path)
    assert model.content == path.read_bytes() != model.graph
    # What it is run as is a file of the contract by itself.
    contract = tmp_path / "c.onnx"
    contract.write_bytes(model.graph)
    assert open_model(contract).card.planar is None


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ("nchw-float32 rgb 0..255", r"planar = 'nchw-float32 rgb 0\.\.255' where nchw-float32 rgb"),
        ("nchw-float16 rgb 0..1", "its card says nchw-float16, but its graph has the input"),
    ],
)
def test_a_card_that_does_not_fit_a_planar_file_errors(tmp_path, said, match):
    path = written(tmp_path / "p.onnx", "nchw-float32")
    proto = onnx.load(path)
    next(each for each in proto.metadata_props if each.key.endswith("planar")).value = said
    onnx.save(proto, path)
    with pytest.raises(ModelError, match=match):
        open_model(path)


def test_the_first_convolution_of_a_planar_file_takes_the_bytes(tmp_path):
    """The two scalings at its beginning are one, which takes no pass over the frame."""
    from cyclegan_batch.models.model import on_cpu

    proto = onnx.ModelProto.FromString(
        on_cpu(open_model(written(tmp_path / "p.onnx", "nchw-float32"))).graph
    )
    first = [node.op_type for node in proto.graph.node[:5]]
    assert first == ["Transpose", "Cast", "Sub", "Pad", "Conv"]


@pytest.mark.behaviour(43)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_planar_file_that_returns_nan_errors(tmp_path, backend):
    """It clamps its values itself, which must not hide them."""
    need(backend)
    g = generators.Graph()
    root = g.op("Sqrt", g.op("Sub", g.op("Mul", "image", g.constant(0.0)), g.constant(1.0)))
    g.op("Add", "image", root, out="picture")
    ends = [(name, onnx.TensorProto.FLOAT, ("N", 3, "H", "W")) for name in ("image", "picture")]
    generator = onnx.load(g.save(tmp_path / "g.onnx", ends[:1], ends[1:]))
    contract = contract_from_generator(generator, GeneratorIO(), pixel_type="nchw-float32")
    path = tmp_path / "p.onnx"
    write_model(path, contract, architecture="r", sizes=SIZES, planar="nchw-float32")
    with pytest.raises(ModelError, match="returns NaN"):
        open_backend(open_model(path), backend=backend, device="cpu")
