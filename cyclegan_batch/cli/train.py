"""``train``: an option for every key of a training; the loop itself is in `cyclegan_train`."""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ..errors import CycleganBatchError, missing_extra
from .options import PATH, GroupedCommand, GroupedOption, key_values, option, progress_option
from .process import STOPS

if TYPE_CHECKING:
    from cyclegan_train.progress import Progress, Reading
    from cyclegan_train.run import Outcome
    from cyclegan_train.settings import Settings

    from .progress import Reporter


_NO = ("no-", "no_")
"""The prefixes that negate a key, in the spelling of this tool and of the reference
implementation."""

_GROUP = "Data and command"

_METAVARS: dict[type, str] = {int: "N", float: "X", str: "NAME"}


@functools.cache
def _table() -> tuple[click.Option, ...]:
    """Return the option of every key of a training."""
    from cyclegan_train.settings import keys

    options = [progress_option(_GROUP)]
    for key in keys().values():
        # The reference implementation's spelling works as well.
        names = [f"--{word}" for word in dict.fromkeys((key.name.replace("_", "-"), key.name))]
        if key.kind is bool:
            names = [f"{name}/--{no}{name[2:]}" for name, no in zip(names, _NO, strict=False)]
            if "_" not in key.name:
                names.append(f" /--{_NO[1]}{key.name}")
        default = str(key.default).lower() if key.kind is bool else str(key.default)
        options.append(
            GroupedOption(
                [key.name, *names],
                group=key.group,
                type=click.Choice(key.choices) if key.choices else key.kind,
                metavar=key.metavar or (None if key.choices else _METAVARS.get(key.kind)),
                default=None,
                shown_default=default or None,
                help=key.help,
            )
        )
    return tuple(options)


@click.command(
    "train",
    cls=GroupedCommand,
    table=_table,
    short_help="Train a CycleGAN on two folders of unpaired images.",
)
@click.argument("places", nargs=-1, type=PATH, metavar="[DATA] RUN")
@option(
    "--data-a",
    group=_GROUP,
    type=PATH,
    metavar="FOLDER",
    help="Images of domain A, in place of DATA/trainA.",
)
@option(
    "--data-b",
    group=_GROUP,
    type=PATH,
    metavar="FOLDER",
    help="Images of domain B, in place of DATA/trainB.",
)
@option(
    "--test-a",
    group=_GROUP,
    type=PATH,
    metavar="FOLDER",
    help="Images of domain A for the sheets of samples, in place of DATA/testA.",
)
@option(
    "--test-b",
    group=_GROUP,
    type=PATH,
    metavar="FOLDER",
    help="Images of domain B for the sheets of samples, in place of DATA/testB.",
)
@option(
    "--recipe",
    group=_GROUP,
    metavar="NAME|FILE",
    help="Read keys from a TOML file, or from the recipe of this name in the package.",
)
@option(
    "--set",
    "pairs",
    group=_GROUP,
    multiple=True,
    callback=key_values,
    metavar="KEY=VALUE",
    help="Set any of the keys below; may be repeated.",
)
@option("--resume", group=_GROUP, is_flag=True, help="Go on with the run in RUN, if there is one.")
@option("-q", "--quiet", group=_GROUP, is_flag=True, help="Print only what goes wrong.")
def command(
    places: tuple[Path, ...],
    data_a: Path | None,
    data_b: Path | None,
    test_a: Path | None,
    test_b: Path | None,
    recipe: str | None,
    pairs: dict[str, str],
    resume: bool,
    progress: Literal["auto", "plain", "json", "none"],
    quiet: bool,
    **keys: object,
) -> None:
    """Train a CycleGAN on the images in DATA/trainA and DATA/trainB, in the folder RUN.

    An option below for a single key overrides --set, and --set overrides the recipe. The keys of
    the networks are those of --init-from where it is given. Options are also accepted with _ for -,
    as the reference implementation spells them.
    """
    if len(places) not in (1, 2):
        raise click.UsageError("give DATA and RUN, or --data-a, --data-b and RUN.")
    data, run = (None, places[0]) if len(places) == 1 else places
    from cyclegan_train import settings as keys_of_training

    from .progress import Reporter

    try:
        of_recipe: dict[str, object] = {}
        if recipe is not None:
            of_recipe |= keys_of_training.values_from_toml(keys_of_training.recipe(recipe))
        values: dict[str, object] = {
            name: keys_of_training.value_from_text(name, text) for name, text in pairs.items()
        }
        values |= {name: value for name, value in keys.items() if value is not None}
        settings = keys_of_training.settings_for(run, values, resume=resume, recipe=of_recipe)
    except ImportError as error:  # torch, which reads what the run begins from
        raise missing_extra("train", error, doing="train") from error
    except ValueError as error:
        end = "" if str(error).endswith("?") else "."
        raise click.UsageError(f"{error}{end}") from error
    reporter = Reporter(progress, quiet=quiet)
    try:
        outcome = _train((data, data_a, data_b, test_a, test_b), run, settings, reporter)
    except CycleganBatchError as error:
        if progress != "json":
            raise
        reporter.insist(str(error))  # with --progress json every line is JSON
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
    from ..models.checkpoints.run_folder import INDEX
    from ..wording import counted, printable

    if outcome.first:
        latest = printable(run / "checkpoints" / "latest")
        reporter.say(f"trained for {counted(outcome.step, 'step')}: {latest}")
        page = run / INDEX
        if page.exists():  # not of a run without epochs
            reporter.say(f"sheets and curves: {printable(page)}")
        model = shlex.quote(printable(run))
        reporter.say(f"next: cyclegan-batch translate INPUT OUTPUT -m {model}")


def _train(
    folders: tuple[Path | None, ...],
    run: Path,
    settings: Settings,
    reporter: Reporter,
) -> Outcome:
    try:
        from cyclegan_train.progress import line, sentence, state
        from cyclegan_train.run import train
    except ImportError as error:
        raise missing_extra("train", error, doing="train") from error

    def watch(progress: Progress | Reading) -> None:
        reporter.show(
            lambda columns: line(progress, columns),
            lambda: sentence(progress),
            lambda: state(progress),
        )

    data, data_a, data_b, test_a, test_b = folders
    # A signal does not interrupt a step, which could not be repeated; the loop stops after it.
    with STOPS.deferred():
        return train(
            data,
            run,
            settings,
            data_a=data_a,
            data_b=data_b,
            test_a=test_a,
            test_b=test_b,
            stop=lambda: STOPS.requested,
            say=reporter.say,
            watch=watch,
            watch_reading=watch,
        )
