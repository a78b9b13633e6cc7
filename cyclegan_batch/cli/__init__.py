"""The command line: it parses and prints; the packages that do the work are imported on use."""

from __future__ import annotations

import sys
from typing import Any

import click

from .._version import __version__
from ..errors import CycleganBatchError
from . import bench, evaluate, export, info, status, train, translate
from .process import STOPS, claim_standard_streams


class _Commands(click.Group):
    """Prints an error that the user can act on without a traceback, and exits 1."""

    def invoke(self, ctx: click.Context) -> Any:
        claim_standard_streams()
        try:
            with STOPS.handled():
                return super().invoke(ctx)
        except CycleganBatchError as error:
            from .progress import Reporter

            Reporter("plain").insist(f"Error: {error}")
            sys.exit(1)
        except KeyboardInterrupt:
            # Planning and probing write no files, so there is nothing to remove.
            print("Interrupted: nothing was written", file=sys.stderr)
            sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cyclegan-batch")
def main() -> None:
    """Push videos and images through a CycleGAN generator, as fast as the machine allows."""


for _command in (
    translate.command,
    status.status,
    train.command,
    export.command,
    evaluate.command,
    bench.command,
    info.inspect,
    info.doctor,
    info.demo,
):
    main.add_command(_command)
