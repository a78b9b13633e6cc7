"""onnxruntime on CUDA, with a stand-in; and what the stand-in pretends, in the real one."""

from __future__ import annotations

import re
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclegan_batch.backends import onnxruntime_cuda, open_backend
from cyclegan_batch.backends.common import Backend, batch_within_index
from cyclegan_batch.backends.onnxruntime import OnnxRuntimeBackend, nodes_on_cpu
from cyclegan_batch.errors import BackendError, BackendUnavailableError, OutOfMemoryError
from cyclegan_batch.frames import PixelType, as_pixel_type
from cyclegan_batch.models.model import Model, open_model, widest_tensor
from cyclegan_batch.models.parity import parity
from cyclegan_batch.wording import grouped
from tests.backends.conftest import TF32, measured, reference
from tests.backends.test_common import OUT_OF_MEMORY
from tests.needs import package
from tests.synthesis import generators
from tests.synthesis.fake_onnxruntime import FakeSession
from tests.synthesis.generators import natural


def test_a_batch_on_a_gpu_stays_within_what_32_bits_count(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime's InstanceNormalization refuses more, with an error that is not out of memory."""
    opened = open_backend(resnet, device="cuda")
    cuda.computed.clear()  # frames of the comparison with the CPU, where no verdict is kept yet
    # 1080p in 64 channels: 16 frames are 2,123,366,400 elements, and 17 are more than 2³¹ − 1.
    frames = np.broadcast_to(np.zeros((1, 1080, 1920, 3), np.uint8), (17, 1080, 1920, 3))
    assert batch_within_index(frames, 64.0, None) == 16
    assert batch_within_index(frames[:16], 64.0, None) is None
    assert batch_within_index(frames, 0.0, None) is None
    assert batch_within_index(frames, 64.0, 4) == 4
    assert batch_within_index(frames, 1e9, None) == 1
    widest = widest_tensor(resnet)
    monkeypatch.setattr(
        "cyclegan_batch.backends.common._MOST_ELEMENTS", int(2.5 * widest * 64 * 64)
    )
    small = natural((64, 64), 5)
    assert np.array_equal(opened.infer(small), small)
    assert np.array_equal(opened.fork().infer(small), small)
    assert cuda.computed == [2, 2, 2] * 2


@pytest.mark.behaviour(31)
def test_a_gpu_that_silently_became_the_cpu_errors(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSession, "first", "CPUExecutionProvider")
    match = "asked for cuda:0 and does not run on it: its CUDA or cuDNN libraries cannot be loaded"
    with pytest.raises(BackendUnavailableError, match=match):
        open_backend(resnet, device="cuda")


def test_a_provider_that_starts_for_one_node_and_not_for_the_model_errors(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "cuda_fault", lambda index: None)
    monkeypatch.setattr(FakeSession, "first", "CPUExecutionProvider")
    with pytest.raises(BackendUnavailableError, match="asked for cuda:0 and uses CPUExecution"):
        open_backend(resnet, device="cuda")


@pytest.mark.behaviour(31)
def test_a_cuda_that_is_listed_and_computes_nothing_is_not_used(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel that was built for other chips: a session opens, and the first kernel fails."""
    assert onnxruntime_cuda.sees_cuda()
    onnxruntime_cuda.cuda_fault.cache_clear()
    monkeypatch.setattr(FakeSession, "other_chips", True)
    monkeypatch.setattr(FakeSession, "nodes", 0)
    assert onnxruntime_cuda.lists_cuda()
    assert not onnxruntime_cuda.sees_cuda()
    match = (
        r"does not run on it: .*\(CUDA error cudaErrorNoKernelImageForDevice.*; or pass --device"
    )
    with pytest.raises(BackendUnavailableError, match=match):
        open_backend(resnet, device="cuda")
    measured(monkeypatch, TF32)
    opened = open_backend(resnet)
    assert opened.device == "cpu"
    (note,) = grouped(opened.notes)
    assert "cudaErrorNoKernelImageForDevice" in note
    assert f"going on with {opened.name} on cpu" in note
    assert cuda.nodes == 1, "once in a process"


def test_no_node_is_computed_where_auto_takes_no_gpu(
    resnet: Model, cuda: type[FakeSession]
) -> None:
    assert open_backend(resnet).device == "cpu"
    assert cuda.nodes == 0


def test_the_one_node_is_one_that_onnxruntime_computes() -> None:
    onnxruntime = package("onnxruntime")
    session = onnxruntime.InferenceSession(
        onnxruntime_cuda._one_node(), providers=["CPUExecutionProvider"]
    )
    assert session.run(["out"], {"in": np.ones(1, np.float32)})[0].tolist() == [-1.0]


@pytest.mark.behaviour(31)
def test_nodes_that_a_gpu_leaves_to_the_cpu_are_told(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_backend(resnet, device="cuda")
    assert opened.notes == ()
    assert cuda.sessions[-1].options.entries["session.disable_cpu_ep_fallback"] == "1"
    monkeypatch.setattr(FakeSession, "on_cpu", ("Pad",) * 20 + ("Floor",))
    (note,) = grouped(open_backend(resnet, device="cuda").notes)
    assert note.startswith(
        "resnet.onnx: onnxruntime 1.0 computes 21 of 40 nodes (20 Pad, 1 Floor) on the CPU instead "
        "of cuda:0, and copies every frame there and back; install onnxruntime-gpu 1.25"
    )
    monkeypatch.delattr(FakeSession, "get_provider_graph_assignment_info")
    (note,) = grouped(open_backend(resnet, device="cuda").notes)
    assert "computes some nodes on the CPU" in note


def test_onnxruntime_tells_which_provider_computes_a_node(resnet: Model) -> None:
    """The real onnxruntime does on its CPU what the stand-in pretends."""
    onnxruntime = package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(
        resnet.graph, options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    (note,) = nodes_on_cpu(session, resnet.card, "cuda:0", "do that")
    assert re.search(r"computes (\d+) of \1 nodes \(.*\b4 Pad\b.*\) on the CPU", note.text)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for providers, words in (
        ([], "explicitly disabled"),
        (["CPUExecutionProvider"], "Conflicting"),
    ):
        with pytest.raises(Exception, match=words):
            onnxruntime.InferenceSession(
                resnet.graph, options, providers=providers, enable_fallback=0
            )


def bound(model: Model, way: onnxruntime_cuda.Way = "bound", **options: bool) -> Backend:
    return onnxruntime_cuda.open_onnxruntime_cuda(
        model, device="cuda", precision="auto", threads=1, contexts=1, way=way, **options
    )


@pytest.mark.parametrize("way", ["bound", "graph"])
def test_frames_go_through_fixed_addresses_and_come_back_as_new_arrays(
    resnet: Model,
    cuda: type[FakeSession],
    way: onnxruntime_cuda.Way,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeSession, "off_by", 1)
    opened = bound(resnet, way)
    assert opened.notes == ()
    for number in range(3):
        sent = natural((64, 64), 2, seed=number)
        first = opened.infer(sent)
        np.testing.assert_array_equal(first, sent + np.uint8(1))
        opened.infer(sent[::-1])
        np.testing.assert_array_equal(first, sent + np.uint8(1))
    (frames_in, out, *host) = cuda.gpu.live
    assert len(host) == 2
    assert len({frames_in, out, *host}) == 4
    opened.close()
    opened.close()
    assert (cuda.gpu.live, cuda.gpu.streams) == ({}, 0)
    with pytest.raises(BackendError, match="closed"):
        opened.infer(sent)
    with pytest.raises(BackendError, match="closed"):
        opened.fork()


def test_each_context_has_a_session_on_a_stream_of_its_own(
    resnet: Model, cuda: type[FakeSession]
) -> None:
    opened = bound(resnet)
    other = opened.fork()
    sent = natural((64, 64))
    other.infer(sent)
    streams = [
        each.providers[0][1]["user_compute_stream"]
        for each in cuda.sessions
        if "user_compute_stream" in each.providers[0][1]
    ]
    assert streams == ["1", "2"]
    opened.close()
    np.testing.assert_array_equal(other.infer(sent), sent)
    other.close()
    assert (cuda.gpu.live, cuda.gpu.streams) == ({}, 0)


def test_four_shapes_get_a_graph_and_the_others_share_one_set_of_buffers(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = []
    monkeypatch.setattr(FakeSession, "recording", staticmethod(lambda: recorded.append(1)))
    opened = bound(resnet, "graph")
    for _ in range(2):
        for count in (1, 2, 3, 4, 5, 6):
            sent = natural((64, 64), count)
            np.testing.assert_array_equal(opened.infer(sent), sent)
    assert len(recorded) == 4
    # Four buffers for each graph, and four for the last shape without one.
    assert len(cuda.gpu.live) == 4 * 4 + 4
    # Another thread has graphs of its own, as onnxruntime keeps them.
    thread = threading.Thread(target=lambda: opened.infer(natural((64, 64), 1)))
    thread.start()
    thread.join()
    assert len(recorded) == 5


def test_while_a_graph_is_recorded_no_other_context_touches_the_gpu(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for the GPU refuses every allocation during a recording."""
    opened = bound(resnet, "graph")
    other = opened.fork()
    sent = natural((64, 64))
    done = threading.Event()

    def work() -> None:
        np.testing.assert_array_equal(other.infer(sent), sent)
        done.set()

    thread = threading.Thread(target=work)

    def recording() -> None:
        if thread.ident is None:
            thread.start()
            assert not done.wait(0.1)

    monkeypatch.setattr(FakeSession, "recording", staticmethod(recording))
    np.testing.assert_array_equal(opened.infer(sent), sent)
    thread.join(10)
    assert done.is_set()


@pytest.mark.behaviour(26)
@pytest.mark.parametrize("way", ["bound", "graph"])
def test_too_large_a_batch_is_out_of_memory_and_half_of_it_is_not_errors(
    resnet: Model, cuda: type[FakeSession], way: onnxruntime_cuda.Way
) -> None:
    opened = bound(resnet, way)
    cuda.gpu.memory = 4 * 3 * 8 * 8 * 3
    with pytest.raises(OutOfMemoryError, match="no memory on cuda:0 for a batch of 4×8×8×3"):
        opened.infer(natural((8, 8), 4))
    assert (cuda.gpu.live, cuda.gpu.streams) == ({}, 0), "all of the context is free again"
    sent = natural((8, 8), 2)
    np.testing.assert_array_equal(opened.infer(sent), sent)


def test_after_cancel_no_call_begins_and_a_running_one_stops_errors(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = bound(resnet)
    sent = natural((64, 64))

    def fails(self: FakeSession, frames: np.ndarray) -> None:
        opened.cancel()
        raise RuntimeError("Exiting due to terminate flag being set to true.")

    with monkeypatch.context() as patch:
        patch.setattr(FakeSession, "computes", fails)
        other = opened.fork()
        with pytest.raises(BackendError, match=r"^onnxruntime: cancelled$"):
            opened.infer(sent)
    with pytest.raises(BackendError, match=r"^onnxruntime: cancelled$"):
        opened.infer(sent)
    np.testing.assert_array_equal(other.infer(sent), sent)


def test_without_cuda_bindings_frames_go_through_ordinary_memory_and_a_note_says_so(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    opened = bound(resnet)
    assert isinstance(opened, OnnxRuntimeBackend)
    (note,) = grouped(opened.notes)
    assert "onnxruntime needs cuda-bindings" in note
    assert 'pip install "cuda-bindings>=13,<14"' in note
    assert "ordinary memory" in note
    sent = natural((64, 64))
    np.testing.assert_array_equal(opened.infer(sent), sent)


def test_a_session_that_takes_no_stream_is_used_without_and_a_note_says_so(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = FakeSession.__init__

    def refuses(self: FakeSession, graph: bytes, options: object, **rest: Any) -> None:
        if "user_compute_stream" in rest["providers"][0][1]:
            raise RuntimeError("unknown provider option: user_compute_stream")
        opens(self, graph, options, **rest)

    monkeypatch.setattr(FakeSession, "__init__", refuses)
    (note,) = grouped(bound(resnet).notes)
    assert "unknown provider option: user_compute_stream" in note
    assert "ordinary memory" in note
    assert (cuda.gpu.live, cuda.gpu.streams) == ({}, 0)


def test_layout_and_graph_are_options_of_the_provider(
    resnet: Model, cuda: type[FakeSession]
) -> None:
    bound(resnet, "graph", nhwc=True)
    ((_, options),) = cuda.sessions[-1].providers
    assert (options["prefer_nhwc"], options["enable_cuda_graph"]) == ("1", "1")
    bound(resnet)
    ((_, options),) = cuda.sessions[-1].providers
    assert (options["prefer_nhwc"], options["enable_cuda_graph"]) == ("0", "0")


@pytest.mark.parametrize("io", ["uint8", "float16"])
def test_onnxruntime_computes_between_bound_addresses(tmp_path: Path, io: PixelType) -> None:
    """The real onnxruntime does on its CPU what the stand-in pretends."""
    onnxruntime = package("onnxruntime")
    model = open_model(generators.invert(tmp_path / "invert.onnx", io))
    session = onnxruntime.InferenceSession(model.graph, providers=["CPUExecutionProvider"])
    sent = as_pixel_type(natural((8, 12), 2), io)
    out = np.empty_like(sent)
    binding, kind = session.io_binding(), sent.dtype.type
    binding.bind_input("frames", "cpu", 0, kind, sent.shape, sent.ctypes.data)
    binding.bind_output("translated", "cpu", 0, kind, out.shape, out.ctypes.data)
    options = onnxruntime.RunOptions()
    for graph in ("3", "-1"):
        out[:] = 0
        options.add_run_config_entry("gpu_graph_id", graph)
        assert options.get_run_config_entry("gpu_graph_id") == graph
        session.run_with_iobinding(binding, options)
        np.testing.assert_array_equal(out, (255 if io == "uint8" else np.float16(1)) - sent)
    assert onnxruntime.SessionOptions().enable_mem_pattern
    options.terminate = True
    with pytest.raises(Exception, match="terminate flag"):
        session.run_with_iobinding(binding, options)


def test_no_cuda_in_onnxruntime_errors(resnet: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = package("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("cyclegan_batch.backends.onnxruntime_cuda.both_wheels", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"has no CUDA.*\[gpu\]"):
        open_backend(resnet, device="cuda")
    monkeypatch.setattr("cyclegan_batch.backends.onnxruntime_cuda.both_wheels", lambda: True)
    with pytest.raises(BackendUnavailableError, match=r"are both installed.*uninstall both"):
        open_backend(resnet, device="cuda")


@pytest.mark.parametrize("gpu_wheel", [False, True])
def test_both_wheels_are_found_by_their_names(
    monkeypatch: pytest.MonkeyPatch, gpu_wheel: bool
) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime" or gpu_wheel:
            return "1.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert onnxruntime_cuda.both_wheels() is gpu_wheel


@pytest.mark.behaviour(26)
@pytest.mark.parametrize("message", OUT_OF_MEMORY[:5])
def test_no_memory_on_the_gpu_is_told_apart_errors(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    opened = open_backend(resnet, device="cuda")
    monkeypatch.setattr(FakeSession, "fails", RuntimeError(message))
    with pytest.raises(OutOfMemoryError, match="no memory on cuda:0 for a batch of 2×8×8×3"):
        opened.infer(np.zeros((2, 8, 8, 3), np.uint8))
    monkeypatch.setattr(FakeSession, "fails", RuntimeError("CUDA failure 700: illegal address"))
    with pytest.raises(BackendError, match="illegal address") as caught:
        opened.infer(np.zeros((2, 8, 8, 3), np.uint8))
    assert not isinstance(caught.value, OutOfMemoryError)


@pytest.mark.needs_cuda
@pytest.mark.behaviour(31, 33)
def test_cuda_is_in_its_class(resnet: Model) -> None:
    onnxruntime = package("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA")
    frames = natural((94, 122), 3)
    expected = reference(resnet, frames)
    exact = open_backend(resnet, device="cuda", precision="fp32")
    assert parity(exact.infer(frames), expected).cls == "exact"
    assert parity(open_backend(resnet, device="cuda").infer(frames), expected).reaches("half")
