"""One command exports a real checkpoint, and the file's output is that of its authors' code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("onnxscript")

from cyclegan_export import export_onnx

from cyclegan_batch import cli
from cyclegan_batch.backends import open_backend
from cyclegan_batch.models.model import open_model

pytestmark = pytest.mark.corpus


@pytest.fixture(scope="module")
def horse2zebra(corpus: Path) -> Path:
    return corpus / "models" / "horse2zebra_gan_compression"


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def written(horse2zebra: Path, corpus: Path, tmp_path_factory, request) -> Path:
    path = tmp_path_factory.mktemp("written") / f"{request.param}.onnx"
    photographs = corpus / "images" / "darknet_photos"
    command = ["export", str(horse2zebra / "latest_net_G.pth"), str(path)]
    done = CliRunner().invoke(
        cli.main, [*command, "--precision", request.param, "--samples", str(photographs)]
    )
    assert done.exit_code == 0, done.output
    return path


@pytest.mark.behaviour(33, 34)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_real_checkpoint_is_exported_and_draws_its_authors_picture(
    horse2zebra: Path, written: Path, backend: str
) -> None:
    model = open_model(written)
    assert model.card.parity.startswith(("exact: ", "half: "))
    assert "4 given frames at 256×256" in model.card.parity
    assert model.card.precision == written.stem
    frames = np.array(Image.open(horse2zebra / "horse_input.png").convert("RGB"))[np.newaxis]
    theirs = np.array(Image.open(horse2zebra / "their_output_compressed.png").convert("RGB"))
    opened = open_backend(model, backend=backend, device="cpu")
    ours = opened.infer(frames)[0]
    opened.close()
    # The authors' code truncates where the contract rounds.
    difference = np.abs(ours.astype(int) - theirs)
    if model.card.precision == "fp32":
        assert difference.max() <= 1
    else:
        assert (difference <= 2).mean() >= 0.999


def test_half_precision_halves_the_file(written: Path, horse2zebra: Path) -> None:
    weights = 356_867 - 4_000  # biases before a norm are left out
    assert written.stat().st_size < weights * (2 if written.stem == "fp16" else 4) * 1.15


@pytest.mark.behaviour(35)
def test_a_real_foreign_generator_is_written_in_the_contract(corpus: Path, tmp_path: Path) -> None:
    folder = corpus / "models" / "fast_neural_style_onnx"
    source = folder / "candy_nc16_256x256_onnxjs013.onnx"
    exported = export_onnx(source, tmp_path / "candy.onnx", model_io="0..255")
    assert exported.parity.cls == "exact"
    assert exported.card.sizes.fixed == (256, 256)
    assert onnx.load(exported.path).graph.input[0].name == "frames"
