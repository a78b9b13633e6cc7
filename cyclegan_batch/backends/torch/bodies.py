"""What computes a batch: the generator as a function on frames that are on the device already.

A *body* takes frames ``(N, H, W, 3)`` of the contract, uint8 or float16, and returns their
translation in the same type. `BODIES` has the bodies that each precision tries on a GPU, the best
first; on a CPU there is one. A checkpoint and a contract ONNX have the same bodies.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol, TypeAlias

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from ...models.checkpoints.loading import LoadedGenerator
from ...models.graphs.contract import BT601
from ...models.model import Model
from ...models.networks import GeneratorConfig, InstanceNorm
from ...models.onnx_network import OnnxNetwork, as_resnet

BODIES: dict[str, tuple[str, ...]] = {
    "fp16": ("fused", "channels last"),
    "bf16": ("fused", "channels last"),
    "tf32": ("channels last",),
    "fp32": ("channels last",),
}
"""The bodies that are tried on a GPU, by precision, the first that works is used:

``fused``: a ResNet around the kernels of `models.fused`, both its ends in cells; needs Triton.
``compiled``: the network through torch.compile, for shapes that are seen twice. It takes up to a
minute for each, and after eight shapes torch goes on without compiling.
``channels last``, ``channels first``: torch's own kernels in either memory layout.

The order is an estimate (no GPU has run any); benchmarks/gpu.py measures all of them in its section
``host``, and a line here follows its rows.
"""

SEARCHES = False
"""Whether cuDNN tries its kernels out before a graph is recorded. Its own choice is the same in
every run, so pixels are, too; a search may find kernels that are faster."""

TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""The type in which the convolutions of a precision compute."""


