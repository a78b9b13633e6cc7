"""``train``: an option for every key of a training; the loop itself is in `cyclegan_train`."""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..errors import CycleganBatchError
from .options import PATH, key_values
from .process import STOPS

if TYPE_CHECKING:
    from cyclegan_train.run import Outcome, Progress, Reading
    from cyclegan_train.settings import Settings

    from .progress import Reporter


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


@click.command("train", cls=_TrainCommand)
@click.argument("places", nargs=-1, type=PATH, metavar="[DATA] RUN")
@click.option("--data-a", type=PATH, metavar="FOLDER", help="Pictures of A, in place of DATA.")
@click.option("--data-b", type=PATH, metavar="FOLDER", help="Pictures of B, in place of DATA.")
@click.option(
    "--recipe", metavar="NAME|FILE", help="Keys from a TOML file; those of ours by their names."
)
@click.option(
    "--set", "pairs", multiple=True, callback=key_values, metavar="KEY=VALUE", help="Any key."
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
def command(
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
    with STOPS.deferred():
        return begin(
            data,
            run,
            settings,
            data_a=data_a,
            data_b=data_b,
            stop=lambda: STOPS.requested,
            say=reporter.say,
            watch=watch,
            watch_reading=watch,
        )
