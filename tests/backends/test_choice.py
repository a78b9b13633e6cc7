"""Which backend and device `open_backend` takes, what it refuses, and the verdicts on GPUs."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from cyclegan_batch.backends import (
    MEASURED_ON_GPU,
    ONNX_BACKENDS,
    Backend,
    default_contexts,
    expected_backend,
    open_backend,
)
from cyclegan_batch.errors import BackendError, BackendUnavailableError, ModelError
from cyclegan_batch.models.model import Model, open_model
from cyclegan_batch.wording import grouped
from tests.backends.conftest import TF32, measured, without
from tests.conftest import REPOSITORY
from tests.needs import need
from tests.synthesis import generators
from tests.synthesis.fake_onnxruntime import FakeSession


@pytest.mark.behaviour(31)
def test_auto_takes_openvino_then_onnxruntime(
    resnet: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openvino")
    need("onnxruntime")
    monkeypatch.setattr("cyclegan_batch.backends.onnxruntime_cuda.nvidia_gpus", lambda: ())
    assert open_backend(resnet).name == "openvino"
    without(monkeypatch, "openvino")
    opened = open_backend(resnet)
    assert (opened.name, opened.notes) == ("onnxruntime", ())


def test_auto_takes_onnxruntime_where_the_norm_is_written_out(tmp_path: Path) -> None:
    need("onnxruntime")
    g = generators.Graph()
    mean = g.op("ReduceMean", "image", axes=[2, 3])
    g.op("Tanh", g.op("Sub", "image", mean), out="picture")
    shape = (1, 3, "H", "W")
    kind = onnx.TensorProto.FLOAT
    g.save(tmp_path / "a.onnx", [("image", kind, shape)], [("picture", kind, shape)])
    assert open_backend(open_model(tmp_path / "a.onnx"), device="cpu").name == "onnxruntime"


def test_auto_goes_on_where_a_runtime_does_not_work_and_says_so(
    resnet: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnxruntime")

    def broken(*_: object, **__: object) -> Backend:
        raise BackendError("openvino does not open it: an operator is missing")

    monkeypatch.setattr("cyclegan_batch.backends.openvino.open_openvino", broken)
    opened = open_backend(resnet, device="cpu")
    assert opened.name == "onnxruntime"
    assert grouped(opened.notes) == (
        "openvino does not open it: an operator is missing; going on with onnxruntime on cpu",
    )
    with pytest.raises(BackendError, match="an operator is missing"):
        open_backend(resnet, backend="openvino")


def outcome(opened: Backend) -> tuple[str, str, str]:
    return opened.name, opened.device, opened.precision


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"backend": "onnxruntime"},
        {"backend": "openvino"},
        {"precision": "fp32"},
        {"backend": "onnxruntime", "device": "cpu", "precision": "fp32"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["fp32", "fp16", "norm", "checkpoint"])
def test_what_opens_is_expected_without_a_runtime(
    kind: str, asked: dict[str, str], resnet: Model, tmp_path: Path
) -> None:
    need(asked.get("backend", "onnxruntime"))
    asked = {"backend": "auto", "device": "auto", "precision": "auto"} | asked
    model = resnet
    if kind == "fp16":
        model = replace(resnet, card=replace(resnet.card, precision="fp16"))
    elif kind == "norm":
        model = replace(resnet)
        vars(model)["norm_written_out"] = True
    elif kind == "checkpoint":
        need("torch")
        from tests.backends.test_torch import checkpoint

        model = open_model(checkpoint(tmp_path / "g.pth"))
    try:
        opened = open_backend(model, **asked)
    except BackendError as error:
        with pytest.raises(BackendError, match=re.escape(str(error))):
            expected_backend(model, **asked)
        return
    assert expected_backend(model, **asked) == outcome(opened)


def test_nothing_is_expected_where_nothing_is_installed(
    resnet: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert expected_backend(resnet, backend="openvino", device="cpu", precision="auto") is None
    expected = expected_backend(resnet, backend="auto", device="cpu", precision="auto")
    assert expected is None or expected.name == "onnxruntime"


@pytest.mark.parametrize(
    ("asked", "precision", "expected"),
    [
        ({"backend": "onnxruntime", "device": "cuda"}, "fp32", ("cuda:0", "tf32")),
        (
            {"backend": "onnxruntime", "device": "cuda:3", "precision": "fp32"},
            "fp32",
            ("cuda:3", "fp32"),
        ),
        ({"backend": "onnxruntime", "device": "cuda:1"}, "fp16", ("cuda:1", "fp16")),
        ({"backend": "torch", "device": "cuda"}, "fp32", ("cuda:0", "tf32")),
        ({"backend": "torch", "device": "cuda", "precision": "bf16"}, "fp32", ("cuda:0", "bf16")),
        ({"backend": "torch", "device": "cuda"}, "fp16", ("cuda:0", "fp16")),
        ({"backend": "tensorrt", "device": "auto"}, "fp32", ("cuda:0", "tf32")),
        ({"backend": "tensorrt", "precision": "fp32"}, "fp32", ("cuda:0", "fp32")),
        ({"device": "cuda:2"}, "int8", ("cuda:2", "int8")),
        ({"backend": "openvino", "precision": "bf16"}, "fp32", ("cpu", "bf16")),
        ({"backend": "openvino"}, "int8", ("cpu", "int8")),
    ],
    ids=str,
)
def test_what_opens_on_a_gpu_is_expected(
    asked: dict[str, str],
    precision: Any,
    expected: tuple[str, str],
    resnet: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ONNX_BACKENDS:
        monkeypatch.setitem(sys.modules, name, sys)
    if asked.get("backend") == "torch":
        need("torch")
    model = replace(resnet, card=replace(resnet.card, precision=precision))
    asked = {"backend": "auto", "device": "auto", "precision": "auto"} | asked
    found = expected_backend(model, **asked)
    name = asked["backend"] if asked["backend"] != "auto" else "tensorrt"
    assert found == (name, *expected)


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_a_missing_package_names_its_extra_errors(
    resnet: Model, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    without(monkeypatch, *ONNX_BACKENDS)
    extra = {"onnxruntime": "cpu"}.get(name, name)
    with pytest.raises(BackendUnavailableError, match=rf'pip install "cyclegan-batch\[{extra}\]"'):
        open_backend(resnet, backend=name)


def test_no_runtime_at_all_names_every_extra_errors(
    resnet: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, *ONNX_BACKENDS)
    with pytest.raises(BackendUnavailableError, match=r"\[openvino\].*\[cpu\].*\[gpu\]"):
        open_backend(resnet)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backend": "tensorflow"}, "no backend 'tensorflow': it is auto or one of onnxruntime"),
        ({"device": "gpu"}, r"no device 'gpu': it is auto, cpu, cuda\[:N\] or webgpu"),
        ({"device": "cuda:x"}, "no device 'cuda:x'"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"precision": "fp16"}, "is fp32 and fp16 was asked for.*a file that was exported in fp16"),
        ({"precision": "int8"}, "is fp32 and int8 was asked for.*a file that was exported in int8"),
        ({"precision": "bf16", "backend": "onnxruntime"}, "cannot compute in bf16"),
        ({"precision": "tf32", "backend": "openvino"}, "tf32 is an arithmetic of NVIDIA GPUs"),
        ({"precision": "tf32", "device": "cpu"}, "tf32 .* was asked for on the CPU; pass --device"),
        ({"backend": "torch", "precision": "int8"}, "torch runs it in fp32, tf32, bf16 or fp16"),
    ],
)
def test_what_no_backend_can_do_errors(resnet: Model, options: dict[str, str], match: str) -> None:
    with pytest.raises(BackendError, match=match):
        open_backend(resnet, **options)  # type: ignore[arg-type]


def test_fp16_of_a_foreign_fp32_file_is_not_sent_to_export_errors(tmp_path: Path) -> None:
    """`export` makes no half precision of a foreign ONNX either."""
    foreign = open_model(generators.foreign_resnet(tmp_path / "a.onnx"))
    with pytest.raises(
        BackendError, match=r"foreign ONNX in fp32.*fp16 where it was trained"
    ) as it:
        open_backend(foreign, precision="fp16")
    assert "cyclegan-batch export" not in str(it.value)


def test_tf32_without_a_gpu_errors(resnet: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cyclegan_batch.backends.nvidia_gpus", lambda: ())
    with pytest.raises(BackendError, match=r"tf32 .* and this machine has none; leave --precision"):
        open_backend(resnet, precision="tf32")


def test_bf16_or_fp32_of_a_half_precision_file_errors(tmp_path: Path) -> None:
    half = open_model(generators.foreign_resnet(tmp_path / "a.onnx", half=True))
    with pytest.raises(BackendError, match="is fp16, and bf16 is a way to run an fp32 file"):
        open_backend(half, precision="bf16")
    with pytest.raises(BackendError, match="is fp16, and tf32 is a way to run an fp32 file"):
        open_backend(half, precision="tf32", device="cuda")
    with pytest.raises(BackendError, match=r"is fp16 and fp32 was asked for"):
        open_backend(half, precision="fp32")


def test_contexts_are_as_many_as_threads_up_to_four_and_two_on_a_gpu() -> None:
    assert [default_contexts("cpu", n) for n in (1, 2, 4, 64)] == [1, 2, 4, 4]
    assert default_contexts("cuda:0", 64) == 2


def test_auto_takes_no_gpu_that_was_not_measured_and_says_how_to(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in ("auto", "onnxruntime"):
        opened = open_backend(resnet, backend=backend)
        assert opened.device == "cpu"
        (note,) = grouped(opened.notes)
        assert note.startswith("H200: is not used, as translating on it has not been measured")
        assert "pass --device cuda" in note
    assert not grouped(open_backend(resnet, device="cpu").notes)
    measured(monkeypatch, ("onnxruntime", "fp16"), ("torch", "tf32"))
    assert open_backend(resnet).device == "cpu"
    measured(monkeypatch, TF32)
    assert open_backend(resnet, precision="fp32").device == "cpu"


def test_what_auto_may_take_on_a_gpu_has_a_row_in_the_results() -> None:
    """A row of a GPU holds the card's name. There is none so far, so `auto` takes no GPU."""
    results = (REPOSITORY / "benchmarks" / "RESULTS.md").read_text()
    for backend, precision in MEASURED_ON_GPU:
        row = rf"\|[^\n]*\b{backend}\b[^\n]*\b{precision}\b[^\n]*\bNVIDIA\b"
        assert re.search(row, results), f"{backend} in {precision}"


