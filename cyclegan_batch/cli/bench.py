"""``bench``: measure a model on this machine, and print the command that is the fastest."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..errors import CycleganBatchError
from ..options import RUN, TranslateOptions
from .options import (
    PATH,
    GroupedCommand,
    GroupedOption,
    model_option,
    progress_option,
    table_options,
)
from .process import STOPS, print_result

if TYPE_CHECKING:
    from ..bench import Findings, Part
    from ..bench.text import Style

_TAKEN = (
    *("direction", "weights", "family", "model_io", "trust_engine"),
    *("backend", "device", "precision", "threads", "size", "cache_dir"),
)
"""The options of a translation that decide what is measured."""

_MOST_COLUMNS = 120


def _finite(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """Refuse what a range lets through: infinity and NaN."""
    if not math.isfinite(value):
        raise click.BadParameter("must be a finite number of seconds")
    return value


_PARAMETERS: list[click.Parameter] = [
    click.Argument(["source"], required=False, type=PATH, metavar="[INPUT]"),
    model_option(),
    *(each for each in table_options(TranslateOptions) if each.name in _TAKEN),
    GroupedOption(
        ["--seconds"],
        group=RUN,
        type=click.FloatRange(min=1),
        callback=_finite,
        metavar="N",
        default=60.0,
        shown_default="60",
        help="How long the measurement may take, the export of a checkpoint excluded. With less "
        "time there are fewer repeats, then fewer ways, and those left out are named.",
    ),
    GroupedOption(["--json", "as_json"], group=RUN, is_flag=True, help="Print one JSON object."),
    progress_option(RUN),
    GroupedOption(["-q", "--quiet"], group=RUN, is_flag=True, help="Print only the command."),
]


@click.command(
    "bench",
    cls=GroupedCommand,
    params=_PARAMETERS,
    short_help="Measure a model on this machine, and what limits it.",
)
def command(
    source: Path | None,
    model: Path,
    seconds: float,
    as_json: bool,
    progress: Literal["auto", "plain", "json", "none"],
    quiet: bool,
    **options: Any,
) -> None:
    """Measure MODEL on this machine: what limits it, what it reaches, and the fastest command.

    INPUT is a video, an image or a folder of them, whose first frames are used; without it a
    computed clip is. An option of the network that is not auto limits what is compared. What is
    the fastest is kept, and translate takes it by itself.
    """
    from ..bench import measure
    from ..bench.budget import has_left_threads
    from ..bench.text import command_line, lines_of
    from .progress import Reporter

    reporter = Reporter(progress, quiet=quiet)
    style = _style()

    def watch(step: str, left: float) -> None:
        STOPS.check()
        sentence = f"{step}, {left:.0f} s left"
        reporter.show(
            lambda columns: sentence[:columns],
            lambda: sentence,
            lambda: {"step": step, "seconds_left": round(left, 1)},
        )

    def tell(part: Part, findings: Findings) -> None:
        reporter.close()
        lines = [] if as_json or quiet else lines_of(part, findings, style)
        if lines:
            print_result("\n".join(lines))

    try:
        findings = measure(
            model,
            source,
            TranslateOptions(**options),
            seconds=seconds,
            say=reporter.say,
            watch=watch,
            tell=tell,
        )
    except CycleganBatchError as error:
        reporter.close()
        if progress != "json":
            raise
        reporter.insist(str(error))  # with --progress json every line is JSON
        sys.exit(1)
    except KeyboardInterrupt:
        reporter.close()
        if has_left_threads():
            # A runtime is still computing: the interpreter must not be taken down around it.
            print("Interrupted: nothing was written", file=sys.stderr, flush=True)
            os._exit(130)
        raise
    if as_json:
        print_result(json.dumps(findings.to_json(), indent=2))
    elif quiet:
        print_result(command_line(findings))


def _style() -> Style:
    """Return how to draw on standard output."""
    from ..bench.text import Style

    try:
        "█▏░×÷".encode(sys.stdout.encoding or "ascii")
        blocks = True
    except (UnicodeEncodeError, LookupError):
        blocks = False
    on_terminal = sys.stdout.isatty()
    columns = shutil.get_terminal_size().columns if on_terminal else 80
    return Style(
        columns=max(60, min(_MOST_COLUMNS, columns)),
        blocks=blocks,
        colour=on_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb",
    )
