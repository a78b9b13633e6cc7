"""Quantise a contract graph to INT8, where it stays accurate and is faster than FP32.

onnxruntime's quantiser puts QDQ nodes around the convolutions: signed, symmetric, with weights per
channel. The outputs of convolutions stay float, since the norm behind them divides by their spread
(on two trained generators this gained 7 to 8 dB). The biases stay float as TensorRT requires.

For TensorRT both inputs of each residual Add are quantised as well, so that what skips a block is
kept as INT8 ("Q/DQ Placement Recommendations" in its documentation of explicit quantisation), and
what is not INT8 is FP16 where the graph is. Its rate is not known here, so only the picture decides
then.

Some networks lose accuracy by that. `best_int8_graph` keeps the most harmful layers float, and for
a CPU refuses to quantise where the rest is no faster than FP32.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from cyclegan_batch.backends import Backend, open_backend
from cyclegan_batch.errors import BackendError, CycleganBatchError, ModelError, missing_extra
from cyclegan_batch.frames import Pixels, as_pixel_type
from cyclegan_batch.models.card_metadata import CardFields
from cyclegan_batch.models.graphs.contract import INPUT, image_axes
from cyclegan_batch.models.model import Model, model_from_contract
from cyclegan_batch.models.parity import CLASSES, LIMITS, REQUIRED_CLASS, Parity, parity
from cyclegan_batch.wording import first_line, printable

from .options import Int8Runtime

CALIBRATION_FRAMES = 16

GAIN = 1.05
"""The rate that INT8 must exceed, where FP32 is 1: a smaller gain is noise, and FP32 is more
accurate."""

_CONVOLUTIONS = ("Conv", "ConvTranspose")

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)

_PERCENTILE = 99.99
"""The share, in percent, of the calibration's values that a range holds. The horse→zebra generator,
with every convolution quantised, reaches 24 dB with all values, 26 with 99.999 %, 29 with 99.99 %
and 23 with 99.9 %; the entropy method takes minutes."""

_RANKING_FRAMES = 2
"""The number of frames on which each convolution is tried alone."""

_ROUNDS = 7
"""How often the files run in turn to measure their rates; the median counts."""

_NAMES_PER_LINE = 3
"""The most layers that a line of the table names."""

_PER_CHANNEL_OPSET = 13
"""The first opset whose DequantizeLinear has an axis."""

_HALF_OPSET = 19
"""The first opset whose QuantizeLinear takes FP16; TensorRT 10.3 reads up to 20."""

_REMEDY = "export it in fp32, or run an fp32 file in bf16"


@dataclass(frozen=True)
class Layer:
    """A convolution or a residual Add that can be quantised."""

    node: str
    """The name of its node."""
    name: str
    """The name of its weight in the network, ``model.10.conv_block.1``; an Add's is its node's."""


@dataclass(frozen=True)
class Row:
    """The measurements of one choice of the layers that stay float."""

    float_layers: tuple[Layer, ...]
    """The most harmful first."""
    parity: Parity
    """The worse of onnxruntime's and that of the runtime that a translation uses; for TensorRT
    onnxruntime's."""
    rate: float | None
    """Frames per second of one thread, relative to FP32 on the same runtime; None for TensorRT."""


@dataclass(frozen=True)
class Measured:
    """The rates of several files on one runtime."""

    runtime: str
    rates: list[float]
    """Frames per second, relative to the first file."""
    bf16: tuple[Parity, float] | None
    """Parity and rate of the first file in bf16, where the CPU supports that."""