def test_auto_takes_the_gpu_where_there_is_one_that_was_measured(
    resnet: Model,
    cuda: type[FakeSession],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured(monkeypatch, TF32)
    opened = open_backend(resnet)
    assert opened.precision == "tf32"
    assert (opened.name, opened.device) == ("onnxruntime", "cuda:0")
    ((name, options),) = cuda.sessions[1].providers
    assert name == "CUDAExecutionProvider"
    assert options["use_tf32"] == "1"
    assert capfd.readouterr().out == ""


def test_fp32_by_name_is_exact_and_the_device_is_the_one_asked_for(
    resnet: Model, cuda: type[FakeSession]
) -> None:
    opened = open_backend(resnet, device="cuda:1", precision="fp32")
    assert (opened.device, opened.precision) == ("cuda:1", "fp32")
    options = cuda.sessions[0].providers[0][1]
    assert (options["use_tf32"], options["device_id"]) == ("0", "1")
    for options in ({"device": "cuda"}, {"device": "cuda", "precision": "tf32"}):
        cuda.sessions.clear()
        opened = open_backend(resnet, **options)  # type: ignore[arg-type]
        assert (opened.device, opened.precision) == ("cuda:0", "tf32")
        assert cuda.sessions[0].providers[0][1]["use_tf32"] == "1"
    # tf32 is an arithmetic of GPUs only, so the precision alone chooses a GPU.
    assert open_backend(resnet, precision="tf32").device == "cuda:0"


@pytest.mark.behaviour(33)
def test_a_picture_on_a_gpu_is_compared_with_the_cpu_once(
    resnet: Model, cuda: type[FakeSession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences: list[str] = []

    def compares(device: str, where: Path = tmp_path, **options: Any) -> bool:
        cuda.sessions.clear()
        open_backend(resnet, device=device, cache_dir=where, say=sentences.append, **options)
        return any(session.providers == ["CPUExecutionProvider"] for session in cuda.sessions)

    assert compares("cuda")
    assert sentences[0].startswith("resnet.onnx: on cuda:0 in tf32 against the CPU it is exact")
    assert not compares("cuda"), "the verdict is kept"
    assert compares("cuda", precision="fp32"), "each arithmetic has a verdict of its own"
    assert compares("cuda:1"), "each GPU has a verdict of its own"
    monkeypatch.setattr("cyclegan_batch.backends.verdicts.nvidia_gpus", lambda: ("B200",))
    assert compares("cuda")
    monkeypatch.setattr(
        "cyclegan_batch.backends.verdicts.installed_versions", lambda names: {"torch": "9"}
    )
    assert compares("cuda")
    assert not compares("cuda")
    for verdict in (tmp_path / "verdicts").iterdir():
        verdict.write_text("{}")
    assert compares("cuda"), "a damaged file is no verdict"
    (tmp_path / "file").touch()
    for _ in range(2):
        assert compares("cuda", tmp_path / "file")


@pytest.mark.behaviour(33)
def test_another_picture_on_a_gpu_is_not_accepted_errors(
    resnet: Model, cuda: type[FakeSession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSession, "off_by", 3)
    for _ in range(2):
        match = r"on H200, against the CPU: .* in tf32 it is none.*; pass --device cpu"
        with pytest.raises(ModelError, match=match):
            open_backend(resnet, device="cuda", cache_dir=tmp_path)
    measured(monkeypatch, TF32)
    opened = open_backend(resnet, cache_dir=tmp_path)
    assert opened.device == "cpu"
    (note,) = grouped(opened.notes)
    assert "in tf32 it is none" in note
    assert "going on with" in note


def test_int8_on_a_gpu_is_for_tensorrt_or_refused_errors(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    int8 = replace(resnet, card=replace(resnet.card, precision="int8"))
    with pytest.raises(BackendError, match=r"no int8 convolutions for NVIDIA GPUs.*tensorrt"):
        open_backend(int8, backend="onnxruntime", device="cuda")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailableError, match=r"cyclegan-batch\[tensorrt\]"):
        open_backend(int8, device="cuda")
    measured(monkeypatch, ("onnxruntime", "fp32"), TF32)
    assert open_backend(int8).device == "cpu"
    assert not any("CUDAExecutionProvider" in str(session.providers) for session in cuda.sessions)


def test_auto_says_that_the_gpu_could_not_be_used(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSession, "first", "CPUExecutionProvider")
    measured(monkeypatch, TF32)
    opened = open_backend(resnet)
    assert opened.device == "cpu"
    assert len(grouped(opened.notes)) == 1
    assert "its CUDA or cuDNN libraries cannot be loaded" in grouped(opened.notes)[0]


def test_a_named_backend_on_any_device_goes_on_with_the_cpu_and_says_so(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSession, "first", "CPUExecutionProvider")
    measured(monkeypatch, TF32)
    opened = open_backend(resnet, backend="onnxruntime")
    assert opened.device == "cpu"
    assert "going on with onnxruntime on cpu" in grouped(opened.notes)[0]
