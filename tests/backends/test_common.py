"""What the backends share: batches, parity of a reduced precision, messages of allocators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from cyclegan_batch.backends import open_backend
from cyclegan_batch.backends.common import (
    in_batches,
    is_out_of_memory,
    may_hide_nan,
    parity_of,
)
from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.model import Model, open_model
from tests.needs import need
from tests.synthesis import generators


def test_the_last_call_of_a_fixed_batch_is_filled_up_with_its_last_frame() -> None:
    seen = []

    def run(frames: Pixels) -> Pixels:
        seen.append(frames[:, 0, 0, 0].tolist())
        return frames

    frames = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(3, axis=3)
    assert np.array_equal(in_batches(run, frames, 2), frames)
    assert seen == [[0, 1], [2, 3], [4, 4]]


@pytest.mark.behaviour(33)
def test_a_reduced_precision_outside_its_class_errors(resnet: Model) -> None:
    def off_by(levels: int) -> Any:
        def infer(frames: Pixels) -> Pixels:
            return np.where(frames < 128, frames, frames - np.uint8(levels))

        return SimpleNamespace(card=resnet.card, precision="bf16", infer=infer)

    assert parity_of(off_by(2), off_by(0)).cls == "near"
    with pytest.raises(ModelError, match=r"in bf16 it is coarse: .* where near is expected \(45"):
        parity_of(off_by(3), off_by(0))


OUT_OF_MEMORY = (
    "Non-zero status code returned while running Conv node. BFCArena::AllocateRawInternal "
    "Failed to allocate memory for requested buffer of size 1073741824",
    "CUDA failure 2: out of memory ; GPU=0",
    "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY",
    "cudaMalloc: cudaErrorMemoryAllocation",
    "Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)",
    "Requested amount of GPU memory (8589934592 bytes) could not be allocated. There may not be "
    "enough free memory for allocation to succeed.",
    "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 34359738368 bytes. Error "
    "code 12 (Cannot allocate memory)",
    "dnnl_out_of_memory",
    "std::bad_alloc",
    "bad allocation",
    "Could not allocate memory",
)
"""Messages of the allocators of CUDA, cuDNN, cuBLAS, onnxruntime, TensorRT, torch, oneDNN and
OpenVINO. Those of TensorRT and cuDNN were read in their libraries and headers."""

NOT_OUT_OF_MEMORY = (
    "CUDA failure 700: illegal address",
    "an illegal memory access was encountered",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "Error Code 1: Cuda Runtime (invalid argument)",
    "input tensor must fit into 32-bit index math",
)


@pytest.mark.behaviour(26)
def test_out_of_memory_is_known_by_the_words_of_every_allocator() -> None:
    assert [text for text in OUT_OF_MEMORY if not is_out_of_memory(RuntimeError(text))] == []
    assert [text for text in NOT_OUT_OF_MEMORY if is_out_of_memory(RuntimeError(text))] == []
    assert is_out_of_memory(MemoryError())


@pytest.mark.behaviour(33)
def test_a_sample_in_which_a_channel_has_one_level_may_hide_nan() -> None:
    out = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), np.uint8)
    assert not may_hide_nan(out)
    out[1, :, :, 2] = 0
    assert may_hide_nan(out)
    assert may_hide_nan(out.astype(np.float16))
    out[1, 7, 8, 2] = 1
    assert not may_hide_nan(out)


@pytest.mark.parametrize(
    ("file", "opened"), [(generators.tiny_resnet, 1), (generators.identity, 2)]
)
def test_a_network_is_opened_again_only_where_its_sample_may_hide_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Callable[[Path], Path], opened: int
) -> None:
    """The identity returns the sample's black frame."""
    need("onnxruntime")
    from cyclegan_batch.backends import onnxruntime

    count = 0
    real = onnxruntime.open_session

    def counted(*arguments: Any) -> onnxruntime.Session:
        nonlocal count
        count += 1
        return real(*arguments)

    monkeypatch.setattr(onnxruntime, "open_session", counted)
    model = open_model(file(tmp_path / "a.onnx"))
    onnxruntime.open_onnxruntime(model, threads=1, contexts=1).close()
    assert count == opened


def some_nan(path: Path, cause: str) -> Path:
    """Write a generator of NaN for some pixels of the sample and of numbers for others.

    The border of a black frame differs from its inside.
    """
    g = generators.Graph()
    x = g.op("Add", g.op("Cast", "frames", to=TensorProto.FLOAT), g.constant(36.0))
    x = g.op("Transpose", x, perm=[0, 3, 1, 2])
    mean = g.constant(np.eye(3)[..., np.newaxis, np.newaxis] * np.full((3, 3), 1 / 9))
    x = g.op("Conv", x, mean, pads=[1, 1, 1, 1])
    if cause == "a root":
        x = g.op("Add", x, g.op("Sqrt", g.op("Sub", x, g.constant(30.0))))
    elif cause == "a large weight":
        large = g.op("Mul", x, g.constant(8e36))  # from 42 on infinite
        x = g.op("Add", x, g.op("Sub", large, large))
    else:
        bright = g.op("Relu", g.op("Sub", x, g.constant(30.0)))
        x = g.op("Conv", bright, g.constant(np.full((3, 3, 1, 1), np.inf)))
    generators._leave(g, g.op("Transpose", x, perm=[0, 2, 3, 1]), "uint8")
    return g.save(path, *generators.frames_io("uint8"), card=generators.card())


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("cause", ["a root", "a large weight", "an infinite weight"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_nan_in_a_part_of_the_sample_errors(tmp_path: Path, cause: str, backend: str) -> None:
    need(backend)
    model = open_model(some_nan(tmp_path / "a.onnx", cause))
    with pytest.raises(ModelError, match="returns NaN where numbers are expected"):
        open_backend(model, backend=backend, device="cpu", threads=1)
