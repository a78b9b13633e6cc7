"""A bundle for another program is verified in it, or in a stand-in with the rules of its source."""

from __future__ import annotations

import ast
import configparser
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import onnxruntime
from cyclegan_export import ExportOptions, edge, export, export_bundle, export_onnx, verify
from cyclegan_export import bundle as bundling
from cyclegan_export import onnx_export as exporting
from cyclegan_export.hosts import HOSTS

from cyclegan_batch import cli
from cyclegan_batch.errors import ContradictionError, ModelError
from cyclegan_batch.frames import geometry
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import natural_frames
from tests.needs import VAPOURSYNTH
from tests.synthesis import generators

SIDE = 32


@pytest.fixture(autouse=True)
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the golden frames be small, as those of a generator that was trained so."""
    for module in (bundling, exporting):
        monkeypatch.setattr(module, "USUAL_SIZE", SIDE)


def bundle_of(folder: Path, target: Any, **options: Any) -> Path:
    """Write a bundle of a small resnet, from a foreign ONNX as the command would."""
    source = generators.foreign_resnet(folder / "f.onnx", fixed=options.pop("fixed", None))
    return export_bundle(source, folder / target, target=target, **options)


def verified(bundle: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the bundle's script; -I and -S hide the packages that are installed here."""
    command = [sys.executable, "-I", "-S", str(bundle / "verify.py"), *words]
    return subprocess.run(
        command, env=environment, cwd="/", capture_output=True, text=True, check=False
    )


# FFmpeg

FFMPEG = """
import os, sys
import numpy as np, onnxruntime
words = sys.argv[1:]
def after(flag, last=False):
    places = [n for n, word in enumerate(words) if word == flag]
    return words[places[-1 if last else 0] + 1]
width, height = map(int, after("-s").split("x"))
assert (after("-i"), words[-1]) == ("pipe:0", "pipe:1")
pixels = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(-1, height, width, 3)
crop, pixel_format, network = after("-vf").split(",")
step = int(crop.partition("*")[2].partition(":")[0])
assert crop == f"crop=trunc(iw/{step})*{step}:trunc(ih/{step})*{step}"
pixels = pixels[:, :height // step * step, :width // step * step]
assert pixel_format == "format=rgb24"
name, _, options = network.partition("=")
assert name == "dnn_processing"
options = dict(each.split("=") for each in options.split(":"))
# dnn_processing's own options, those of all backends, and that of onnx
known = {"dnn_backend", "model", "input", "output", "nireq", "async", "device", "device_id"}
assert options.keys() <= known | {"threads_per_operation"}
assert options["dnn_backend"] == "onnx"
session = onnxruntime.InferenceSession(options["model"])
(taken,) = session.get_inputs()
if taken.type != "tensor(float)":
    sys.exit("Unsupported input tensor data type, only float is supported")
assert taken.name == options["input"]
assert len(taken.shape) == 4 and taken.shape[1] == 3
if isinstance(taken.shape[0], int) and taken.shape[0] > 1:
    sys.exit("ONNX model has fixed batch size")
assert options["output"] in [each.name for each in session.get_outputs()]
out = []
for frame in pixels:
    planes = (frame.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None]
    (y,) = session.run([options["output"]], {options["input"]: np.ascontiguousarray(planes)})
    assert y.dtype == np.float32 and y.ndim == 4
    y = np.clip(np.rint(y[0].transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)
    out.append(y if os.environ.get("FAKE") != "wrong" else 255 - y)
sys.stdout.buffer.write(np.stack(out).tobytes())
"""
"""A stand-in for FFmpeg with the rules of libavfilter/dnn/dnn_backend_onnx.c and dnn_io_proc.c
(1ae4048): what it refuses, and how the pixels of rgb24 become planes and back."""


