"""The gate: an exported file must translate like its source, or it is refused.

onnxruntime runs the file on the CPU, and the result is compared with torch in float32, in grey
levels (`cyclegan_batch.models.parity`). onnxruntime's CPU computes a float16 file in float32, so
this comparison tests the graph and its weights only. The effect of half-precision arithmetic is
therefore computed in torch, with every layer's output rounded to half: where an output leaves the
range of half precision, the file is refused whatever the comparison on the CPU showed.

The references here repeat the contract's arithmetic in torch and numpy on purpose (all but the
weights of BT.601): a reference that used `models.graphs.contract` would repeat its errors.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import BackendError, ModelError, missing_extra
from cyclegan_batch.frames import Pixels, PixelType, as_pixel_type
from cyclegan_batch.models.graphs.contract import BT601, GeneratorIO
from cyclegan_batch.models.graphs.onnx_file import read_onnx
from cyclegan_batch.models.model import Model
from cyclegan_batch.models.networks import InstanceNorm
from cyclegan_batch.models.parity import LIMITS, REQUIRED_CLASS, Parity, parity
from cyclegan_batch.wording import printable

from .graph import replace_norms

LARGEST_HALF = float(torch.finfo(torch.float16).max)
"""65504; larger values are infinite in half precision."""


@dataclass(frozen=True)
class HalfArithmetic:
    """The effect of rounding every layer's output to half precision."""

    parity: Parity
    """Against float32."""
    largest: float
    """The largest weight or output of a layer, before it is rounded."""
    layer: str
    """The layer of the largest value: ``model.10``."""
    norms: str
    """In words, where each step within the norms was rounded as well; else empty."""


def checked_parity(
    path: Path, model: Model, frames: Pixels, reference: Pixels, against: str
) -> Parity:
    """Return the parity of ``model`` on ``frames`` with ``reference``.

    Messages name the file ``path`` and the reference ``against``. Raises ModelError where the
    parity misses the class of the model's precision, or the model returns NaN.
    """
    backend = open_backend(model, backend="onnxruntime", device="cpu")
    try:
        measured = parity(backend.infer(as_pixel_type(frames, model.card.pixel_type)), reference)
    finally:
        backend.close()
    required = REQUIRED_CLASS[model.card.precision]
    if not measured.reaches(required):
        raise ModelError(
            f"{printable(path)}: not written: against {against} it is {measured}, where "
            f"{required} is expected ({LIMITS[required]}); {_remedy(model.card.precision)}, or "
            "pass --no-verify to cyclegan-batch export"
        )
    return measured


def checked_half_arithmetic(
    path: Path, frames: Pixels, *, network: nn.Module, channels: int, half_norm: bool = False
) -> HalfArithmetic:
    """Return the effect of half-precision arithmetic on ``network``'s translation of ``frames``.

    Messages name the file ``path``; ``channels`` are the network's input channels. ``half_norm``:
    the file's norms take half precision, so what is within them is rounded as well. Raises
    ModelError where a value leaves the range of half precision, or the result misses its class.
    """
    reference = translated_by_torch(network, frames, channels=channels)
    half, largest = _rounding_to_half(network, half_norm=half_norm)
    translated = translated_by_torch(half, frames, channels=channels, allow_nan=True)
    layer, value = max(largest.items(), key=lambda each: each[1])
    beyond = next(((name, each) for name, each in largest.items() if each > LARGEST_HALF), None)
    if beyond is not None:
        raise ModelError(
            f"{printable(path)}: not written: its {beyond[0]!r} reaches {beyond[1]:.3g} "
            f"where half precision ends at {LARGEST_HALF:.0f}; {_remedy('fp16')}, or pass "
            "--no-verify to cyclegan-batch export"
        )
    measured = parity(translated, reference)
    required = REQUIRED_CLASS["fp16"]
    if not measured.reaches(required):
        raise ModelError(
            f"{printable(path)}: not written: with every layer rounded to half precision it is "
            f"{measured}, where {required} is expected ({LIMITS[required]}); "
            f"{_remedy('fp16')}, or pass --no-verify to cyclegan-batch export"
        )
    norms = ", and each step within the norms" if half_norm else ""
    return HalfArithmetic(measured, value, layer, norms)


