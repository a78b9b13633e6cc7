"""Write a generator as one ONNX file inside the contract, and prove it before it has its name.

`export_onnx` is the door: a checkpoint, the folder of a run or a foreign ONNX goes in, a file with
its card comes out, measured against what it was made from (gate.py). A file that misses the class
of its precision is never seen under its name.
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
from cyclegan_batch.frames import Pixels, PixelType, Size, SizeRequirements
from cyclegan_batch.models.checkpoint_files import find_checkpoint, is_checkpoint
from cyclegan_batch.models.checkpoints import LoadedGenerator, load_generator
from cyclegan_batch.models.contract import GeneratorIO, contract_from_generator
from cyclegan_batch.models.model import (
    CardFields,
    ModelCard,
    model_from_contract,
    open_model,
    write_model,
)
from cyclegan_batch.models.parity import Parity
from cyclegan_batch.options import Direction, FilePrecision
from cyclegan_batch.wording import Note, grouped, printable

from .gate import (
    LARGEST_HALF,
    HalfArithmetic,
    pass_gate,
    pass_half_gate,
    translated_by_file,
    translated_by_torch,
)
from .graph import Shape, deployable, graph_from_network
from .quantise import CALIBRATION_FRAMES, Calibrated, worth_it
from .samples import Samples, frames_from_files, samples_for

UNVERIFIED = "unverified"
"""The parity on the card of a file that was not measured."""

_FRAMES = 4
"""As many frames are measured on: one of them may be flat, and each costs seconds."""

_USUAL_SIZE = 256
"""What most are trained at; where the checkpoint does not say it, this is measured at."""


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    path: Path
    card: ModelCard
    parity: Parity | None
    """Of the file against what it was made from; None where it was not measured."""
    notes: tuple[Note, ...]
    """What the user should be told once."""


def export_onnx(
    source: Path,
    output: Path,
    *,
    direction: Direction | None = None,
    precision: FilePrecision = "fp32",
    io: PixelType = "uint8",
    shape: Shape | None = None,
    samples: Path | None = None,
    calibrate: Path | None = None,
    verify: bool = True,
    overwrite: bool = False,
    model_io: str | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Exported:
    """Write the generator at ``source`` to ``output`` as one ONNX file inside the contract.

    ``source``: a checkpoint, the folder of a run (``direction`` chooses), or a foreign ONNX, which
    is adopted (``model_io`` as for a translation). ``shape``: the only N, H and W the file will
    take; None leaves N free, and H and W free as multiples of what the network needs. ``samples``:
    a picture, a video or a folder of them to measure on. ``calibrate``: the same, for ``int8``
    only: what the ranges of its values are taken from. ``verify=False`` writes without a
    measurement, with every convolution in ``int8`` where that was asked for. ``say`` is told what
    happens, one sentence at a time.

    Raises ModelError (also where the file misses the class of its precision; nothing is written
    then), BackendUnavailableError, InputError, OutputError.
    """
    _check_output(source, output, overwrite=overwrite)
    _check_calibration(source, precision, calibrate)
    say(f"exporting {printable(source)}")
    if is_checkpoint(source):
        made = _from_checkpoint(source, model_io, direction, precision, io, shape)
    else:
        made = _from_foreign(source, model_io, direction, precision, io, shape)
    for sentence in grouped(made.notes):
        say(sentence)
    if calibrate is not None:
        made = _in_int8(made, output, calibrate, samples, say, verify=verify)
    measured, words = _measured(made, output, samples, say) if verify else (None, UNVERIFIED)
    described: CardFields = {**made.card, "parity": words}
    card = write_model(output, made.contract, overwrite=overwrite, **described)
    say(f"{printable(output)}: {card.precision}, {output.stat().st_size / 1e6:.1f} MB, {words}")
    return Exported(output, card, measured, made.notes)


@dataclass(frozen=True)
class _Made:
    """A contract graph on its way to a file, and what it is to draw."""

    contract: onnx.ModelProto
    card: CardFields
    source: Path
    """The file that it was made from."""
    reference: Callable[[Pixels], Pixels]
    """Frames (uint8) to their translations in the pixel type of the contract graph."""
    against: str
    """What the reference is, in words."""
    notes: tuple[Note, ...]
    half: Callable[[Path, Pixels], HalfArithmetic] | None = None
    """Given the output's name and frames: what half precision does. None for other precisions."""