@pytest.fixture
def ffmpeg(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which the stand-in is FFmpeg."""
    place = tmp_path / "bin" / "ffmpeg"
    place.parent.mkdir()
    place.write_text(f"#!{sys.executable}\n{FFMPEG}")
    place.chmod(0o755)
    return {"PATH": str(place.parent)}


@pytest.mark.behaviour(50)
def test_a_bundle_for_ffmpeg_passes_by_the_rules_of_its_source(tmp_path, ffmpeg):
    bundle = bundle_of(tmp_path, "ffmpeg")
    assert open_model(bundle / "model.onnx").card.planar == "nchw-float32"
    done = verified(bundle, **ffmpeg)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the output matches the golden frames: ")
    wrong = verified(bundle, FAKE="wrong", **ffmpeg)
    assert wrong.returncode == 1
    assert "differs from the golden frames" in wrong.stderr
    # A file of pixels is what FFmpeg refuses.
    pixels = export_onnx(tmp_path / "f.onnx", tmp_path / "u.onnx").path.read_bytes()
    card = json.loads((bundle / "card.json").read_text())
    (bundle / "model.onnx").write_bytes(pixels)
    assert "is not the file of this bundle" in verified(bundle, **ffmpeg).stderr
    card["onnx_sha256"] = open_model(tmp_path / "u.onnx").card.digest
    (bundle / "card.json").write_text(json.dumps(card))
    assert "only float is supported" in verified(bundle, **ffmpeg).stderr


def test_libswscale_converts_between_bytes_and_floats_as_the_stand_in_does():
    """FFmpeg's filter lets it, as gray and grayf32; halves are the only ties."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    frame = av.VideoFrame.from_ndarray(levels, format="gray").reformat(format="grayf32le")
    floats = np.frombuffer(bytes(frame.planes[0]), np.float32).reshape(16, -1)[:, :16]
    assert np.abs(floats - levels / np.float32(255)).max() < 1e-7
    for more in (0.0, 0.3, 0.49, 0.51, 0.7):
        values = (np.minimum(levels + more, 255) / 255).astype(np.float32)
        frame = av.VideoFrame(16, 16, "grayf32le")
        rows = np.zeros((16, frame.planes[0].line_size // 4), np.float32)
        rows[:, :16] = values
        frame.planes[0].update(rows.tobytes())
        back = np.frombuffer(bytes(frame.reformat(format="gray").planes[0]), np.uint8)
        assert np.array_equal(back.reshape(16, -1)[:, :16], np.rint(values * 255))


def lost(bundle: Path, name: str, content: bytes | None) -> None:
    """Replace a file of a bundle, or remove it."""
    (bundle / name).unlink()
    if content is not None:
        (bundle / name).write_bytes(content)


@pytest.mark.behaviour(50)
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("filter.txt", None, "filter.txt cannot be read"),
        ("filter.txt", b"\xe9", "filter.txt cannot be read"),
        ("golden_output.bin", None, "golden_output.bin cannot be read"),
        ("card.json", None, "card.json cannot be read"),
        ("card.json", b"[]", "card.json is not that of a bundle"),
        ("card.json", b'{"target": "obs"}', "card.json is not that of a bundle"),
    ],
)
def test_a_damaged_bundle_is_one_clear_line_errors(tmp_path, ffmpeg, name, content, told):
    bundle = bundle_of(tmp_path, "ffmpeg")
    lost(bundle, name, content)
    done = verified(bundle, **ffmpeg)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert told in done.stderr
    assert done.stderr.rstrip().endswith("copy the whole bundle again")


def test_a_damaged_script_of_vapoursynth_is_one_clear_line_errors(tmp_path):
    """Before a clip is made, so that a stand-in for VapourSynth need not compute."""
    bundle = bundle_of(tmp_path, "vapoursynth")
    fake = "class Any:\n    def __getattr__(self, name): return self\n"
    fake += "    def __call__(self, *words, **named): return self\n"
    fake += "core = Any()\nRGB24 = 0\nclass Error(Exception): pass\n"
    (tmp_path / "vapoursynth.py").write_text(fake)
    lost(bundle, "translate.vpy", b"deff translated(clip):")
    done = subprocess.run(
        [sys.executable, "-S", bundle / "verify.py"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "translate.vpy does not run (SyntaxError" in done.stderr


def test_verifying_leaves_nothing_in_a_bundle_for_ffmpeg(tmp_path, ffmpeg):
    """So that it may lie where its user may not write; what is due comes and goes by pipes."""
    bundle = bundle_of(tmp_path, "ffmpeg")
    before = sorted(bundle.iterdir())
    assert verified(bundle, **ffmpeg).returncode == 0
    assert sorted(bundle.iterdir()) == before


def test_without_its_host_a_bundle_says_what_is_missing_errors(tmp_path):
    for target, name in (("ffmpeg", "ffmpeg"), ("deepstream", "gst-launch-1.0")):
        done = verified(bundle_of(tmp_path, target), PATH="/nowhere")
        assert done.returncode == 1
        assert f"{name} is not found; this bundle needs" in done.stderr
    done = verified(bundle_of(tmp_path, "vapoursynth"), PATH="/nowhere")
    assert "run this with the Python that VapourSynth is installed in" in done.stderr
    done = verified(bundle_of(tmp_path, "triton"), "http://127.0.0.1:9")
    assert "does not answer as Triton does" in done.stderr
    assert "start its server first, as README.txt says" in done.stderr
    done = verified(tmp_path / "triton", "localhost:9")
    assert done.stderr == (
        "Error: localhost:9 is no address of a server; give one like http://localhost:8000\n"
    )
    done = verified(tmp_path / "triton", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "python3 verify.py [URL]" in done.stdout


# VapourSynth


@pytest.mark.behaviour(50)
@pytest.mark.needs("vapoursynth")
def test_a_bundle_for_vapoursynth_passes_in_it(tmp_path):
    bundle = bundle_of(tmp_path, "vapoursynth")
    done = subprocess.run(
        [VAPOURSYNTH, bundle / "verify.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the output matches the golden frames: " in done.stdout


@pytest.mark.needs("vapoursynth")
@pytest.mark.parametrize("fixed", [None, (32, 40)])
def test_vapoursynth_pads_as_translate_does(tmp_path, fixed):
    """Odd sizes, and sizes below the network's minimum, are reflected at the same edges."""
    bundle = bundle_of(tmp_path, "vapoursynth", fixed=fixed)
    card = json.loads((bundle / "card.json").read_text())
    size = fixed or (21, 3)
    frames = natural_frames(size, 1)
    model = open_model(bundle / "model.onnx")
    fit = geometry(size, model.card.sizes)
    network = generators.run(model.graph, fit.into_network(frames[0])[np.newaxis])[0]
    expected = fit.out_of_network(network)
    for which, pixels in (("input", frames), ("output", expected[np.newaxis])):
        (bundle / card["golden"][which]).write_bytes(np.ascontiguousarray(pixels).tobytes())
        card["golden"][which + "_sha256"] = verify.hashlib.sha256(
            np.ascontiguousarray(pixels).tobytes()
        ).hexdigest()
    card["golden"]["shape"] = list(frames.shape)
    (bundle / "card.json").write_text(json.dumps(card))
    done = subprocess.run(
        [VAPOURSYNTH, bundle / "verify.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# Triton


class Triton(http.server.BaseHTTPRequestHandler):
    """A stand-in for Triton's server: KServe's protocol with the extension for binary tensors."""

    def do_POST(self) -> None:
        name = self.path.removeprefix("/v2/models/").removesuffix("/infer")
        repository: Path = self.server.repository  # type: ignore[attr-defined]
        length = int(self.headers["Inference-Header-Content-Length"])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = json.loads(body[:length])
        (sent,), (wanted,) = head["inputs"], head["outputs"]
        pixels = np.frombuffer(body[length:], sent["datatype"].lower()).reshape(sent["shape"])
        assert sent["parameters"]["binary_data_size"] == pixels.nbytes
        session = onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")
        (out,) = session.run([wanted["name"]], {sent["name"]: pixels})
        described = {
            "name": wanted["name"],
            "datatype": "UINT8",
            "shape": list(out.shape),
            "parameters": {"binary_data_size": out.nbytes},
        }
        answer = json.dumps({"model_name": name, "outputs": [described]}).encode()
        self.send_response(200)
        self.send_header("Inference-Header-Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer + out.tobytes())

    def log_message(self, *words: object) -> None:
        """Be quiet."""


@pytest.fixture
def triton() -> Iterator[Any]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Triton)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.behaviour(50)
def test_a_bundle_for_triton_passes_by_its_protocol(tmp_path, triton):
    bundle = bundle_of(tmp_path, "triton")
    triton.repository = bundle / "models"
    done = verified(bundle, f"http://127.0.0.1:{triton.server_port}/")
    assert done.returncode == 0, done.stderr
    assert "the output matches the golden frames: " in done.stdout


@pytest.mark.behaviour(50)
@pytest.mark.needs("tritonclient")
@pytest.mark.parametrize(
    ("fixed", "most", "dims", "warm"),
    [(None, 8, [-1, -1, 3], [32, 32, 3]), ((32, 40), 8, [32, 40, 3], [32, 40, 3])],
)
def test_tritons_own_messages_read_its_configuration(tmp_path, fixed, most, dims, warm):
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    bundle = bundle_of(tmp_path, "triton", fixed=fixed)
    text = (bundle / "models" / "generator" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert (config.name, config.platform) == ("generator", "onnxruntime_onnx")
    assert config.max_batch_size == most
    for end, name in ((config.input[0], "frames"), (config.output[0], "translated")):
        assert (end.name, end.data_type) == (name, model_config_pb2.TYPE_UINT8)
        assert list(end.dims) == dims
    (warmup,) = config.model_warmup
    assert list(warmup.inputs["frames"].dims) == warm


# DeepStream

PUBLISHED = """
gie-unique-id process-mode interval labelfile-path gpu-id secondary-reinfer-interval
output-tensor-meta enable-dla use-dla-core batch-size tensor-meta-pool-size network-mode
model-engine-file int8-calib-file workspace-size output-blob-names is-classifier network-type
force-implicit-batch-dim infer-dims output-io-formats layer-device-precision model-color-format
net-scale-factor offsets mean-file maintain-aspect-ratio symmetric-padding scaling-filter
scaling-compute-hw network-input-order input-tensor-from-meta custom-lib-path parse-bbox-func-name
parse-bbox-instance-mask-func-name engine-create-func-name parse-classifier-func-name
custom-network-config model-file proto-file uff-file uff-input-order input-dims uff-input-dims
uff-input-blob-name tlt-encoded-model tlt-model-key onnx-file num-detected-classes enable-dbscan
cluster-mode classifier-type classifier-threshold classifier-async-mode segmentation-threshold
segmentation-output-order output-instance-mask input-object-min-width input-object-min-height
input-object-max-width input-object-max-height operate-on-gie-id operate-on-class-ids
filter-out-class-ids
"""
"""The keys of ``[property]``, as gstnvinfer_property_parser.h names them, which NVIDIA publishes
beside the table "Gst-nvinfer File Configuration Specifications" of its DeepStream guide
(docs.nvidia.com/metropolis/deepstream/dev-guide/text/DS_plugin_gst-nvinfer.html)."""

GST_LAUNCH = """
import configparser, sys
import numpy as np, onnxruntime
stages = [stage.split() for stage in " ".join(sys.argv[2:]).split(" ! ")]
named = {
    stage[0]: dict(each.split("=", 1) for each in stage[1:] if "=" in each) for stage in stages
}
raw, infer = named["rawvideoparse"], named["nvinfer"]
width, height = int(raw["width"]), int(raw["height"])
frame = np.fromfile(named["filesrc"]["location"], np.uint8).reshape(height, width, 3)
file = configparser.ConfigParser()
file.read(infer["config-file-path"])
settings = file["property"]
assert settings["infer-dims"] == f"3;{height};{width}" and settings["model-color-format"] == "0"
offsets = np.array([float(each) for each in settings["offsets"].split(";")])
x = (float(settings["net-scale-factor"]) * (frame - offsets)).astype(np.float32)
session = onnxruntime.InferenceSession(settings["onnx-file"])
(out,) = session.run([settings["output-blob-names"]], {"frames": x.transpose(2, 0, 1)[None]})
assert infer["raw-output-file-write"] == "1"
uid = int(settings["gie-unique-id"])
out.tofile(f"gstnvdsinfer_uid-{uid:02d}_layer-translated_batch-{0:010d}_batchsize-01.bin")
"""
"""A stand-in for gst-launch with nvinfer's arithmetic ("The pre-processing function is: y = net
scale factor*(x-mean)") and its name for the file of a tensor."""


@pytest.mark.behaviour(50)
@pytest.mark.parametrize(
    ("shape", "dims"), [(None, "3;32;32"), ((1, 48, 64), "3;48;64")], ids=["trained", "asked"]
)
def test_nvinfers_keys_are_published_and_its_tensor_is_compared(tmp_path, shape, dims):
    bundle = bundle_of(tmp_path, "deepstream", opt_shape=shape)
    settings = configparser.ConfigParser()
    settings.read(bundle / "config_infer.txt")
    assert settings.sections() == ["property"]
    assert set(settings["property"]) <= set(PUBLISHED.split())
    assert settings["property"]["infer-dims"] == dims
    assert settings["property"]["network-type"] == "100"
    assert settings["property"]["output-tensor-meta"] == "1"
    assert float(settings["property"]["net-scale-factor"]) == pytest.approx(1 / 255)
    place = tmp_path / "bin" / "gst-launch-1.0"
    place.parent.mkdir()
    place.write_text(f"#!{sys.executable}\n{GST_LAUNCH}")
    place.chmod(0o755)
    done = verified(bundle, PATH=str(place.parent))
    assert done.returncode == 0, done.stderr
    assert "the output matches the golden frames: " in done.stdout


# All of them


@pytest.mark.parametrize("target", HOSTS)
def test_a_bundle_says_what_has_not_run_it(tmp_path, target):
    """With a file of fixed size, too, whose script is Python."""
    bundle = bundle_of(tmp_path, target, fixed=(32, 40))
    for script in bundle.glob("*.vpy"):
        ast.parse(script.read_text())
    lines = (bundle / "README.txt").read_text().splitlines()
    assert len(lines) == 3
    assert HOSTS[target].run in lines[1]
    card = json.loads((bundle / "card.json").read_text())
    assert card["target"] == target
    assert str(tmp_path) not in (bundle / "card.json").read_text()
    onnx.checker.check_model(bundle / card["onnx"])


def test_the_script_needs_an_old_python_and_its_library_only():
    text = Path(verify.__file__).read_text()
    tree = ast.parse(text, feature_version=(3, 8))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else
                     [each.name for each in node.names])
    }  # fmt: skip
    assert imported <= sys.stdlib_module_names | {"__future__"}
    values, expected = bytes(range(200)), bytes(range(1, 201))
    assert verify.difference(values, expected) == edge.difference(list(values), expected)


def test_what_a_host_does_not_take_is_refused_errors(tmp_path):
    with pytest.raises(ContradictionError, match="--bundle triton sets --io uint8, and --io nchw"):
        bundle_of(tmp_path, "triton", io="nchw-float32")
    with pytest.raises(ContradictionError, match="FFmpeg takes frames of any size; leave the"):
        bundle_of(tmp_path, "ffmpeg", opt_shape=(1, 32, 32))
    with pytest.raises(ContradictionError, match="DeepStream takes one size, which --opt-shape"):
        bundle_of(tmp_path, "deepstream", max_shape=(1, 32, 32))
    with pytest.raises(ContradictionError, match=r"2,32,32: DeepStream gives .* let N be 1"):
        bundle_of(tmp_path, "deepstream", opt_shape=(2, 32, 32))
    pixels = generators.invert(tmp_path / "u.onnx")
    with pytest.raises(ModelError, match=r"u\.onnx: takes uint8, and FFmpeg takes nchw-float32"):
        export_bundle(pixels, tmp_path / "b", target="ffmpeg")
    with pytest.raises(ModelError, match="int8"):
        bundle_of(tmp_path, "ffmpeg", precision="int8")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["f.onnx", "u.onnx"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shape": (1, 32, 32)}, "--shape 1,32,32"),
        ({"calibrate": Path("x")}, "--calibrate"),
        ({"for_": "tensorrt"}, "--for"),
        ({"model_io": "nchw"}, "--model-io"),
    ],
)
def test_what_would_change_a_finished_file_is_refused_errors(tmp_path, options, told):
    finished = generators.invert(tmp_path / "u.onnx")
    with pytest.raises(ModelError, match=f"inside the contract already and {told} was asked for"):
        export_bundle(finished, tmp_path / "b", target="generic", **options)


def test_a_planar_file_of_two_frames_is_not_for_ffmpeg_errors(tmp_path):
    source = generators.foreign(tmp_path / "f.onnx", fixed=(32, 32), batch=2)
    with pytest.raises(ModelError, match="takes 2 frames at a time, and FFmpeg gives it one"):
        export_bundle(source, tmp_path / "b", target="ffmpeg")
    planar = export_onnx(source, tmp_path / "p.onnx", io="nchw-float32").path
    with pytest.raises(ModelError, match="the bundle of a device takes uint8 pixels, and nchw-fl"):
        export_bundle(planar, tmp_path / "b", target="generic")


def test_the_command_writes_a_bundle_from_a_planar_file(tmp_path):
    source = generators.foreign(tmp_path / "f.onnx", fixed=(32, 32))
    planar = export_onnx(source, tmp_path / "p.onnx", io="nchw-float32").path
    export(planar, tmp_path / "b", ExportOptions(bundle="vapoursynth"))
    assert (tmp_path / "b" / "model.onnx").read_bytes() == planar.read_bytes()
    words = ["export", str(source), str(tmp_path / "c"), "--bundle", "ffmpeg", "--io", "float16"]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 2
    assert "--bundle ffmpeg sets --io nchw-float32, and --io float16 was given" in done.output
