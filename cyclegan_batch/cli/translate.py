"""``translate``: plan, run, report."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..errors import ContradictionError, CycleganBatchError
from ..options import MAX_PIXELS
from .options import PATH, Count, Seconds, Size, key_values, options_of
from .process import STOPS, print_result

if TYPE_CHECKING:
    from ..backends import Backend
    from ..job.plan import JobPlan
    from ..job.report import Report
    from .progress import Reporter

_NETWORK = options_of(
    click.option(
        "-m", "--model", type=PATH, required=True, help="Generator: an ONNX, checkpoint or run."
    ),
    click.option(
        "--direction",
        type=click.Choice(["AtoB", "BtoA"]),
        help="Which generator of a run; AtoB where there are two.",
    ),
    click.option(
        "--model-io",
        metavar="SPEC",
        help='How a foreign ONNX is fed, e.g. "nchw rgb 0..255"; found out where possible.',
    ),
    click.option(
        "--backend",
        type=click.Choice(["auto", "onnxruntime", "openvino", "tensorrt", "torch"]),
        default="auto",
        show_default=True,
        help="Runtime of the network.",
    ),
    click.option(
        "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Where."
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "tf32", "fp16", "bf16", "int8"]),
        default="auto",
        show_default=True,
        help="Arithmetic; auto takes the fastest that draws the same picture.",
    ),
    click.option(
        "--batch-size", type=Count(), default="auto", show_default=True, help="Frames per call."
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads for the network."),
    click.option(
        "--trust-engine", is_flag=True, help="Load a TensorRT engine that was not built here."
    ),
    click.option(
        "--size", type=Size(), default="native", show_default=True, help="What the network sees."
    ),
    click.option(
        "--fit",
        type=click.Choice(["pad", "stretch"]),
        help="How a frame meets a size; stretch where the model's is fixed, else pad.",
    ),
    click.option("--keep-size", is_flag=True, help="Write the network's size, not the source's."),
)

_VIDEO = options_of(
    click.option(
        "--container",
        type=click.Choice(["same", "mp4", "mkv", "mov", "webm"]),
        default="same",
        show_default=True,
        help="Container of videos that go into a folder; mkv where the source's is not written.",
    ),
    click.option(
        "-c", "--codec", help="Video encoder, FFmpeg's name; libx264, and libvpx-vp9 in WebM."
    ),
    click.option("--crf", type=float, help="Quality; 18 for libx264, its like for others."),
    click.option("--preset", help="The encoder's preset."),
    click.option("--pix-fmt", help="Pixel format of the output; follows the source."),
    click.option(
        "--encoder-opt",
        multiple=True,
        callback=key_values,
        metavar="K=V",
        help="Any encoder option.",
    ),
    click.option(
        "--audio", default="copy", show_default=True, metavar="copy|CODEC|none", help="The sound."
    ),
    click.option("--stream", type=click.IntRange(min=0), help="Index of the video stream."),
    click.option(
        "--color", metavar="MATRIX[:RANGE]", help="Colour of an untagged source, e.g. bt601:full."
    ),
    click.option("--deinterlace", is_flag=True, help="Deinterlace (bwdif) before the network."),
    click.option(
        "--deinterlace-rate",
        type=click.Choice(["frame", "field"]),
        help="Deinterlace: one frame for two fields, or a frame for each.",
    ),
    click.option("--ss", type=Seconds(), help="Start."),
    click.option("--to", type=Seconds(), help="End."),
    click.option("--frames", type=click.IntRange(min=1), help="At most this many frames."),
    click.option("--fps", help="Frames per second of a pattern of images, e.g. 30000/1001."),
    click.option(
        "--preview",
        type=click.IntRange(min=1),
        metavar="N",
        help="Only N frames beside their source, as one picture named OUTPUT.preview.png.",
    ),
)

_IMAGES = options_of(
    click.option(
        "--format",
        type=click.Choice(["same", "png", "jpg", "webp", "avif"]),
        default="same",
        show_default=True,
        help="Format of translated images.",
    ),
    click.option("--quality", type=click.IntRange(1, 100), help="Of jpg, webp and avif; 95."),
    click.option(
        "--white",
        type=click.IntRange(1, 65535),
        metavar="LEVEL",
        help="Level of pictures of more than 8 bits that becomes white, e.g. 4095.",
    ),
)

_RUN = options_of(
    click.option("-y", "--overwrite", is_flag=True, help="Overwrite what exists."),
    click.option("-n", "--skip-existing", is_flag=True, help="Leave what exists, do the rest."),
    click.option(
        "--on-error",
        type=click.Choice(["skip", "fail"]),
        default="skip",
        show_default=True,
        help="At a frame, packet or file that is damaged: go on without it and list it, or stop.",
    ),
    click.option("--max-failures", type=click.IntRange(min=0), help="Give up after so many."),
    click.option("--strict", is_flag=True, help="What a container cannot hold is an error."),
    click.option(
        "--max-pixels",
        type=click.IntRange(min=1),
        default=MAX_PIXELS,
        show_default=True,
        help="Refuse larger pictures by their header.",
    ),
    click.option("--copy-others", is_flag=True, help="Copy labels and other files along."),
    click.option(
        "--cache-dir",
        type=PATH,
        metavar="FOLDER",
        help="Where exported checkpoints and engines are kept; see doctor.",
    ),
)

_TELL = options_of(
    click.option(
        "--progress",
        type=click.Choice(["auto", "plain", "json", "none"]),
        default="auto",
        show_default=True,
        help="Live on a terminal, lines elsewhere.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Only what is missing, and why."),
    click.option(
        "-v",
        "--verbose",
        is_flag=True,
        help="Say where the time went, and let FFmpeg print its own messages.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Print what becomes what, how, and in how much memory; stop.",
    ),
    click.option("--report", type=PATH, metavar="FILE", help="Write what was done, as JSON."),
)


@click.command("translate")
@click.argument("inputs", nargs=-1, required=True, type=PATH, metavar="INPUT...")
@click.argument("output", type=click.Path())  # a string: a separator at its end has a meaning
@_NETWORK
@_VIDEO
@_IMAGES
@_RUN
@_TELL
def command(
    inputs: tuple[Path, ...],
    output: str,
    model: Path,
    progress: Literal["auto", "plain", "json", "none"],
    quiet: bool,
    verbose: bool,
    dry_run: bool,
    report: Path | None,
    **options: Any,
) -> None:
    """Translate a video, an image, a folder of them, several of these, f_%06d.png, or - (y4m)."""
    if options["overwrite"] and options["skip_existing"]:
        raise click.UsageError("-y overwrites what exists, -n leaves it: choose one.")
    from .. import api
    from ..job.report import check_report_path, write_report
    from ..wording import grouped
    from .progress import Reporter

    reporter = Reporter(progress, quiet=quiet)
    try:
        plan, backend = api.prepare_translation(
            inputs, output, model=model, say=reporter.say, **options
        )
        STOPS.check()
        if dry_run:
            _print_plan(plan, as_json=progress == "json")
            backend.close()
            sys.exit(3 if plan.failures else 0)
        if report:
            check_report_path(report, plan, model)
        for sentence in grouped(plan.notes):
            reporter.say(sentence)
        if options["preview"]:
            from ..job.preview import write_preview

            print_result(str(write_preview(plan, backend, options["preview"])))
            return
        with contextlib.ExitStack() as stack:
            if verbose and progress != "json":
                from ..media.ffmpeg_log import printed

                stack.enter_context(printed())
            done = _run(plan, backend, reporter)
        # From here on a stop has nothing to stop.
        if report:
            with STOPS.deferred():
                write_report(done, report)
    except ContradictionError as error:
        raise click.UsageError(f"{error}.") from error
    except CycleganBatchError as error:
        if progress != "json":
            raise
        reporter.insist(str(error))  # every line is JSON, this one too
        sys.exit(1)
    with STOPS.deferred():
        if progress == "json":
            print(json.dumps({"event": "end"} | json.loads(done.to_json())), file=sys.stderr)
        else:
            _print_outcome(done, reporter, verbose=verbose)
    sys.exit(done.exit_code)


def _run(plan: JobPlan, backend: Backend, reporter: Reporter) -> Report:
    """Run, so that a stop or an error leaves a report, too."""
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
        # Between the steps of the run, or behind the last of them: what is written stays written.
        counters.interrupted = True
        return api.report_run(plan, counters)
    finally:
        reporter.close()


def _print_plan(plan: JobPlan, *, as_json: bool) -> None:
    """Print a plan to stdout: it is what the command was asked for."""
    from ..job.plan_text import plan_description, plan_lines
    from ..wording import printable

    print_result(
        json.dumps(plan_description(plan), indent=2)
        if as_json
        else "\n".join(map(printable, plan_lines(plan)))
    )


def _print_outcome(report: Report, reporter: Reporter, *, verbose: bool) -> None:
    """Say what is missing, also to those who asked for quiet, and how it went; the last line."""
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
