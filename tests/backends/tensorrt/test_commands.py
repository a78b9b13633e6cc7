"""Engines through the commands and as a function on arrays; with stand-ins."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cyclegan_batch import cli, open_generator
from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.engine_card import Profile, read_card
from cyclegan_batch.models.model import Model
from tests.backends.tensorrt.conftest import frames
from tests.needs import REPOSITORY, need, package
from tests.synthesis import generators
from tests.synthesis.fake_tensorrt import Gpu


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def test_export_writes_an_engine_of_a_contract_file(
    tmp_path: Path, gpu: Gpu, model: Model, key: Path
) -> None:
    engine = tmp_path / "night.engine"
    command = ("export", model.card.path, engine, "--opt-shape", "2,8,8", "--version-compatible")
    done = run(*command, "--max-shape", "4,16,16", "--builder-level", "1", "--workspace", "9")
    assert done.exit_code == 0, done.output
    assert "night.engine: fp32" in done.output
    assert (gpu.builds[0].builder_optimization_level, gpu.builds[0].workspace) == (1, 9 << 20)
    assert read_card(engine).build.profile == Profile((2, 8, 8), (2, 8, 8), (4, 16, 16))
    shown = run("inspect", engine)
    assert "tensorrt: 11.4.0.106" in shown.output
    done = run(*command)
    assert done.exit_code == 1
    assert "it exists already; pass -y" in done.output
    assert run(*command, "-y").exit_code == 0
    done = run(*command, "-y", "--precision", "fp16")
    assert done.exit_code == 1
    assert "is fp32 and fp16 was asked for; give the checkpoint" in done.output


def test_a_picture_is_translated_with_an_engine(
    tmp_path: Path, gpu: Gpu, model: Model, key: Path
) -> None:
    engine, picture, out = (tmp_path / name for name in ("n.engine", "in.png", "out.png"))
    assert run("export", model.card.path, engine, "--opt-shape", "4,8,8").exit_code == 0
    sent = frames(1, 8, 8)[0]
    Image.fromarray(sent).save(picture)
    done = run("translate", picture, out, "-m", engine)
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.asarray(Image.open(out)), 255 - sent)
    key.unlink()
    again = ("translate", picture, out, "--no-resume", "-y", "-m", engine)
    done = run(*again)
    assert done.exit_code == 1
    assert "--trust-engine" in done.output
    assert run(*again, "--trust-engine").exit_code == 0
    done = run(*again, "--backend", "onnxruntime")
    assert "is an engine, which only TensorRT runs" in done.output


@pytest.mark.behaviour(50)
def test_a_planar_file_becomes_an_engine_of_pixels(tmp_path: Path, gpu: Gpu, key: Path) -> None:
    """The nodes that `translate` puts around it are in the engine, too."""
    g = generators.Graph()
    g.clip(g.op("Sub", g.constant(1.0), "frames"), 0.0, 1.0)
    g.nodes[-1].output[0] = "translated"
    ends = [(name, 1, ("N", 3, "H", "W")) for name in ("frames", "translated")]
    planar = g.save(
        tmp_path / "p.onnx",
        ends[:1],
        ends[1:],
        card=generators.card(planar="nchw-float32 rgb 0..1"),
    )
    engine, picture, out = (tmp_path / name for name in ("n.engine", "in.png", "out.png"))
    done = run("export", planar, engine, "--opt-shape", "1,8,8")
    assert done.exit_code == 0, done.output
    assert read_card(engine).model.planar == "nchw-float32"
    assert read_card(engine).as_model_card().planar is None
    sent = frames(1, 8, 8)[0]
    Image.fromarray(sent).save(picture)
    done = run("translate", picture, out, "-m", engine)
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.asarray(Image.open(out)), 255 - sent)


def test_an_engine_is_a_function_on_arrays(gpu: Gpu, engine: Path, key: Path) -> None:
    sent = frames(6, 9, 16)
    with open_generator(engine) as generator:
        np.testing.assert_array_equal(generator(sent), 255 - sent)
    key.unlink()
    with pytest.raises(ModelError, match="--trust-engine"):
        open_generator(engine)
    with open_generator(engine, trust_engine=True) as generator:
        np.testing.assert_array_equal(generator(sent), 255 - sent)


def test_a_build_for_a_translation_is_said_and_fits_the_plan(
    tmp_path: Path, gpu: Gpu, model: Model, key: Path
) -> None:
    for name, size in (("a.png", (8, 8)), ("b.png", (12, 20))):
        Image.fromarray(frames(1, *size)[0]).save(tmp_path / name)
    command = ("translate", tmp_path / "a.png", tmp_path / "b.png", f"{tmp_path}/out/", "-y")
    done = run(*command, "-m", model.card.path, "--backend", "tensorrt")
    assert done.exit_code == 0, done.output
    assert "building an engine of invert.onnx for NVIDIA Fake 1" in done.output
    (build,) = gpu.builds
    # The images cannot share a batch; the engine is for others, too.
    assert build.profile == ((1, 8, 8, 3), (32, 8, 8, 3), (32, 12, 20, 3))
    again = run(*command, "-m", model.card.path, "--backend", "tensorrt")
    assert again.exit_code == 0, again.output
    assert "building" not in again.output
    assert len(gpu.builds) == 1


def test_an_engine_of_a_checkpoint_leaves_its_onnx_beside_it(
    tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("torch", "onnxscript")
    engine_export = package("cyclegan_export.engine_export")
    received: dict[str, Any] = {}

    def export_onnx(source: Path, output: Path, **options: Any) -> None:
        received.update(options)
        generators.invert(output)

    monkeypatch.setattr(engine_export, "export_onnx", export_onnx)
    engine = tmp_path / "g.engine"
    done = run("export", "latest_net_G.pth", engine)
    assert done.exit_code == 1
    assert "pass --opt-shape N,H,W" in done.output
    done = run("export", "latest_net_G.pth", engine, "--opt-shape", "1,12,16", "--io", "float16")
    assert done.exit_code == 0, done.output
    # What is not given is left to the export, which has defaults of its own.
    assert (received["io"], received.get("precision"), received["verify"]) == (
        "float16",
        None,
        True,
    )
    card = read_card(engine)
    assert card.model.path == tmp_path / "g.onnx"
    assert hashlib.sha256((tmp_path / "g.onnx").read_bytes()).hexdigest() == card.onnx_sha256
    assert card.parity is not None
    assert card.parity.startswith("exact")


def test_options_of_an_engine_for_an_onnx_errors(tmp_path: Path) -> None:
    done = run(
        "export", "g.pth", tmp_path / "a.onnx", "--opt-shape", "1,8,8", "--version-compatible"
    )
    assert done.exit_code == 2
    assert "--opt-shape, --version-compatible: for an engine only" in done.output


def test_an_engine_without_tensorrt_errors_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    done = run("export", tmp_path / "g.pth", tmp_path / "g.engine", "--opt-shape", "1,8,8")
    assert done.exit_code == 1
    assert "tensorrt cannot be loaded" in done.output
    assert "docs/gpu.md tells where its library comes from" in " ".join(done.output.split())
    page = (REPOSITORY / "docs" / "gpu.md").read_text()
    assert "The library of TensorRT itself is not on the package index" in page
