"""The options of an export in one table, and the choice among the three exports.

No torch is imported before something is exported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from cyclegan_batch.errors import ContradictionError
from cyclegan_batch.frames import FileIO
from cyclegan_batch.option_table import check_values, option, options_given, options_of
from cyclegan_batch.options import MODEL, RUN, Direction, FamilyName, FilePrecision

Program: TypeAlias = Literal["ffmpeg", "vapoursynth", "triton", "deepstream"]
Device: TypeAlias = Literal["jetson-orin", "jetson-thor", "generic"]
Target: TypeAlias = Literal[Program, Device]
"""The program or the device that a bundle is for."""

Int8Runtime: TypeAlias = Literal["cpu", "tensorrt"]
"""For what a file in int8 is made."""

FILE = "File"
MEASURED = "Measurement"
ENGINE = "TensorRT engine or bundle (experimental)"


@dataclass(frozen=True)
class ExportOptions:
    """Every option of ``export``. Raises ValueError for a value that an option does not have."""

    direction: Direction | None = field(default=None, metadata=option(MODEL))
    """Which of the two generators in a run folder or in one file (AtoB unless given, where a folder
    holds both), or the direction of a file that does not state its own."""
    weights: str | None = field(default=None, metadata=option(MODEL, metavar="PREFIX"))
    """Which of several generators in one checkpoint: the beginning of the names of its weights,
    such as ``netG_A``; ``inspect`` lists what a checkpoint holds."""
    family: FamilyName | None = field(default=None, metadata=option(MODEL, metavar="FAMILY"))
    """Which network the weights of a checkpoint are for, where the names and shapes of two fit; it
    is recognised by them unless given."""
    model_io: str | None = field(default=None, metadata=option(MODEL, metavar="SPEC"))
    """Images of a foreign ONNX, e.g. ``"nchw rgb 0..255"`` or ``"bgr mean=0.5 std=0.5 -> 0..1"``:
    layout, channel order, range, mean and deviation, behind ``->`` those of what it returns, and
    ``out=NAME`` for one of several outputs. What is left out is read from its graph where
    possible."""

    precision: FilePrecision | None = field(default=None, metadata=option(FILE))
    """Precision of weights and convolutions; the statistics of the norms stay fp32. fp32
    unless given, and fp16 for a bundle for a device; an ONNX keeps its own."""
    for_: Int8Runtime | None = field(default=None, metadata=option(FILE))
    """For what a file in int8 is made: for ``cpu`` it is written only where it is faster on this
    machine's; for ``tensorrt`` the picture alone decides, and its rate stays unknown until it ran
    on the GPU. cpu unless given, and tensorrt for an engine and a bundle."""
    half_norm: bool = field(default=False, metadata=option(FILE))
    """Let InstanceNorm take and give half precision, too (fp16): quicker on GPUs, and whether its
    statistics stay fp32 is up to the runtime. Written only where it reaches its class with the norm
    computed in half precision."""
    io: FileIO | None = field(default=None, metadata=option(FILE))
    """Images in and out: pixels of uint8, or of float16 for sources of more than 8 bits; or planes
    for other programs, RGB (N, 3, H, W) in [0, 1]. uint8 unless given, and for a bundle what its
    host takes."""
    shape: tuple[int, int, int] | None = field(default=None, metadata=option(FILE, metavar="N,H,W"))
    """The only batch, height and width that the file accepts; all are free unless given."""

    samples: Path | None = field(default=None, metadata=option(MEASURED, metavar="FOLDER|FILE"))
    """Images or a video to measure on; unless given, images of the training run, or computed ones
    where there are none."""
    calibrate: Path | None = field(default=None, metadata=option(MEASURED, metavar="FOLDER|FILE"))
    """Images or a video like those that the int8 file will translate; they set the ranges of its
    values."""
    verify: bool = field(default=True, metadata=option(MEASURED))
    """Compare the file with its source on the samples, and write it only where its parity reaches
    the class that its precision requires."""

    bundle: Target | None = field(
        default=None, metadata=option(ENGINE, metavar="TARGET", applies_to=("bundle",))
    )
    """Make OUTPUT a folder for another program (ffmpeg, vapoursynth, triton, deepstream) or for a
    device with TensorRT (jetson-orin, jetson-thor, generic): the file as it is taken there, which
    sets ``--io``, a configuration, and a script that verifies it there."""
    min_shape: tuple[int, int, int] | None = field(
        default=None, metadata=option(ENGINE, metavar="N,H,W", applies_to=("engine", "bundle"))
    )
    """Smallest frames that the engine takes."""
    opt_shape: tuple[int, int, int] | None = field(
        default=None, metadata=option(ENGINE, metavar="N,H,W", applies_to=("engine", "bundle"))
    )
    """Frames that the engine is tuned for."""
    max_shape: tuple[int, int, int] | None = field(
        default=None, metadata=option(ENGINE, metavar="N,H,W", applies_to=("engine", "bundle"))
    )
    """Largest frames that the engine takes."""
    builder_level: int = field(
        default=3,
        metadata=option(ENGINE, metavar="N", least=0, most=5, applies_to=("engine",)),
    )
    """How long TensorRT looks for faster kernels, 0 to 5."""
    workspace: int | None = field(
        default=None, metadata=option(ENGINE, metavar="MIB", least=1, applies_to=("engine",))
    )
    """GPU memory that kernels may use, in MiB; all of it unless given."""
    hardware_compatible: bool = field(
        default=False, metadata=option(ENGINE, applies_to=("engine",))
    )
    """Build an engine that runs on every GPU from Ampere on, and somewhat slower."""
    version_compatible: bool = field(default=False, metadata=option(ENGINE, applies_to=("engine",)))
    """Build an engine that also runs with later TensorRT versions of the same major number."""

    overwrite: bool = field(default=False, metadata=option(RUN, short="y"))
    """Overwrite what exists."""

    def __post_init__(self) -> None:
        check_values(self)

    def kind(self, output: Path) -> Literal["onnx", "engine", "bundle"]:
        """Return what ``output`` becomes. Raises ContradictionError for options of another kind."""
        kind: Literal["onnx", "engine", "bundle"] = "onnx"
        if self.bundle is not None:
            kind = "bundle"
        elif output.suffix.lower() == ".engine":
            kind = "engine"
        if self.for_ is not None and self.bundle in get_args(Program):
            raise ContradictionError(
                f"--for {self.for_}: it is for int8, and the bundle of another program is fp32 or "
                "fp16; leave the option out"
            )
        if kind != "onnx" and self.for_ == "cpu":
            raise ContradictionError(
                "--for cpu: an engine and the bundle of a device run by TensorRT; leave the option "
                "out"
            )
        useless = [
            each for each in options_given(self) if each.applies_to and kind not in each.applies_to
        ]
        if useless:
            flags = ", ".join(each.flag for each in useless)
            if all("bundle" in each.applies_to for each in useless):
                raise ContradictionError(
                    f"{flags}: for an engine or a bundle; let OUTPUT end in .engine, or pass "
                    "--bundle"
                )
            raise ContradictionError(f"{flags}: for an engine only; let OUTPUT end in .engine")
        return kind

    def of_onnx(self) -> dict[str, Any]:
        """Return the options of every kind of output, which are keywords of `export_onnx`.

        What is None is left out, since the kinds differ in what it stands for.
        """
        common = (each.name for each in options_of(type(self)) if not each.applies_to)
        values = {name: getattr(self, name) for name in common}
        return {name: value for name, value in values.items() if value is not None}