class Body(Protocol):
    """A generator on frames."""

    def __call__(self, frames: Tensor) -> Tensor:
        """Return the translation of ``frames``."""

    def with_values(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the translation, and its float32 values before they are clamped and rounded."""


class NoBodyError(Exception):
    """A body cannot compute this model here; the message is a clause that tells why."""


def body_on_cuda(name: str, model: Model, device: str, precision: str) -> Body:
    """Return the body ``name`` of `BODIES`. Raises NoBodyError, ModelError, RuntimeError."""
    if name == "fused":
        return _fused(model, device, TYPES[precision])
    layout = torch.contiguous_format if name == "channels first" else torch.channels_last
    network = network_on_frames(model, TYPES[precision]).to(device).to(memory_format=layout)
    return Compiled(network) if name == "compiled" else network


def body_on_cpu(model: Model, precision: str) -> Network:
    """Return a `Body` for a CPU; its InstanceNorms take one frame after the other."""
    network = network_on_frames(model, TYPES[precision])
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                setattr(module, name, FrameNorm(child))
    return network.to(memory_format=torch.channels_last)


def network_on_frames(model: Model, dtype: torch.dtype) -> Network:
    """Return the network of ``model`` as a `Body` on the CPU; convolutions compute in ``dtype``.

    Raises ModelError for an ONNX with a node that torch does not run here.
    """
    if model.checkpoint is not None:
        return CheckpointOnFrames(model.checkpoint, dtype)
    proto = onnx.ModelProto.FromString(model.graph)
    return OnnxNetwork(model.card.path, proto, dtype).eval()


class CheckpointOnFrames(nn.Module):
    """The network of a checkpoint between the arithmetic that the contract adds to an ONNX."""

    def __init__(self, generator: LoadedGenerator, dtype: torch.dtype) -> None:
        super().__init__()
        self._luma = generator.config.input_nc == 1
        # On the device with the network: a copy from the host would break a capture.
        self.register_buffer("bt601", torch.tensor(BT601).unsqueeze(1))
        self._dtype = dtype
        self.network = copy.deepcopy(generator.network)
        for module in self.network.modules():
            # BatchNorm keeps its parameters and statistics in float32.
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.to(dtype)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the translation of ``frames``."""
        return self.with_values(frames)[0]

    def with_values(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the translation, and its float32 values before they are clamped and rounded."""
        whole = frames.dtype == torch.uint8
        top, half = (255.0, 0.5) if whole else (1.0, 0.0)
        x = frames.float() * (2.0 / top) - 1.0
        if self._luma:
            x = x @ self.get_buffer("bt601")
        # A permuted view, no copy: NCHW in channels-last memory format.
        y = self.network(x.permute(0, 3, 1, 2).to(self._dtype))
        y = y.float().permute(0, 2, 3, 1)
        values = (y * (top / 2.0) + (top / 2.0 + half)).expand(*y.shape[:3], 3)
        rounded = values.floor() if whole else values
        return rounded.clamp(0.0, top).to(frames.dtype).contiguous(), values


class FrameNorm(nn.Module):
    """InstanceNorm of single frames in channels-last memory format; statistics in float32.

    torch's own InstanceNorm copies such a frame to channels first and back. Tried, ResNet-9 at
    256² on one core, CPU ms per frame: 1071 with it, 892 with the whole network in channels first,
    792 with this class; in bf16 567, 424 and 206. `torch.batch_norm` over the whole frame is as
    fast, but adds up the pixels one after the other and loses precision: at 3840×2160 it was off
    by 0.4 of a standard deviation, this class by 10⁻⁶.
    """

    def __init__(self, norm: InstanceNorm) -> None:
        """Compute what ``norm`` computes."""
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each frame: ``(N, C, H, W)``."""
        if len(x) > 1:
            return torch.cat([self(frame) for frame in torch.split(x, 1)])
        wide = x.float()
        _, channels, height, width = x.shape
        # Statistics of each image column first, then of the columns together: short sums.
        columns = wide.permute(0, 2, 3, 1).reshape(height, width * channels)
        means, variances = torch.batch_norm_update_stats(columns, None, None, 0.0)
        means, variances = means.view(width, channels), variances.view(width, channels)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        weight, bias = self.norm.factors()
        return F.batch_norm(wide, mean, variance, weight, bias, eps=self.norm.eps).to(x.dtype)


Network: TypeAlias = OnnxNetwork | CheckpointOnFrames
"""A `Body` of torch's own kernels."""


class Compiled:
    """A network through torch.compile."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._compiled: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False)

    def __call__(self, frames: Tensor) -> Tensor:
        """Return the translation of ``frames``; the first batch of a shape takes up to a minute."""
        return self._compiled(frames)

    def with_values(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the translation, and its float32 values before they are clamped and rounded."""
        # The floats are looked at once, so they do not need to be compiled.
        return self(frames), self.network.with_values(frames)[1]


def _fused(model: Model, device: str, dtype: torch.dtype) -> Body:
    try:
        from ...models.fused import FusedGenerator, runs_on, why_not_fused
    except ImportError as error:
        raise NoBodyError(f"{error.name or error} is not installed") from error
    if not runs_on(torch.device(device)):
        raise NoBodyError(f"Triton does not run on {device}")
    if model.checkpoint is not None:
        config = model.checkpoint.config
        if not isinstance(config, GeneratorConfig):
            raise NoBodyError(f"{config.architecture} is no network of the reference's")
        why_not = why_not_fused(config)
        if why_not is not None:
            raise NoBodyError(why_not)
        return FusedGenerator(model.checkpoint.network, device, cells=True, dtype=dtype)
    network = as_resnet(onnx.ModelProto.FromString(model.graph))
    if network is None:
        raise NoBodyError("its graph is not that of the reference's ResNet")
    return FusedGenerator(network, device, cells=True, dtype=dtype)


def widest_tensor_of(generator: LoadedGenerator) -> float:
    """Return how many elements the widest tensor of a network has for each pixel of a frame."""
    height, width = generator.config.sizes.smallest_fit((256, 256))
    counts = [0]

    def note(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        counts.extend(tensor.numel() for tensor in (*inputs, out))

    network = copy.deepcopy(generator.network).to("meta")  # computes shapes only
    for module in network.modules():
        module.register_forward_hook(note)
    dtype = next((weight.dtype for weight in network.parameters()), torch.float32)
    network(torch.empty(1, generator.config.input_nc, height, width, dtype=dtype, device="meta"))
    return max(counts) / (height * width)
