"""Write a generator as one ONNX file inside the contract, measured before it gets its name.

`export_onnx` converts a checkpoint, the folder of a run or a foreign ONNX and compares the result
with the source (gate.py). A file that misses the class of its precision is not written.
`build_onnx` does the same without writing.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from cyclegan_batch.errors import ModelError, OutputError, missing_extra
from cyclegan_batch.files import writing
from cyclegan_batch.frames import (
    BatchShape,
    FileIO,
    Pixels,
    PixelType,
    PlanarType,
    Size,
    SizeRequirements,
    to_uint8,
)
from cyclegan_batch.models.card import ModelCard
from cyclegan_batch.models.card_metadata import CardFields
from cyclegan_batch.models.checkpoints.files import (
    ANY_GENERATOR,
    Selection,
    find_checkpoint,
    is_checkpoint,
)
from cyclegan_batch.models.checkpoints.loading import LoadedGenerator, load_generator
from cyclegan_batch.models.graphs.adoption import adopt
from cyclegan_batch.models.graphs.contract import GeneratorIO, contract_from_generator
from cyclegan_batch.models.graphs.model_io import parse_model_io
from cyclegan_batch.models.graphs.onnx_file import read_onnx
from cyclegan_batch.models.model import Model, model_from_contract, open_model
from cyclegan_batch.models.parity import Parity
from cyclegan_batch.options import Direction, FilePrecision
from cyclegan_batch.wording import Note, grouped, printable

from .gate import (
    LARGEST_HALF,
    HalfArithmetic,
    checked_half_arithmetic,
    checked_parity,
    translated_by_file,
    translated_by_torch,
)
from .graph import deployable, graph_from_network
from .options import Int8Runtime
from .quantise import CALIBRATION_FRAMES, Calibrated, best_int8_graph
from .samples import Samples, frames_from_files, samples_for

UNVERIFIED = "unverified"
"""The parity on the card of a file that was not measured."""

_FRAMES = 4
"""The number of frames to measure on: several, as one may be flat; few, as each takes seconds."""

_LARGEST_FILE = 2**31 - 2**20
"""The most bytes of weights in an ONNX: protobuf reads 2 GiB, of which some are for the nodes."""

USUAL_SIZE = 256
"""The size that most generators are trained at, for checkpoints that do not state theirs."""


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    path: Path
    card: ModelCard
    parity: Parity | None
    """The file against its source; None where it was not measured."""
    notes: tuple[Note, ...]
    """Notes for the user, each to be shown once."""


@dataclass(frozen=True)
class Built:
    """An ONNX inside the contract that may be written."""

    model: Model
    parity: Parity | None
    """The model against its source; None where it was not measured."""
    notes: tuple[Note, ...]
    """Notes for the user, each to be shown once."""


def export_onnx(
    source: Path,
    output: Path,
    *,
    direction: Direction | None = None,
    weights: str | None = None,
    family: str | None = None,
    precision: FilePrecision = "fp32",
    half_norm: bool = False,
    io: FileIO = "uint8",
    shape: BatchShape | None = None,
    samples: Path | None = None,
    calibrate: Path | None = None,
    for_: Int8Runtime | None = None,
    verify: bool = True,
    overwrite: bool = False,
    model_io: str | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Exported:
    """Write the generator at ``source`` to ``output`` as one ONNX file inside the contract.

    ``source``: a checkpoint, the folder of a run, or a foreign ONNX, which is adopted (``model_io``
    as for a translation). Of several generators ``direction`` or ``weights``, the beginning of the
    names of its weights, chooses one, and of several networks with such weights ``family``.
    ``half_norm``: in fp16 InstanceNorm takes and gives half precision as well. ``shape``: the only
    N, H and W that the file accepts; None leaves N free, and H and W free as multiples of what the
    network needs. ``io``: what it takes and returns; other programs take ``nchw-float32`` or
    ``nchw-float16``, RGB ``(N, 3, H, W)`` in [0, 1]. ``samples``: an image, a video or a folder of
    them to measure on. ``calibrate``: the same, for ``int8`` only, to take the ranges of the values
    from. ``for_``: for what a file in ``int8`` is made, this machine's CPU (None) or TensorRT,
    whose rate is not measured. ``verify=False`` writes without a measurement, and for ``int8``
    quantises every layer.
    ``say`` receives a sentence for each step.

    Raises ModelError (also where the file misses the class of its precision), in which case
    nothing is written, BackendUnavailableError, InputError, OutputError.
    """
    _check_output(source, output, overwrite=overwrite)
    built = build_onnx(
        source,
        output,
        selection=Selection(direction, weights, family),
        precision=precision,
        half_norm=half_norm,
        io=io,
        shape=shape,
        samples=samples,
        calibrate=calibrate,
        for_=for_,
        verify=verify,
        model_io=model_io,
        say=say,
    )
    with writing(output, overwrite=overwrite) as temporary:
        temporary.write_bytes(built.model.content)
    say(summary(output, built.model))
    return Exported(output, built.model.card, built.parity, built.notes)


def build_onnx(
    source: Path,
    output: Path,
    *,
    selection: Selection = ANY_GENERATOR,
    precision: FilePrecision = "fp32",
    half_norm: bool = False,
    io: FileIO = "uint8",
    shape: BatchShape | None = None,
    samples: Path | None = None,
    calibrate: Path | None = None,
    for_: Int8Runtime | None = None,
    verify: bool = True,
    model_io: str | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Built:
    """Return what `export_onnx` would write to ``output``, which is only named in messages.

    Raises ModelError, BackendUnavailableError, InputError.
    """
    _check_calibration(source, precision, calibrate)
    if for_ is not None and precision != "int8":
        raise ModelError(
            f"{printable(source)}: --for is for int8, and {precision} was asked for; leave the "
            "option out, or pass --precision int8"
        )
    if precision == "int8" and planar_type(io) is not None:
        raise ModelError(
            f"{printable(source)}: int8 is measured in files of uint8 or float16 pixels, and --io "
            f"{io} was asked for; export it in fp32 or fp16, or leave --io out"
        )
    if half_norm and precision != "fp16":
        raise ModelError(
            f"{printable(source)}: --half-norm is for fp16, and {precision} was asked for; leave "
            "the option out, or pass --precision fp16"
        )
    say(f"exporting {printable(source)}")
    if is_checkpoint(source):
        # A GPU computes in FP16 what TensorRT does not compute in INT8.
        floats = "fp16" if for_ == "tensorrt" else precision
        candidate = _from_checkpoint(source, model_io, selection, floats, half_norm, io, shape)
    else:
        candidate = _from_foreign(source, model_io, selection, precision, half_norm, io, shape)
    for sentence in grouped(candidate.notes):
        say(sentence)
    if calibrate is not None:
        candidate = _in_int8(
            candidate, output, calibrate, samples, say, runtime=for_ or "cpu", verify=verify
        )
    measured, words = _measure(candidate, output, samples, say) if verify else (None, UNVERIFIED)
    if for_ == "tensorrt":
        words += "; for TensorRT, its rate unknown"
    card: CardFields = {**candidate.card, "parity": words}
    model = model_from_contract(output, candidate.contract, **card)
    return Built(model, measured, candidate.notes)


def planar_type(io: FileIO) -> PlanarType | None:
    """Return ``io`` where it is that of a planar file, else None."""
    return None if io == "uint8" or io == "float16" else io


def summary(path: Path, model: Model) -> str:
    """Return the sentence on a file that was written."""
    card, megabytes = model.card, len(model.content) / 1e6
    planar = f", {card.planar}" if card.planar else ""
    return f"{printable(path)}: {card.precision}{planar}, {megabytes:.1f} MB, {card.parity}"


@dataclass(frozen=True)
class _Candidate:
    """A contract graph before it is measured, and what it must compute."""

    contract: onnx.ModelProto
    card: CardFields
    source: Path
    """The file that the graph was made from."""
    reference: Callable[[Pixels], Pixels]
    """Translates frames (uint8), into the pixel type of the contract graph; uint8 of a planar
    file."""
    against: str
    """What the reference is, in words."""
    notes: tuple[Note, ...]
    half: Callable[[Path, Pixels], HalfArithmetic] | None = None
    """For fp16: measures half-precision arithmetic, given the output's name and frames."""


