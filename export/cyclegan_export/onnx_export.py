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
from pathlib import Path
from typing import Any, Literal

import onnx

from cyclegan_batch.checkpoint_files import Direction, find_checkpoint, is_checkpoint
from cyclegan_batch.checkpoints import LoadedGenerator, load_generator
from cyclegan_batch.contract import GeneratorIO, contract_from_generator
from cyclegan_batch.errors import BackendUnavailableError, ModelError, OutputError
from cyclegan_batch.files import printable
from cyclegan_batch.frames import PixelType, Size, SizeRequirements
from cyclegan_batch.model import ModelCard, model_from_contract, open_model, write_model
from cyclegan_batch.parity import Parity

from .gate import (
    LARGEST_HALF,
    pass_gate,
    pass_half_gate,
    translated_by_file,
    translated_by_torch,
)
from .graph import Shape, deployable, graph_from_network
from .samples import samples_for

Precision = Literal["fp32", "fp16"]

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
    notes: tuple[str, ...]
    """What the user should be told once."""


def export_onnx(
    source: Path,
    output: Path,
    *,
    direction: Direction | None = None,
    precision: Precision = "fp32",
    io: PixelType = "uint8",
    shape: Shape | None = None,
    samples: Path | None = None,
    verify: bool = True,
    overwrite: bool = False,
    model_io: str | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Exported:
    """Write the generator at ``source`` to ``output`` as one ONNX file inside the contract.

    ``source``: a checkpoint, the folder of a run (``direction`` chooses), or a foreign ONNX, which
    is adopted (``model_io`` as for a translation). ``shape``: the only N, H and W the file will
    take; None leaves N free, and H and W free as multiples of what the network needs. ``samples``:
    a picture, a video or a folder of them to measure on. ``verify=False`` writes without a
    measurement. ``say`` is told what happens, one sentence at a time.

    Raises ModelError (also where the file misses the class of its precision; nothing is written
    then), BackendUnavailableError, InputError, OutputError.
    """
    _check_output(source, output, overwrite=overwrite)
    foreign = not is_checkpoint(source)
    if foreign:
        made = _from_foreign(source, model_io, direction, precision, io, shape)
    else:
        made = _from_checkpoint(source, model_io, direction, precision, io, shape, say)
    for note in made.notes:
        say(note)
    measured, words = None, UNVERIFIED
    if verify:
        measured, words = made.measure(output, samples, say)
    card = write_model(
        output,
        made.contract,
        overwrite=overwrite,
        parity=words,
        **made.card,
    )
    say(f"{printable(output)}: {card.precision}, {output.stat().st_size / 1e6:.1f} MB, {words}")
    return Exported(output, card, measured, made.notes)


@dataclass(frozen=True)
class _Made:
    """A contract graph on its way to a file."""

    contract: onnx.ModelProto
    card: dict[str, Any]
    """What `write_model` is told of it."""
    measure: Callable[[Path, Path | None, Callable[[str], None]], tuple[Parity, str]]
    """Given the output's name, the samples and who is told: the parity, also in words."""
    notes: tuple[str, ...]


def _from_checkpoint(
    source: Path,
    model_io: str | None,
    direction: Direction | None,
    precision: Precision,
    io: PixelType,
    shape: Shape | None,
    say: Callable[[str], None],
) -> _Made:
    if model_io is not None:
        raise ModelError(
            f"{printable(source)}: --model-io says how a foreign ONNX is fed, and this is a "
            "checkpoint; leave the option out"
        )
    _check_exporter()
    found = find_checkpoint(source, direction)
    loaded = load_generator(found.path)
    config = loaded.config
    sizes = _sizes(loaded, shape)
    say(f"exporting {printable(found.path)}: {config.netG}, ngf {config.ngf}, {precision}")
    network = deployable(loaded.network)
    graph = graph_from_network(
        network, config.sizes, channels=config.input_nc, half=precision == "fp16", shape=shape
    )
    contract = contract_from_generator(graph, GeneratorIO(), pixel_type=io)
    card: dict[str, Any] = {
        "architecture": config.netG,
        "sizes": sizes,
        "precision": precision,
        "trained_size": loaded.trained_size,
        "direction": found.direction,
        "source_digest": loaded.digest,
        "generator": dataclasses.asdict(config),
    }

    def measure(
        output: Path, samples: Path | None, say: Callable[[str], None]
    ) -> tuple[Parity, str]:
        side = loaded.trained_size or _USUAL_SIZE
        shown = samples_for(samples, found.path, sizes.smallest_fit((side, side)), _FRAMES)
        say(f"measuring it against torch in fp32 on {_words(shown.said, shown.frames.shape)}")
        model = model_from_contract(output, contract, **card)
        reference = translated_by_torch(loaded.network, shown.frames, io, channels=config.input_nc)
        parity = pass_gate(output, model, shown.frames, reference, "torch in fp32")
        words = f"{parity} against torch in fp32 on {_words(shown.said, shown.frames.shape)}"
        if precision == "fp16":
            half = pass_half_gate(output, network, shown.frames, channels=config.input_nc)
            words += f"; with every layer rounded to half: {half.parity}"
            say(
                "onnxruntime's CPU computes an fp16 file in fp32, which shows its graph and its "
                f"weights; with every layer rounded to half it is {half.parity}, and the largest "
                f"value is {half.largest:.3g} ({half.layer}) of {LARGEST_HALF:.0f}"
            )
        return parity, words

    return _Made(contract, card, measure, (*found.notes, *loaded.notes))


def _from_foreign(
    source: Path,
    model_io: str | None,
    direction: Direction | None,
    precision: Precision,
    io: PixelType,
    shape: Shape | None,
) -> _Made:
    name = printable(source)
    model = open_model(source, model_io=model_io)
    if model.io is None:
        raise ModelError(
            f"{name}: is inside the contract already; copy it, or give the checkpoint that it was "
            "exported from"
        )
    asked = [
        option
        for option, changes in (
            (f"--precision {precision}", precision != model.card.precision),
            (f"--io {io}", io != "uint8"),
            ("--shape", shape is not None),
        )
        if changes
    ]
    if asked:
        raise ModelError(
            f"{name}: is a foreign ONNX in {model.card.precision}, which is adopted as it is, and "
            f"{asked[0]} was asked for; export it so where it was trained"
        )
    card: dict[str, Any] = {
        "architecture": model.card.architecture,
        "sizes": model.card.sizes,
        "precision": model.card.precision,
        "trained_size": model.card.trained_size,
        "direction": direction,
        "source_digest": model.card.digest,
    }
    contract = onnx.ModelProto.FromString(model.graph)
    fed = model.io

    def measure(
        output: Path, samples: Path | None, say: Callable[[str], None]
    ) -> tuple[Parity, str]:
        side = model.card.trained_size or _USUAL_SIZE
        size = model.card.sizes.smallest_fit((side, side))
        shown = samples_for(samples, source, size, _FRAMES)
        against = "the file that was given"
        reference = translated_by_file(source.read_bytes(), fed, shown.frames)
        parity = pass_gate(
            output, model_from_contract(output, contract, **card), shown.frames, reference, against
        )
        return parity, f"{parity} against {against} on {_words(shown.said, shown.frames.shape)}"

    return _Made(contract, card, measure, model.card.notes)


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


def _check_exporter() -> None:
    """Refuse to begin where the second part of torch's exporter is missing."""
    if importlib.util.find_spec("onnxscript") is None:
        raise BackendUnavailableError(
            "cannot export: onnxscript is not installed; "
            "pip install 'cyclegan-batch[export]' brings it"
        )


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


def _words(said: str, shape: tuple[int, ...]) -> str:
    return f"{said} at {shape[2]}×{shape[1]}"
