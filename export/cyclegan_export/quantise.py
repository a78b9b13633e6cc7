"""A contract graph in INT8: which convolutions are quantised, by what ranges, whether it pays.

QDQ nodes around convolutions, by onnxruntime's quantiser: signed, symmetric, weights per channel.
The output of a convolution stays float, since the norm behind it divides by its spread (tried on
two trained generators: 7 to 8 dB); so do biases, which TensorRT wants in float.

Some networks lose their picture so. `worth_it` leaves the convolutions float that harm it most, and
gives nothing where what is left is no faster than FP32.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cyclegan_batch.backends import Backend, open_backend
from cyclegan_batch.errors import (
    BackendError,
    CycleganBatchError,
    ModelError,
    missing_extra,
)
from cyclegan_batch.frames import Pixels, as_pixel_type
from cyclegan_batch.models.contract import INPUT, image_axes
from cyclegan_batch.models.model import CardFields, Model, model_from_contract
from cyclegan_batch.models.parity import CLASSES, LIMITS, REQUIRED_CLASS, Parity, parity
from cyclegan_batch.wording import printable

CALIBRATION_FRAMES = 16

GAIN = 1.05
"""INT8 must be so many times as fast as FP32: below it is noise, and FP32 draws the better
picture."""

_CONVOLUTIONS = ("Conv", "ConvTranspose")

_PERCENTILE = 99.99
"""Of the calibration's values that a range holds. Tried: the horse→zebra generator reaches 24 dB
with all of them, 26 with 99.999 %, 29 with 99.99 % and 23 with 99.9 %, each with every convolution
quantised; entropy takes minutes."""

_RANKED_ON = 2
"""Frames on which each convolution is tried alone."""

_TURNS = 7
"""How often each file runs in the measurement of rates, in turn; the median counts."""

_NAMED = 3
"""As many of the layers that stay float are named in a line of the table."""

_PER_CHANNEL_OPSET = 13
"""The first whose DequantizeLinear has an axis."""


@dataclass(frozen=True)
class Layer:
    """A convolution that can be quantised."""

    node: str
    """The name of its node."""
    name: str
    """The name of its weight in the network: ``model.10.conv_block.1``."""


@dataclass(frozen=True)
class Row:
    """What was measured of one choice of the layers that stay float."""

    kept: tuple[Layer, ...]
    """Those that stay float, the most harmful first."""
    parity: Parity
    """The worse of onnxruntime's and of the runtime that a translation takes."""
    rate: float
    """Frames per second of one thread against FP32, side by side in the same runtime."""


@dataclass(frozen=True)
class Measured:
    """Several files on one runtime, side by side."""

    runtime: str
    rates: list[float]
    """Frames per second against the first file."""
    bf16: tuple[Parity, float] | None
    """The same of the first file in bf16, where the CPU has it."""


class Calibrated:
    """A float contract graph, and the range of every convolution's input."""

    def __init__(self, path: Path, contract: onnx.ModelProto, frames: Pixels) -> None:
        """Run ``frames`` (uint8, of one size that the graph takes) through the graph.

        ``path`` is the name that messages say. Raises ModelError, BackendUnavailableError.
        """
        self._contract = contract
        self._graph = _with_shapes(path, contract, frames)
        self.layers = _layers(self._graph)
        if not self.layers:
            raise ModelError(
                f"{printable(path)}: has no convolution with float32 weights, so there is nothing "
                "that int8 would make faster; export it in fp32"
            )
        self._ranges = _ranges(path, self._graph, frames)

    def quantised(self, kept: Collection[Layer] = ()) -> onnx.ModelProto:
        """Return the contract graph with every convolution quantised but those ``kept``."""
        tools = _quantisation("qdq_quantizer")
        signed = _quantisation("quant_utils").QuantType.QInt8
        quantiser = tools.QDQQuantizer(
            copy.deepcopy(self._graph),
            True,  # per channel
            False,
            signed,
            signed,
            self._ranges,
            [layer.node for layer in self.layers if layer not in kept],
            [],
            list(_CONVOLUTIONS),
            {
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(_CONVOLUTIONS),
            },
        )
        quantiser.quantize_model()
        quantiser.model.topological_sort()
        # The quantiser writes its own name, and shapes of the calibration's frames.
        out = onnx.ModelProto()
        out.CopyFrom(self._contract)
        out.graph.CopyFrom(quantiser.model.model.graph)
        for place in (out.graph.input, out.graph.output):
            del place[:]
        out.graph.input.extend(self._contract.graph.input)
        out.graph.output.extend(self._contract.graph.output)
        del out.graph.value_info[:]
        del out.opset_import[:]
        out.opset_import.extend(self._graph.opset_import)
        return out


