"""onnxruntime on WebGPU, with a stand-in: what it is given, what it refuses, and what is told."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch import TranslateOptions, bench, doctor, translate
from cyclegan_batch.backends import expected_backend, onnxruntime_webgpu, open_backend
from cyclegan_batch.errors import (
    BackendError,
    BackendUnavailableError,
    ModelError,
    OutOfMemoryError,
)
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.model import Model
from cyclegan_batch.wording import grouped
from tests.needs import need
from tests.synthesis import generators
from tests.synthesis.fake_onnxruntime import FakeOptions, FakeRunOptions
from tests.synthesis.generators import natural
from tests.test_doctor import installed


class WebGpu:
    """What happened to the stand-in, and what shall go wrong."""

    def __init__(self) -> None:
        self.registered: list[tuple[str, str]] = []
        self.refuses: Exception | None = None
        self.fails: Exception | None = None
        hardware = SimpleNamespace(vendor_id=0x1002, device_id=0x744C)
        self.devices = [
            SimpleNamespace(ep_name="CPUExecutionProvider", device=None),
            SimpleNamespace(ep_name="WebGpuExecutionProvider", device=hardware),
        ]
        self.off_by = 0
        self.on_cpu: tuple[str, ...] = ()
        self.compared = 0

    def register(self, name: str, library: str) -> None:
        if self.refuses is not None:
            raise self.refuses
        assert (name, library) not in self.registered, "onnxruntime refuses a second time"
        self.registered.append((name, library))


@pytest.fixture
def webgpu(monkeypatch: pytest.MonkeyPatch) -> WebGpu:
    """Replace the installed onnxruntime by a stand-in with WebGPU, which computes identity."""
    state = WebGpu()

    class Options(FakeOptions):
        def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
            assert ([each.ep_name for each in devices], options) == (
                ["WebGpuExecutionProvider"],
                {},
            )
            self.on_gpu = True

    class Session:
        def __init__(
            self, graph: bytes, options: Any, providers: Any = None, enable_fallback: int = 1
        ) -> None:
            assert enable_fallback == 0
            self.on_gpu = hasattr(options, "on_gpu")
            assert self.on_gpu == (providers is None)
            state.compared += not self.on_gpu
            if self.on_gpu and state.fails is not None:
                raise state.fails
            assert not self.on_gpu or (
                options.entries["session.record_ep_graph_assignment_info"] == "1"
            )

        def get_provider_graph_assignment_info(self) -> list[Any]:
            nodes = [SimpleNamespace(op_type=kind) for kind in state.on_cpu]
            return [
                SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes),
                SimpleNamespace(
                    ep_name="WebGpuExecutionProvider",
                    get_nodes=lambda: [SimpleNamespace(op_type="Conv")] * 9,
                ),
            ]

        def run(self, names: list[str], feed: dict[str, Pixels], options: Any = None) -> Any:
            return [feed["frames"] + np.uint8(state.off_by * self.on_gpu)] * len(names)

    fake = SimpleNamespace(
        __version__="1.0",
        InferenceSession=Session,
        SessionOptions=Options,
        RunOptions=FakeRunOptions,
        register_execution_provider_library=state.register,
        get_ep_devices=lambda: state.devices,
    )
    provider = SimpleNamespace(
        get_library_path=lambda: "/site/webgpu.so", get_ep_name=lambda: "WebGpuExecutionProvider"
    )
    stands_in = {"onnxruntime": fake, "onnxruntime_ep_webgpu": provider}
    really = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        return stands_in[name] if name in stands_in else really(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
    onnxruntime_webgpu._register.cache_clear()
    return state


def test_an_onnx_runs_on_the_gpu_and_is_compared_with_the_cpu_once(
    resnet: Model, webgpu: WebGpu, tmp_path: Path
) -> None:
    said: list[str] = []
    compared = []
    for _ in range(2):
        opened = open_backend(resnet, device="webgpu", cache_dir=tmp_path, say=said.append)
        assert (opened.name, opened.device, opened.precision) == ("onnxruntime", "webgpu", "fp32")
        assert opened.notes == ()
        frames = natural((64, 64), 2)
        np.testing.assert_array_equal(opened.fork().infer(frames), frames)
        opened.close()
        compared.append(webgpu.compared)
    assert compared[0] == compared[1] > 0
    (sentence,) = said
    assert sentence.startswith("resnet.onnx: on webgpu in fp32 against the CPU it is exact")
    assert webgpu.registered == [("webgpu", "/site/webgpu.so")]
    webgpu.devices[1].device.device_id = 0x1586
    open_backend(resnet, device="webgpu", cache_dir=tmp_path)
    assert webgpu.compared > compared[1], "each GPU has a verdict of its own"


@pytest.mark.behaviour(33)
def test_another_picture_is_not_accepted_errors(
    resnet: Model, webgpu: WebGpu, tmp_path: Path
) -> None:
    webgpu.off_by = 2
    match = r"on GPU 1002:744c, against the CPU: .* where exact is expected .*; pass --device cpu"
    with pytest.raises(ModelError, match=match):
        open_backend(resnet, device="webgpu", cache_dir=tmp_path)


def test_nodes_that_stay_on_the_cpu_are_told(resnet: Model, webgpu: WebGpu, tmp_path: Path) -> None:
    webgpu.on_cpu = ("Pad", "Pad")
    (note,) = grouped(open_backend(resnet, device="webgpu", cache_dir=tmp_path).notes)
    assert "1.0 computes 2 of 11 nodes (2 Pad) on the CPU instead of webgpu" in note


def test_without_the_wheel_or_a_gpu_it_is_one_line_errors(
    resnet: Model, webgpu: WebGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def says(error: type[BackendError], match: str) -> None:
        onnxruntime_webgpu._register.cache_clear()
        webgpu.registered.clear()
        with pytest.raises(error, match=match):
            open_backend(resnet, device="webgpu")

    webgpu.fails = RuntimeError("Failed to get a WebGPU adapter\nmore")
    says(BackendError, r"resnet\.onnx on WebGPU: Failed to get a WebGPU adapter; update its driver")
    half = replace(resnet, card=replace(resnet.card, precision="fp16"))
    webgpu.fails = RuntimeError("Program Transpose requires f16 but the device has none")
    with pytest.raises(
        BackendError, match=r"requires f16 .*; use a file in fp32, or pass --device"
    ):
        open_backend(half, device="webgpu")
    webgpu.fails = RuntimeError("bad allocation")
    says(OutOfMemoryError, "no memory on webgpu")
    webgpu.refuses = RuntimeError("libvulkan.so.1: cannot open shared object file")
    says(BackendUnavailableError, r"does not load its provider for WebGPU: libvulkan\.so\.1.*1\.24")
    webgpu.refuses = None
    del webgpu.devices[1]
    says(BackendUnavailableError, r"finds no GPU for WebGPU .* or pass --device cpu")
    before = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name == "onnxruntime_ep_webgpu":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return before(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    says(BackendUnavailableError, r'pip install "cyclegan-batch\[webgpu\]"')


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backend": "openvino"}, "only onnxruntime computes on webgpu"),
        ({"backend": "torch"}, "only onnxruntime computes on webgpu"),
        ({"precision": "tf32"}, r"resnet\.onnx: is fp32, and webgpu computes a file .* as it is"),
        ({"precision": "bf16"}, "as it is; leave --precision out"),
        ({"device": "webgpu:1"}, r"no device 'webgpu:1': it is auto, cpu, cuda\[:N\] or webgpu"),
    ],
)
def test_what_does_not_run_there_is_refused_errors(
    resnet: Model, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(BackendError, match=match):
        open_backend(resnet, **{"device": "webgpu"} | options)


def test_int8_and_checkpoints_are_refused_errors(resnet: Model) -> None:
    int8 = replace(resnet, card=replace(resnet.card, precision="int8"))
    with pytest.raises(BackendError, match="is int8, and webgpu computes a file in fp32 or fp16"):
        open_backend(int8, device="webgpu")
    checkpoint: Any = replace(resnet, checkpoint=SimpleNamespace())
    with pytest.raises(BackendError, match="is a checkpoint, and webgpu runs ONNX; export it"):
        open_backend(checkpoint, device="webgpu")


def test_auto_never_takes_it_and_a_plan_knows_it(resnet: Model, webgpu: WebGpu) -> None:
    need("onnxruntime")
    assert open_backend(resnet).device == "cpu"
    found = expected_backend(resnet, backend="auto", device="webgpu", precision="auto")
    assert found == ("onnxruntime", "webgpu", "fp32")
    half = replace(resnet, card=replace(resnet.card, precision="fp16"))
    found = expected_backend(half, backend="onnxruntime", device="webgpu", precision="auto")
    assert found == ("onnxruntime", "webgpu", "fp16")


def test_a_job_on_it_is_recorded_and_known_again(tmp_path: Path, webgpu: WebGpu) -> None:
    need("onnxruntime")
    model = generators.identity(tmp_path / "identity.onnx")
    (tmp_path / "in").mkdir()
    picture = natural((16, 24))[0]
    Image.fromarray(picture).save(tmp_path / "in" / "a.png")
    options: Any = {"model": model, "device": "webgpu", "cache_dir": tmp_path / "cache"}
    report = translate(tmp_path / "in", tmp_path / "out", **options)
    plan = report.record
    assert (plan["device"], plan["precision"]) == ("webgpu", "fp32")
    assert plan["batch_size"] == 1
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")), picture)
    again = translate(tmp_path / "in", tmp_path / "out", **options)
    assert again.up_to_date == (tmp_path / "out" / "a.png",)


def test_options_that_contradict_it_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runner ray takes CPUs or NVIDIA GPUs"):
        TranslateOptions(device="webgpu", runner="ray")
    with pytest.raises(ValueError, match="device contradict"):
        TranslateOptions(device="webgpu", gpus="0,1")
    with pytest.raises(BackendError, match="bench measures CPUs and NVIDIA GPUs"):
        bench.measure(tmp_path / "a.onnx", None, TranslateOptions(device="webgpu"))


@pytest.mark.behaviour(36)
def test_doctor_tries_it(webgpu: WebGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, onnxruntime_ep_webgpu="0.4.0")

    def said() -> str:
        return "\n".join(doctor.lines(doctor.examine()))

    assert "onnxruntime-ep-webgpu 0.4.0: experimental, GPU 1002:744c" in said()
    del webgpu.devices[1]
    assert "onnxruntime-ep-webgpu 0.4.0: experimental, onnxruntime finds no GPU for" in said()
