"""A real generator in INT8 loses accuracy, most of it by one convolution."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx
import pytest

pytest.importorskip("onnxscript")

from cyclegan_export import export_onnx
from cyclegan_export.gate import translated_by_torch
from cyclegan_export.quantise import Calibrated
from cyclegan_export.samples import frames_from_files

from cyclegan_batch.backends import open_backend
from cyclegan_batch.models.checkpoints.loading import load_generator
from cyclegan_batch.models.model import model_from_contract, open_model
from cyclegan_batch.models.parity import Parity, parity

pytestmark = pytest.mark.corpus


@pytest.mark.behaviour(33)
def test_horse_to_zebra_is_coarse_only_with_its_last_upconvolution_in_fp32(
    corpus: Path, tmp_path: Path
) -> None:
    folder = corpus / "models" / "horse2zebra_gan_compression"
    loaded = load_generator(folder / "latest_net_G.pth")
    export_onnx(loaded.path, tmp_path / "float.onnx", verify=False)
    contract = onnx.ModelProto.FromString(open_model(tmp_path / "float.onnx").graph)
    frames = frames_from_files(folder / "horse_input.png", (256, 256), 1)
    reference = translated_by_torch(loaded.network, frames, channels=3)
    pictures = frames_from_files(corpus / "images" / "darknet_photos", (256, 256), 4)
    calibrated = Calibrated(tmp_path / "a.onnx", contract, pictures)

    def drawn(*kept: str) -> Parity:
        graph = calibrated.quantised([each for each in calibrated.layers if each.name in kept])
        describe = partial(model_from_contract, architecture="a", sizes=loaded.config.sizes)
        model = describe(tmp_path / "a.onnx", graph, precision="int8")
        opened = open_backend(model, backend="onnxruntime", device="cpu")
        return parity(opened.infer(frames), reference)

    assert len(calibrated.layers) == 42
    assert drawn().cls == "none"
    assert drawn("model.22").reaches("coarse")