def worth_it(
    path: Path,
    calibrated: Calibrated,
    contract: onnx.ModelProto,
    card: CardFields,
    frames: Pixels,
    reference: Pixels,
    say: Callable[[str], None],
) -> onnx.ModelProto:
    """Return the fastest INT8 graph that draws ``reference`` from ``frames`` well enough.

    ``contract`` and ``card`` are of the graph in FP32, ``path`` is what messages call it; ``say``
    is told the table of what was tried. Raises ModelError where nothing reaches the class of INT8,
    or nothing that does is faster than FP32 by `GAIN`.
    """
    needed, total = REQUIRED_CLASS["int8"], len(calibrated.layers)
    in_int8: CardFields = {**card, "precision": "int8"}

    def model(kept: Sequence[Layer]) -> Model:
        return model_from_contract(path, calibrated.quantised(kept), **in_int8)

    found = {0: _worst_parity(model(()), frames, reference)}
    ranked: list[Layer] = []

    def enough(count: int) -> bool:
        found[count] = _worst_parity(model(ranked[:count]), frames, reference)
        return found[count].reaches(needed)

    if not found[0].reaches(needed):
        say(
            f"int8 everywhere is {found[0].psnr:.1f} dB, where {LIMITS[needed]} are needed: trying "
            f"which of {total} convolutions must stay fp32"
        )
        ranked += _ranked(calibrated, model, frames[:_RANKED_ON], reference[:_RANKED_ON])
        fewest = _fewest(total, enough)
        found = {n: found[n] for n in sorted(found) if fewest is None or n <= fewest}
    exact = model_from_contract(path, copy.deepcopy(contract), **card)
    measured = _measured([exact, *(model(ranked[:count]) for count in found)], frames, reference)
    rows = [
        Row(tuple(ranked[:count]), found[count], rate)
        for count, rate in zip(found, measured.rates[1:], strict=True)
    ]
    for line in _table(rows, total, measured):
        say(line)
    good = [row for row in rows if row.parity.reaches(needed)]
    best = max(good, key=lambda row: row.rate, default=None)
    if best is None:
        most = rows[-1]
        raise ModelError(
            f"{printable(path)}: not written: with {len(most.kept)} of {total} convolutions left "
            f"in fp32, int8 is still {most.parity.psnr:.1f} dB where {needed} is expected "
            f"({LIMITS[needed]}); {_INSTEAD}"
        )
    if best.rate <= GAIN:
        other = "" if measured.runtime == "openvino" else "install OpenVINO, which gains more, or "
        raise ModelError(
            f"{printable(path)}: not written: int8 is {needed} with {len(best.kept)} of {total} "
            f"convolutions left in fp32, and then {best.rate:.2f} times as fast as fp32 on "
            f"{measured.runtime}, where more than {GAIN} is expected; {other}{_INSTEAD}"
        )
    return calibrated.quantised(best.kept)


_INSTEAD = "export it in fp32, or run an fp32 file in bf16"


# Which layers