class Calibrated:
    """A float contract graph and the ranges of its layers' inputs."""

    def __init__(
        self,
        path: Path,
        contract: onnx.ModelProto,
        frames: Pixels,
        *,
        runtime: Int8Runtime = "cpu",
    ) -> None:
        """Run ``frames`` (uint8, of one size that the graph accepts) through the graph.

        Messages name the file ``path``. ``runtime``: for what the graph will be quantised. Raises
        ModelError, BackendUnavailableError.
        """
        self._contract = contract
        half = any(
            weight.data_type == onnx.TensorProto.FLOAT16 for weight in _weights_of_layers(contract)
        )
        self._graph = _with_shapes(path, contract, frames, half=half)
        self.runtime = runtime
        self.layers = _layers(self._graph)
        if not self.layers:
            raise ModelError(
                f"{printable(path)}: has no convolution with float weights, so there is nothing "
                "that int8 would make faster; export it in fp32"
            )
        self._kinds: tuple[str, ...] = _CONVOLUTIONS
        if runtime == "tensorrt":
            self._kinds = (*_CONVOLUTIONS, "Add")
            self.layers += _residual_adds(self._graph)
        self._ranges = _ranges(path, self._graph, frames, self._kinds, half=half)

    def quantised(self, float_layers: Collection[Layer] = ()) -> onnx.ModelProto:
        """Return the contract graph with every layer quantised but ``float_layers``."""
        tools = _quantisation("qdq_quantizer")
        signed = _quantisation("quant_utils").QuantType.QInt8
        quantiser = tools.QDQQuantizer(
            copy.deepcopy(self._graph),
            True,  # per channel
            False,
            signed,
            signed,
            self._ranges,
            [layer.node for layer in self.layers if layer not in float_layers],
            [],
            list(self._kinds),
            {
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(self._kinds),
            },
        )
        quantiser.quantize_model()
        quantiser.model.topological_sort()
        # Only the graph is taken over: the quantiser also writes its own name, and the shapes of
        # the calibration's frames.
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


def best_int8_graph(
    path: Path,
    calibrated: Calibrated,
    contract: onnx.ModelProto,
    card: CardFields,
    frames: Pixels,
    reference: Pixels,
    say: Callable[[str], None],
) -> onnx.ModelProto:
    """Return the fastest INT8 graph whose translation of ``frames`` is close to ``reference``.

    ``contract`` and ``card`` are of the graph in FP32. Messages name the file ``path``; ``say``
    receives the table of what was tried. For TensorRT it is the graph with the fewest layers in
    FP32. Raises ModelError where no choice of layers reaches the class of INT8, or where on a CPU
    none that does is faster than FP32 by `GAIN`.
    """
    required, total = REQUIRED_CLASS["int8"], len(calibrated.layers)
    in_int8: CardFields = {**card, "precision": "int8"}
    measured_parity = _parity if calibrated.runtime == "tensorrt" else _worst_parity

    def model(float_layers: Sequence[Layer]) -> Model:
        return model_from_contract(path, calibrated.quantised(float_layers), **in_int8)

    parities = {0: measured_parity(model(()), frames, reference)}
    ranked: list[Layer] = []

    def enough(count: int) -> bool:
        parities[count] = measured_parity(model(ranked[:count]), frames, reference)
        return parities[count].reaches(required)

    if not parities[0].reaches(required):
        say(
            f"int8 everywhere is {parities[0].psnr:.1f} dB, where {LIMITS[required]} are needed: "
            f"trying which of {total} {_kind(calibrated)} must stay fp32"
        )
        first = slice(_RANKING_FRAMES)
        ranked += _ranked(calibrated, model, frames[first], reference[first])
        fewest = _fewest(total, enough)
        parities = {n: parities[n] for n in sorted(parities) if fewest is None or n <= fewest}
    measured = None
    rates: list[float | None] = [None] * len(parities)
    if calibrated.runtime == "cpu":
        exact = model_from_contract(path, copy.deepcopy(contract), **card)
        models = [exact, *(model(ranked[:count]) for count in parities)]
        measured = _measure_rates(models, frames, reference)
        rates = [*measured.rates[1:]]
    rows = [
        Row(tuple(ranked[:count]), parities[count], rate)
        for count, rate in zip(parities, rates, strict=True)
    ]
    for line in _table(rows, total, measured):
        say(line)
    if measured is None:
        say(
            "the picture alone decides for TensorRT: its rate is unknown until edge.py bench of a "
            "bundle, or a translation, has run on the device"
        )
    best = _best_row(path, rows, total, None if measured is None else measured.runtime)
    return calibrated.quantised(best.float_layers)


