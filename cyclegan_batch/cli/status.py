"""``status``: how far a job has come."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from .options import PLACE, GroupedCommand, option
from .process import print_result


@click.command(cls=GroupedCommand, short_help="Tell what of a job is done, failed and left.")
@click.argument("output", type=PLACE)
@option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(output: Path, as_json: bool) -> None:
    """Tell what of the job that writes OUTPUT is done, failed and left, and how fast it goes.

    OUTPUT is what translate was given: a file, a folder or a URL. It is only read, at any time. The
    exit code is 0 where all is whole, 3 where something is left, missing or damaged, and 1 where
    nothing is known of a job.
    """
    from ..job.status import job_status
    from ..models.checkpoints.run_folder import is_run
    from ..wording import printable

    found = job_status(output)
    if found is None:
        if as_json:
            print_result("null")
        name = printable(output)
        print(
            f"{name}: is the run of a training; {name}/index.html and log.jsonl tell how far it is"
            if is_run(output)
            else f"{name}: nothing is known of a job that writes it; "
            "name the OUTPUT that translate was given",
            file=sys.stderr,
        )
        sys.exit(1)
    if as_json:
        print_result(json.dumps(found.description(), indent=2))
    else:
        print_result("\n".join(found.lines()))
    sys.exit(0 if found.is_whole else 3)