def _ranked(
    calibrated: Calibrated,
    model: Callable[[Sequence[Layer]], Model],
    frames: Pixels,
    reference: Pixels,
) -> list[Layer]:
    """Return the layers, those first whose quantisation alone harms most.

    Harm is the mean square error, which adds up over layers as far as they do not know of each
    other.
    """
    harm: dict[Layer, float] = {}
    for layer in calibrated.layers:
        others = [each for each in calibrated.layers if each is not layer]
        harm[layer] = 10 ** (-_parity(model(others), frames, reference).psnr / 10)
    return sorted(harm, key=lambda layer: harm[layer], reverse=True)


def _fewest(total: int, enough: Callable[[int], bool]) -> int | None:
    """Return the fewest layers, of ``total``, to keep float; None where all but one do not help.

    In doubled steps, then by halves: each try costs seconds.
    """
    below, count = 0, 1
    while count < total and not enough(count):
        below, count = count, 2 * count
    if count >= total:
        count = total - 1
        if count <= below or not enough(count):
            return None
    while count - below > 1:
        middle = (below + count) // 2
        if enough(middle):
            count = middle
        else:
            below = middle
    return count


# Measuring


def _parity(
    model: Model, frames: Pixels, reference: Pixels, runtime: str = "onnxruntime"
) -> Parity:
    """Return how close ``model`` comes on the CPU, by the runtime that the gate asks or another."""
    opened = open_backend(model, backend=runtime, device="cpu")
    try:
        return parity(_translated(opened, frames), reference)
    finally:
        opened.close()


def _worst_parity(model: Model, frames: Pixels, reference: Pixels) -> Parity:
    """Return how close ``model`` comes, by the gate's runtime and by a translation's, the worse."""
    return min(
        (_parity(model, frames, reference, runtime) for runtime in ("onnxruntime", "auto")),
        key=lambda found: (-CLASSES.index(found.cls), found.psnr),
    )


def _measured(models: Sequence[Model], frames: Pixels, reference: Pixels) -> Measured:
    """Run each model on the runtime that a translation on this machine's CPU takes, in turn.

    The first is the FP32 file. It runs in bf16 besides where it can. What counts is the processor's
    time on one thread, which is what a frame costs a translation: by the clock a busy machine gave
    one file rates from 0.9 to 1.6.
    """
    opened = [open_backend(model, device="cpu", threads=1) for model in models]
    with contextlib.suppress(BackendError, ModelError):
        opened.append(open_backend(models[0], device="cpu", precision="bf16", threads=1))
    try:
        found = [parity(_translated(each, frames), reference) for each in opened[len(models) :]]
        seconds: list[list[float]] = [[] for _ in opened]
        for turn in range(_TURNS):
            frame = frames[turn % len(frames)][np.newaxis]
            given = as_pixel_type(frame, models[0].card.pixel_type)
            for backend, taken in zip(opened, seconds, strict=True):
                begun = time.process_time()
                backend.infer(given)
                taken.append(time.process_time() - begun)
        medians = [statistics.median(taken) for taken in seconds]
        rates = [medians[0] / each for each in medians]
        bf16 = (found[0], rates.pop()) if found else None
        return Measured(opened[0].name, rates, bf16)
    finally:
        for each in opened:
            each.close()


def _translated(opened: Backend, frames: Pixels) -> Pixels:
    return opened.infer(as_pixel_type(frames, opened.card.pixel_type))


def _table(rows: Sequence[Row], total: int, measured: Measured) -> list[str]:
    """Return what was tried, a line for each choice."""
    lines = [f"convolutions in fp32 | PSNR | class | rate on {measured.runtime}'s CPU against fp32"]
    for row in rows:
        names = [layer.name for layer in row.kept[:_NAMED]]
        if len(row.kept) > _NAMED:
            names.append(f"{len(row.kept) - _NAMED} more")
        kept = f"{len(row.kept)} of {total}" + (f" ({', '.join(names)})" if names else "")
        lines.append(f"{kept} | {_figures(row.parity, row.rate)}")
    if measured.bf16 is not None:
        lines.append(f"all, the fp32 file run in bf16 | {_figures(*measured.bf16)}")
    return lines