def _kind(calibrated: Calibrated) -> str:
    return "layers" if calibrated.runtime == "tensorrt" else "convolutions"


def _best_row(path: Path, rows: Sequence[Row], total: int, runtime: str | None) -> Row:
    """Return the fastest row that reaches the class of INT8. Raises ModelError.

    ``runtime``: the one whose rates they have; None where they have none, and the row with the
    fewest layers in FP32 is returned.
    """
    required = REQUIRED_CLASS["int8"]
    accurate = [row for row in rows if row.parity.reaches(required)]
    best = max(accurate, key=lambda row: (row.rate or 0.0, -len(row.float_layers)), default=None)
    if best is None:
        last = rows[-1]
        raise ModelError(
            f"{printable(path)}: not written: with {len(last.float_layers)} of {total} "
            f"{'layers' if runtime is None else 'convolutions'} left in fp32, int8 is still "
            f"{last.parity.psnr:.1f} dB where {required} is expected ({LIMITS[required]}); "
            f"{_REMEDY}"
        )
    if best.rate is not None and best.rate <= GAIN:
        other = "" if runtime == "openvino" else "install OpenVINO, which gains more, or "
        raise ModelError(
            f"{printable(path)}: not written: int8 reaches {required} with "
            f"{len(best.float_layers)} of {total} convolutions left in fp32, and is then "
            f"{best.rate:.2f} times as fast as fp32 on {runtime}, where more than {GAIN} is "
            f"expected; {other}{_REMEDY}"
        )
    return best


# Which layers stay float


def _ranked(
    calibrated: Calibrated,
    model: Callable[[Sequence[Layer]], Model],
    frames: Pixels,
    reference: Pixels,
) -> list[Layer]:
    """Return the layers, the one whose quantisation alone harms most first.

    Harm is the mean square error, which adds up over layers as far as their errors are independent.
    """
    harm: dict[Layer, float] = {}
    for layer in calibrated.layers:
        others = [each for each in calibrated.layers if each is not layer]
        harm[layer] = 10 ** (-_parity(model(others), frames, reference).psnr / 10)
    return sorted(harm, key=lambda layer: harm[layer], reverse=True)


