"""``export``: one ONNX file, a TensorRT engine, or the folder of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import ContradictionError
from ..options import RUN
from .options import PATH, GroupedCommand, GroupedOption, table_options


def _table() -> list[click.Parameter]:
    from cyclegan_export.options import ExportOptions

    return [*table_options(ExportOptions), _QUIET]


_QUIET = GroupedOption(
    ["-q", "--quiet"], group=RUN, is_flag=True, help="Print only what goes wrong."
)


@click.command(
    "export",
    cls=GroupedCommand,
    table=_table,
    short_help="Write a generator as an ONNX file, an engine or a bundle.",
)
@click.argument("checkpoint", type=PATH)
@click.argument("output", type=PATH)
def command(checkpoint: Path, output: Path, quiet: bool, **options: Any) -> None:
    """Write a generator as one ONNX file, and measure that it translates like its source.

    CHECKPOINT is a .pth or .safetensors file, the folder of a run, or a foreign ONNX; OUTPUT ends
    in .onnx. Where it ends in .engine, a TensorRT engine for this machine's GPU is built from the
    ONNX (experimental); with --bundle, OUTPUT is a folder for another program or an edge device.
    """
    from cyclegan_export.options import ExportOptions
    from cyclegan_export.outputs import export

    from .progress import Reporter

    try:
        export(checkpoint, output, ExportOptions(**options), say=Reporter("plain", quiet=quiet).say)
    except ContradictionError as error:
        raise click.UsageError(f"{error}.") from error
