"""What the sections share: the sizes they measure at, a clock, frames, and the network."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cyclegan_batch.backends.common import Backend
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.networks import (
    GeneratorConfig,
    InstanceNorm,
    generator_from_config,
    init_weights,
)
from cyclegan_batch.models.parity import natural_frames

from .rows import NotRunError

Job = tuple[str, Callable[[], dict[str, Any]]]

GFLOP = 99.1
"""For a frame of a ResNet-9 at 256²: two for each of its 49.55 G multiplications."""


@dataclass(frozen=True)
class Bench:
    """Where and at which sizes a section measures. On the CPU, a dry run, the sizes are tiny."""

    device: str
    checkpoint: Path | None = None

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def config(self) -> GeneratorConfig:
        if self.cuda:
            return GeneratorConfig("resnet_9blocks")
        return GeneratorConfig("resnet_1blocks", ngf=4)

    @property
    def side(self) -> int:
        return 256 if self.cuda else 16

    @property
    def batches(self) -> tuple[int, ...]:
        return (8, 16, 4, 32) if self.cuda else (1,)

    @property
    def larger(self) -> tuple[tuple[int, int], ...]:
        """Heights and widths beyond the trained size."""
        return ((512, 512), (720, 1280), (1080, 1920)) if self.cuda else ((16, 24),)

    def some(self, items: Any, count: int = 1) -> Any:
        """Return all ``items`` on a GPU, and in a dry run the first ``count``."""
        return items if self.cuda else items[:count]

    def checkpoint_in(self, folder: Path) -> Path:
        """Write the weights of `network` into ``folder``, as a checkpoint for the product."""
        path = folder / "latest_net_G.pth"
        torch.save(self.network().state_dict(), path)
        return path

    def settle(self) -> None:
        """Wait for the device and free its cached memory; raises where its context is lost."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def forget_compiled(self) -> None:
        """Reset torch.compile, so that the next network is not one more shape of an earlier one."""
        if self.cuda:  # a dry run compiles nothing, and importing the compiler takes seconds
            torch._dynamo.reset()

    def network(self) -> nn.Module:
        """Return the generator in float32 with seeded weights, on the CPU."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = generator_from_config(self.config)
            # With this gain the output is no flat image, whatever the width of the network.
            init_weights(network, init_gain=0.02 * math.sqrt(64 / self.config.ngf))
        return network.eval().requires_grad_(False)

    def frames(self, count: int, height: int, width: int) -> Tensor:
        """Return natural frames, uint8 ``(N, H, W, 3)``, on the device."""
        return torch.from_numpy(pictures(height, width, count).copy()).to(self.device)

    def timed(self, run: Callable[[], Any], seconds: float = 0.5) -> tuple[float, float]:
        """Return the milliseconds of a call (median of five windows), and their spread in %."""
        if not self.cuda:
            begin = time.perf_counter()
            run()
            return (time.perf_counter() - begin) * 1e3, 0.0

        def window(count: int) -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(count):
                run()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / count

        window(3)
        count = max(1, math.ceil(seconds / 5 * 1e3 / window(3)))
        times = sorted(window(count) for _ in range(5))
        return times[2], (times[-1] / times[0] - 1) * 100

    def recorded(
        self, run: Callable[[], Any], stream: torch.cuda.Stream | None = None
    ) -> Callable[[], Any]:
        """Record ``run`` as a CUDA graph; return a function that replays it for its result."""
        if not self.cuda:
            return run
        stream = stream or torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries must choose their kernels before the recording
            run()
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            result = run()

        def replay() -> Any:
            graph.replay()
            return result

        return replay

    def without_launches(self, run: Callable[[], Any], times: int = 10) -> float:
        """Return the milliseconds of a call, measured over several calls in one CUDA graph."""

        def several() -> None:
            for _ in range(times):
                run()

        return self.timed(self.recorded(several), 0.1)[0] / times


def frames_per_second(backends: Sequence[Backend], frames: Pixels, seconds: float) -> float:
    """Return the rate at which contexts translate ``frames``, each in a thread of its own.

    The first three calls of each are not timed: they allocate, choose kernels and record graphs.
    """
    counts = [0] * len(backends)
    failures: list[Exception] = []
    begins: list[float] = []
    ready = threading.Barrier(len(backends), action=lambda: begins.append(time.perf_counter()))

    def work(number: int) -> None:
        try:
            for _ in range(3):
                backends[number].infer(frames)
            ready.wait()
            while counts[number] == 0 or time.perf_counter() < begins[0] + seconds:
                backends[number].infer(frames)
                counts[number] += 1
        except threading.BrokenBarrierError:
            pass  # another context failed
        except Exception as error:
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(backends))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure
    return sum(counts) * len(frames) / (time.perf_counter() - begins[0])


@functools.cache
def pictures(height: int, width: int, count: int) -> Pixels:
    """Return natural frames of any size, uint8 ``(N, H, W, 3)``, at most eight different ones.

    Beyond 256² they are mirrored copies of one of 256²: computing one of 1080p takes ten seconds.
    """
    few = natural_frames((min(height, 256), min(width, 256)), min(count, 8))
    rest = ((0, 0), (0, height - few.shape[1]), (0, width - few.shape[2]), (0, 0))
    return np.pad(np.resize(few, (count, *few.shape[1:])), rest, mode="symmetric")


def bench_on(device: str, checkpoint: Path | None = None) -> Bench:
    """Prepare this process for measuring on ``device``. Raises NotRunError without a GPU."""
    if device == "cuda":
        if not torch.cuda.is_available():
            raise NotRunError("this torch sees no NVIDIA GPU")
        torch.backends.cudnn.benchmark = True
    return Bench(device, checkpoint)


@contextlib.contextmanager
def arithmetic(word: str) -> Iterator[None]:
    """Compute float32 in ``ieee`` or ``tf32`` arithmetic, in convolutions and matrix products."""
    places = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = word
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def required(*modules: str) -> None:
    """Raise NotRunError where one of the modules is not installed."""
    for name in modules:
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            spec = None
        if spec is None:
            raise NotRunError(f"{name} is not installed")


class HalfNorm(nn.Module):
    """InstanceNorm of float16 without a conversion to float32; cuDNN's sums are in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x)


class PlainNorm(nn.Module):
    """InstanceNorm spelled out in small operators in float32, for a compiler to fuse."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x.float(), (2, 3), correction=0, keepdim=True)
        return ((x.float() - mean) * torch.rsqrt(variance + 1e-5)).to(x.dtype)


def with_norm(network: nn.Module, norm: type[nn.Module]) -> nn.Module:
    """Replace every InstanceNorm of ``network`` itself by a ``norm``, and return it."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                setattr(module, name, norm())
    return network


def on_bytes(
    network: nn.Module, device: str, dtype: torch.dtype, *, channels_last: bool
) -> Callable[[Tensor], Tensor]:
    """Return ``network`` on bytes, ``(N, H, W, 3)``, with the torch backend's arithmetic."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(device, dtype).to(memory_format=layout)

    def run(pixels: Tensor) -> Tensor:
        x = (pixels.float() * (2 / 255) - 1).permute(0, 3, 1, 2).to(dtype)
        y = network(x if channels_last else x.contiguous()).float().permute(0, 2, 3, 1)
        return (y * 127.5 + 128).floor().clamp(0, 255).to(torch.uint8).contiguous()

    return run