def _fewest(total: int, enough: Callable[[int], bool]) -> int | None:
    """Return the fewest layers, of ``total``, to keep float; None where all but one are too few.

    The count is doubled, then bisected, since each try takes seconds.
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
    """Return the parity of ``model`` on the CPU, by the runtime of the gate or another."""
    backend = open_backend(model, backend=runtime, device="cpu")
    try:
        return parity(_translated(backend, frames), reference)
    finally:
        backend.close()


def _worst_parity(model: Model, frames: Pixels, reference: Pixels) -> Parity:
    """Return the worse of the parities by the gate's runtime and by a translation's."""
    return min(
        (_parity(model, frames, reference, runtime) for runtime in ("onnxruntime", "auto")),
        key=lambda measured: (-CLASSES.index(measured.cls), measured.psnr),
    )


def _measure_rates(models: Sequence[Model], frames: Pixels, reference: Pixels) -> Measured:
    """Measure the models in turn on the runtime that a translation on this machine's CPU uses.

    The first model is the FP32 file, which also runs in bf16 where the CPU supports it. The measure
    is the CPU time of one thread, not the wall time, by which one file had rates from 0.9 to 1.6 on
    a busy machine.
    """
    backends = [open_backend(model, device="cpu", threads=1) for model in models]
    with contextlib.suppress(BackendError, ModelError):
        backends.append(open_backend(models[0], device="cpu", precision="bf16", threads=1))
    try:
        in_bf16 = backends[len(models) :]
        bf16_parities = [parity(_translated(each, frames), reference) for each in in_bf16]
        seconds: list[list[float]] = [[] for _ in backends]
        for round_ in range(_ROUNDS):
            frame = frames[round_ % len(frames)][np.newaxis]
            pixels = as_pixel_type(frame, models[0].card.pixel_type)
            for backend, times in zip(backends, seconds, strict=True):
                start = time.process_time()
                backend.infer(pixels)
                times.append(time.process_time() - start)
        medians = [statistics.median(times) for times in seconds]
        rates = [medians[0] / median for median in medians]
        bf16 = (bf16_parities[0], rates.pop()) if bf16_parities else None
        return Measured(backends[0].name, rates, bf16)
    finally:
        for backend in backends:
            backend.close()


def _translated(backend: Backend, frames: Pixels) -> Pixels:
    return backend.infer(as_pixel_type(frames, backend.card.pixel_type))


def _table(rows: Sequence[Row], total: int, measured: Measured | None) -> list[str]:
    """Return the measurements as lines, one for each choice of layers."""
    lines = ["layers in fp32 | PSNR | class"]
    if measured is not None:
        of = f"rate on {measured.runtime}'s CPU against fp32"
        lines = [f"convolutions in fp32 | PSNR | class | {of}"]
    for row in rows:
        count = len(row.float_layers)
        names = [layer.name for layer in row.float_layers[:_NAMES_PER_LINE]]
        if count > _NAMES_PER_LINE:
            names.append(f"{count - _NAMES_PER_LINE} more")
        layers = f"{count} of {total}" + (f" ({', '.join(names)})" if names else "")
        lines.append(f"{layers} | {_figures(row.parity, row.rate)}")
    if measured is not None and measured.bf16 is not None:
        lines.append(f"all, the fp32 file run in bf16 | {_figures(*measured.bf16)}")
    return lines


def _figures(measured: Parity, rate: float | None) -> str:
    last = "" if rate is None else f" | {rate:.2f}"
    return f"{measured.psnr:.1f} dB | {measured.cls}{last}"


# The graph


def _layers(graph: onnx.ModelProto) -> list[Layer]:
    """Return the convolutions whose weights are in the graph, in FP32 or FP16."""
    weights = {weight.name: weight for weight in _weights_of_layers(graph)}
    layers = []
    for node in graph.graph.node:
        if node.op_type in _CONVOLUTIONS and node.input[1] in weights:
            name = node.input[1].removeprefix("generator/").removesuffix(".weight")
            layers.append(Layer(node.name, name))
    return layers


def _weights_of_layers(graph: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Return the weights of the convolutions that are in the graph, in FP32 or FP16."""
    read = {node.input[1] for node in graph.graph.node if node.op_type in _CONVOLUTIONS}
    for weight in graph.graph.initializer:
        if weight.name in read and weight.data_type in _FLOATS:
            yield weight


def _residual_adds(graph: onnx.ModelProto) -> list[Layer]:
    """Return the Adds of two images of one shape, neither of which is a constant."""
    constant = {weight.name for weight in graph.graph.initializer}
    shapes = dict(_shapes(graph))
    layers = []
    for node in graph.graph.node:
        if constant.issuperset(node.input):
            constant.update(node.output)
        elif node.op_type == "Add" and constant.isdisjoint(node.input):
            one, other = (shapes.get(name) for name in node.input)
            if one == other and one is not None and len(one) == 4:
                layers.append(Layer(node.name, node.name.removeprefix("generator/")))
    return layers