def _from_checkpoint(
    source: Path,
    model_io: str | None,
    selection: Selection,
    precision: FilePrecision,
    half_norm: bool,
    io: FileIO,
    shape: BatchShape | None,
) -> _Candidate:
    if model_io is not None:
        raise ModelError(
            f"{printable(source)}: --model-io describes a foreign ONNX, and this is a "
            "checkpoint; leave the option out"
        )
    check_exporter()
    checkpoint = find_checkpoint(source, selection.direction)
    generator = load_generator(checkpoint.path, selection)
    config, half = generator.config, precision == "fp16"
    direction, notes = generator.directed(checkpoint)
    sizes = _sizes(generator, shape)
    _check_room(generator, half=half)
    network = deployable(generator.network)
    graph = graph_from_network(
        network,
        config.sizes,
        channels=config.input_nc,
        half=half,
        half_norm=half_norm,
        shape=shape,
    )
    return _Candidate(
        contract_from_generator(graph, GeneratorIO(), pixel_type=io),
        {
            "architecture": config.architecture,
            "sizes": sizes,
            "precision": "fp16" if half else "fp32",
            "trained_size": generator.trained_size,
            "direction": direction,
            "source_digest": generator.digest,
            "generator": dataclasses.asdict(config),
            "recognised": generator.recognised,
            "planar": planar_type(io),
        },
        checkpoint.path,
        _reference(partial(translated_by_torch, generator.network, channels=config.input_nc), io),
        "torch in fp32",
        (*notes, *generator.notes),
        partial(
            checked_half_arithmetic,
            network=network,
            channels=config.input_nc,
            half_norm=half_norm,
        )
        if half
        else None,
    )


