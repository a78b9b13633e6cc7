"""torch on a GPU: one stream, pinned memory, graphs, what each body does, and failed allocations.

The stand-in of tests/synthesis/fake_cuda.py takes the place of torch.cuda; the tests marked
needs_cuda are for the device itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import BackendError, ModelError, OutOfMemoryError
from cyclegan_batch.frames import Pixels, as_pixel_type
from cyclegan_batch.models.model import Model, open_model
from cyclegan_batch.models.parity import parity
from cyclegan_batch.wording import grouped
from tests.backends.test_torch import checkpoint, opened, reference
from tests.conftest import INTERPRETED
from tests.needs import package
from tests.synthesis import fake_cuda, generators
from tests.synthesis.generators import natural

torch = package("torch")

from torch import Tensor  # noqa: E402

from cyclegan_batch.backends.torch import TorchBackend, bodies  # noqa: E402
from cyclegan_batch.backends.torch.recording import (  # noqa: E402
    MOST_GRAPHS,
    CudaBatches,
    memory_failed,
)
from cyclegan_batch.models.networks import GeneratorConfig  # noqa: E402


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> fake_cuda.FakeCuda:
    if not INTERPRETED:
        pytest.skip("here is a GPU, where the tests marked needs_cuda run")
    return fake_cuda.installed(monkeypatch)


def inverted(frames: Tensor) -> Tensor:
    return (255.0 - frames.float()).floor().to(torch.uint8)


def batches(compute: Callable[[Tensor], Tensor] = inverted) -> CudaBatches:
    return CudaBatches(compute, "cuda:0", "ieee", search=False)


def frames_of(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


# Batches


def test_a_shape_is_launched_then_recorded_then_replayed(cuda: fake_cuda.FakeCuda) -> None:
    run = batches()
    # Weights are copied to the device on the default stream, for which no other stream waits.
    assert cuda.calls == ["1 waits for the default stream"]
    per_batch = []
    for seed in range(4):
        cuda.calls.clear()
        frames = frames_of(2, 8, 12, seed=seed)
        assert np.array_equal(run(frames), 255 - frames)
        per_batch.append(list(cuda.calls))
    replays = ["replay on 1", "record on 1", "wait"]
    assert per_batch == [["record on 1", "wait"], ["capture", *replays], replays, replays]
    assert cuda.modes == ["thread_local"]
    assert run.not_recorded is None


def test_results_are_the_callers_and_frames_may_have_any_form(cuda: fake_cuda.FakeCuda) -> None:
    run = batches()
    frames = frames_of(2, 8, 12)
    frames.flags.writeable = False
    results = [run(frames)]
    for turned in (frames[::-1, :, ::-1], frames[:, ::-1], frames):
        results.append(run(turned))
        assert np.array_equal(results[-1], 255 - turned)
    assert np.array_equal(results[0], 255 - frames), "a later call wrote into an earlier result"
    results[1][:] = 0
    assert np.array_equal(run(frames), 255 - frames)
    # The pinned input is enlarged, and smaller frames use a part of it.
    for shape in ((1, 4, 4), (3, 16, 12), (1, 4, 4), (3, 16, 12)):
        frames = frames_of(*shape)
        assert np.array_equal(run(frames), 255 - frames)


@pytest.mark.behaviour(27)
def test_sizes_that_are_seen_once_are_not_recorded_and_the_oldest_graph_leaves(
    cuda: fake_cuda.FakeCuda,
) -> None:
    run = batches()
    for width in range(4, 404, 4):
        run(frames_of(1, 4, width))
    assert cuda.graphs == []
    for width in range(1, MOST_GRAPHS + 2):
        for _ in range(2):
            run(frames_of(2, 8, width))
    assert [graph.was_reset for graph in cuda.graphs] == [True, *[False] * MOST_GRAPHS]
    assert len({graph.pool_id for graph in cuda.graphs}) == 1, "graphs of a context share memory"
    run(frames_of(2, 8, 2))  # used again, so the next one to leave is another
    for _ in range(2):
        run(frames_of(2, 8, 50))
    assert [graph.was_reset for graph in cuda.graphs[:3]] == [True, False, True]
    run.close()
    run.close()
    assert all(graph.was_reset for graph in cuda.graphs)
    assert cuda.calls.count("empty_cache") == 1


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
INVALID = "CUDA error: operation failed due to a previous error during capture"


@pytest.mark.behaviour(26)
@pytest.mark.parametrize("where", ["launch", "warm-up", "capture", "replay", "wait"])
def test_no_memory_raises_and_the_context_goes_on(cuda: fake_cuda.FakeCuda, where: str) -> None:
    """Whatever the step: the next call works, and its result is right."""
    failing: list[Exception] = []

    def compute(frames: Tensor) -> Tensor:
        if failing and (where != "capture" or cuda.capturing.is_set()):
            raise failing[0]
        return inverted(frames)

    run, frames = batches(compute), frames_of(2, 8, 12)
    for _ in range({"launch": 0, "warm-up": 1, "capture": 1, "replay": 2, "wait": 2}[where]):
        run(frames)
    held = bool(cuda.graphs)
    if where in ("replay", "wait"):
        cuda.fails[where] = [OUT_OF_MEMORY, OUT_OF_MEMORY]
    else:
        failing[:] = [OUT_OF_MEMORY]
    if where == "replay":
        # Its graph is dropped, and the second try launches kernels, which need no graph.
        assert np.array_equal(run(frames), 255 - frames)
    else:
        with pytest.raises(torch.OutOfMemoryError):
            run(frames)
    failing.clear()
    cuda.fails.clear()
    assert cuda.calls.index("settle") < cuda.calls.index("empty_cache")
    assert not held or cuda.graphs[0].was_reset
    half = frames_of(1, 8, 12)
    for _ in range(3):
        assert np.array_equal(run(half), 255 - half)
        assert np.array_equal(run(frames), 255 - frames)
    assert run.not_recorded is None


@pytest.mark.behaviour(26)
def test_graphs_of_other_sizes_make_way_for_a_batch(cuda: fake_cuda.FakeCuda) -> None:
    def compute(frames: Tensor) -> Tensor:
        if frames.shape[1] > 8 and not cuda.graphs[0].was_reset:
            raise OUT_OF_MEMORY
        return inverted(frames)

    run = batches(compute)
    for _ in range(3):
        run(frames_of(2, 8, 12))
    large = frames_of(2, 64, 12)
    assert np.array_equal(run(large), 255 - large)


def test_no_memory_within_a_capture_is_seen_behind_what_torch_raises_after_it() -> None:
    after = RuntimeError(INVALID)
    after.__context__ = OUT_OF_MEMORY  # as where torch's own __exit__ raises
    assert memory_failed(after)
    assert not memory_failed(RuntimeError(INVALID))
    assert not memory_failed(RuntimeError("CUDA error: an illegal memory access"))
    assert memory_failed(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))


def test_where_nothing_can_be_recorded_batches_are_launched(cuda: fake_cuda.FakeCuda) -> None:
    streams: list[int] = []

    def compute(frames: Tensor) -> Tensor:
        streams.append(cuda.current.number)
        if cuda.capturing.is_set():
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand")
        return inverted(frames)

    run, frames = batches(compute), frames_of(2, 8, 12)
    for _ in range(4):
        assert np.array_equal(run(frames), 255 - frames)
    assert cuda.calls.count("capture") == 1
    assert run.not_recorded is not None
    assert run.not_recorded.startswith("recording one fails: CUDA error: operation not permitted")
    # A stream whose capture broke is not used again, and what runs is what is waited for.
    assert streams == [1, 1, 1, 2, 2, 2]
    assert [call for call in cuda.calls if "record" in call] == [
        "record on 1",
        *["record on 2"] * 3,
    ]


def test_one_context_records_at_a_time(cuda: fake_cuda.FakeCuda) -> None:
    """The stand-in notes what one thread dispatches; that two never capture at once it asserts."""
    begun, going_on = threading.Event(), threading.Event()

    def slow(frames: Tensor) -> Tensor:
        if cuda.capturing.is_set():
            begun.set()
            assert going_on.wait(30)
        return inverted(frames)

    first, second = batches(slow), batches()
    first(frames_of(1, 8, 8))
    second(frames_of(1, 8, 8))
    with ThreadPoolExecutor(2) as threads:
        recording = threads.submit(first, frames_of(1, 8, 8))
        assert begun.wait(30)
        closing = threads.submit(second.close)
        assert not closing.done()
        going_on.set()
        recording.result(30)
        closing.result(30)


# The backend


RESNET = GeneratorConfig("resnet_1blocks", ngf=4)


def on_gpu(model: Model, **options: Any) -> TorchBackend:
    from cyclegan_batch.backends.torch import open_torch

    return open_torch(
        model, **{"device": "cuda", "precision": "fp32", "threads": 1, "contexts": 1} | options
    )


LUMA = GeneratorConfig("resnet_1blocks", 1, 1, 4)
KINDS: dict[str, Callable[[Path], Path]] = {
    "checkpoint": lambda path: checkpoint(path.with_suffix(".pth"), RESNET),
    "luma": lambda path: checkpoint(path.with_suffix(".pth"), LUMA),
    "U-Net": lambda path: checkpoint(path.with_suffix(".pth"), GeneratorConfig("unet_32", ngf=4)),
    "onnx": generators.tiny_resnet,
    "luma in onnx": generators.one_channel,
    "fixed batch": lambda path: generators.tiny_resnet(path, batch=2),
    "float16": lambda path: generators.tiny_resnet(path, io="float16"),
}


@pytest.mark.behaviour(28, 33)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_runs_by_graphs_and_as_on_the_cpu(
    cuda: fake_cuda.FakeCuda, tmp_path: Path, kind: str
) -> None:
    model = open_model(KINDS[kind](tmp_path / "g.onnx"))
    exact = opened(model, backend="torch", device="cpu")
    first = on_gpu(model)
    other = first.fork()
    (note,) = grouped(first.notes)
    assert note == f"{model.card.path.name} runs channels last on cuda:0"
    for count in (3, 1, 3, 3):
        frames = as_pixel_type(natural((32, 64), count), model.card.pixel_type)
        wanted = exact.infer(frames)
        for backend in (first, other):
            out = backend.infer(frames)
            assert (out.shape, out.dtype) == (frames.shape, frames.dtype)
            assert parity(out, wanted).cls == "exact"
    assert any(call.startswith("replay") for call in cuda.calls)
    first.cancel()
    with pytest.raises(BackendError, match="torch: cancelled"):
        first.infer(frames)
    first.close()
    with pytest.raises(BackendError, match="closed"):
        first.infer(frames)
    assert parity(other.infer(frames), wanted).cls == "exact"


@pytest.mark.behaviour(26)
def test_no_memory_on_a_gpu_halves_the_batch_errors(
    cuda: fake_cuda.FakeCuda, tmp_path: Path
) -> None:
    backend = on_gpu(open_model(checkpoint(tmp_path / "g.pth", RESNET)))
    frames = natural((32, 32), 4)
    expected = backend.infer(frames)
    cuda.fails["wait"] = [OUT_OF_MEMORY, OUT_OF_MEMORY]
    with pytest.raises(OutOfMemoryError, match="no memory on cuda:0 for a batch of 4×32×32×3"):
        backend.infer(frames)
    assert np.array_equal(backend.infer(frames[:2]), expected[:2])
    cuda.fails["wait"] = [RuntimeError("CUDA error: an illegal memory access was encountered")]
    with pytest.raises(BackendError, match="illegal memory access"):
        backend.infer(frames)


def test_what_is_passed_over_is_told(
    cuda: fake_cuda.FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(checkpoint(tmp_path / "g.pth", GeneratorConfig("unet_32", ngf=4)))
    monkeypatch.setitem(bodies.BODIES, "fp32", ("fused", "compiled", "channels first"))

    def compile_(network: Any, **how: Any) -> Any:
        raise RuntimeError("Failed to find C compiler\nPlease specify")

    monkeypatch.setattr(torch, "compile", compile_)
    backend = on_gpu(model)
    assert backend.how == "channels first"
    (note,) = grouped(backend.notes)
    assert note == (
        "g.pth runs channels first on cuda:0; not fused, as unet_32 is no plain ResNet; not "
        "compiled, as it fails: Failed to find C compiler"
    )


def test_a_shape_that_is_seen_once_is_not_compiled(
    cuda: fake_cuda.FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bodies.BODIES, "fp32", ("compiled",))
    shapes: list[tuple[int, ...]] = []

    def compile_(network: Any, **how: Any) -> Any:
        return lambda frames: (shapes.append(tuple(frames.shape)), network(frames))[1]

    monkeypatch.setattr(torch, "compile", compile_)
    backend = on_gpu(open_model(checkpoint(tmp_path / "g.pth", RESNET)))
    shapes.clear()
    for count in (1, 2, 2, 2):
        backend.infer(natural((32, 48), count))
    # Once before the capture, in which libraries choose their kernels, and once within it.
    assert shapes == [(2, 32, 48, 3)] * 2


def test_a_replay_that_computes_nothing_is_found(
    cuda: fake_cuda.FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is where a capture was made on another device than the kernels run on."""
    monkeypatch.setattr(cuda.CUDAGraph, "replay", lambda self: None)
    model = open_model(checkpoint(tmp_path / "g.pth", RESNET))
    backend = on_gpu(model)
    (note,) = grouped(backend.notes)
    assert "g.pth runs channels last on cuda:0; without CUDA graphs: a replay differs" in note
    frames = natural((32, 32), 2)
    wanted = opened(model, backend="torch", device="cpu").infer(frames)
    for _ in range(3):
        assert parity(backend.infer(frames), wanted).cls == "exact"


