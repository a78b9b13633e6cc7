"""Real foreign generators on real photographs, against a run of the file without our nodes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from cyclegan_batch.backends import ONNX_BACKENDS, open_backend
from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import parity
from tests.corpus.test_model import STYLES, style
from tests.needs import need, package

pytestmark = pytest.mark.corpus


@pytest.fixture(scope="module")
def photographs(corpus: Path) -> Pixels:
    """Return photographs as ``(3, 256, 256, 3)`` RGB uint8."""
    pictures = []
    for name in ("horses", "eagle", "person"):
        pixels = cv2.imread(str(corpus / "images" / "darknet_photos" / f"{name}.jpg"))
        assert pixels is not None
        small = cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_AREA)
        pictures.append(np.ascontiguousarray(small[..., ::-1]))
    return np.stack(pictures)


def raw_run(path: Path, frames: Pixels) -> tuple[Pixels, float]:
    """Run the file as its authors do, in onnxruntime, and round in numpy.

    Returns the images and the share of values outside 0..255.
    """
    onnxruntime = package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    rows = []
    for frame in frames:
        planes = frame.transpose(2, 0, 1)[np.newaxis].astype(np.float32)
        rows.append(session.run(None, {name: planes})[0][0].transpose(1, 2, 0))
    values = np.stack(rows)
    beyond = float(np.mean((values < 0) | (values > 255)))
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8), beyond


@pytest.mark.behaviour(31, 33, 35)
@pytest.mark.parametrize("backend", ONNX_BACKENDS)
@pytest.mark.parametrize("name", STYLES)
def test_real_foreign_generators_are_exact_on_every_backend(
    corpus: Path, photographs: Pixels, name: str, backend: str
) -> None:
    need(backend)
    path = style(corpus, name)
    expected, beyond = raw_run(path, photographs)
    assert beyond > 0.001
    opened = open_backend(open_model(path, model_io="0..255"), backend=backend, device="cpu")
    out = opened.infer(photographs)
    measured = parity(out, expected)
    assert measured.cls == "exact", str(measured)
    assert out.std() > 20


@pytest.mark.behaviour(31, 33)
def test_a_real_generator_equals_onnxs_own_reference(corpus: Path, photographs: Pixels) -> None:
    path = style(corpus, "candy")
    proto = onnx.load(path)
    planes = photographs[:1].transpose(0, 3, 1, 2).astype(np.float32)
    (values,) = ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: planes})
    expected = np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    model = open_model(path, model_io="0..255")
    for backend in ONNX_BACKENDS:
        need(backend)
        opened = open_backend(model, backend=backend, device="cpu")
        measured = parity(opened.infer(photographs[:1]), expected)
        assert measured.cls == "exact", f"{backend}: {measured}"


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("name", STYLES)
def test_bf16_is_taken_only_where_it_is_near(corpus: Path, photographs: Pixels, name: str) -> None:
    openvino = package("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    path = style(corpus, name)
    model = open_model(path, model_io="0..255")
    expected, _ = raw_run(path, photographs)
    try:
        opened = open_backend(model, precision="bf16")
    except ModelError as error:
        # Its authors trained it for 0..255 without a Tanh, which is rough in bf16: 44–48 dB, tried.
        assert name != "udnie"
        assert "in bf16 it is coarse" in str(error)  # noqa: PT017
        return
    assert name != "mosaic"
    measured = parity(opened.infer(photographs), expected)
    assert measured.reaches("near"), str(measured)