def _reference(translated: Callable[..., Pixels], io: FileIO) -> Callable[[Pixels], Pixels]:
    """Return what translates frames (uint8) as a file that takes and returns ``io`` must.

    ``translated``: a function of frames and ``pixel_type``. A planar file returns uint8 here, and
    one in half precision gets frames that are rounded to it.
    """
    if io == "nchw-float16":
        return lambda frames: to_uint8(translated(frames, pixel_type="float16"))
    pixel_type: PixelType = "float16" if io == "float16" else "uint8"
    return partial(translated, pixel_type=pixel_type)


def _from_foreign(
    source: Path,
    model_io: str | None,
    selection: Selection,
    precision: FilePrecision,
    half_norm: bool,
    io: FileIO,
    shape: BatchShape | None,
) -> _Candidate:
    name = printable(source)
    model = open_model(source, model_io=model_io, selection=selection)
    card = model.card
    if model.io is None:
        raise ModelError(
            f"{name}: is {'a planar file' if card.planar else 'inside the contract'} already; copy "
            "it, or give the checkpoint that it was exported from"
        )
    for option, changes in (
        (
            f"--precision {precision}",
            precision not in ("fp32", card.precision)
            and (precision, card.precision) != ("int8", "fp32"),
        ),
        ("--half-norm", half_norm),
        ("--shape", shape is not None),
    ):
        if changes:
            raise ModelError(
                f"{name}: is a foreign ONNX in {card.precision}, which is adopted as it is, and "
                f"{option} was asked for; export it so where it was trained"
            )
    notes = card.notes
    if precision not in (card.precision, "int8"):
        notes = (*notes, Note(source, f"is {card.precision}, and stays so"))
    contract = onnx.ModelProto.FromString(model.graph)
    if io != "uint8":
        # `adopt` leaves the bare generator in what it is given.
        generator = read_onnx(source)[1]
        adopt(source, generator, parse_model_io(model_io))
        contract = contract_from_generator(generator, model.io, pixel_type=io)
    return _Candidate(
        contract,
        {
            "architecture": card.architecture,
            "sizes": card.sizes,
            "precision": card.precision,
            "trained_size": card.trained_size,
            "direction": selection.direction,
            "source_digest": card.digest,
            "planar": planar_type(io),
        },
        source,
        _reference(partial(translated_by_file, source, model.io), io),
        "the file that was given",
        notes,
    )


def _in_int8(
    candidate: _Candidate,
    output: Path,
    calibrate: Path,
    samples: Path | None,
    say: Callable[[str], None],
    *,
    runtime: Int8Runtime,
    verify: bool,
) -> _Candidate:
    """Return ``candidate`` quantised, where it stays accurate and is faster. Raises ModelError."""
    measured_on = _samples(candidate, samples)
    size = measured_on.frames.shape[1:3]
    calibration_frames = frames_from_files(calibrate, size, CALIBRATION_FRAMES)
    count = len(calibration_frames)
    say(f"taking the ranges of int8 from {count} frames of {printable(calibrate)}")
    calibrated = Calibrated(output, candidate.contract, calibration_frames, runtime=runtime)
    if verify:
        frames = measured_on.frames
        contract = best_int8_graph(
            output,
            calibrated,
            candidate.contract,
            candidate.card,
            frames,
            candidate.reference(frames),
            say,
        )
    else:
        contract = calibrated.quantised()
    card: CardFields = {**candidate.card, "precision": "int8"}
    return dataclasses.replace(candidate, contract=contract, card=card)


