"""The click face: parse, plan, run, report. No logic, and nothing heavy before a command runs."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import click

from . import __version__
from .errors import CycleganBatchError

if TYPE_CHECKING:
    from .plan import JobPlan
    from .report import Report

_PATH = click.Path(path_type=Path)


class _Commands(click.Group):
    """Prints an error that the user can act on without a traceback, and exits 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CycleganBatchError as error:
            from .progress import printable

            print(f"Error: {printable(str(error))}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            # Planning and probing write nothing: there is nothing to clean up.
            print("Interrupted.", file=sys.stderr)
            sys.exit(130)


class _Seconds(click.ParamType[float]):
    """Seconds, or ``[HH:]MM:SS[.fff]`` as FFmpeg users write it."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        try:
            seconds = 0.0
            for part in str(value).split(":"):
                seconds = seconds * 60 + float(part)
        except ValueError:
            self.fail(f"{value!r} is neither seconds nor [HH:]MM:SS[.fff]", param, ctx)
        if not 0 <= seconds < float("inf"):
            self.fail(f"{value!r} is not a time", param, ctx)
        return seconds


class _Size(click.ParamType[Any]):
    """``native``, the shorter side, or ``WxH``."""

    name = "native|N|WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Literal["native"] | int | tuple[int, int]:
        text = str(value)
        if text == "native":
            return "native"
        width, by, height = text.lower().partition("x")
        try:
            sides = [int(side) for side in ((height, width) if by else (width,))]
        except ValueError:
            sides = []
        if not sides or min(sides) < 1:
            self.fail(f"{value!r} is not native, N (the shorter side) or WxH", param, ctx)
        return (sides[0], sides[1]) if by else sides[0]


class _Count(click.ParamType[Any]):
    """``auto`` (None) or a whole number from 1."""

    name = "auto|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "auto":
            return None
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither auto nor a whole number from 1", param, ctx)
        return int(value)


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE", ctx, param)
        pairs[key] = rest
    return pairs


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cyclegan-batch")
def main() -> None:
    """Push videos and images through a CycleGAN generator, as fast as the machine allows."""


def _options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


_NETWORK = _options(
    click.option("-m", "--model", type=_PATH, required=True, help="Generator (ONNX)."),
    click.option(
        "--model-io",
        metavar="SPEC",
        help='How a foreign ONNX is fed, e.g. "nchw rgb 0..255"; found out where possible.',
    ),
    click.option(
        "--backend",
        type=click.Choice(["auto", "onnxruntime", "openvino"]),
        default="auto",
        show_default=True,
        help="Runtime of the network.",
    ),
    click.option(
        "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Where."
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "fp16", "bf16", "int8"]),
        default="auto",
        show_default=True,
        help="Arithmetic; auto takes the fastest that draws the same picture.",
    ),
    click.option(
        "--batch-size", type=_Count(), default="auto", show_default=True, help="Frames per call."
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads for the network."),
    click.option(
        "--size", type=_Size(), default="native", show_default=True, help="What the network sees."
    ),
    click.option(
        "--fit",
        type=click.Choice(["pad", "stretch"]),
        help="How a frame meets a size; stretch where the model's is fixed, else pad.",
    ),
    click.option("--keep-size", is_flag=True, help="Write the network's size, not the source's."),
)

_VIDEO = _options(
    click.option(
        "-c", "--codec", default="libx264", show_default=True, help="Video encoder, FFmpeg's name."
    ),
    click.option("--crf", type=float, help="Quality; 18 for libx264, its like for others."),
    click.option("--preset", help="The encoder's preset."),
    click.option("--pix-fmt", help="Pixel format of the output; follows the source."),
    click.option(
        "--encoder-opt", multiple=True, callback=_pairs, metavar="K=V", help="Any encoder option."
    ),
    click.option(
        "--audio", default="copy", show_default=True, metavar="copy|CODEC|none", help="The sound."
    ),
    click.option("--stream", type=click.IntRange(min=0), help="Index of the video stream."),
    click.option(
        "--color", metavar="MATRIX[:RANGE]", help="Colour of an untagged source, e.g. bt601:full."
    ),
    click.option("--deinterlace", is_flag=True, help="Deinterlace (bwdif) before the network."),
    click.option("--ss", type=_Seconds(), help="Start."),
    click.option("--to", type=_Seconds(), help="End."),
    click.option("--frames", type=click.IntRange(min=1), help="At most this many frames."),
    click.option("--fps", help="Frames per second of a pattern of images, e.g. 30000/1001."),
    click.option(
        "--preview",
        type=click.IntRange(min=1),
        metavar="N",
        help="Only N frames beside their source, as one picture named OUTPUT.preview.png.",
    ),
)

_IMAGES = _options(
    click.option(
        "--format",
        type=click.Choice(["same", "png", "jpg", "webp"]),
        default="same",
        show_default=True,
        help="Format of translated images.",
    ),
    click.option("--quality", type=click.IntRange(1, 100), help="Of jpg and webp; 95."),
)

_RUN = _options(
    click.option("-y", "--overwrite", is_flag=True, help="Overwrite what exists."),
    click.option("-n", "--skip-existing", is_flag=True, help="Leave what exists, do the rest."),
    click.option(
        "--on-error",
        type=click.Choice(["fail", "skip"]),
        help="At a file or frame that cannot be read: fail for one input, skip for many.",
    ),
    click.option("--max-failures", type=click.IntRange(min=0), help="Give up after so many."),
    click.option("--strict", is_flag=True, help="What a container cannot hold is an error."),
    click.option(
        "--max-pixels",
        type=click.IntRange(min=1),
        default=2**28,
        show_default=True,
        help="Refuse larger pictures by their header.",
    ),
    click.option("--copy-others", is_flag=True, help="Copy labels and other files along."),
)

_TELL = _options(
    click.option(
        "--progress",
        type=click.Choice(["auto", "plain", "json", "none"]),
        default="auto",
        show_default=True,
        help="Live on a terminal, lines elsewhere.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Only errors."),
    click.option("-v", "--verbose", is_flag=True, help="Say where the time went."),
    click.option("--dry-run", is_flag=True, help="Print the plan and stop."),
    click.option("--report", type=_PATH, metavar="FILE", help="Write what was done, as JSON."),
)


@main.command()
@click.argument("inputs", nargs=-1, required=True, type=_PATH, metavar="INPUT...")
@click.argument("output", type=click.Path())  # a string: a separator at its end has a meaning
@_NETWORK
@_VIDEO
@_IMAGES
@_RUN
@_TELL
def translate(
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
    from . import api
    from .progress import Reporter

    reporter = Reporter(progress, quiet=quiet)
    plan = api.plan_translation(inputs, output, model=model, **options)
    if dry_run:
        _print_plan(plan)
        return
    for note in plan.notes:
        reporter.say(note)
    if options["preview"]:
        from .preview import write_preview

        print(write_preview(plan, options["preview"]))
        return
    reporter.total = plan.frames
    done = _run(plan, reporter)
    if report:
        report.write_text(done.to_json() + "\n")
    if progress == "json":
        print(json.dumps({"event": "end"} | json.loads(done.to_json())), file=sys.stderr)
    elif not quiet or done.failures:
        _print_outcome(done, reporter, verbose=verbose)
    sys.exit(done.exit_code)


def _run(plan: JobPlan, reporter: Any) -> Report:
    """Run with Ctrl-C and SIGTERM as a stop, and a second one as an end."""
    from . import api

    stops = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stops
        stops += 1
        if stops > 1:
            os._exit(130)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return api.run_plan(plan, watch=reporter.watch)
    finally:
        reporter.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_plan(plan: JobPlan) -> None:
    """Print a plan to stdout: it is what the command was asked for."""
    from .progress import printable

    for note in plan.notes:
        print(printable(note))
    memory = plan.memory
    for key, value in plan.describe().items():
        if key == "memory_bytes":
            each = f"{plan.schedule.frames_in_flight} frames in flight"
            shown = "unknown size" if memory is None else f"at most {memory / 2**20:.0f} MiB"
            print(f"memory: {shown} of pictures ({each})")
        elif key != "frames_in_flight":
            print(printable(f"{key}: {value}"))
    for unit in plan.units:
        frames = "?" if unit.frames is None else unit.frames
        print(printable(f"would translate {unit.name} ({frames} frames)"))


def _print_outcome(report: Report, reporter: Any, *, verbose: bool) -> None:
    from .progress import clock

    for failure in report.failures:
        reporter.say(f"failed: {failure.cause}")
    verb = {
        "whole": "Done",
        "partial": "Partial",
        "failed": "Failed",
        "interrupted": "Interrupted",
    }[report.status]
    told = f"{verb}: {report.frames} frames in {clock(report.seconds)}, {report.rate:.1f} frames/s"
    if report.limiting_stage:
        told += f", limited by {report.limiting_stage}"
    if report.failures:
        told += f"; {len(report.failures)} failed"
    if report.skipped:
        told += f"; {report.skipped} existed already"
    if len(report.outputs) == 1:
        told += f"; {report.outputs[0]}"
    elif report.outputs:
        told += f"; {len(report.outputs)} files"
    reporter.say(told)
    if verbose:
        for name, stage in report.stages.items():
            share = stage.busy_seconds / max(report.seconds, 1e-9) / stage.workers
            reporter.say(f"  {name} ×{stage.workers}: busy {stage.busy_seconds:.2f} s, {share:.0%}")


@main.command()
@click.argument("file", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--count", is_flag=True, help="Count the frames of a video by decoding it.")
@click.option("--model-io", metavar="SPEC", help="How a foreign ONNX is fed.")
def inspect(file: Path, as_json: bool, count: bool, model_io: str | None) -> None:
    """Print what a model, a media file or an image says of itself."""
    from .inspection import inspect_file

    described = inspect_file(file, count_frames=count, model_io=model_io)
    _print_description(described, as_json=as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> None:
    """Print devices, runtimes, FFmpeg, the encoders that really open, and the cache."""
    from .doctor import examine, lines

    report = examine()
    print(json.dumps(report, indent=2) if as_json else "\n".join(lines(report)))


@main.command()
@click.argument("folder", type=_PATH, default="demo")
def demo(folder: Path) -> None:
    """Translate a clip and pictures made on the spot into FOLDER, with a sheet to look at."""
    from .demo import run_demo
    from .progress import printable

    run_demo(folder, say=lambda sentence: print(printable(sentence), file=sys.stderr))


def _print_description(described: Any, *, as_json: bool) -> None:
    from .progress import printable

    if as_json:
        print(json.dumps(described, indent=2, default=str))
        return

    def show(value: Any, indent: str) -> None:
        for key, item in value.items():
            if isinstance(item, dict):
                print(printable(f"{indent}{key}:"))
                show(item, indent + "  ")
            elif isinstance(item, (list, tuple)) and item and isinstance(item[0], dict):
                for number, one in enumerate(item):
                    print(printable(f"{indent}{key} {number}:"))
                    show(one, indent + "  ")
            elif item not in (None, "", [], (), {}):
                print(printable(f"{indent}{key}: {item}"))

    show(described, "")


if __name__ == "__main__":
    main()
