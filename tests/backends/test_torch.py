"""torch runs a checkpoint: the contract's arithmetic, and what holds for every backend.

The results are compared with the network in float64, between the contract's arithmetic in numpy.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from cyclegan_batch.backends import Backend, open_backend
from cyclegan_batch.errors import (
    BackendError,
    BackendUnavailableError,
    ModelError,
    OutOfMemoryError,
)
from cyclegan_batch.frames import Pixels, PixelType, as_pixel_type
from cyclegan_batch.models.checkpoints.files import Selection
from cyclegan_batch.models.model import Model, describe, open_model
from cyclegan_batch.models.parity import parity
from cyclegan_batch.wording import grouped
from tests.conftest import REPOSITORY
from tests.needs import package
from tests.synthesis.generators import natural

torch = package("torch")

from torch import nn  # noqa: E402

from cyclegan_batch.backends.torch import TorchBackend  # noqa: E402
from cyclegan_batch.backends.torch.bodies import FrameNorm  # noqa: E402
from cyclegan_batch.backends.torch.recording import CudaBatches  # noqa: E402
from cyclegan_batch.backends.torch.settings import CUDA_SETTING  # noqa: E402
from cyclegan_batch.models.networks import (  # noqa: E402
    GeneratorConfig,
    InstanceNorm,
    generator_from_config,
    init_weights,
)

TINY = GeneratorConfig("resnet_2blocks", ngf=4)


def checkpoint(path: Path, config: GeneratorConfig = TINY, gain: float = 0.3) -> Path:
    """Write a generator whose output is neither flat nor saturated."""
    torch.manual_seed(0)
    network = generator_from_config(config)
    init_weights(network, init_gain=gain)
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.3)
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    torch.save(network.state_dict(), path)
    return path


def of_network(model: Model, network: nn.Module) -> Model:
    """Return ``model`` with its network replaced by ``network``."""
    assert model.checkpoint is not None
    return replace(model, checkpoint=replace(model.checkpoint, network=network))


def opened(model: Model, **options: Any) -> TorchBackend:
    """Open ``model`` with one thread, since tests often share their machine."""
    backend = open_backend(model, **{"threads": 1} | options)
    assert isinstance(backend, TorchBackend)
    return backend


class Invert(nn.Module):
    def forward(self, x):
        return -x


def reference(model: Model, frames: Pixels) -> Pixels:
    """Translate in float64, a frame at a time."""
    assert model.checkpoint is not None
    network = copy.deepcopy(model.checkpoint.network).double()
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.forward = lambda x: nn.functional.instance_norm(x)  # not back to float32
    top = 255.0 if frames.dtype == np.uint8 else 1.0
    rows = []
    for frame in frames.astype(np.float64):
        x = frame / top * 2 - 1
        if model.checkpoint.config.input_nc == 1:
            x = x @ np.array([[0.299], [0.587], [0.114]])
        with torch.inference_mode():
            y = network(torch.from_numpy(x.transpose(2, 0, 1)[np.newaxis])).numpy()[0]
        rows.append(np.broadcast_to((y.transpose(1, 2, 0) + 1) * top / 2, frame.shape))
    out = np.stack(rows)
    if frames.dtype == np.uint8:
        return np.clip(np.floor(out + 0.5), 0, 255).astype(np.uint8)
    return np.clip(out, 0, 1).astype(np.float16)


# Pixels

KINDS = [
    TINY,
    GeneratorConfig("resnet_1blocks", 1, 1, 4),
    GeneratorConfig("resnet_1blocks", 1, 3, 4, upsample="resize"),
    GeneratorConfig("resnet_2blocks", ngf=4, norm="batch", dropout=True),
    GeneratorConfig("mobile_resnet_2blocks", ngf=4),
    GeneratorConfig("unet_32", ngf=4),
]


@pytest.mark.behaviour(31, 33)
@pytest.mark.parametrize("config", KINDS, ids=str)
@pytest.mark.parametrize("io", ["uint8", "float16"])
def test_it_is_exact_against_float64(
    tmp_path: Path, config: GeneratorConfig, io: PixelType
) -> None:
    model = open_model(checkpoint(tmp_path / "g.pth", config))
    model = replace(model, card=replace(model.card, pixel_type=io))
    backend = opened(model, threads=1)
    for count, size in ((1, (32, 32)), (3, (32, 96))):
        frames = as_pixel_type(natural(size, count), io)
        out = backend.infer(frames)
        assert (out.shape, out.dtype) == (frames.shape, frames.dtype)
        assert parity(out, reference(model, frames)).cls == "exact"
        assert np.ptp(out) > (40 if io == "uint8" else 40 / 255)
    assert (backend.name, backend.device, backend.precision) == ("torch", "cpu", "fp32")


def test_rounding_is_half_up_and_beyond_the_range_is_clamped(tmp_path: Path) -> None:
    class Scale(nn.Module):
        def forward(self, x):
            return x * scale

    model = of_network(open_model(checkpoint(tmp_path / "g.pth")), Scale())
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    scale = 1.0
    assert np.array_equal(opened(model).infer(frames), frames)
    scale = -1.0
    assert np.array_equal(opened(model).infer(frames), 255 - frames)
    scale = 2.0
    out = opened(model).infer(frames).ravel()[::3].astype(int)
    assert out.tolist() == [min(max(2 * level - 127, 0), 255) for level in range(256)]


@pytest.mark.behaviour(33)
def test_the_norm_stays_exact_on_large_frames() -> None:
    # Summed up one pixel after the other, float32 is off by 10⁻³ here.
    torch.manual_seed(0)
    x = torch.rand(1, 2, 1500, 1501) + 3
    normal = FrameNorm(InstanceNorm(2))(x.contiguous(memory_format=torch.channels_last))
    expected = nn.functional.instance_norm(x.double())
    assert (normal - expected).abs().max() < 5e-6


def test_the_norm_keeps_an_affine() -> None:
    torch.manual_seed(0)
    norm = InstanceNorm(3, affine=True).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        x = torch.rand(2, 3, 8, 12).to(dtype)
        normal = FrameNorm(norm)(x.contiguous(memory_format=torch.channels_last))
        expected = nn.functional.instance_norm(x.double(), None, None, *norm.double().parameters())
        assert normal.dtype == dtype
        assert (normal - expected).abs().max() < most
        norm.float()


@pytest.mark.behaviour(28)
def test_pixels_do_not_depend_on_batch_context_or_run(tmp_path: Path) -> None:
    model = open_model(checkpoint(tmp_path / "g.pth"))
    first = opened(model, threads=3, contexts=3)
    contexts: list[Backend] = [first, first.fork(), first.fork()]
    frames = np.concatenate([natural((64, 44), seed=seed) for seed in range(6)])
    expected = first.infer(frames)
    assert np.array_equal(opened(model, threads=3, contexts=3).infer(frames), expected)

    def work(own: Backend) -> list[Pixels]:
        return [own.infer(frames[i : i + 1])[0] for i in range(6)]

    with ThreadPoolExecutor(3) as threads:
        for results in threads.map(work, contexts):
            assert all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.behaviour(33)
@pytest.mark.skipif(
    not any(torch.cpu.get_capabilities().get(k) for k in ("avx512_bf16", "amx_bf16", "bf16")),
    reason="this CPU has no bf16",
)
def test_bf16_is_in_its_class_or_refused(tmp_path: Path) -> None:
    config = GeneratorConfig("resnet_1blocks", ngf=8)
    model = open_model(checkpoint(tmp_path / "g.pth", config, gain=0.02))
    frames = natural((96, 96), 2)
    reduced = opened(model, precision="bf16")
    measured = parity(reduced.infer(frames), opened(model).infer(frames))
    assert reduced.precision == "bf16"
    assert measured.reaches("near")
    assert measured.cls != "exact"
    (note,) = grouped(reduced.notes)
    assert note.startswith("g.pth in bf16 against fp32 is ")
    assert np.array_equal(reduced.fork().infer(frames), reduced.infer(frames))
    wild = open_model(checkpoint(tmp_path / "wild.pth", gain=0.3))
    with pytest.raises(ModelError, match=r"wild\.pth: in bf16 it is .* where near is expected"):
        opened(wild, precision="bf16")


# What holds for every backend


def test_frames_are_taken_as_they_come_and_results_belong_to_the_caller(tmp_path: Path) -> None:
    model = of_network(open_model(checkpoint(tmp_path / "g.pth")), Invert())
    backend = opened(model)
    frames = natural((16, 32))
    frames.flags.writeable = False
    first = backend.infer(frames)
    assert np.array_equal(first, 255 - frames)
    turned = np.concatenate([frames, frames])[:, ::-1, ::2].transpose(0, 2, 1, 3)
    out = backend.infer(turned)
    assert np.array_equal(out, 255 - turned)
    assert out.flags.c_contiguous
    first[:] = 0
    assert first.flags.c_contiguous
    assert np.array_equal(backend.infer(frames), 255 - frames)


def test_contexts_share_their_weights_and_leave_torchs_threads_alone(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    first = opened(open_model(checkpoint(tmp_path / "g.pth")), threads=before + 2)
    second = first.fork()
    weights = [{p.data_ptr() for p in b._body.parameters()} for b in (first, second)]
    assert weights[0] == weights[1]
    seen = []
    handle = first._body.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    first.infer(natural((16, 16)))
    handle.remove()
    assert (seen, torch.get_num_threads()) == ([before + 2], before)


@pytest.mark.behaviour(24)
def test_cancel_cuts_off_one_context_and_no_other(tmp_path: Path) -> None:
    model = open_model(checkpoint(tmp_path / "g.pth", GeneratorConfig("resnet_9blocks", ngf=8)))
    first = opened(model, threads=1, contexts=2)
    other = first.fork()
    frames = natural((256, 256))
    ended: list[BaseException] = []
    running = threading.Event()
    first._body.register_forward_pre_hook(lambda *_: running.set())

    def work() -> None:
        try:
            while True:
                first.infer(frames)
        except BackendError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert running.wait(30)
    first.cancel()
    thread.join(5)
    assert not thread.is_alive()
    assert "torch: cancelled" in str(ended[0])
    with pytest.raises(BackendError, match="cancelled"):
        first.infer(frames)
    assert other.infer(frames).shape == frames.shape


def test_a_closed_context_errors_and_its_siblings_live(tmp_path: Path) -> None:
    first = opened(open_model(checkpoint(tmp_path / "g.pth")))
    other = first.fork()
    first.close()
    first.close()
    frames = natural((16, 16))
    with pytest.raises(BackendError, match="closed"):
        first.infer(frames)
    with pytest.raises(BackendError, match="closed"):
        first.fork()
    assert other.infer(frames).shape == frames.shape


@pytest.mark.behaviour(33)
def test_a_model_that_gives_nan_errors(tmp_path: Path) -> None:
    class Nan(nn.Module):
        def forward(self, x):
            return (x * 0 - 1).sqrt()

    model = of_network(open_model(checkpoint(tmp_path / "g.pth")), Nan())
    with pytest.raises(ModelError, match=r"g\.pth: returns NaN"):
        opened(model)


def test_a_size_that_the_network_cannot_take_errors(tmp_path: Path) -> None:
    backend = opened(open_model(checkpoint(tmp_path / "g.pth", GeneratorConfig("unet_32"))))
    with pytest.raises(BackendError, match=r"g\.pth fails on frames of 1×40×32×3: .*; .*--size"):
        backend.infer(np.zeros((1, 40, 32, 3), np.uint8))
    backend = opened(open_model(checkpoint(tmp_path / "h.pth")))
    with pytest.raises(ModelError, match=r"returns \(1, 20, 16, 3\) uint8 for \(1, 18, 16, 3\)"):
        backend.infer(np.zeros((1, 18, 16, 3), np.uint8))


_LARGE_THEN_SMALL = """
import resource, sys
from pathlib import Path
import numpy as np
from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import OutOfMemoryError
from cyclegan_batch.models.model import open_model

