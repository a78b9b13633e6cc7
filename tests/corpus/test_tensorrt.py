"""TensorRT parses real generators and builds engines of them (see tests/backends/tensorrt)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cyclegan_batch.backends import tensorrt as backend
from cyclegan_batch.models.engine_card import Build, Profile, profile_for
from cyclegan_batch.models.model import open_model
from tests.needs import need

pytestmark = [pytest.mark.corpus, pytest.mark.needs_tensorrt]

ANY_SIZE = Profile((1, 256, 256), (4, 720, 1280), (4, 1088, 1920))


@pytest.mark.parametrize(
    ("precision", "half_norm"), [("fp32", False), ("fp16", False), ("fp16", True)]
)
def test_the_horse_to_zebra_checkpoint_becomes_an_engine(
    corpus: Path, tmp_path: Path, precision: Any, half_norm: bool
) -> None:
    need("tensorrt")
    need("onnxscript")
    from cyclegan_export import export_onnx

    checkpoint = corpus / "models" / "horse2zebra_gan_compression" / "latest_net_G.pth"
    path = tmp_path / "g.onnx"
    export_onnx(checkpoint, path, precision=precision, half_norm=half_norm, verify=False)
    assert backend.engine_from_graph(open_model(path).graph, Build(ANY_SIZE), name="g.onnx")


@pytest.mark.parametrize("name", ["candy", "mosaic", "rain-princess", "udnie"])
def test_a_foreign_generator_becomes_an_engine(corpus: Path, name: str) -> None:
    need("tensorrt")
    folder = corpus / "models" / "fast_neural_style_onnx"
    path = folder / f"{name}_nc16_256x256_onnxjs013.onnx"
    model = open_model(path, model_io="0..255")
    build = Build(profile_for(model.card, None, None, None))
    assert backend.engine_from_graph(model.graph, build, name=path.name)
