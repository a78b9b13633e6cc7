"""A bundle is built and verified on a device that has only trtexec and an old Python.

trtexec here is the stand-in of conftest.py.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from cyclegan_batch import cli
from cyclegan_batch.errors import ContradictionError, ModelError, OutputError
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.networks import GeneratorConfig, generator_from_config
from cyclegan_batch.models.parity import parity
from tests.synthesis import generators

pytest.importorskip("torch")

from cyclegan_export import edge, export_bundle


def test_a_bundle_says_what_it_is_and_ships_no_engine(bundle: Path) -> None:
    names = {"model.onnx", "card.json", "edge.py", "golden_input.bin", "golden_output.bin"}
    assert {path.name for path in bundle.iterdir()} == names | {"README.txt"}
    card = json.loads((bundle / "card.json").read_text())
    assert card["target"] == "jetson-orin"
    assert card["expects"] == "JetPack 6 (TensorRT 10.3) or later"
    assert card["shapes"] == {"min": [1, 16, 24, 3], "opt": [2, 16, 24, 3], "max": [4, 32, 48, 3]}
    assert card["rule"] == {"psnr": 50.0, "within2": 0.999}
    assert card["onnx_sha256"] == hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
    assert card["model"]["path"] == "model.onnx"
    assert str(bundle.parent) not in (bundle / "card.json").read_text()
    shape = card["golden"]["shape"]
    assert shape == [1, 16, 24, 3], "the size it was trained at, as far as the engine takes it"
    sent, golden = (
        np.fromfile(bundle / card["golden"][which], np.uint8).reshape(shape)
        for which in ("input", "output")
    )
    np.testing.assert_array_equal(golden, 255 - sent)
    assert sent.std() > 10
    said = (bundle / "README.txt").read_text()
    assert "python3 edge.py build" in said
    assert "python3 edge.py verify" in said
    assert "DLA is not used" in said


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("version", ["10.3", "11.1"])
def test_the_device_builds_its_engine_and_proves_it(
    bundle: Path, device: Any, version: str
) -> None:
    done = device(bundle, "build")
    assert done.returncode == 0, done.stderr
    options = json.loads((bundle / "model.engine.options").read_text())
    assert options == [
        "--onnx=model.onnx",
        "--saveEngine=model.engine",
        "--stronglyTyped",
        "--skipInference",
        "--timingCacheFile=timing.cache",
        "--minShapes=frames:1x16x24x3",
        "--optShapes=frames:2x16x24x3",
        "--maxShapes=frames:4x32x48x3",
    ]
    done = device(bundle, "verify", FAKE=version)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "the engine's output matches the golden frames: "
        "inf dB, 100.00% within 2 levels, largest 0\n"
    )
    assert "RUNNING TensorRT.trtexec" in (bundle / "verify.log").read_text()


def test_a_file_of_fixed_shape_is_built_without_shapes(tmp_path: Path, device: Any) -> None:
    model = generators.invert(tmp_path / "invert.onnx", fixed=(16, 24), batch=1)
    bundle = export_bundle(model, tmp_path / "b", target="generic")
    assert json.loads((bundle / "card.json").read_text())["shapes"] is None
    assert device(bundle, "build", "--builderOptimizationLevel=1").returncode == 0
    assert device(bundle, "verify").returncode == 0
    options = (bundle / "model.engine.options").read_text()
    assert "hapes" not in options
    assert "--builderOptimizationLevel=1" in options


@pytest.mark.behaviour(33)
def test_a_wrong_picture_fails_and_one_that_is_half_passes_errors(
    bundle: Path, device: Any
) -> None:
    device(bundle, "build")
    done = device(bundle, "verify", FAKE="wrong")
    assert done.returncode == 1
    assert "Error: this engine's output differs from the golden frames: 48." in done.stderr
    assert "where 50 dB and 99.9% are expected" in done.stderr
    done = device(bundle, "verify", FAKE="nearly")
    assert done.returncode == 0
    assert "100.00% within 2 levels, largest 2" in done.stdout


def test_the_rule_is_the_gates() -> None:
    random = np.random.default_rng(0)
    reference = random.integers(0, 256, 30_000).astype(np.uint8)
    for share in (0.0, 0.01, 0.3, 1.0):
        apart = random.integers(-3, 4, 30_000) * (random.random(30_000) < share)
        found = np.clip(reference + apart, 0, 255).astype(np.uint8)
        measured = parity(found, reference)
        psnr, within2, largest = edge.difference(found.tolist(), reference.tobytes())
        assert psnr == pytest.approx(measured.psnr)
        assert within2 == pytest.approx(measured.within2)
        assert largest == measured.max


@pytest.mark.parametrize("values", [range(256), range(48, 58), range(10), [93, 44, 32, 91] * 9])
def test_both_spellings_of_a_pixel_are_read(values: Any) -> None:
    head = b'[\n  { "name" : "translated"\n  , "dimensions" : "1"\n  , "values" : [ '
    for spelling in (lambda value: str(value).encode(), lambda value: bytes([value])):
        content = head + b", ".join(map(spelling, values)) + b" ]\n  }\n]\n"
        if spelling(48) == b"0" and all(48 <= value < 58 for value in values):
            continue  # pictures of ten grey levels read as numbers of one digit
        assert edge.output_values(content, len(values)) == list(values)


def test_what_goes_wrong_on_the_device_is_one_clear_line_errors(
    bundle: Path, device: Any, tmp_path: Path
) -> None:
    def says(words: str, *command: str, **environment: str) -> None:
        done = device(bundle, *command, **environment)
        assert done.returncode == 1, done.stdout
        assert words in done.stderr
        assert "Traceback" not in done.stderr

    says("no model.engine yet; first: python3 edge.py build", "verify")
    says("trtexec is not found (not in PATH", "build", PATH=str(tmp_path))
    says("trtexec is not found (/nowhere/trtexec)", "build", TRTEXEC="/nowhere/trtexec")
    says("Error: trtexec failed (exit code 3); build.log says more", "build", FAKE="fails")
    says("[E] Error[4]: IBuilder: out of luck", "build", FAKE="fails")
    says("python3 edge.py build", "biuld")
    assert device(bundle, "build").returncode == 0
    says("1153 values where 1152 are expected", "verify", FAKE="short")
    (bundle / "golden_output.bin").write_bytes(b"x")
    says("golden_output.bin is not the file of this bundle", "verify")
    (bundle / "model.onnx").write_bytes(b"x")
    says("model.onnx is not the file of this bundle", "build")
    (bundle / "card.json").write_text("{")
    says("card.json cannot be read", "build")


def test_the_script_needs_an_old_python_and_its_library_only() -> None:
    source = Path(edge.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name) or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    newer = {"removeprefix", "removesuffix", "pairwise", "batched", "bit_count", "strict"}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.arg or "" for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert not newer & used


@pytest.mark.parametrize("version", ["10.3", "11.1"])
def test_the_script_runs_under_python_3_8(bundle: Path, device: Any, version: str) -> None:
    found = shutil.which("python3.8")
    # A shim of pyenv exists even where no such Python is installed.
    says = [found or sys.executable, "-c", "import sys; print(sys.executable, sys.version_info[1])"]
    told = subprocess.run(says, capture_output=True, text=True, check=False).stdout.split()
    if told[1:] != ["8"]:
        pytest.skip("no python3.8 here")
    python = told[0]
    assert device(bundle, "build", python=python).returncode == 0
    done = device(bundle, "verify", python=python, FAKE=version)
    assert (done.returncode, done.stderr) == (0, "")
    done = device(bundle, "verify", python=python, FAKE="wrong")
    assert "Error: this engine's output differs from the golden frames: 48." in done.stderr


@pytest.mark.behaviour(33)
def test_the_golden_picture_of_a_checkpoint_is_torchs(tmp_path: Path, device: Any) -> None:
    pytest.importorskip("onnxscript")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = generator_from_config(GeneratorConfig("resnet_1blocks", ngf=4)).eval()
    torch.save(network.state_dict(), tmp_path / "latest_net_G.pth")
    bundle = export_bundle(
        tmp_path / "latest_net_G.pth",
        tmp_path / "b",
        target="jetson-thor",
        opt_shape=(2, 20, 16),
        verify=False,
    )
    card = json.loads((bundle / "card.json").read_text())
    assert card["model"]["precision"] == "fp16"
    assert card["golden"]["computed_by"] == "torch in fp32 from the checkpoint"
    shape = card["golden"]["shape"]
    assert shape == [2, 20, 16, 3]
    sent = torch.from_numpy(np.fromfile(bundle / "golden_input.bin", np.uint8).reshape(shape))
    golden = np.fromfile(bundle / "golden_output.bin", np.uint8).reshape(shape)
    with torch.inference_mode():
        drawn = network(sent.permute(0, 3, 1, 2).float() / 127.5 - 1).permute(0, 2, 3, 1)
    expected = ((drawn.double() + 1) * 127.5 + 0.5).floor().clamp(0, 255).numpy()
    assert parity(golden, expected.astype(np.uint8)).reaches("exact")
    assert open_model(bundle / "model.onnx").card.precision == "fp16"


# Through the command


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["export", *(str(word) for word in words)])


def test_the_command_writes_a_bundle_for_the_size_it_was_trained_at(tmp_path: Path) -> None:
    model = generators.invert(tmp_path / "invert.onnx", trained_size="32")
    done = run(model, tmp_path / "b", "--bundle", "generic")
    assert done.exit_code == 0, done.output
    assert "engine will take frames of 1,32,32 (N,H,W); --opt-shape for others" in done.output
    assert "b: a bundle for a machine with an NVIDIA GPU; README.txt says how" in done.output
    assert "invert.onnx: is taken as it is, so the engine will compute in fp32; give" in done.output
    done = run(model, tmp_path / "asked", "--bundle", "generic", "--precision", "fp32")
    assert done.exit_code == 0, done.output
    assert "taken as it is" not in done.output
    done = run(model, tmp_path / "b", "--bundle", "generic", "--opt-shape", "1,8,8")
    assert done.exit_code == 1
    assert "it exists already; pass -y" in done.output
    done = run(model, tmp_path / "b", "--bundle", "generic", "--opt-shape", "1,8,8", "-y")
    assert done.exit_code == 0, done.output
    card = json.loads((tmp_path / "b" / "card.json").read_text())
    assert card["shapes"]["max"] == [1, 8, 8, 3]
    done = run(model, tmp_path / "c", "--bundle", "generic", "--precision", "fp16")
    assert done.exit_code == 1
    assert "is fp32 and fp16 was asked for; give the checkpoint" in done.output
    done = run(model, tmp_path / "c", "--bundle", "generic", "--half-norm")
    assert done.exit_code == 1
    assert "is fp32 and --half-norm was asked for; give the checkpoint" in done.output
    done = run(model, tmp_path / "c", "--bundle", "generic", "--version-compatible")
    assert done.exit_code == 2
    assert "--version-compatible: for an engine only" in done.output
    done = run(model, tmp_path / "c.onnx", "--min-shape", "1,16,16")
    assert done.exit_code == 2
    assert "--min-shape: for an engine or a bundle; let OUTPUT end in .engine" in done.output


def test_messages_name_the_file_in_the_bundle_and_never_the_temporary_folder(
    tmp_path: Path,
) -> None:
    sentences: list[str] = []
    export_bundle(
        generators.foreign(tmp_path / "f.onnx"),
        tmp_path / "b",
        target="generic",
        precision="fp32",
        say=sentences.append,
    )
    assert f"{tmp_path / 'b' / 'model.onnx'}: fp32, 0.0 MB, exact: " in "\n".join(sentences)
    assert ".partial" not in "\n".join(sentences)
    free = generators.invert(tmp_path / "free.onnx", multiple_of="4")
    with pytest.raises(ModelError, match=r"opt-shape 1,9,9: .*free\.onnx does not accept it"):
        export_bundle(free, tmp_path / "c", target="generic", opt_shape=(1, 9, 9))


def test_a_folder_of_something_else_is_never_overwritten_errors(tmp_path: Path) -> None:
    model = generators.invert(tmp_path / "invert.onnx")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no bundle, so it is not overwritten"):
        export_bundle(model, tmp_path / "b", target="generic", overwrite=True)
    with pytest.raises(OutputError, match="does not exist; create it first"):
        export_bundle(model, tmp_path / "none" / "b", target="generic")
    assert (tmp_path / "b" / "thesis.txt").read_text() == "mine"


def test_what_a_device_cannot_use_is_refused_and_leaves_nothing_errors(tmp_path: Path) -> None:
    model = generators.invert(tmp_path / "invert.onnx")
    proto = onnx.load(model)
    proto.opset_import[0].version = 21
    onnx.save(proto, tmp_path / "new.onnx")
    with pytest.raises(ModelError, match=r"opset 21, and JetPack 6 .* reads up to 20"):
        export_bundle(tmp_path / "new.onnx", tmp_path / "b", target="jetson-orin")
    deep = generators.invert(tmp_path / "deep.onnx", "float16")
    with pytest.raises(ModelError, match="takes uint8 pixels, and float16 was found"):
        export_bundle(deep, tmp_path / "b", target="generic")
    with pytest.raises(ContradictionError, match="generic sets --io uint8, and --io float16"):
        export_bundle(tmp_path / "g.pth", tmp_path / "b", target="generic", io="float16")
    with pytest.raises(ModelError, match="does not lie between"):
        export_bundle(
            model, tmp_path / "b", target="generic", opt_shape=(1, 9, 9), max_shape=(1, 8, 8)
        )
    assert not (tmp_path / "b").exists()
    assert not list(tmp_path.glob(".*"))
