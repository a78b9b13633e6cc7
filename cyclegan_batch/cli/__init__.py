"""The click face: parse, plan, run, report. No logic, and nothing heavy before a command runs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import click

from .._version import __version__
from ..errors import ContradictionError, CycleganBatchError, OutputError

if TYPE_CHECKING:
    from cyclegan_train.run import Outcome, Progress, Reading
    from cyclegan_train.settings import Settings

    from ..job.plan import JobPlan
    from ..job.report import Report
    from .progress import Reporter

_PATH = click.Path(path_type=Path)


class _Commands(click.Group):
    """Prints an error that the user can act on without a traceback, and exits 1."""

    def invoke(self, ctx: click.Context) -> Any:
        _claim_standard_streams()
        try:
            with _STOPS.heard():
                return super().invoke(ctx)
        except CycleganBatchError as error:
            from .progress import Reporter

            Reporter("plain").insist(f"Error: {error}")
            sys.exit(1)
        except KeyboardInterrupt:
            # Planning and probing write nothing: there is nothing to clean up.
            print("Interrupted: nothing was written", file=sys.stderr)
            sys.exit(130)


class _Stops:
    """Ctrl-C, SIGTERM and a closed terminal: once is a request to stop, twice ends the process.

    An exception that a signal handler raises can get lost in foreign code (a callback, an import
    hook): so the request is remembered, too, and `check` repeats it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a request wait until `requested` is looked at: for work that stops between steps."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen to requests, for one command.

        After it the handlers are again those of the program that called it; but once a stop was
        asked for, the process is about to end, and the next request ends it at once.
        """
        self.requested = False
        handlers: dict[int, Any] = {}
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # What whoever started us wants ignored (nohup, a job in the background) stays ignored.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                # Not the main thread, where a program calls the command: its handlers are its own.
                with contextlib.suppress(ValueError):
                    handlers[number] = signal.signal(number, self._stop)
        try:
            yield
        finally:
            if not self.requested:
                for number, handler in handlers.items():
                    # None is one that was not set from Python, and cannot be from here.
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a stop was asked for."""
        if self.requested:
            raise KeyboardInterrupt

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(130)
        self.requested = True
        if not self._deferred:
            raise KeyboardInterrupt


_STOPS = _Stops()


def _claim_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed.

    A file opened next would get its number, and what libraries print would end up in that file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - for good
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A name that is not text goes out as the bytes it has on the disk.
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdout else None)


def _out(text: str) -> None:
    """Print what was asked for; whoever closes the pipe has enough. Raises OutputError."""
    try:
        print(text, flush=True)
    except OSError as error:
        # What is left in the buffer would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        raise OutputError(
            f"cannot write to standard output: {error.strerror}; send it somewhere else"
        ) from error


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
    click.option(
        "-m", "--model", type=_PATH, required=True, help="Generator: an ONNX, checkpoint or run."
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
        "--batch-size", type=_Count(), default="auto", show_default=True, help="Frames per call."
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads for the network."),
    click.option(
        "--trust-engine", is_flag=True, help="Load a TensorRT engine that was not built here."
    ),
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
    click.option(
        "--deinterlace-rate",
        type=click.Choice(["frame", "field"]),
        help="Deinterlace: one frame for two fields, or a frame for each.",
    ),
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

_RUN = _options(
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
        default=2**28,
        show_default=True,
        help="Refuse larger pictures by their header.",
    ),
    click.option("--copy-others", is_flag=True, help="Copy labels and other files along."),
    click.option(
        "--cache-dir",
        type=_PATH,
        metavar="FOLDER",
        help="Where exported checkpoints and engines are kept; see doctor.",
    ),
)