@pytest.mark.behaviour(33)
@pytest.mark.parametrize(
    ("kind", "precision"), [("checkpoint", "fp16"), ("checkpoint", "bf16"), ("onnx", "fp16")]
)
def test_half_precision_runs_the_fused_body_where_it_can(
    tmp_path: Path, precision: str, kind: str
) -> None:
    """Triton interprets its kernels here; they are no operators of torch, so none is recorded."""
    package("triton")
    if not INTERPRETED:
        pytest.skip("here is a GPU, where the tests marked needs_cuda run")
    model = open_model(checkpoint(tmp_path / "g.pth", RESNET, gain=0.03))
    if kind == "onnx":
        model = exported(model)
    body = bodies.body_on_cuda("fused", model, "cpu", precision)
    frames = natural((16, 24), 1)
    out, values = body.with_values(torch.from_numpy(frames))
    assert np.array_equal(out, body(torch.from_numpy(frames)))
    assert values.dtype == torch.float32
    exact = opened(model, backend="torch", device="cpu").infer(frames)
    assert parity(out.numpy(), exact).reaches("half" if precision == "fp16" else "near")
    assert bodies.BODIES[precision][0] == "fused"


def exported(model: Model) -> Model:
    """Return the contract ONNX of a checkpoint."""
    from cyclegan_batch.models.graphs.contract import GeneratorIO, contract_from_generator
    from cyclegan_batch.models.model import model_from_contract

    package("onnxscript")
    from cyclegan_export.graph import deployable, graph_from_network

    assert model.checkpoint is not None
    card = model.card
    graph = graph_from_network(deployable(model.checkpoint.network), card.sizes, channels=3)
    return model_from_contract(
        card.path.with_suffix(".onnx"),
        contract_from_generator(graph, GeneratorIO()),
        architecture=card.architecture,
        sizes=card.sizes,
        precision="fp32",
    )