def _from_checkpoint(
    source: Path,
    model_io: str | None,
    direction: Direction | None,
    precision: FilePrecision,
    io: PixelType,
    shape: Shape | None,
) -> _Made:
    if model_io is not None:
        raise ModelError(
            f"{printable(source)}: --model-io describes a foreign ONNX, and this is a "
            "checkpoint; leave the option out"
        )
    check_exporter()
    found = find_checkpoint(source, direction)
    loaded = load_generator(found.path)
    config, half = loaded.config, precision == "fp16"
    sizes = _sizes(loaded, shape)
    network = deployable(loaded.network)
    graph = graph_from_network(
        network, config.sizes, channels=config.input_nc, half=half, shape=shape
    )
    return _Made(
        contract_from_generator(graph, GeneratorIO(), pixel_type=io),
        {
            "architecture": config.netG,
            "sizes": sizes,
            "precision": "fp16" if half else "fp32",
            "trained_size": loaded.trained_size,
            "direction": found.direction,
            "source_digest": loaded.digest,
            "generator": dataclasses.asdict(config),
        },
        found.path,
        partial(translated_by_torch, loaded.network, pixel_type=io, channels=config.input_nc),
        "torch in fp32",
        (*found.notes, *loaded.notes),
        partial(pass_half_gate, network=network, channels=config.input_nc) if half else None,
    )


def _from_foreign(
    source: Path,
    model_io: str | None,
    direction: Direction | None,
    precision: FilePrecision,
    io: PixelType,
    shape: Shape | None,
) -> _Made:
    name = printable(source)
    model = open_model(source, model_io=model_io)
    given = model.card
    if model.io is None:
        raise ModelError(
            f"{name}: is inside the contract already; copy it, or give the checkpoint that it was "
            "exported from"
        )
    for option, changes in (
        (
            f"--precision {precision}",
            precision not in ("fp32", given.precision)
            and (precision, given.precision) != ("int8", "fp32"),
        ),
        (f"--io {io}", io != "uint8"),
        ("--shape", shape is not None),
    ):
        if changes:
            raise ModelError(
                f"{name}: is a foreign ONNX in {given.precision}, which is adopted as it is, and "
                f"{option} was asked for; export it so where it was trained"
            )
    return _Made(
        onnx.ModelProto.FromString(model.graph),
        {
            "architecture": given.architecture,
            "sizes": given.sizes,
            "precision": given.precision,
            "trained_size": given.trained_size,
            "direction": direction,
            "source_digest": given.digest,
        },
        source,
        partial(translated_by_file, source, model.io),
        "the file that was given",
        given.notes if precision in (given.precision, "int8") else (
            *given.notes, Note(source, f"is {given.precision}, and stays so")
        ),
    )  # fmt: skip


def _in_int8(
    made: _Made,
    output: Path,
    calibrate: Path,
    samples: Path | None,
    say: Callable[[str], None],
    *,
    verify: bool,
) -> _Made:
    """Return ``made`` quantised where that keeps the picture and gains time. Raises ModelError."""
    shown = _shown(made, samples)
    size = shown.frames.shape[1:3]
    pictures = frames_from_files(calibrate, size, CALIBRATION_FRAMES)
    say(f"taking the ranges of int8 from {len(pictures)} frames of {printable(calibrate)}")
    calibrated = Calibrated(output, made.contract, pictures)
    if verify:
        reference = made.reference(shown.frames)
        contract = worth_it(
            output, calibrated, made.contract, made.card, shown.frames, reference, say
        )
    else:
        contract = calibrated.quantised()
    card: CardFields = {**made.card, "precision": "int8"}
    return dataclasses.replace(made, contract=contract, card=card)