opened = open_backend(open_model(Path(sys.argv[1])), threads=1)
small = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
expected = opened.infer(255 - small), opened.infer(small)
large = np.zeros((1, 1600, 1600, 3), np.uint8)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
for more in (20, 100):
    resource.setrlimit(resource.RLIMIT_AS, (taken + more * 2**20, resource.RLIM_INFINITY))
    try:
        opened.infer(large)
    except OutOfMemoryError as error:
        print(error)
    assert np.array_equal(opened.infer(small), expected[1])
"""


@pytest.mark.behaviour(26)
@pytest.mark.needs("linux")
def test_no_memory_is_told_apart_and_smaller_frames_still_run(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _LARGE_THEN_SMALL, str(checkpoint(tmp_path / "g.pth"))],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("torch: no memory on cpu for a batch of 1×1600×1600×3\n") == 2


_MANY_SIZES = """
import sys
from pathlib import Path
import numpy as np
from cyclegan_batch.backends import open_backend
from cyclegan_batch.models.model import open_model

opened = open_backend(open_model(Path(sys.argv[1])), threads=1)
sizes = [(4 * i, 4 * j) for i in range(2, 18) for j in range(2, 18)]
np.random.default_rng(0).shuffle(sizes)
opened.infer(np.zeros((1, 72, 72, 3), np.uint8))
for number, size in enumerate(sizes, 1):
    opened.infer(np.zeros((1, *size, 3), np.uint8))
    if number in (64, len(sizes)):
        print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20)