@pytest.mark.behaviour(31, 33)
def test_a_half_precision_is_compared_with_the_cpu_once_for_each_body(
    cuda: fake_cuda.FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("", ".verdicts"):
        monkeypatch.setattr(f"cyclegan_batch.backends{module}.nvidia_gpus", lambda: ("H200",))
    model = open_model(generators.tiny_resnet(tmp_path / "g.onnx"))
    told: list[str] = []
    for how, sentences in (("channels last", 1), ("channels last", 1), ("channels first", 2)):
        monkeypatch.setitem(bodies.BODIES, "fp16", (how,))
        backend = open_backend(
            model, backend="torch", device="cuda", precision="fp16", threads=1,
            cache_dir=tmp_path / "cache", say=told.append,
        )  # fmt: skip
        assert (backend.device, backend.precision, len(told)) == ("cuda:0", "fp16", sentences)
    assert told[0].startswith("g.onnx: on cuda:0 in fp16 against the CPU it is ")
    against = [note for note in grouped(backend.notes) if "g.onnx in fp16 against fp32 is " in note]
    assert len(against) == 1


# An ONNX in torch


@pytest.mark.behaviour(31, 33)
def test_an_onnx_runs_in_torch_where_it_is_named(tmp_path: Path) -> None:
    model = open_model(generators.tiny_resnet(tmp_path / "g.onnx"))
    frames = natural((32, 48), 3)
    exact = open_backend(model, backend="onnxruntime", device="cpu", threads=1).infer(frames)
    backend = opened(model, backend="torch")
    assert (backend.name, backend.device, backend.precision) == ("torch", "cpu", "fp32")
    assert parity(backend.infer(frames), exact).cls == "exact"
    assert parity(backend.fork().infer(frames), exact).cls == "exact"
    assert open_backend(model, threads=1).name != "torch"


@pytest.mark.parametrize(
    ("file", "options", "match"),
    [
        ("int8", {}, "is int8, and torch is made to run floats"),
        ("fp32", {"precision": "fp16"}, "torch computes in fp16 on a GPU only"),
        ("fp32", {"precision": "int8"}, "torch runs it in fp32, tf32, bf16 or fp16"),
        ("fp16", {"precision": "bf16"}, "is fp16, and bf16 is a way to run an fp32 file"),
    ],
)
def test_what_torch_does_not_compute_of_an_onnx_errors(
    tmp_path: Path, file: str, options: dict[str, Any], match: str
) -> None:
    model = open_model(generators.invert(tmp_path / "g.onnx"))
    model = replace(model, card=replace(model.card, precision=file))  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=match):
        opened(model, backend="torch", **{"device": "cpu"} | options)


