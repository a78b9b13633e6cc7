"""One suite over every ONNX backend, against numpy: pixels, contexts, and what goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cyclegan_batch.backends import Backend, open_backend
from cyclegan_batch.errors import BackendError, ModelError
from cyclegan_batch.frames import Pixels, as_pixel_type
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import parity
from tests.backends.conftest import reference
from tests.synthesis import generators
from tests.synthesis.generators import natural

# The same pixels from every backend

MODELS: dict[str, Callable[[Path], Path]] = {
    "identity": generators.identity,
    "identity float16": lambda path: generators.identity(path, "float16"),
    "invert": generators.invert,
    "resnet": generators.tiny_resnet,
    "resnet float16": lambda path: generators.tiny_resnet(path, io="float16"),
    "one channel": generators.one_channel,
    "foreign": generators.foreign_resnet,
    "foreign nhwc": lambda path: generators.foreign(path, layout="nhwc", opset=9),
}


@pytest.mark.behaviour(31, 33)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 46, 38), (3, 24, 66)])
def test_every_backend_is_exact_against_numpy(
    tmp_path: Path, backend: str, name: str, shape: tuple[int, int, int]
) -> None:
    model = open_model(MODELS[name](tmp_path / "a.onnx"))
    count, *size = shape
    frames = as_pixel_type(natural((size[0], size[1]), count), model.card.pixel_type)
    opened = open_backend(model, backend=backend, threads=1)

    out = opened.infer(frames)
    assert (out.shape, out.dtype) == (frames.shape, frames.dtype)
    assert parity(out, reference(model, frames)).cls == "exact"
    assert (opened.name, opened.device, opened.precision) == (backend, "cpu", "fp32")


def test_a_half_precision_file_is_in_its_class(tmp_path: Path, backend: str) -> None:
    half = open_model(generators.foreign_resnet(tmp_path / "a.onnx", half=True))
    single = open_model(generators.foreign_resnet(tmp_path / "b.onnx"))
    frames = natural((64, 64))
    out = open_backend(half, backend=backend, precision="fp16").infer(frames)
    assert half.card.precision == "fp16"
    assert parity(out, reference(single, frames)).reaches("half")


def numpy_resnet(path: Path, frames: Pixels) -> Pixels:
    """Compute `generators.tiny_resnet` from its weights in float64, without an ONNX runtime."""
    file = onnx.load(path)
    weights = [
        numpy_helper.to_array(w).astype(np.float64)
        for w in file.graph.initializer
        if w.dims and np.prod(w.dims) > 2 and w.data_type == onnx.TensorProto.FLOAT
    ]
    pairs = iter(weights)

    def conv(x: Pixels, stride: int = 1, pad: int = 0) -> Pixels:
        kernel, bias = next(pairs), next(pairs)
        size = kernel.shape[-1]
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
        out = np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], kernel)
        return out + bias[:, None, None]

    def transposed(x: Pixels) -> Pixels:
        kernel, bias = next(pairs), next(pairs)
        n, _, h, w = x.shape
        full = np.zeros((n, kernel.shape[1], 2 * h + 2, 2 * w + 2))
        for i in range(3):
            for j in range(3):
                spread = np.einsum("nchw,co->nohw", x, kernel[:, :, i, j])
                full[:, :, i : i + 2 * h : 2, j : j + 2 * w : 2] += spread
        return full[:, :, 1 : 1 + 2 * h, 1 : 1 + 2 * w] + bias[:, None, None]

    def norm(x: Pixels) -> Pixels:
        gain, offset = next(pairs), next(pairs)
        mean, deviation = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
        normal = (x - mean) / np.sqrt(deviation + 1e-5)
        return normal * gain[:, None, None] + offset[:, None, None]

    def reflect(x: Pixels, width: int) -> Pixels:
        return np.pad(x, ((0, 0), (0, 0), (width, width), (width, width)), mode="reflect")

    x = frames.transpose(0, 3, 1, 2) / 127.5 - 1
    x = np.maximum(norm(conv(reflect(x, 3))), 0)
    x = np.maximum(norm(conv(x, stride=2, pad=1)), 0)
    inner = np.maximum(norm(conv(reflect(x, 1))), 0)
    x = x + norm(conv(reflect(inner, 1)))
    x = np.maximum(norm(transposed(x)), 0)
    x = np.tanh(conv(reflect(x, 3)))
    levels = (x + 1) * 127.5
    out: Pixels = np.clip(np.floor(levels + 0.5), 0, 255).astype(np.uint8)
    return out.transpose(0, 2, 3, 1)


@pytest.mark.behaviour(31, 33)
def test_every_backend_equals_the_network_written_out_in_numpy(
    tmp_path: Path, backend: str
) -> None:
    path = generators.tiny_resnet(tmp_path / "a.onnx", seed=3)
    frames = natural((32, 44), 2)
    out = open_backend(open_model(path), backend=backend).infer(frames)
    assert parity(out, numpy_resnet(path, frames)).cls == "exact"
    assert out.std() > 20


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_file_of_fixed_batch_takes_any_number_of_frames(
    tmp_path: Path, backend: str, count: int, batch: int
) -> None:
    path = generators.invert(tmp_path / "a.onnx", fixed=(12, 20), batch=batch)
    frames = natural((12, 20), count)
    out = open_backend(open_model(path), backend=backend).infer(frames)
    assert np.array_equal(out, 255 - frames)


def test_results_belong_to_the_caller(tmp_path: Path, backend: str) -> None:
    opened = open_backend(open_model(generators.invert(tmp_path / "a.onnx")), backend=backend)
    frames = natural((16, 16), 2)
    first = opened.infer(frames)
    opened.infer(np.zeros_like(frames))
    assert np.array_equal(first, 255 - frames)
    first[:] = 0
    assert first.flags.c_contiguous


def test_frames_that_may_not_be_written_or_have_gaps_are_taken(
    tmp_path: Path, backend: str
) -> None:
    opened = open_backend(open_model(generators.invert(tmp_path / "a.onnx")), backend=backend)
    frames = natural((16, 32))
    frames.flags.writeable = False
    assert np.array_equal(opened.infer(frames), 255 - frames)
    assert np.array_equal(opened.infer(frames[:, :, ::2]), 255 - frames[:, :, ::2])


@pytest.mark.behaviour(28)
def test_the_same_frames_give_the_same_pixels_twice(tmp_path: Path, backend: str) -> None:
    model = open_model(generators.tiny_resnet(tmp_path / "a.onnx"))
    frames = natural((94, 122), 3)
    first = open_backend(model, backend=backend, threads=2, contexts=2)
    second = open_backend(model, backend=backend, threads=2, contexts=2)
    expected = first.infer(frames)
    first.infer(natural((50, 50), seed=1))
    assert np.array_equal(first.infer(frames), expected)
    assert np.array_equal(second.infer(frames), expected)


@pytest.mark.behaviour(28)
def test_contexts_work_side_by_side_and_agree(tmp_path: Path, backend: str) -> None:
    model = open_model(generators.tiny_resnet(tmp_path / "a.onnx"))
    first = open_backend(model, backend=backend, threads=2, contexts=3)
    contexts = [first, first.fork(), first.fork()]
    frames = [natural((64, 64), seed=seed) for seed in range(12)]
    expected = [first.infer(one) for one in frames]

    def work(own: Backend) -> list[Pixels]:
        return [own.infer(one) for one in frames]

    with ThreadPoolExecutor(3) as threads:
        for results in threads.map(work, contexts):
            assert all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


# The end of a context


@pytest.mark.behaviour(24)
def test_cancel_cuts_off_one_context_and_no_other(tmp_path: Path, backend: str) -> None:
    model = open_model(generators.tiny_resnet(tmp_path / "a.onnx", width=8))
    first = open_backend(model, backend=backend, threads=1, contexts=2)
    other = first.fork()
    frames = natural((128, 128), 1).repeat(24, axis=0)
    begin = time.monotonic()
    first.infer(frames)
    whole = time.monotonic() - begin
    ended: list[BaseException | None] = []

    def work() -> None:
        try:
            while True:
                first.infer(frames)
        except BackendError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(whole / 2)
    begin = time.monotonic()
    first.cancel()
    thread.join(5)
    assert not thread.is_alive()
    assert "cancelled" in str(ended[0])

    refused = []
    for _ in range(5):
        begin = time.monotonic()
        with pytest.raises(BackendError, match="cancelled"):
            first.infer(frames)
        refused.append(time.monotonic() - begin)
    assert min(refused) < whole / 2
    assert other.infer(frames[:1]).shape == (1, 128, 128, 3)


def test_a_closed_context_errors_and_its_siblings_live(tmp_path: Path, backend: str) -> None:
    first = open_backend(open_model(generators.invert(tmp_path / "a.onnx")), backend=backend)
    other = first.fork()
    first.close()
    first.close()
    frames = natural((8, 8))
    with pytest.raises(BackendError, match="closed"):
        first.infer(frames)
    with pytest.raises(BackendError, match="closed"):
        first.fork()
    assert np.array_equal(other.infer(frames), 255 - frames)


# What goes wrong


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("io", ["uint8", "float16"])
def test_a_model_that_gives_nan_errors(
    tmp_path: Path, backend: str, io: generators.PixelType
) -> None:
    model = open_model(generators.not_a_number(tmp_path / "a.onnx", io))
    with pytest.raises(ModelError, match=r"a\.onnx: returns NaN"):
        open_backend(model, backend=backend)


def test_a_name_that_is_not_utf_8_can_be_said_errors(tmp_path: Path, backend: str) -> None:
    name = os.fsdecode(b"\xff.onnx")
    with pytest.raises(ModelError, match=r"xff\.onnx: returns NaN") as caught:
        open_backend(open_model(generators.not_a_number(tmp_path / name)), backend=backend)
    str(caught.value).encode()


@pytest.mark.behaviour(33)
def test_a_norm_that_divides_by_nothing_on_a_black_frame_errors(
    tmp_path: Path, backend: str
) -> None:
    g = generators.Graph()
    x = g.op("Sub", "image", g.op("ReduceMean", "image", axes=[2, 3]))
    deviation = g.op("ReduceMean", g.op("Mul", x, x), axes=[2, 3])
    g.op("Tanh", g.op("Div", x, g.op("Sqrt", deviation)), out="picture")
    shape = ("N", 3, "H", "W")
    kind = onnx.TensorProto.FLOAT
    g.save(tmp_path / "a.onnx", [("image", kind, shape)], [("picture", kind, shape)])
    with pytest.raises(ModelError, match="returns NaN"):
        open_backend(open_model(tmp_path / "a.onnx"), backend=backend)


def test_a_model_that_changes_the_size_only_when_it_runs_errors(
    tmp_path: Path, backend: str
) -> None:
    model = open_model(generators.secret_upscaler(tmp_path / "a.onnx"))
    wrong = r"\(2, 64, 128, 3\) uint8 for \(2, 64, 64, 3\) uint8"
    # torch runs the nodes of generators, and this file hides its size behind others.
    with pytest.raises(ModelError, match="is Tile" if backend == "torch" else wrong):
        open_backend(model, backend=backend)


def test_a_size_that_the_network_cannot_take_errors(tmp_path: Path, backend: str) -> None:
    model = open_model(generators.invert(tmp_path / "a.onnx", fixed=(8, 8)))
    opened = open_backend(model, backend=backend)
    with pytest.raises(BackendError, match=r"fails on frames of 1×9×8×3"):
        opened.infer(np.zeros((1, 9, 8, 3), np.uint8))
    frames = natural((8, 8))
    assert np.array_equal(opened.infer(frames), 255 - frames)


_LARGE_THEN_SMALL = """
import resource, sys
from pathlib import Path
import numpy as np
from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import OutOfMemoryError
from cyclegan_batch.models.model import open_model

