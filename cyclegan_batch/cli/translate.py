"""``translate``: plan, run, report."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..errors import ContradictionError, CycleganBatchError
from ..options import RUN, TranslateOptions
from .options import (
    PLACE,
    GroupedCommand,
    GroupedOption,
    model_option,
    progress_option,
    table_options,
)
from .process import STOPS, importing, print_result

if TYPE_CHECKING:
    from ..backends import Backend
    from ..job.plan import JobPlan
    from ..job.report import Report
    from .progress import Reporter

_PARAMETERS: list[click.Parameter] = [
    click.Argument(["inputs"], nargs=-1, required=True, type=PLACE, metavar="INPUT..."),
    # The output is a string: a separator at its end means a folder, and a Path drops it.
    click.Argument(["output"], type=click.Path()),
    model_option(),
    *table_options(TranslateOptions),
    GroupedOption(
        ["--dry-run"],
        group=RUN,
        is_flag=True,
        help="Print the plan: every output, how it is made, and the memory for it; write nothing.",
    ),
    GroupedOption(
        ["--report"],
        group=RUN,
        type=PLACE,
        metavar="FILE",
        help="Write what was done to FILE as JSON, with every version and digest.",
    ),
    GroupedOption(
        ["--manifest"],
        group=RUN,
        type=PLACE,
        metavar="FILE",
        help="Write a line of JSON for each input to FILE, a row where its name ends in .parquet: "
        "its output, sizes and digest, what is damaged in it, and whether it is done, up to date, "
        "skipped, failed or left, and why.",
    ),
    progress_option(RUN),
    GroupedOption(
        ["-q", "--quiet"], group=RUN, is_flag=True, help="Print only what failed, and why."
    ),
    GroupedOption(
        ["-v", "--verbose"],
        group=RUN,
        is_flag=True,
        help="Also print where the time went, and FFmpeg's own messages.",
    ),
]


@click.command(
    "translate",
    cls=GroupedCommand,
    params=_PARAMETERS,
    short_help="Translate videos and images through a generator.",
)
def command(
    inputs: tuple[Path, ...],
    output: str,
    model: Path,
    progress: Literal["auto", "plain", "json", "none"],
    quiet: bool,
    verbose: bool,
    dry_run: bool,
    report: Path | None,
    manifest: Path | None,
    **options: Any,
) -> None:
    """Translate videos and images through the generator MODEL.

    INPUT is a video, an image, a tar of images, a folder of these, numbered images (f_%06d.png), a
    quoted glob ('frames/*.png'), a list of files (@LIST, or @- on standard input), or - for a y4m
    video on standard input; several may be given. OUTPUT is a file, numbered images into which a
    video is split (out_%06d.png), a folder for what comes from a folder, a glob, a list or several
    inputs, or - for y4m on standard output. Both may be URLs of a store (s3://bucket/raw/,
    's3://bucket/*.tar'): an object is a file, and a prefix is a folder.
    """
    if options["overwrite"] and options["skip_existing"]:
        raise click.UsageError("-y overwrites what exists, -n leaves it: choose one.")
    try:
        TranslateOptions(**options)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    from .progress import Reporter

    reporter = Reporter(progress, quiet=quiet)
    try:
        with importing():
            from .. import api
            from ..job.report import check_result_path, write_report
            from ..wording import grouped

            if manifest:
                from ..job.manifest import check_format

                check_format(manifest)
            plan, backend = api.prepare_translation(
                inputs, output, model=model, say=reporter.say, **options
            )
        STOPS.check()
        if dry_run:
            _print_plan(plan, as_json=progress == "json")
            if backend is not None:
                backend.close()
            sys.exit(3 if plan.failures or plan.damage else 0)
        if report:
            check_result_path(report, plan, model, what="report")
        if manifest:
            check_result_path(manifest, plan, model, what="manifest")
        for sentence in grouped(plan.notes):
            reporter.say(sentence)
        if options["preview"]:
            from ..job.preview import write_preview

            assert backend is not None  # a preview takes nothing from earlier runs
            print_result(str(write_preview(plan, backend, options["preview"])))
            return
        with contextlib.ExitStack() as stack:
            if verbose and progress != "json":
                from ..media.demux.ffmpeg_log import printed

                stack.enter_context(printed())
            outcome = _run(plan, backend, reporter)
        # All work is done: a request to stop only sets the flag from here on.
        with STOPS.deferred():
            if report:
                write_report(outcome, report)
            if manifest:
                from ..job.manifest import write_manifest

                write_manifest(plan, outcome, manifest)
    except ContradictionError as error:
        raise click.UsageError(f"{error}.") from error
    except CycleganBatchError as error:
        if progress != "json":
            raise
        reporter.insist(str(error))  # with --progress json every line is JSON
        sys.exit(1)
    with STOPS.deferred():
        if progress == "json":
            print(json.dumps({"event": "end"} | json.loads(outcome.to_json())), file=sys.stderr)
        else:
            _print_outcome(outcome, reporter, verbose=verbose)
    sys.exit(outcome.exit_code)


def _run(plan: JobPlan, backend: Backend | None, reporter: Reporter) -> Report:
    """Run the plan and return its report, also after an error or a request to stop."""
    from .. import api
    from ..job.units import Counters

    counters = Counters()

    def watch(counters: Counters) -> None:
        STOPS.check()
        reporter.watch(counters)

    reporter.total = plan.frames
    try:
        try:
            return api.run_plan(plan, backend, counters=counters, watch=watch)
        except CycleganBatchError as error:
            return api.report_run(plan, counters, error=error)
    except KeyboardInterrupt:
        # The request came between two steps or after the last; the files written so far stay.
        counters.interrupted = True
        return api.report_run(plan, counters)
    finally:
        reporter.close()


def _print_plan(plan: JobPlan, *, as_json: bool) -> None:
    """Print a plan to standard output, as the result of ``--dry-run``."""
    from ..job.plan_text import plan_description, plan_lines
    from ..wording import printable

    print_result(
        json.dumps(plan_description(plan), indent=2)
        if as_json
        else "\n".join(map(printable, plan_lines(plan)))
    )


def _print_outcome(report: Report, reporter: Reporter, *, verbose: bool) -> None:
    """Print what is missing, even with ``--quiet``, and as the last line how the run ended."""
    tell = reporter.say if report.status == "whole" else reporter.insist
    if len(report.failures) > 1:
        for failure in report.failures:
            # The last line gives the error that ended the run.
            if failure.error is not report.error:
                tell(f"failed: {failure.cause}")
    if verbose:
        for name, stage in report.stages.items():
            share = stage.busy_seconds / max(report.seconds, 1e-9) / stage.workers
            reporter.say(f"  {name} ×{stage.workers}: busy {stage.busy_seconds:.2f} s, {share:.0%}")
    tell(report.summary)