def _shapes(graph: onnx.ModelProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Return the shape of each tensor between two nodes."""
    for value in graph.graph.value_info:
        yield value.name, tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _with_shapes(
    path: Path, contract: onnx.ModelProto, frames: Pixels, *, half: bool
) -> onnx.ModelProto:
    """Return a copy in which every node has a name, and every tensor its shape for one frame."""
    graph = onnx.ModelProto()
    graph.CopyFrom(contract)
    for number, node in enumerate(graph.graph.node):
        node.name = node.name or f"generator/{number}_{node.op_type}"
    (graph_input,) = (value for value in graph.graph.input if value.name == INPUT)
    batch, _, _ = image_axes(graph_input, "nhwc")
    for axis, length in zip(
        graph_input.type.tensor_type.shape.dim, (batch or 1, *frames.shape[1:]), strict=True
    ):
        axis.dim_value = length
    graph.graph.output[0].type.tensor_type.ClearField("shape")
    opset = next(each.version for each in graph.opset_import if each.domain in ("", "ai.onnx"))
    try:
        needed = _HALF_OPSET if half else _PER_CHANNEL_OPSET
        if opset < needed:
            graph = onnx.version_converter.convert_version(graph, needed)
        return onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)
    # The converter raises only RuntimeError.
    except (RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"{printable(path)}: cannot be quantised: {first_line(error)}; export it in fp32"
        ) from error


class _Reader:
    """One frame for onnxruntime's calibration."""

    def __init__(self, frame: Pixels) -> None:
        self._left = [{INPUT: frame}]

    def get_next(self) -> dict[str, Pixels] | None:
        return self._left.pop() if self._left else None


def _ranges(
    path: Path, graph: onnx.ModelProto, frames: Pixels, kinds: Sequence[str], *, half: bool
) -> Any:
    """Return the ranges of the inputs and outputs of every node of these ``kinds``.

    They are in the quantiser's own type. ``half``: the tensors are FP16.
    """
    tools = _quantisation("calibrate")
    (graph_input,) = (value for value in graph.graph.input if value.name == INPUT)
    element = onnx.helper.tensor_dtype_to_np_dtype(graph_input.type.tensor_type.elem_type)
    pixels = as_pixel_type(frames, "uint8" if element == np.uint8 else "float16")
    batch = graph_input.type.tensor_type.shape.dim[0].dim_value
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            # The calibrator prints a line for every frame.
            contextlib.redirect_stdout(io.StringIO()),
        ):
            onnx.save(graph, Path(folder) / "float.onnx")
            calibrator = tools.create_calibrator(
                Path(folder) / "float.onnx",
                list(kinds),
                augmented_model_path=str(Path(folder) / "watched.onnx"),
                calibrate_method=tools.CalibrationMethod.Percentile,
                extra_options={"percentile": _PERCENTILE, "symmetric": True},
            )
            if half:
                calibrator.collector = _collector(tools, calibrator)
            # One frame a call: the calibrator keeps the values of a whole call in memory.
            for frame in pixels:
                calibrator.collect_data(_Reader(np.repeat(frame[np.newaxis], batch, axis=0)))
            ranges = calibrator.compute_data()
            if half:  # the scales get the type of the ranges, and must have that of the tensors
                for _, each in ranges.items():
                    each.lowest = np.float16(each.lowest)
                    each.highest = np.float16(each.highest)
            return ranges
    except CycleganBatchError:
        raise
    except Exception as error:
        raise ModelError(
            f"{printable(path)}: cannot be calibrated: onnxruntime reports {first_line(error)}; "
            "export it in fp32"
        ) from error


def _collector(tools: ModuleType, calibrator: Any) -> object:
    """Return what counts the values of FP16 tensors: in FP16 the bins of a histogram coincide."""

    class Collector(tools.HistogramCollector):  # type: ignore[name-defined, misc]
        def collect(self, name_to_arr: dict[str, list[Pixels]]) -> object:
            exact = {
                name: [np.asarray(values, np.float32) for values in each]
                for name, each in name_to_arr.items()
            }
            return super().collect(exact)

    return Collector(
        method=calibrator.method,
        symmetric=calibrator.symmetric,
        num_bins=calibrator.num_bins,
        num_quantized_bins=calibrator.num_quantized_bins,
        percentile=calibrator.percentile,
        scenario=calibrator.scenario,
    )


def _quantisation(module: str) -> ModuleType:
    """Return a module of onnxruntime's quantiser. Raises BackendUnavailableError."""
    try:
        return importlib.import_module(f"onnxruntime.quantization.{module}")
    except ImportError as error:
        raise missing_extra("export", error, doing="quantise") from error