def _figures(found: Parity, rate: float) -> str:
    return f"{found.psnr:.1f} dB | {found.cls} | {rate:.2f}"


# The graph


def _layers(graph: onnx.ModelProto) -> list[Layer]:
    """Return the convolutions whose weights lie in the graph, in float32."""
    weights = {weight.name: weight for weight in graph.graph.initializer}
    found = []
    for node in graph.graph.node:
        if node.op_type not in _CONVOLUTIONS:
            continue
        weight = weights.get(node.input[1])
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT:
            continue
        name = weight.name.removeprefix("generator/").removesuffix(".weight")
        found.append(Layer(node.name, name))
    return found


def _with_shapes(path: Path, contract: onnx.ModelProto, frames: Pixels) -> onnx.ModelProto:
    """Return a copy in which nodes have names, and tensors their shape for one of ``frames``."""
    graph = onnx.ModelProto()
    graph.CopyFrom(contract)
    for number, node in enumerate(graph.graph.node):
        node.name = node.name or f"generator/{number}_{node.op_type}"
    (entry,) = (value for value in graph.graph.input if value.name == INPUT)
    batch, _, _ = image_axes(entry, "nhwc")
    for axis, length in zip(
        entry.type.tensor_type.shape.dim, (batch or 1, *frames.shape[1:]), strict=True
    ):
        axis.dim_value = length
    graph.graph.output[0].type.tensor_type.ClearField("shape")
    opset = next(each.version for each in graph.opset_import if each.domain in ("", "ai.onnx"))
    try:
        if opset < _PER_CHANNEL_OPSET:
            graph = onnx.version_converter.convert_version(graph, _PER_CHANNEL_OPSET)
        return onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)
    # The converter knows only RuntimeError.
    except (RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"{printable(path)}: cannot be quantised: {str(error).strip().partition(chr(10))[0]}; "
            "export it in fp32"
        ) from error


class _Reader:
    """One frame for onnxruntime's calibration."""

    def __init__(self, frame: Pixels) -> None:
        self._left = [{INPUT: frame}]

    def get_next(self) -> dict[str, Pixels] | None:
        return self._left.pop() if self._left else None


def _ranges(path: Path, graph: onnx.ModelProto, frames: Pixels) -> Any:
    """Return the range of every convolution's input and output, as the quantiser wants it."""
    tools = _quantisation("calibrate")
    (entry,) = (value for value in graph.graph.input if value.name == INPUT)
    element = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
    pixels = as_pixel_type(frames, "uint8" if element == np.uint8 else "float16")
    batch = entry.type.tensor_type.shape.dim[0].dim_value
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            # It prints a line for every frame.
            contextlib.redirect_stdout(io.StringIO()),
        ):
            onnx.save(graph, Path(folder) / "float.onnx")
            calibrator = tools.create_calibrator(
                Path(folder) / "float.onnx",
                list(_CONVOLUTIONS),
                augmented_model_path=str(Path(folder) / "watched.onnx"),
                calibrate_method=tools.CalibrationMethod.Percentile,
                extra_options={"percentile": _PERCENTILE, "symmetric": True},
            )
            # One at a time: all that a call is given, it keeps in memory.
            for frame in pixels:
                calibrator.collect_data(_Reader(np.repeat(frame[np.newaxis], batch, axis=0)))
            return calibrator.compute_data()
    except CycleganBatchError:
        raise
    except Exception as error:
        raise ModelError(
            f"{printable(path)}: cannot be calibrated: onnxruntime says "
            f"{str(error).strip().partition(chr(10))[0]}; export it in fp32"
        ) from error


def _quantisation(module: str) -> Any:
    """Return a module of onnxruntime's quantiser. Raises BackendUnavailableError."""
    try:
        return importlib.import_module(f"onnxruntime.quantization.{module}")
    except ImportError as error:
        raise missing_extra("export", error, doing="quantise") from error