def test_a_file_with_another_node_is_refused_by_its_name_errors(tmp_path: Path) -> None:
    model = open_model(generators.secret_upscaler(tmp_path / "g.onnx"))
    with pytest.raises(ModelError, match=r"g\.onnx: its node \S+ is Tile, which torch"):
        opened(model, backend="torch")


def test_a_half_file_is_computed_in_float32_on_a_cpu(tmp_path: Path) -> None:
    model = open_model(generators.foreign_resnet(tmp_path / "g.onnx", half=True))
    assert model.card.precision == "fp16"
    frames = natural((32, 48), 2)
    exact = open_backend(model, backend="onnxruntime", device="cpu", threads=1).infer(frames)
    for precision in ("auto", "fp16"):
        backend = opened(model, backend="torch", precision=precision)
        assert backend.precision == "fp32"
        assert parity(backend.infer(frames), exact).reaches("half")


# The device itself


@pytest.mark.needs_cuda
@pytest.mark.behaviour(26, 28, 33)
@pytest.mark.parametrize("how", ["fused", "channels last", "channels first"])
def test_each_body_is_right_on_a_gpu_with_graphs_and_two_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setitem(bodies.BODIES, "fp16", (how,))
    model = open_model(
        checkpoint(tmp_path / "g.pth", GeneratorConfig("resnet_2blocks", ngf=16), gain=0.03)
    )
    first = on_gpu(model, precision="fp16", contexts=2)
    assert (first.how, first.not_recorded) == (how, None)
    batch = natural((64, 96), 4)
    wanted = reference(model, batch)

    def work(backend: TorchBackend) -> None:
        for count in (4, 1, 4, 4, 1, 4):
            out = backend.infer(batch[:count])
            assert parity(out, wanted[:count]).reaches("half")

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(work, each) for each in (first, first.fork())]:
            done.result()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**29 / total)
    try:
        with pytest.raises(OutOfMemoryError):
            first.infer(np.zeros((16, 1024, 1024, 3), np.uint8))
        assert parity(first.infer(batch), wanted).reaches("half")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    first.close()