"""


@pytest.mark.behaviour(27)
@pytest.mark.needs("linux")
def test_memory_stays_flat_over_many_sizes(tmp_path: Path) -> None:
    # A process of its own, as oneDNN sets the size of its cache at its first convolution.
    run = subprocess.run(
        [sys.executable, "-c", _MANY_SIZES, str(checkpoint(tmp_path / "g.pth"))],
        capture_output=True, text=True, check=True, cwd=REPOSITORY,
    )  # fmt: skip
    few, many = map(int, run.stdout.split())
    assert many - few < 20, f"MiB after 64 and 256 sizes: {few}, {many}"


def test_nothing_reaches_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backend = opened(open_model(checkpoint(tmp_path / "g.pth")))
    with pytest.raises(ModelError):
        backend.infer(np.zeros((1, 18, 16, 3), np.uint8))
    backend.cancel()
    with pytest.raises(BackendError):
        backend.infer(np.zeros((1, 16, 16, 3), np.uint8))
    assert capfd.readouterr() == ("", "")


# The model, and the choice


@pytest.mark.behaviour(36)
def test_a_checkpoint_has_a_card(tmp_path: Path) -> None:
    import safetensors.torch

    state = torch.load(checkpoint(tmp_path / "g.pth", GeneratorConfig("resnet_2blocks", 1, 3, 4)))
    path = tmp_path / "netG_B.safetensors"
    safetensors.torch.save_file(state, path, {"direction": "BtoA", "trained_size": "64"})
    card = open_model(tmp_path).card
    assert (card.path, card.architecture, card.direction) == (path, "resnet_2blocks", "BtoA")
    assert (card.trained_size, card.precision, card.pixel_type) == (64, "fp32", "uint8")
    assert (card.sizes.multiple_of, card.sizes.minimum) == (4, 8)
    assert card.digest == card.source_digest
    described = describe(card)
    assert described["kind"] == "checkpoint"
    assert described["generator"]["input_nc"] == 1


def test_what_is_said_of_a_folder_is_on_the_card(tmp_path: Path) -> None:
    checkpoint(tmp_path / "latest_net_G_A.pth", GeneratorConfig("unet_32", ngf=2, norm="batch"))
    checkpoint(tmp_path / "latest_net_G_B.pth")
    two, norm = grouped(open_model(tmp_path).card.notes)
    assert "holds two generators: AtoB is used" in two
    assert "BatchNorm uses the statistics of its training" in norm
    assert open_model(tmp_path, selection=Selection("BtoA")).card.notes == ()


def test_pictures_have_one_or_three_channels_errors(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "g.pth", GeneratorConfig("resnet_1blocks", 4, 3, 4))
    with pytest.raises(ModelError, match=r"g\.pth: its input has 4 channels where an image has 3"):
        open_model(path)
    with pytest.raises(ModelError, match="--model-io describes a foreign ONNX"):
        open_model(path, model_io="nchw")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backend": "onnxruntime"}, r"g\.pth: is a checkpoint, and onnxruntime runs ONNX; exp"),
        ({"backend": "openvino"}, "is a checkpoint, and openvino runs ONNX.*--backend torch"),
        (
            {"precision": "int8"},
            "torch runs it in fp32, tf32, bf16 or fp16, and int8 was",
        ),
        ({"precision": "fp16", "device": "cpu"}, "torch computes in fp16 on a GPU only"),
        ({"device": "cuda:99"}, r"was asked for cuda:99 and sees \S+ NVIDIA GPUs"),
    ],
)
def test_what_torch_cannot_do_errors(tmp_path: Path, options: dict[str, str], match: str) -> None:
    model = open_model(checkpoint(tmp_path / "g.pth"))
    with pytest.raises(BackendError, match=match):
        opened(model, **options)  # type: ignore[arg-type]


def test_bf16_on_a_cpu_without_it_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    with pytest.raises(BackendUnavailableError, match="this CPU has none; leave --precision out"):
        opened(open_model(checkpoint(tmp_path / "g.pth")), precision="bf16")


def test_only_pixels_come_back_from_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(open_model(checkpoint(tmp_path / "g.pth")))
    copied: list[torch.Tensor] = []
    really = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copied.append(self) or really(self))
    frames = natural((16, 24), 1)
    backend.infer(frames)
    assert [(tensor.shape, tensor.dtype) for tensor in copied] == [(frames.shape, torch.uint8)]
    copied.clear()
    backend.with_values(frames)
    assert [tensor.dtype for tensor in copied] == [torch.uint8, torch.float32]


@pytest.mark.behaviour(26)
def test_no_memory_on_a_gpu_is_told_apart_errors(tmp_path: Path) -> None:
    class Full(nn.Module):
        def forward(self, x):
            if full:
                raise full[0]
            return x

    full: list[Exception] = []
    backend = opened(of_network(open_model(checkpoint(tmp_path / "g.pth")), Full()))
    # It is recognised by its type, whatever its message.
    for words in ("CUDA out of memory. Tried to allocate 2 GiB", "words of the next version"):
        full[:] = [torch.OutOfMemoryError(words)]
        with pytest.raises(OutOfMemoryError, match="no memory on cpu for a batch of 1×8×8×3"):
            backend.infer(np.zeros((1, 8, 8, 3), np.uint8))
    full[0] = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(BackendError, match="illegal memory access") as caught:
        backend.infer(np.zeros((1, 8, 8, 3), np.uint8))
    assert not isinstance(caught.value, OutOfMemoryError)


def test_without_torch_a_checkpoint_names_what_to_install_errors(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from cyclegan_batch.models.model import open_model\n"
        f"open_model(Path({str(checkpoint(tmp_path / 'g.pth'))!r}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    last = run.stderr.splitlines()[-1]
    assert "BackendUnavailableError" in last
    assert 'g.pth: torch is not installed; pip install "cyclegan-batch[export]" brings it' in last


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_a_batch_on_a_gpu_stays_within_what_32_bits_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: GeneratorConfig
) -> None:
    """torch's reflection_pad2d refuses more, with an error that is not out of memory."""
    from cyclegan_batch.backends.torch.bodies import widest_tensor_of

    model = open_model(checkpoint(tmp_path / "g.pth", config))
    assert model.checkpoint is not None
    widest = widest_tensor_of(model.checkpoint)
    # The first layer has 4 channels; before the last one 8 are enlarged; a U-Net has its image's 3.
    channels = 8 if config.upsample == "resize" else 3 if config.netG == "unet_32" else 4
    assert channels <= widest < channels * 1.1
    backend = opened(model)
    monkeypatch.setattr(
        "cyclegan_batch.backends.common._MOST_ELEMENTS", int(2.5 * widest * 32 * 32)
    )
    seen: list[int] = []
    # Only that there are batches makes it one on a GPU here.
    backend._batches, backend._widest = cast("CudaBatches", object()), widest
    backend._run = lambda part: seen.append(len(part)) or part  # type: ignore[method-assign,func-returns-value]
    frames = natural((32, 32), 5)
    assert np.array_equal(backend.infer(frames), frames)
    assert seen == [2, 2, 2]


