"""The gate: a file that was written draws what the network it is from draws, or it is refused.

The file itself is run by onnxruntime on the CPU and compared with torch in float32 in grey levels
(`cyclegan_batch.models.parity`). onnxruntime's CPU computes a float16 file in float32, so this
comparison covers the graph and its weights only. What half precision does to the arithmetic is
therefore computed in torch besides, with every layer's output rounded to half: where one of them
leaves its range, the file is refused, whatever the comparison on the CPU gives.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import BackendError, ModelError, missing_extra
from cyclegan_batch.frames import Pixels, PixelType, as_pixel_type
from cyclegan_batch.models.contract import BT601, GeneratorIO
from cyclegan_batch.models.model import Model
from cyclegan_batch.models.parity import LIMITS, REQUIRED_CLASS, Parity, parity
from cyclegan_batch.wording import printable

LARGEST_HALF = float(torch.finfo(torch.float16).max)
"""65504: beyond it half precision has infinity only."""


@dataclass(frozen=True)
class HalfArithmetic:
    """What a network does when every layer's output is rounded to half precision."""

    parity: Parity
    """Against float32."""
    largest: float
    """The largest weight, or value that a layer gives, before it is rounded."""
    layer: str
    """Which one: ``model.10``."""


def pass_gate(path: Path, model: Model, frames: Pixels, reference: Pixels, against: str) -> Parity:
    """Run ``model`` on ``frames`` and return how close it comes to ``reference``.

    ``path`` is the name that messages say, ``against`` what the reference is. Raises ModelError
    where the file misses the class of its precision or gives NaN.
    """
    with_pixels = as_pixel_type(frames, model.card.pixel_type)
    opened = open_backend(model, backend="onnxruntime", device="cpu")
    try:
        found = parity(opened.infer(with_pixels), reference)
    finally:
        opened.close()
    needed = REQUIRED_CLASS[model.card.precision]
    if not found.reaches(needed):
        raise ModelError(
            f"{printable(path)}: not written: against {against} it is {found}, where {needed} is "
            f"expected ({LIMITS[needed]}); {_remedy(model.card.precision)}, or pass --no-verify"
        )
    return found


def pass_half_gate(
    path: Path, frames: Pixels, *, network: nn.Module, channels: int
) -> HalfArithmetic:
    """Return what half precision does to the arithmetic of ``network`` on ``frames``.

    ``path`` is the name that messages say, ``channels`` what the network takes. Raises ModelError
    where a layer leaves the range of half precision, or the result its class.
    """
    reference = translated_by_torch(network, frames, channels=channels)
    half, largest = _rounding_to_half(network)
    found = translated_by_torch(half, frames, channels=channels, allow_nan=True)
    layer, value = max(largest.items(), key=lambda each: each[1])
    beyond = next(((name, each) for name, each in largest.items() if each > LARGEST_HALF), None)
    if beyond is not None:
        raise ModelError(
            f"{printable(path)}: not written: its {beyond[0]!r} reaches {beyond[1]:.3g} "
            f"where half precision ends at {LARGEST_HALF:.0f}; {_remedy('fp16')}, or pass "
            "--no-verify"
        )
    measured = HalfArithmetic(parity(found, reference), value, layer)
    needed = REQUIRED_CLASS["fp16"]
    if not measured.parity.reaches(needed):
        raise ModelError(
            f"{printable(path)}: not written: with every layer rounded to half precision it is "
            f"{measured.parity}, where {needed} is expected ({LIMITS[needed]}); "
            f"{_remedy('fp16')}, or pass --no-verify"
        )
    return measured


def translated_by_torch(
    network: nn.Module,
    frames: Pixels,
    *,
    channels: int,
    pixel_type: PixelType = "uint8",
    allow_nan: bool = False,
) -> Pixels:
    """Return what ``network`` makes of ``frames`` (uint8) in float32, as the contract gives it.

    One frame at a time; ``(N, H, W, 3)`` of ``pixel_type``. ``channels``: what the network takes.
    Raises ModelError where it gives NaN, unless that is allowed: it is black then.
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
                    "the generator gives NaN or infinity in float32 where numbers are expected: "
                    "its training diverged; take a checkpoint from before that"
                )
            y = ((y + 1.0) * (top / 2)).expand(-1, -1, 3)
            y = (y + 0.5).floor().clamp(0, top) if pixel_type == "uint8" else y.clamp(0, top)
            out.append(y.nan_to_num().numpy().astype(pixel_type))
    return np.stack(out)


def translated_by_file(path: Path, io: GeneratorIO, frames: Pixels) -> Pixels:
    """Return what the foreign ONNX at ``path`` makes of ``frames`` (uint8), fed as ``io`` says.

    onnxruntime runs it as it is; its range is met, and left again, by numpy, so that this holds the
    nodes that the contract puts around it. Raises BackendError.
    """
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise missing_extra("export", error, doing="measure the file") from error
    # Loaded and not named: what lies beside the file has been looked at by open_model already.
    content = onnx.load(path).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    kind = {"tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(uint8)": np.uint8}
    axis = 1 if io.layout == "nchw" else 3
    run: Callable[[Pixels], Any] = lambda x: session.run(None, {entry.name: x})[0]  # noqa: E731
    out = []
    for frame in frames:
        (low, high), x = io.input_range, frame.astype(np.float64)
        x = x / 255.0 * (high - low) + low
        if entry.shape[axis] == 1:
            x = x @ np.array(BT601)[:, None]
        elif io.order == "bgr":
            x = x[..., ::-1]
        x = x.transpose(2, 0, 1) if io.layout == "nchw" else x
        x = np.ascontiguousarray(x[None], kind.get(entry.type, np.float32))
        if isinstance(entry.shape[0], int):
            x = np.repeat(x, entry.shape[0], axis=0)
        try:
            y = run(x)[0].astype(np.float64)
        except Exception as error:
            raise BackendError(f"onnxruntime: the file that was given fails: {error}") from error
        y = y.transpose(1, 2, 0) if (io.output_layout or io.layout) == "nchw" else y
        y = y[..., ::-1] if io.order == "bgr" and y.shape[2] == 3 else y
        low, high = io.output_range
        y = np.clip(np.floor((y - low) / (high - low) * 255.0 + 0.5), 0, 255)
        out.append(np.broadcast_to(y, (*y.shape[:2], 3)).astype(np.uint8))
    return np.stack(out)


def _rounding_to_half(network: nn.Module) -> tuple[nn.Module, dict[str, float]]:
    """Return a copy that rounds weights and every layer's output to half, and what it has seen.

    The second is filled while the first runs: the largest value that each layer gave.
    """
    copied = copy.deepcopy(network)
    largest: dict[str, float] = {}

    def watching(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
            if out.isfinite().all():  # what comes after an overflow says nothing more
                largest[name] = max(largest.get(name, 0.0), float(out.abs().max()))
            return out.half().float()

        return hook

    for name, weight in copied.named_parameters():
        largest[name] = float(weight.detach().abs().max())
        weight.data = weight.data.half().float()
    copied.register_forward_pre_hook(lambda module, inputs: tuple(x.half().float() for x in inputs))
    for name, module in copied.named_modules():
        if name:
            module.register_forward_hook(watching(name))
    return copied, largest


def _remedy(precision: str) -> str:
    return {
        "fp16": "export it in fp32, or run an fp32 file in bf16",
        "int8": "calibrate with pictures like those it is measured on, or export it in fp32",
    }.get(precision, "try another version of torch or onnxruntime")
