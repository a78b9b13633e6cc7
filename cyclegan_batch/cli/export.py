"""``export``: one ONNX file, a TensorRT engine, or the folder for an edge device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import PATH, Shape, options_of

_EXPORT = options_of(
    click.option(
        "--direction",
        type=click.Choice(["AtoB", "BtoA"]),
        help="Which generator of a run folder; what the file says of itself.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "fp16", "int8"]),
        help="Of weights and convolutions, the norm's statistics are always fp32; fp32, and fp16 "
        "for a bundle.",
    ),
    click.option(
        "--io",
        type=click.Choice(["uint8", "float16"]),
        default="uint8",
        show_default=True,
        help="Pixels in and out; float16 for sources of more than 8 bits.",
    ),
    click.option(
        "--shape", type=Shape(), help="The only batch, height and width; free unless given."
    ),
    click.option(
        "--model-io",
        metavar="SPEC",
        help='How a foreign ONNX is fed, e.g. "nchw rgb 0..255"; found out where possible.',
    ),
    click.option(
        "--samples",
        type=PATH,
        metavar="FOLDER|FILE",
        help="Pictures or a video to measure on; the run's own, or computed ones.",
    ),
    click.option(
        "--calibrate",
        type=PATH,
        metavar="FOLDER|FILE",
        help="int8: pictures or a video like those it will translate.",
    ),
    click.option(
        "--verify/--no-verify",
        default=True,
        show_default=True,
        help="Measure the file, and write it only if it draws the same picture.",
    ),
    click.option("-y", "--overwrite", is_flag=True, help="Overwrite what exists."),
    click.option("-q", "--quiet", is_flag=True, help="Only what goes wrong."),
)

_ENGINE = options_of(
    click.option(
        "--bundle",
        type=click.Choice(["jetson-orin", "jetson-thor", "generic"]),
        help="OUTPUT is a folder from which such a device makes its own engine, and proves it.",
    ),
    click.option("--min-shape", type=Shape(), help="Engine: the smallest frames it will take."),
    click.option("--opt-shape", type=Shape(), help="Engine: the frames it is tuned for."),
    click.option("--max-shape", type=Shape(), help="Engine: the largest frames it will take."),
    click.option(
        "--builder-level",
        type=click.IntRange(0, 5),
        help="Engine: how long TensorRT looks for faster kernels; 3.",
    ),
    click.option(
        "--workspace",
        type=click.IntRange(min=1),
        metavar="MIB",
        help="Engine: GPU memory that kernels may use; all there is.",
    ),
    click.option(
        "--hardware-compatible", is_flag=True, help="Engine: for every GPU from Ampere on, slower."
    ),
    click.option(
        "--version-compatible", is_flag=True, help="Engine: for later TensorRT of the same major."
    ),
)

_ENGINE_NAMES = (
    "min_shape",
    "opt_shape",
    "max_shape",
    "builder_level",
    "workspace",
    "hardware_compatible",
    "version_compatible",
)


@click.command("export")
@click.argument("checkpoint", type=PATH)
@click.argument("output", type=PATH)
@_EXPORT
@_ENGINE
def command(checkpoint: Path, output: Path, quiet: bool, **options: Any) -> None:
    """Write a generator as one ONNX file that every backend runs, and prove it.

    CHECKPOINT is a .pth or .safetensors file, the folder of a run, or a foreign ONNX; OUTPUT ends
    in .onnx. Where it ends in .engine, a TensorRT engine for this machine's GPU is built besides
    (experimental); with --bundle it is a folder for an edge device.
    """
    from .progress import Reporter

    engine = {name: options.pop(name) for name in _ENGINE_NAMES}
    engine = {name: value for name, value in engine.items() if value not in (None, False)}
    bundle = options.pop("bundle")
    wants_engine = bundle is None and output.suffix.lower() == ".engine"
    useless = [
        f"--{name.replace('_', '-')}"
        for name in engine
        if not wants_engine and not (bundle and name.endswith("_shape"))
    ]
    if useless:
        raise click.UsageError(
            f"{', '.join(useless)}: for an engine only; let OUTPUT end in .engine."
        )
    try:
        from cyclegan_export.bundle import export_bundle
        from cyclegan_export.engine_export import export_engine
        from cyclegan_export.onnx_export import export_onnx
    except ImportError as error:
        from ..errors import BackendUnavailableError

        raise BackendUnavailableError(
            f"cannot export: {error.name or error} is not installed; "
            "pip install 'cyclegan-batch[export]' brings it"
        ) from error
    say = Reporter("plain", quiet=quiet).say
    if bundle:
        export_bundle(checkpoint, output, target=bundle, say=say, **engine, **options)
    elif wants_engine:
        export_engine(checkpoint, output, say=say, **engine, **options)
    else:
        options["precision"] = options["precision"] or "fp32"
        export_onnx(checkpoint, output, say=say, **options)