def multiplied() -> tuple[str, str]:
    """Return how CUDA multiplies float32 now, in convolutions and in matrix products."""
    backends: Any = torch.backends
    return backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision


@pytest.mark.behaviour(33)
@pytest.mark.parametrize(("precision", "how"), [("fp32", "ieee"), ("tf32", "tf32")])
def test_float32_on_a_gpu_is_what_its_word_says_and_the_setting_is_the_callers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, how: str
) -> None:
    """The CPU is called a GPU here."""

    class Recording(nn.Module):
        def forward(self, x):
            seen.append(multiplied())
            return x

    seen: list[tuple[str, str]] = []
    before = multiplied()
    backend = opened(of_network(open_model(checkpoint(tmp_path / "g.pth")), Recording()))
    frames = natural((8, 8), 1)
    expected = backend.infer(frames)
    assert seen[-1] == before, "on a CPU nothing is changed"
    backend.device, backend.precision = "cuda:0", precision
    really = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, kind: x if kind == "cuda:0" else really(x, kind)
    )
    assert np.array_equal(backend.infer(frames), expected)
    assert seen[-1] == (how, how)
    assert multiplied() == before


def test_contexts_that_multiply_otherwise_wait_for_one_another() -> None:
    before, seen = multiplied(), []

    def other() -> None:
        with CUDA_SETTING.set_to("tf32"):
            seen.append(multiplied())

    with CUDA_SETTING.set_to("ieee"):
        thread = threading.Thread(target=other)
        thread.start()
        with CUDA_SETTING.set_to("ieee"):
            assert multiplied() == ("ieee", "ieee")
        thread.join(0.1)
        assert multiplied() == ("ieee", "ieee"), "the first context is not done"
        assert seen == []
    thread.join(10)
    assert seen == [("tf32", "tf32")]
    assert multiplied() == before


def test_tf32_of_torch_takes_a_gpu_errors(tmp_path: Path) -> None:
    model = open_model(checkpoint(tmp_path / "g.pth"))
    with pytest.raises(BackendError, match=r"tf32 .* was asked for on the CPU; pass --device cuda"):
        opened(model, precision="tf32", device="cpu")


@pytest.mark.needs_cuda
@pytest.mark.behaviour(31, 33)
@pytest.mark.parametrize(
    ("precision", "cls"),
    [("fp32", "exact"), ("auto", "half"), ("tf32", "half"), ("fp16", "half"), ("bf16", "near")],
)
def test_cuda_is_in_its_class(tmp_path: Path, precision: str, cls: str) -> None:
    model = open_model(checkpoint(tmp_path / "g.pth"))
    frames = natural((96, 120), 3)
    backend = opened(model, device="cuda", precision=precision)
    assert parity(backend.infer(frames), reference(model, frames)).reaches(cls)  # type: ignore[arg-type]