opened = open_backend(open_model(Path(sys.argv[2])), backend=sys.argv[1], threads=1)
small = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
expected = opened.infer(255 - small), opened.infer(small)
large = np.zeros((1, 2000, 2000, 3), np.uint8)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 100 * 2**20,) * 2)
try:
    opened.infer(large)
except OutOfMemoryError as error:
    print(error)
assert np.array_equal(opened.infer(small), expected[1])
"""


@pytest.mark.behaviour(26)
@pytest.mark.needs("linux")
def test_no_memory_is_told_apart_and_smaller_frames_still_run(tmp_path: Path, backend: str) -> None:
    path = generators.tiny_resnet(tmp_path / "a.onnx")
    run = subprocess.run(
        [sys.executable, "-c", _LARGE_THEN_SMALL, backend, str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "no memory" in run.stdout
    assert "batch of 1×2000×2000×3" in run.stdout


@pytest.mark.behaviour(27)
@pytest.mark.needs("linux")
def test_memory_stays_flat_over_many_sizes(tmp_path: Path, backend: str) -> None:
    opened = open_backend(
        open_model(generators.tiny_resnet(tmp_path / "a.onnx")), backend=backend, threads=1
    )
    sizes = [(2 * i, 2 * j) for i in range(4, 26) for j in range(4, 26)]
    np.random.default_rng(0).shuffle(sizes)

    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 // 2**20

    opened.infer(np.zeros((1, 52, 52, 3), np.uint8))
    taken = []
    for number, size in enumerate(sizes):
        opened.infer(np.zeros((1, *size, 3), np.uint8))
        if number in (120, len(sizes) - 1):
            taken.append(resident())
    assert taken[1] - taken[0] < 25, f"MiB after 120 and {len(sizes)} sizes: {taken}"


def test_nothing_reaches_the_terminal(
    tmp_path: Path, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    opened = open_backend(
        open_model(generators.invert(tmp_path / "a.onnx", fixed=(8, 8))), backend=backend
    )
    with pytest.raises(BackendError):
        opened.infer(np.zeros((1, 9, 8, 3), np.uint8))
    opened.cancel()
    with pytest.raises(BackendError):
        opened.infer(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ModelError):
        open_backend(open_model(generators.not_a_number(tmp_path / "b.onnx")), backend=backend)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