def _samples(candidate: _Candidate, samples: Path | None) -> Samples:
    """Return the frames to measure on, of the size that the generator was trained at."""
    card = candidate.card
    side = card.get("trained_size") or USUAL_SIZE
    size = card["sizes"].smallest_fit((side, side))
    return samples_for(samples, candidate.source, card.get("direction"), size, _FRAMES)


def _measure(
    candidate: _Candidate, output: Path, samples: Path | None, say: Callable[[str], None]
) -> tuple[Parity, str]:
    """Return the parity of ``candidate``, and the sentence for its card.

    Raises ModelError where it misses the class of its precision.
    """
    measured_on = _samples(candidate, samples)
    frames, against = measured_on.frames, candidate.against
    height, width = frames.shape[1:3]
    how = f"against {against} on {measured_on.description} at {width}×{height}"
    say(f"measuring it {how}")
    model = model_from_contract(output, candidate.contract, **candidate.card)
    measured = checked_parity(output, model, frames, candidate.reference(frames), against)
    words = f"{measured} {how}"
    if candidate.half is not None:
        half = candidate.half(output, frames)
        words += f"; with every layer rounded to half{half.norms}: {half.parity}"
        say(
            "onnxruntime's CPU computes an fp16 file in fp32, which tests its graph and its "
            f"weights; with every layer rounded to half{half.norms} it is {half.parity}, and the "
            f"largest value is {half.largest:.3g} ({half.layer}) of {LARGEST_HALF:.0f}"
        )
    return measured, words


def _check_output(source: Path, output: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot be written, before the work. Raises OutputError."""
    name = printable(output)
    if output.suffix.lower() != ".onnx":
        raise OutputError(f"cannot write {name}: a file that ends in .onnx is expected; rename it")
    if not output.parent.is_dir():
        raise OutputError(f"cannot write {name}: its folder does not exist; create it first")
    if output.is_dir():
        raise OutputError(f"cannot write {name}: a folder has this name; choose another")
    if output.exists() and source.exists() and output.samefile(source):
        raise OutputError(f"cannot write {name}: it is the file to export; choose another name")
    if output.exists() and not overwrite:
        raise OutputError(f"cannot write {name}: it exists already; pass -y to overwrite it")


def _check_calibration(source: Path, precision: FilePrecision, calibrate: Path | None) -> None:
    """Refuse INT8 without calibration images, and these without INT8. Raises ModelError."""
    if precision == "int8" and calibrate is None:
        raise ModelError(
            f"{printable(source)}: int8 takes the ranges of its values from images, and none "
            "were named; pass --calibrate FOLDER, with images like those it will translate"
        )
    if precision != "int8" and calibrate is not None:
        raise ModelError(
            f"{printable(source)}: --calibrate is for int8, and {precision} was asked for; leave "
            "the option out, or pass --precision int8"
        )


def check_exporter() -> None:
    """Raise BackendUnavailableError where onnxscript, which torch's exporter needs, is missing."""
    if importlib.util.find_spec("onnxscript") is None:
        raise missing_extra("export", ImportError(name="onnxscript"), doing="export")


def _sizes(loaded: LoadedGenerator, shape: BatchShape | None) -> SizeRequirements:
    """Return the sizes that the file accepts. Raises ModelError where ``shape`` does not fit."""
    sizes = loaded.config.sizes
    if shape is None:
        return sizes
    size: Size = shape[1:]
    if min(shape) < 1 or sizes.smallest_fit(size) != size:
        accepted = (
            f"multiples of {sizes.multiple_of} from {sizes.minimum} on; choose such ones"
            if sizes.fixed is None
            else f"{sizes.fixed[0]} and {sizes.fixed[1]} only; choose these"
        )
        raise ModelError(
            f"{printable(loaded.path)}: --shape {','.join(map(str, shape))}: its H and W are "
            f"{accepted}"
        )
    return dataclasses.replace(sizes, fixed=size)


def _check_room(loaded: LoadedGenerator, *, half: bool) -> None:
    """Refuse weights that no ONNX file holds. Raises ModelError.

    They are found in U-GAT-IT for large images, whose first layer sees every value of them.
    """
    count = sum(weight.numel() for weight in loaded.network.state_dict().values())
    size = count * (2 if half else 4)
    if size > _LARGEST_FILE:
        half_fits = not half and count * 2 <= _LARGEST_FILE
        raise ModelError(
            f"{printable(loaded.path)}: its weights take {size / 1e9:.1f} GB where an ONNX file "
            f"holds {_LARGEST_FILE / 1e9:.1f}; translate with --backend torch"
            f"{', or export it with --precision fp16' if half_fits else ''}"
        )