def translated_by_torch(
    network: nn.Module,
    frames: Pixels,
    *,
    channels: int,
    pixel_type: PixelType = "uint8",
    allow_nan: bool = False,
) -> Pixels:
    """Return ``network``'s translation of ``frames`` (uint8), computed in float32.

    The result is ``(N, H, W, 3)`` of ``pixel_type``, as the contract defines it. ``channels`` are
    the network's input channels. Raises ModelError where the network returns NaN or infinity,
    unless ``allow_nan``, which turns NaN into black.
    """
    out = []
    with torch.inference_mode():
        for frame in as_pixel_type(frames, pixel_type):
            top = 255.0 if pixel_type == "uint8" else 1.0
            x = torch.from_numpy(frame).float() * (2.0 / top) - 1.0
            if channels == 1:
                x = x @ torch.tensor(BT601)[:, None]
            y: Tensor = network(x.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
            if not allow_nan and not y.isfinite().all():
                raise ModelError(
                    "the generator returns NaN or infinity in float32 where numbers are expected: "
                    "its training diverged; take a checkpoint from before that"
                )
            y = ((y + 1.0) * (top / 2)).expand(-1, -1, 3)
            y = (y + 0.5).floor().clamp(0, top) if pixel_type == "uint8" else y.clamp(0, top)
            out.append(y.nan_to_num().numpy().astype(pixel_type))
    return np.stack(out)


def translated_by_file(
    path: Path, io: GeneratorIO, frames: Pixels, *, pixel_type: PixelType = "uint8"
) -> Pixels:
    """Return the translation of ``frames`` (uint8) by the foreign ONNX at ``path``.

    onnxruntime runs the file unchanged; numpy converts to and from the form ``io``, so that the
    result tests the nodes that the contract puts around the file, and what was removed from it.
    The file gets the frames, and the result is, in ``pixel_type``. Raises ModelError, BackendError.
    """
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise missing_extra("export", error, doing="measure the file") from error
    # Passed as bytes, not as a path: read_onnx checks which external weights it may read.
    content = read_onnx(path)[1].SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (network_input,) = (x for x in session.get_inputs() if io.input in (None, x.name))
    # Inputs that the picture does not depend on must be given, too.
    others = [x for x in session.get_inputs() if x.name != network_input.name]
    unread = {
        x.name: np.zeros([n if isinstance(n, int) else 1 for n in x.shape], _type_of(x.type))
        for x in others
    }
    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = bool(unread)
    outputs = None if io.output is None else [io.output]
    axis = 1 if io.layout == "nchw" else 3
    white = 255.0 if pixel_type == "uint8" else 1.0
    out = []
    for frame in as_pixel_type(frames, pixel_type):
        x = frame.astype(np.float64) / white
        if network_input.shape[axis] == 1:
            x = x @ np.array(BT601)[:, None]
        elif io.order == "bgr":
            x = x[..., ::-1]
        low, high = io.takes.range
        x = (x * (high - low) + low - np.array(io.takes.mean)) / np.array(io.takes.std)
        x = x.transpose(2, 0, 1) if io.layout == "nchw" else x
        x = np.ascontiguousarray(x[None], _type_of(network_input.type))
        if isinstance(network_input.shape[0], int):
            x = np.repeat(x, network_input.shape[0], axis=0)
        try:
            y = session.run(outputs, unread | {network_input.name: x}, options)[0][0]
        except Exception as error:
            raise BackendError(f"onnxruntime: the file that was given fails: {error}") from error
        y = y.transpose(1, 2, 0) if (io.output_layout or io.layout) == "nchw" else y
        y = y.astype(np.float64) * np.array(io.returns.std) + np.array(io.returns.mean)
        y = y[..., ::-1] if io.order == "bgr" and y.shape[2] == 3 else y
        low, high = io.returns.range
        y = (y - low) / (high - low) * white
        y = np.clip(np.floor(y + 0.5) if pixel_type == "uint8" else y, 0, white)
        out.append(np.broadcast_to(y, (*y.shape[:2], 3)).astype(pixel_type))
    return np.stack(out)


def _type_of(tensor: str) -> npt.DTypeLike:
    """Return numpy's number type for onnxruntime's name of a tensor's: ``tensor(float16)``."""
    name = tensor.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


class _NormInHalf(nn.Module):
    """InstanceNorm of half precision as the roughest of known kernels computes it.

    That is onnxruntime's for CUDA with more than one image: cuDNN sums in float32, then mean and
    variance are rounded to half, and so is each step of the rest
    (onnxruntime/core/providers/cuda/nn/instance_norm_impl.cu). With one image cuDNN computes all in
    float32, as TensorRT 10.16 does unless INormalizationLayer.compute_precision is set; of TensorRT
    11, which has no such attribute, nothing is documented.
    """

    def __init__(self, norm: InstanceNorm, variances: Callable[[float], None]) -> None:
        """Normalise like ``norm``; ``variances`` gets the largest variance of each call."""
        super().__init__()
        self.norm, self.variances = norm, variances

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each image, ``(N, C, H, W)``, values of half precision."""
        count = x.shape[2] * x.shape[3]
        variance, mean = torch.var_mean(x, (2, 3), correction=1, keepdim=True)
        self.variances(float(variance.max()))
        biased = _halved(_halved(variance) * _halved(torch.tensor((count - 1) / count)))
        deviation = _halved(_halved(biased + _halved(torch.tensor(self.norm.eps))).sqrt())
        out = _halved(_halved(x - _halved(mean)) / deviation)
        weight, bias = self.norm.factors()
        if weight is None or bias is None:
            return out
        return _halved(_halved(out * weight[:, None, None]) + bias[:, None, None])


def _halved(x: Tensor) -> Tensor:
    """Return ``x`` rounded to half precision, as float32."""
    return x.half().float()


def _rounding_to_half(network: nn.Module, *, half_norm: bool) -> tuple[nn.Module, dict[str, float]]:
    """Return a copy that rounds weights and every layer's output to half, and the largest values.

    The dictionary of the largest value per layer is filled while the copy runs.
    """
    rounding = copy.deepcopy(network)
    largest: dict[str, float] = {}

    def in_half(name: str, norm: InstanceNorm) -> nn.Module:
        key = f"{name}.variance"
        return _NormInHalf(
            norm, lambda value: largest.update({key: max(largest.get(key, 0.0), value)})
        )

    if half_norm:
        replace_norms(rounding, in_half)

    def watching(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: object, out: Tensor) -> Tensor:
            if out.isfinite().all():  # skips the layers that an overflow before them made infinite
                largest[name] = max(largest.get(name, 0.0), float(out.abs().max()))
            return _halved(out)

        return hook

    for name, weight in rounding.named_parameters():
        largest[name] = float(weight.detach().abs().max())
        weight.data = _halved(weight.data)
    rounding.register_forward_pre_hook(lambda module, inputs: tuple(map(_halved, inputs)))
    for name, module in rounding.named_modules():
        if name:
            module.register_forward_hook(watching(name))
    return rounding, largest


def _remedy(precision: str) -> str:
    return {
        "fp16": "export it in fp32, or run an fp32 file in bf16",
        "int8": "calibrate with images like those it is measured on, or export it in fp32",
    }.get(precision, "try another version of torch or onnxruntime")
