"""Contexts of an engine: pixels, buffers, batches, forks, and calls that fail; with stand-ins."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclegan_batch.errors import BackendError, OutOfMemoryError
from cyclegan_batch.models.model import Model, open_model
from tests.backends.tensorrt.conftest import frames, open_on
from tests.synthesis import generators
from tests.synthesis.fake_tensorrt import Gpu


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("io", ["uint8", "float16"])
def test_frames_go_in_and_come_out_translated(tmp_path: Path, gpu: Gpu, io: Any) -> None:
    model = open_model(generators.invert(tmp_path / "invert.onnx", io))
    opened = open_on(gpu, model, tmp_path / "cache")
    white = 255 if io == "uint8" else np.float16(1)
    sent = frames(2, 8, 8) if io == "uint8" else (frames(2, 8, 8) / 255).astype(np.float16)
    first = opened.infer(sent)
    second = opened.infer(white - sent)
    assert first.dtype == sent.dtype
    np.testing.assert_array_equal(first, white - sent)
    # The second call wrote into the same buffers and did not change the first result.
    np.testing.assert_allclose(second, sent, atol=1e-3)


def test_an_engine_for_a_batch_takes_every_smaller_one(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    opened = open_on(gpu, model, tmp_path, shapes=[(4, 8, 8)])
    for count in (4, 2, 1, 3):
        sent = frames(count, 8, 8)
        np.testing.assert_array_equal(opened.infer(sent), 255 - sent)
    assert len(gpu.builds) == 1
    assert gpu.builds[0].profile == ((1, 8, 8, 3), (4, 8, 8, 3), (4, 8, 8, 3))


def test_frames_outside_the_profile_get_an_engine_that_takes_many_sizes(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    opened = open_on(gpu, model, tmp_path, shapes=[])
    assert not gpu.builds, "the shapes of the frames are not known yet"
    for size in ((8, 8), (12, 20), (16, 16), (500, 300)):
        assert opened.infer(frames(1, *size)).shape == (1, *size, 3)
    assert [build.profile[2] for build in gpu.builds] == [(1, 8, 8, 3), (1, 512, 512, 3)]


def test_a_file_of_fixed_shape_is_built_for_it(tmp_path: Path, gpu: Gpu) -> None:
    path = generators.invert(tmp_path / "fixed.onnx", fixed=(16, 8), batch=2)
    opened = open_on(gpu, open_model(path), tmp_path, shapes=[])
    assert gpu.builds[0].profile == ((2, 16, 8, 3),) * 3
    sent = frames(5, 16, 8)
    np.testing.assert_array_equal(opened.infer(sent), 255 - sent)


def test_forks_share_the_engine_and_have_buffers_of_their_own(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    opened = open_on(gpu, model, tmp_path)
    contexts = [opened, opened.fork(), opened.fork()]
    sent = [frames(2, 8, 8) // (index + 1) for index in range(3)]
    results: list[Any] = [None] * 3

    def work(index: int) -> None:
        results[index] = contexts[index].infer(sent[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(3):
        np.testing.assert_array_equal(results[index], 255 - sent[index])
    assert len(gpu.builds) == len(gpu.opened) == 1
    assert gpu.streams == 3
    for context in contexts:
        context.close()
        context.close()
    assert not gpu.live
    assert gpu.streams == 0
    with pytest.raises(BackendError, match="closed"):
        contexts[1].infer(sent[0])


def test_after_cancel_no_call_begins_errors(tmp_path: Path, gpu: Gpu, model: Model) -> None:
    opened = open_on(gpu, model, tmp_path)
    other = opened.fork()
    opened.cancel()
    with pytest.raises(BackendError, match="cancelled"):
        opened.infer(frames(2, 8, 8))
    assert other.infer(frames(2, 8, 8)).shape == (2, 8, 8, 3)


@pytest.mark.behaviour(26)
def test_too_large_a_batch_is_out_of_memory_and_half_of_it_is_not_errors(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    opened = open_on(gpu, model, tmp_path, shapes=[(4, 8, 8)])
    # Here scratch memory is ten times the frames, and there are four buffers of their size.
    gpu.memory = 14 * 3 * 8 * 8 * 3
    with pytest.raises(OutOfMemoryError, match=r"on cuda:0 for a batch of 4,8,8"):
        opened.infer(frames(4, 8, 8))
    assert not gpu.live, "what was allocated before the failure is free again"
    np.testing.assert_array_equal(opened.infer(frames(2, 8, 8)), 255 - frames(2, 8, 8))
    assert len(gpu.builds) == 1


@pytest.mark.parametrize("what", ["shape", "size", "memory", "enqueue"])
def test_a_failing_call_says_why_errors(tmp_path: Path, gpu: Gpu, model: Model, what: str) -> None:
    opened = open_on(gpu, model, tmp_path)
    gpu.refuse[what] = "illegal address"
    with pytest.raises(BackendError, match=r"invert\.onnx fails on frames of 2,8,8.*illegal addr"):
        opened.infer(frames(2, 8, 8))
    gpu.refuse[what] = "cuda: out of memory"
    with pytest.raises(OutOfMemoryError, match="for a batch of 2,8,8"):
        opened.infer(frames(2, 8, 8))
    gpu.refuse.clear()
    assert opened.infer(frames(2, 8, 8)).shape == (2, 8, 8, 3)


@pytest.mark.behaviour(26)
@pytest.mark.parametrize("what", ["shape", "size", "memory", "enqueue"])
def test_out_of_memory_of_one_context_stays_that_while_another_goes_on_errors(
    tmp_path: Path, gpu: Gpu, model: Model, what: str
) -> None:
    """The second context runs a call after the first one failed, before its error is read."""
    opened = open_on(gpu, model, tmp_path)
    other = opened.fork()
    sent = frames(2, 8, 8)
    other.infer(sent)
    failing = dict.fromkeys([what], "Error Code 2: OutOfMemory (Requested size was 9 bytes.)")

    def meanwhile() -> None:
        gpu.refuse.clear()
        thread = threading.Thread(target=lambda: other.infer(sent))
        thread.start()
        thread.join()

    gpu.reported, gpu.refuse = meanwhile, failing
    with pytest.raises(OutOfMemoryError, match="for a batch of 2,8,8"):
        opened.infer(sent)
    # The other way round: an error of one context is no failure of the other.
    gpu.reported, gpu.refuse = (lambda: None), {"enqueue": "illegal address"}
    with pytest.raises(BackendError, match="illegal address"):
        opened.infer(sent)
    gpu.refuse = {}
    assert other.infer(frames(1, 8, 8)).shape == (1, 8, 8, 3)


@pytest.mark.behaviour(26)
def test_out_of_memory_is_known_by_its_code_errors(tmp_path: Path, gpu: Gpu, model: Model) -> None:
    opened = open_on(gpu, model, tmp_path)
    gpu.code, gpu.refuse["enqueue"] = "FAILED_ALLOCATION", "words of another version"
    with pytest.raises(OutOfMemoryError, match="for a batch of 2,8,8"):
        opened.infer(frames(2, 8, 8))


def test_from_the_third_batch_of_a_shape_on_its_work_is_replayed(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    opened = open_on(gpu, model, tmp_path, shapes=[(4, 8, 8)])
    gpu.launches = 0
    for number, shape in enumerate([(4, 8, 8)] * 4 + [(1, 8, 8)] + [(4, 8, 8)] * 3):
        sent = frames(*shape) // (number + 1)
        np.testing.assert_array_equal(opened.infer(sent), 255 - sent)
        # The first batch of a shape is a warm-up, and the second is recorded and launched.
        assert gpu.launches == [0, 1, 2, 3, 3, 3, 4, 5][number]
        assert gpu.graphs == [0, 1, 1, 1, 0, 0, 1, 1][number]
    assert not gpu.recordings
    opened.close()
    assert gpu.graphs == 0
    assert not gpu.live


def test_an_engine_is_compared_as_it_translates_by_replay(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    open_on(gpu, model, tmp_path)
    assert gpu.launches == 2


def test_without_a_graph_every_batch_is_enqueued(tmp_path: Path, gpu: Gpu, model: Model) -> None:
    opened = open_on(gpu, model, tmp_path, graph=False).fork()
    gpu.launches = 0
    for _ in range(3):
        np.testing.assert_array_equal(opened.infer(frames(2, 8, 8)), 255 - frames(2, 8, 8))
    assert gpu.launches == 0


def test_what_cuda_cannot_record_is_enqueued_errors(tmp_path: Path, gpu: Gpu, model: Model) -> None:
    opened = open_on(gpu, model, tmp_path)
    gpu.launches, gpu.begun = 0, 0
    gpu.refuse["record"] = "operation not permitted when stream is capturing"
    sent = frames(2, 8, 8)
    for _ in range(4):
        np.testing.assert_array_equal(opened.infer(sent), 255 - sent)
    assert (gpu.begun, gpu.launches, gpu.graphs, gpu.recordings) == (1, 0, 0, {})
    # What fails afterwards has its own reason, not the one of the recording.
    gpu.refuse["enqueue"] = "illegal address"
    with pytest.raises(BackendError, match=r"\(N,H,W\): illegal address; try"):
        opened.infer(sent)


@pytest.mark.behaviour(26)
def test_out_of_memory_while_it_is_recorded_is_told_apart_errors(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    opened = open_on(gpu, model, tmp_path)
    sent = frames(2, 8, 8)
    opened.infer(sent)
    gpu.refuse["record"] = "cuda: out of memory"
    with pytest.raises(OutOfMemoryError, match="for a batch of 2,8,8"):
        opened.infer(sent)
    gpu.refuse.clear()
    assert not gpu.live
    np.testing.assert_array_equal(opened.infer(sent), 255 - sent)
