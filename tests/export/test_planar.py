"""``export --io nchw-…`` writes what other programs take, measured like every file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("onnxscript")

from cyclegan_export import ExportOptions, export_engine, export_onnx

from cyclegan_batch import cli
from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.networks import GeneratorConfig, generator_from_config
from cyclegan_batch.models.parity import natural_frames
from tests.synthesis import generators


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "latest_net_G_A.pth"
    network = generator_from_config(GeneratorConfig("resnet_1blocks", ngf=4))
    with torch.no_grad():
        [each for each in network.modules() if isinstance(each, torch.nn.Conv2d)][-1].weight *= 4
    torch.save(network.state_dict(), path)
    return path


def command(*words: str | Path) -> str:
    done = CliRunner().invoke(cli.main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.behaviour(50)
def test_a_planar_file_translates_a_folder_without_options(tmp_path):
    """The odd size is padded, as with every file."""
    source = generators.foreign_resnet(tmp_path / "f.onnx")
    for io in ("uint8", "nchw-float32"):
        said = command("export", source, tmp_path / f"{io}.onnx", "--io", io)
    assert "fp32, nchw-float32" in said
    assert "exact" in open_model(tmp_path / "nchw-float32.onnx").card.parity
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), natural_frames((45, 61), 1)[0])
    seen = []
    for io in ("uint8", "nchw-float32"):
        command("translate", tmp_path / "in", tmp_path / io, "-m", tmp_path / f"{io}.onnx")
        seen.append(cv2.imread(str(tmp_path / io / "a.png")).astype(int))
    assert seen[0].shape == (45, 61, 3)
    assert np.abs(seen[0] - seen[1]).max() <= 1
    assert np.ptp(seen[0]) > 20


def test_planes_of_half_precision_are_measured_against_frames_in_it(checkpoint, tmp_path):
    """Frames are rounded to half before the reference, too, so that fp32 stays *exact*."""
    exported = export_onnx(checkpoint, tmp_path / "a.onnx", io="nchw-float16")
    assert exported.parity.cls == "exact"
    assert exported.card.planar == "nchw-float16"


@pytest.mark.parametrize("io", ["float16", "nchw-float32", "nchw-float16"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"layout": "nchw", "range": "-1..1"}, "bgr -1..1 -> -1..1 mean=0.1,0.2,0.3 std=1,2,3"),
        ({"layout": "nhwc", "range": "0..255"}, None),
        ({"layout": "nchw", "range": "0..1", "channels": 1}, None),
    ],
)
def test_a_foreign_file_gets_another_form(tmp_path, io, how, said):
    """The gate compares with the file itself, whose images numpy converts."""
    source = generators.foreign(tmp_path / "f.onnx", **how)
    exported = export_onnx(source, tmp_path / "a.onnx", model_io=said, io=io)
    assert exported.parity.cls == "exact"
    assert exported.parity.max < 1.01
    proto = onnx.load(exported.path)
    axes = [axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ([0, 3, 0, 0] if io.startswith("nchw") else [0, 0, 0, 3])
    frames = natural_frames((16, 20), 2)
    x = (frames / 255.0).astype("f4" if io == "nchw-float32" else "f2")
    turned = io.startswith("nchw")
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if turned else x
    (out,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"frames": x})
    out = out.transpose(0, 2, 3, 1) if turned else out
    expected = generators.run(open_model(source, model_io=said).graph, frames)
    assert np.abs(out.astype(float) * 255 - expected).max() <= 1
    assert expected.std() > 20


def test_a_planar_file_is_not_exported_again_errors(tmp_path):
    exported = export_onnx(
        generators.foreign(tmp_path / "f.onnx"), tmp_path / "a.onnx", io="nchw-float32"
    )
    with pytest.raises(ModelError, match="is a planar file already; copy it"):
        export_onnx(exported.path, tmp_path / "b.onnx")


def test_int8_and_engines_take_pixels_errors(tmp_path):
    checkpoint = tmp_path / "latest_net_G_A.pth"
    with pytest.raises(ModelError, match="int8 is measured in files of uint8 or float16 pixels"):
        export_onnx(
            checkpoint,
            tmp_path / "a.onnx",
            io="nchw-float32",
            precision="int8",
            calibrate=tmp_path,
        )
    with pytest.raises(ModelError, match="takes uint8 or float16 pixels, and --io nchw-float16"):
        export_engine(checkpoint, tmp_path / "a.engine", ExportOptions(io="nchw-float16"))
