"""Graphs of other exporters, of opset 7 to 21, draw what numpy draws, on each runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from cyclegan_batch.backends import open_backend
from cyclegan_batch.frames import Pixels, SizeRequirements
from cyclegan_batch.models.model import Model, open_model
from tests.needs import need
from tests.synthesis import foreign, generators
from tests.synthesis.foreign import Enlarged, Translate
from tests.synthesis.generators import natural

RUNTIMES = ["onnxruntime", "openvino", "torch"]


def drawn(model: Model, runtime: str, frames: Pixels) -> Pixels:
    need(runtime)
    backend = open_backend(model, backend=runtime, device="cpu")  # type: ignore[arg-type]
    try:
        return backend.infer(frames)
    finally:
        backend.close()


def off_by(model: Model, runtime: str, translate: Translate, frames: Pixels) -> float:
    """Return the largest difference from numpy in grey levels, for pictures with contrast."""
    exact = (translate(frames / 127.5 - 1) + 1) * 127.5
    assert exact.std() > 20
    out = drawn(model, runtime, frames)
    assert out.shape == frames.shape
    return float(np.abs(out - np.clip(np.floor(exact + 0.5), 0, 255)).max())


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("opset", "how", "by_sizes"),
    [
        (7, "nearest", False),
        (8, "nearest", False),
        (9, "nearest", False),
        (10, "nearest", False),
        (11, "nearest", False),
        (11, "half_pixel", False),
        (11, "align_corners", True),
        (12, "asymmetric", False),
        (13, "nearest", True),
        (13, "align_corners", False),
        (17, "half_pixel", True),
        (18, "nearest", False),
        (18, "asymmetric", True),
        (21, "half_pixel", True),
    ],
)
def test_every_opset_draws_what_numpy_draws(
    tmp_path: Path, runtime: str, opset: int, how: Enlarged, by_sizes: bool
) -> None:
    path = tmp_path / "a.onnx"
    translate = foreign.of_opset(path, opset, how, by_sizes=by_sizes)
    model = open_model(path)
    assert model.card.adopted == "nchw rgb -1..1"
    assert (model.card.sizes.multiple_of, model.card.sizes.fixed) == (2, None)
    assert not any("sizes" in each for each in model.assumed)
    assert off_by(model, runtime, translate, natural((26, 38), 2)) <= 1


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("opset", [9, 10, 13])
def test_a_static_square_of_batch_one_draws_what_numpy_draws(
    tmp_path: Path, runtime: str, opset: int
) -> None:
    """As joliGEN exports: opset 9, one size, one picture a call."""
    path = tmp_path / "a.onnx"
    translate = foreign.of_opset(path, opset, batch=1, side=32)
    model = open_model(path)
    assert (model.card.sizes.fixed, model.card.batch) == ((32, 32), 1)
    assert off_by(model, runtime, translate, natural((32, 32), 1)) <= 1


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("opset", "how"),
    [(9, "nearest"), (10, "nearest"), (11, "asymmetric"), (13, "half_pixel"), (18, "nearest")],
)
def test_a_graph_of_tensorflow_draws_what_numpy_draws(
    tmp_path: Path, runtime: str, opset: int, how: Enlarged
) -> None:
    path = tmp_path / "a.onnx"
    translate = foreign.by_tf2onnx(path, opset=opset, how=how)
    model = open_model(path)
    assert model.card.adopted == "nhwc rgb -1..1"
    assert (model.card.sizes.multiple_of, model.card.sizes.fixed) == (2, None)
    assert not any("sizes" in each for each in model.assumed)
    assert off_by(model, runtime, translate, natural((26, 38), 2)) <= 1


@pytest.mark.behaviour(35)
@pytest.mark.parametrize(
    "free", [("unk__6", "unk__7", "unk__8"), (None, None, None), -1, 0, (1, 32, 48)]
)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_free_axes_of_tensorflow_are_free_however_they_are_declared(
    tmp_path: Path, free: tuple[int | str | None, ...] | int, runtime: str
) -> None:
    path = tmp_path / "a.onnx"
    translate = foreign.by_tf2onnx(path, free=(None,) * 3 if isinstance(free, int) else free)
    if isinstance(free, int):
        foreign.with_free_axes(path, free)
    model = open_model(path)
    fixed = (32, 48) if free == (1, 32, 48) else None
    assert (model.card.adopted, model.card.sizes.fixed) == ("nhwc rgb -1..1", fixed)
    assert model.card.batch == (1 if fixed else None)
    assert off_by(model, runtime, translate, natural((32, 48))) <= 1


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("length", [-1, 0])
def test_free_axes_of_any_length_before_the_channels_too(tmp_path: Path, length: int) -> None:
    """NCHW of which nothing is declared but that: a convolution tells where the channels are."""
    path = generators.foreign(tmp_path / "a.onnx")
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            axis.dim_value = length
    path.write_bytes(proto.SerializeToString())
    card = open_model(path).card
    assert (card.adopted, card.batch, card.sizes) == ("nchw rgb -1..1", None, SizeRequirements())