def _shown(made: _Made, samples: Path | None) -> Samples:
    """Return the frames that a file is measured on, of the size that it was trained at."""
    side = made.card.get("trained_size") or _USUAL_SIZE
    size = made.card["sizes"].smallest_fit((side, side))
    return samples_for(samples, made.source, size, _FRAMES)


def _measured(
    made: _Made, output: Path, samples: Path | None, say: Callable[[str], None]
) -> tuple[Parity, str]:
    """Return the parity of what is to be written to ``output``, and how the card says it.

    Raises ModelError where it misses the class of its precision.
    """
    shown = _shown(made, samples)
    height, width = shown.frames.shape[1:3]
    how = f"against {made.against} on {shown.said} at {width}×{height}"
    say(f"measuring it {how}")
    model = model_from_contract(output, made.contract, **made.card)
    found = pass_gate(output, model, shown.frames, made.reference(shown.frames), made.against)
    words = f"{found} {how}"
    if made.half is not None:
        half = made.half(output, shown.frames)
        words += f"; with every layer rounded to half: {half.parity}"
        say(
            "onnxruntime's CPU computes an fp16 file in fp32, which shows its graph and its "
            f"weights; with every layer rounded to half it is {half.parity}, and the largest "
            f"value is {half.largest:.3g} ({half.layer}) of {LARGEST_HALF:.0f}"
        )
    return found, words


def _check_output(source: Path, output: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot be meant, before the work. Raises OutputError."""
    name = printable(output)
    if output.suffix.lower() != ".onnx":
        raise OutputError(f"cannot write {name}: a file that ends in .onnx is expected; rename it")
    if not output.parent.is_dir():
        raise OutputError(f"cannot write {name}: its folder does not exist; create it first")
    if output.is_dir():
        raise OutputError(f"cannot write {name}: a folder has this name; choose another")
    if output.exists() and source.exists() and output.samefile(source):
        raise OutputError(f"cannot write {name}: it is what is exported; choose another name")
    if output.exists() and not overwrite:
        raise OutputError(f"cannot write {name}: it exists already; pass -y to overwrite it")


def _check_calibration(source: Path, precision: FilePrecision, calibrate: Path | None) -> None:
    """Refuse INT8 without pictures, and pictures without INT8. Raises ModelError."""
    if precision == "int8" and calibrate is None:
        raise ModelError(
            f"{printable(source)}: int8 takes the ranges of its values from pictures, and none "
            "were named; pass --calibrate FOLDER, with pictures like those it will translate"
        )
    if precision != "int8" and calibrate is not None:
        raise ModelError(
            f"{printable(source)}: --calibrate is for int8, and {precision} was asked for; leave "
            "the option out, or pass --precision int8"
        )


def check_exporter() -> None:
    """Refuse to begin where the second part of torch's exporter is missing.

    Raises BackendUnavailableError.
    """
    if importlib.util.find_spec("onnxscript") is None:
        error = ImportError("onnxscript", name="onnxscript")
        raise missing_extra("export", error, doing="export")


def _sizes(loaded: LoadedGenerator, shape: Shape | None) -> SizeRequirements:
    """Return the sizes of the file. Raises ModelError where ``shape`` does not fit the network."""
    sizes = loaded.config.sizes
    if shape is None:
        return sizes
    size: Size = shape[1:]
    if min(shape) < 1 or sizes.smallest_fit(size) != size:
        raise ModelError(
            f"{printable(loaded.path)}: --shape {','.join(map(str, shape))}: its H and W are "
            f"multiples of {sizes.multiple_of} from {sizes.minimum} on; choose such ones"
        )
    return dataclasses.replace(sizes, fixed=size)