_TELL = _options(
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
    from cyclegan_export.cache import open_exported

    from .. import api
    from .progress import Reporter

    reporter = Reporter(progress, quiet=quiet)
    try:
        opener = functools.partial(open_exported, say=reporter.say)
        plan = api.plan_translation(
            inputs, output, model=model, opener=opener, say=reporter.say, **options
        )
        _STOPS.check()
        if dry_run:
            _print_plan(plan, as_json=progress == "json")
            plan.backend.close()
            sys.exit(3 if plan.failures else 0)
        if report:
            _check_report(report, plan, model)
        for note in plan.notes:
            reporter.say(note)
        if options["preview"]:
            from ..job.preview import write_preview

            _out(str(write_preview(plan, options["preview"])))
            return
        with contextlib.ExitStack() as stack:
            if verbose and progress != "json":
                from ..media.messages import printed

                stack.enter_context(printed())
            done = _run(plan, reporter)
        # From here on a stop has nothing to stop.
        if report:
            with _STOPS.deferred():
                _write_report(report, done)
    except ContradictionError as error:
        raise click.UsageError(f"{error}.") from error
    except CycleganBatchError as error:
        if progress != "json":
            raise
        reporter.insist(str(error))  # every line is JSON, this one too
        sys.exit(1)
    with _STOPS.deferred():
        if progress == "json":
            print(json.dumps({"event": "end"} | json.loads(done.to_json())), file=sys.stderr)
        else:
            _print_outcome(done, reporter, verbose=verbose)
    sys.exit(done.exit_code)


def _run(plan: JobPlan, reporter: Reporter) -> Report:
    """Run, so that a stop or an error leaves a report, too."""
    from .. import api
    from ..job.pipeline import Counters

    counters = Counters()

    def watch(counters: Counters) -> None:
        _STOPS.check()
        reporter.watch(counters)

    reporter.total = plan.frames
    try:
        try:
            return api.run_plan(plan, counters=counters, watch=watch)
        except CycleganBatchError as error:
            return api.report_run(plan, counters, error=error)
    except KeyboardInterrupt:
        # Between the steps of the run, or behind the last of them: what is written stays written.
        counters.interrupted = True
        return api.report_run(plan, counters)
    finally:
        reporter.close()


def _check_report(report: Path, plan: JobPlan, model: Path) -> None:
    """Refuse a name for the report that cannot be meant, before the work. Raises OutputError."""
    from ..wording import printable

    name = printable(report)
    if report.is_dir():
        raise OutputError(f"cannot write the report {name}: it is a folder; name a file in it")
    if not report.parent.is_dir():
        raise OutputError(
            f"cannot write the report {name}: its folder does not exist; create it first"
        )
    if not os.access(report if report.exists() else report.parent, os.W_OK):
        raise OutputError(
            f"cannot write the report {name}: permission denied; choose a folder that you may "
            "write to"
        )
    used = {
        model.resolve(),
        plan.model.card.path.resolve(),
        *(each.source.resolve() for each in (*plan.entries, *plan.others)),
        *(each.output.resolve() for each in (*plan.entries, *plan.others)),
    }
    if report.resolve() in used:
        raise OutputError(
            f"cannot write the report {name}: it is a file of the job itself; choose another name"
        )


def _write_report(report: Path, done: Report) -> None:
    """Write the report under its name when it is whole. Raises OutputError."""
    from ..files import output_error, publish, temporary_path

    text = done.to_json() + "\n"
    try:
        if report.exists() and not stat.S_ISREG(report.stat().st_mode):
            report.write_text(text)  # a pipe or a device takes no other name
            return
        partial = temporary_path(report)
        try:
            partial.write_text(text)
            publish(partial, report, overwrite=True)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(report, error) from error


def _print_plan(plan: JobPlan, *, as_json: bool) -> None:
    """Print a plan to stdout: it is what the command was asked for."""
    from ..wording import printable

    _out(
        json.dumps(plan.describe(), indent=2)
        if as_json
        else "\n".join(map(printable, plan.lines()))
    )


def _print_outcome(report: Report, reporter: Reporter, *, verbose: bool) -> None:
    """Say what is missing, also to those who asked for quiet, and how it went; the last line."""
    tell = reporter.say if report.status == "whole" else reporter.insist
    if len(report.failures) > 1:
        for failure in report.failures:
            if failure.cause != report.error:
                tell(f"failed: {failure.cause}")
    if verbose:
        for name, stage in report.stages.items():
            share = stage.busy_seconds / max(report.seconds, 1e-9) / stage.workers
            reporter.say(f"  {name} ×{stage.workers}: busy {stage.busy_seconds:.2f} s, {share:.0%}")
    tell(report.summary)


class _TrainCommand(click.Command):
    """Has an option for every key of a training, found out when the command is parsed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options; the keys come before --help, which is the last."""
        own = super().get_params(ctx)
        return [*own[:-1], *_train_keys(), own[-1]]


_NO = ("no-", "no_")
"""What negates a key, in our spelling and in the reference implementation's."""


@functools.cache
def _train_keys() -> tuple[click.Option, ...]:
    from cyclegan_train.settings import keys

    options = []
    for key in keys().values():
        # The reference implementation's spelling works as well.
        names = [f"--{word}" for word in dict.fromkeys((key.name.replace("_", "-"), key.name))]
        if key.kind is bool:
            names = [f"{name}/--{no}{name[2:]}" for name, no in zip(names, _NO, strict=False)]
            if "_" not in key.name:
                names.append(f" /--{_NO[1]}{key.name}")
        default = str(key.default).lower() if key.kind is bool else str(key.default)
        options.append(
            click.Option(
                [key.name, *names],
                type=click.Choice(key.choices) if key.choices else key.kind,
                default=None,
                help=f"{key.help}  [default: {default}]",
            )
        )
    return tuple(options)


@main.command(cls=_TrainCommand)
@click.argument("places", nargs=-1, type=_PATH, metavar="[DATA] RUN")
@click.option("--data-a", type=_PATH, metavar="FOLDER", help="Pictures of A, in place of DATA.")
@click.option("--data-b", type=_PATH, metavar="FOLDER", help="Pictures of B, in place of DATA.")
@click.option(
    "--recipe", metavar="NAME|FILE", help="Keys from a TOML file; those of ours by their names."
)
@click.option(
    "--set", "pairs", multiple=True, callback=_pairs, metavar="KEY=VALUE", help="Any key."
)
@click.option("--resume", is_flag=True, help="Go on with the run in RUN, if there is one.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "plain", "json", "none"]),
    default="auto",
    show_default=True,
    help="Live on a terminal, lines elsewhere.",
)
@click.option("-q", "--quiet", is_flag=True, help="Only what goes wrong.")
def train(
    places: tuple[Path, ...],
    data_a: Path | None,
    data_b: Path | None,
    recipe: str | None,
    pairs: dict[str, str],
    resume: bool,
    progress: Literal["auto", "plain", "json", "none"],
    quiet: bool,
    **keys: Any,
) -> None:
    """Train a CycleGAN in the folder RUN, on DATA/trainA and DATA/trainB.

    A recipe comes first, then --set, then the options below, each over the one before.
    """
    if len(places) not in (1, 2):
        raise click.UsageError("give DATA and RUN, or --data-a, --data-b and RUN.")
    data, run = (None, places[0]) if len(places) == 1 else places
    from cyclegan_train import settings as known

    from .progress import Reporter

    try:
        values = {} if recipe is None else dict(known.values_from_toml(known.recipe(recipe)))
        values |= {name: known.value_from_text(name, text) for name, text in pairs.items()}
        values |= {name: value for name, value in keys.items() if value is not None}
        settings = known.settings_for(run, values, resume=resume)
    except ValueError as error:
        end = "" if str(error).endswith("?") else "."
        raise click.UsageError(f"{error}{end}") from error
    reporter = Reporter(progress, quiet=quiet)
    try:
        outcome = _train(data, data_a, data_b, run, settings, reporter)
    except CycleganBatchError as error:
        if progress != "json":
            raise
        reporter.insist(str(error))  # every line is JSON, this one too
        sys.exit(1)
    finally:
        reporter.close()
    if not outcome.finished:
        if outcome.first:
            reporter.insist(
                f"stopped in epoch {outcome.epoch} after {outcome.step} steps; the same command "
                "with --resume goes on"
            )
        sys.exit(130)
    from ..wording import printable

    if outcome.first:
        latest = printable(run / "checkpoints" / "latest")
        reporter.say(f"trained for {outcome.step} steps: {latest}")
        model = shlex.quote(printable(run))
        reporter.say(f"next: cyclegan-batch translate INPUT OUTPUT -m {model}")


def _train(
    data: Path | None,
    data_a: Path | None,
    data_b: Path | None,
    run: Path,
    settings: Settings,
    reporter: Reporter,
) -> Outcome:
    try:
        from cyclegan_train.progress import line, sentence, state
        from cyclegan_train.run import train as begin
    except ImportError as error:
        from ..errors import BackendUnavailableError

        raise BackendUnavailableError(
            f"cannot train: {error.name or error} is not installed; "
            "pip install 'cyclegan-batch[train]' brings it"
        ) from error

    def watch(progress: Progress | Reading) -> None:
        reporter.show(
            lambda columns: line(progress, columns),
            lambda: sentence(progress),
            lambda: state(progress),
        )

    # A step that is cut short could not be repeated: it is ended first.
    with _STOPS.deferred():
        return begin(
            data,
            run,
            settings,
            data_a=data_a,
            data_b=data_b,
            stop=lambda: _STOPS.requested,
            say=reporter.say,
            watch=watch,
            watch_reading=watch,
        )


class _Shape(click.ParamType[tuple[int, int, int]]):
    """``N,H,W``: a batch, a height and a width."""

    name = "N,H,W"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
            self.fail(f"{value!r} is not N,H,W: three whole numbers from 1", param, ctx)
        batch, height, width = map(int, parts)
        return batch, height, width


_EXPORT = _options(
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
        "--shape", type=_Shape(), help="The only batch, height and width; free unless given."
    ),
    click.option(
        "--model-io",
        metavar="SPEC",
        help='How a foreign ONNX is fed, e.g. "nchw rgb 0..255"; found out where possible.',
    ),
    click.option(
        "--samples",
        type=_PATH,
        metavar="FOLDER|FILE",
        help="Pictures or a video to measure on; the run's own, or computed ones.",
    ),
    click.option(
        "--calibrate",
        type=_PATH,
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

_ENGINE = _options(
    click.option(
        "--bundle",
        type=click.Choice(["jetson-orin", "jetson-thor", "generic"]),
        help="OUTPUT is a folder from which such a device makes its own engine, and proves it.",
    ),
    click.option("--min-shape", type=_Shape(), help="Engine: the smallest frames it will take."),
    click.option("--opt-shape", type=_Shape(), help="Engine: the frames it is tuned for."),
    click.option("--max-shape", type=_Shape(), help="Engine: the largest frames it will take."),
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
    click.option("--refit", is_flag=True, help="Engine: its weights can be exchanged later."),
)

_ENGINE_NAMES = (
    "min_shape",
    "opt_shape",
    "max_shape",
    "builder_level",
    "workspace",
    "hardware_compatible",
    "version_compatible",
    "refit",
)


@main.command()
@click.argument("checkpoint", type=_PATH)
@click.argument("output", type=_PATH)
@_EXPORT
@_ENGINE
def export(checkpoint: Path, output: Path, quiet: bool, **options: Any) -> None:
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


@main.command()
@click.argument("results", type=_PATH)
@click.option(
    "--truth", type=_PATH, metavar="FOLDER", help="What they should be, by the same names."
)
@click.option(
    "--source", type=_PATH, metavar="FOLDER", help="What they were made from: scored beside them."
)
@click.option("--resize", is_flag=True, help="Bring results of another size to their truth's.")
@click.option(
    "--palette",
    metavar="cityscapes|FILE",
    help="They are label maps of these colours; JSON or TOML, name = [red, green, blue].",
)
@click.option(
    "--train-truth",
    type=_PATH,
    metavar="FOLDER",
    help="Label maps of the training: scores what never sees the input.",
)
@click.option(
    "--real", type=_PATH, metavar="FOLDER", help="Any real pictures: FID and KID against them."
)
@click.option(
    "--inception", type=_PATH, metavar="WEIGHTS", help="InceptionV3's weights, for FID and KID."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Only the numbers.")
def evaluate(
    results: Path,
    truth: Path | None,
    source: Path | None,
    resize: bool,
    palette: str | None,
    train_truth: Path | None,
    real: Path | None,
    inception: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score RESULTS, a folder of pictures or one, against --truth, --real or both.

    Against a truth: PSNR, SSIM and L1, or with --palette the accuracies and the IoU of label maps.
    """
    if truth is None and real is None:
        raise click.UsageError("give --truth FOLDER, --real FOLDER, or both.")
    if truth is None and (source or palette or train_truth or resize):
        raise click.UsageError("--source, --palette, --train-truth and --resize need --truth.")
    if train_truth and not palette:
        raise click.UsageError("--train-truth holds label maps: give their --palette, too.")
    if inception and not real:
        raise click.UsageError("--inception is for FID and KID: give --real FOLDER, too.")
    try:
        from cyclegan_train import evaluation as scores
    except ImportError as error:
        from ..errors import BackendUnavailableError

        raise BackendUnavailableError(
            f"cannot evaluate: {error.name or error} is not installed; "
            "pip install 'cyclegan-batch[train]' brings it"
        ) from error
    from ..wording import printable
    from .progress import Reporter

    reporter = Reporter(quiet=quiet)

    def watch(done: int, total: int) -> None:
        told = f"{done} of {total} pictures read"
        reporter.show(lambda columns: told[:columns], lambda: told, dict)

    found: dict[str, Any] = {}
    try:
        features = scores.inception_features(inception) if real else None
        if truth and palette:
            found["labels"] = scores.evaluate_labels(
                results,
                truth,
                scores.palette_from(palette),
                source=source,
                train_truth=train_truth,
                resize=resize,
                watch=watch,
            )
        elif truth:
            found["pictures"] = scores.evaluate_pictures(
                results, truth, source=source, resize=resize, watch=watch
            )
        if real and features:
            found["sets"] = scores.evaluate_sets(results, real, features, watch=watch)
    finally:
        reporter.close()
    for each in found.values():
        for note in each.notes:
            reporter.say(note)
    if as_json:
        _out(json.dumps({kind: scores.as_json(each) for kind, each in found.items()}, indent=2))
    else:
        _out("\n\n".join("\n".join(map(printable, each.lines())) for each in found.values()))


@main.command()
@click.argument("file", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option(
    "--direction", type=click.Choice(["AtoB", "BtoA"]), help="Which generator of a run folder."
)
@click.option("--count", is_flag=True, help="Count the frames of a video by decoding it.")
@click.option("--model-io", metavar="SPEC", help="How a foreign ONNX is fed.")
def inspect(
    file: Path,
    as_json: bool,
    direction: Literal["AtoB", "BtoA"] | None,
    count: bool,
    model_io: str | None,
) -> None:
    """Print what a model, a checkpoint, a run, a media file or an image says of itself."""
    from ..inspection import inspect_file

    described = inspect_file(file, count_frames=count, model_io=model_io, direction=direction)
    _print_description(described, as_json=as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> None:
    """Print devices, runtimes, FFmpeg, the encoders that really open, and the cache."""
    from ..doctor import examine, lines

    report = examine()
    _out(json.dumps(report, indent=2) if as_json else "\n".join(lines(report)))


@main.command()
@click.argument("folder", type=_PATH, default="demo")
@click.option(
    "--training-data",
    type=click.IntRange(min=1),
    metavar="N",
    help="Draw what the demo's generator learned from into FOLDER instead, N pictures of each "
    "domain: valleys by day in trainA, others by night in trainB, the truth in testB.",
)
def demo(folder: Path, training_data: int | None) -> None:
    """Translate a clip and pictures made on the spot into FOLDER, with a sheet to look at."""
    from ..wording import printable

    if training_data is not None:
        from ..demo.landscapes import write_domains

        write_domains(folder, training_data)
        return
    from ..demo import run_demo

    run_demo(folder, say=lambda sentence: print(printable(sentence), file=sys.stderr))


def _print_description(described: Any, *, as_json: bool) -> None:
    from ..wording import printable

    if as_json:
        _out(json.dumps(described, indent=2, default=str))
        return
    lines: list[str] = []

    def show(value: Any, indent: str) -> None:
        for key, item in value.items():
            if isinstance(item, dict):
                lines.append(f"{indent}{key}:")
                show(item, indent + "  ")
            elif isinstance(item, (list, tuple)) and item and isinstance(item[0], dict):
                for number, one in enumerate(item):
                    lines.append(f"{indent}{key} {number}:")
                    show(one, indent + "  ")
            elif item not in (None, "", [], (), {}):
                lines.append(f"{indent}{key}: {item}")

    show(described, "")
    _out("\n".join(map(printable, lines)))


if __name__ == "__main__":
    main()
