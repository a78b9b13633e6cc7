"""onnxruntime on CUDA, with a stand-in; and what the stand-in pretends, in the real one."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

import numpy as np
import pytest

from cyclegan_batch.backends import onnxruntime_cuda, open_backend
from cyclegan_batch.backends.common import batch_within_index
from cyclegan_batch.errors import BackendError, BackendUnavailableError, OutOfMemoryError
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.model import Model, widest_tensor
from cyclegan_batch.models.parity import parity
from cyclegan_batch.wording import grouped
from tests.backends.conftest import reference
from tests.backends.test_common import OUT_OF_MEMORY
from tests.needs import package
from tests.synthesis.fake_onnxruntime import FakeSession
from tests.synthesis.generators import natural


def test_a_batch_on_a_gpu_stays_within_what_32_bits_count(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime's InstanceNormalization refuses more, with an error that is not out of memory."""
    opened = open_backend(resnet, device="cuda")
    seen: list[int] = []
    run = FakeSession.run

    def counting(self: FakeSession, names: list[str], feed: dict[str, Pixels], *rest: Any) -> Any:
        seen.append(len(feed["frames"]))
        return run(self, names, feed, *rest)

    monkeypatch.setattr(FakeSession, "run", counting)
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
    assert seen == [2, 2, 2] * 2


@pytest.mark.behaviour(31)
def test_a_gpu_that_silently_became_the_cpu_errors(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSession, "first", "CPUExecutionProvider")
    with pytest.raises(BackendUnavailableError, match="asked for cuda:0 and uses CPUExecution"):
        open_backend(resnet, device="cuda")


@pytest.mark.behaviour(31)
def test_nodes_that_a_gpu_leaves_to_the_cpu_are_told(
    resnet: Model, cuda: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_backend(resnet, device="cuda")
    assert opened.notes == ()
    assert cuda.sessions[0].options.entries["session.disable_cpu_ep_fallback"] == "1"
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
    (note,) = onnxruntime_cuda._nodes_on_cpu(session, resnet.card, "cuda:0")
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
