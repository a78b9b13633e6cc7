"""Options on the command line: how values are written, and how a table becomes click options."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from .. import option_table
from ..option_table import Option
from ..options import MODEL, FrameSize, TranslateOptions
from ..remote import as_path

PATH = click.Path(path_type=Path)


class Place(click.Path):
    """A file or a folder, or the URL of an object or a prefix of a store."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        """Return the path. Raises InputError for a URL that is not read."""
        return as_path(os.fsdecode(super().convert(value, param, ctx)))


PLACE = Place()

_Command = TypeVar("_Command", bound=Callable[..., object])


class Seconds(click.ParamType[float]):
    """Seconds, or ``[HH:]MM:SS[.fff]`` as FFmpeg users write it."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the time in seconds. Raises click.BadParameter."""
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


class Size(click.ParamType[FrameSize]):
    """``native``, the shorter side, or ``WxH``."""

    name = "native|N|WxH"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> FrameSize:
        """Return ``native``, the shorter side or (height, width). Raises click.BadParameter."""
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


class Count(click.ParamType[int | None]):
    """``auto`` (None) or a whole number from 1."""

    name = "auto|N"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Return the number, None for ``auto``. Raises click.BadParameter."""
        if value == "auto":
            return None
        text = str(value)
        if not text.isdecimal() or int(text) < 1:
            self.fail(f"{value!r} is neither auto nor a whole number from 1", param, ctx)
        return int(text)


class Shape(click.ParamType[tuple[int, int, int]]):
    """``N,H,W``: a batch, a height and a width."""

    name = "N,H,W"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int]:
        """Return (batch, height, width). Raises click.BadParameter."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
            self.fail(f"{value!r} is not N,H,W: three whole numbers from 1", param, ctx)
        batch, height, width = map(int, parts)
        return batch, height, width


class Part(click.ParamType[str]):
    """``I/N``: part I of N, counted from 1."""

    name = "I/N"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the text. Raises click.BadParameter where it is no part."""
        text = str(value)
        try:
            TranslateOptions(shard=text)
        except ValueError:
            self.fail(f"{value!r} is not I/N: a part from 1, and the number of parts", param, ctx)
        return text


_NOTATIONS: dict[str | None, click.ParamType[object]] = {
    "TIME": Seconds(),
    "native|N|WxH": Size(),
    "auto|N": Count(),
    "N,H,W": Shape(),
    "I/N": Part(),
}
"""The click types of options whose metavar names a notation of this tool's own."""


def key_values(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Return the values of a repeated ``KEY=VALUE`` option, by key. Raises click.BadParameter."""
    pairs = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE", ctx, param)
        pairs[key] = rest
    return pairs


_NO = "no-"

_COLUMN = 22
"""Columns of the flags; the help of a longer flag begins on the next line."""


class GroupedOption(click.Option):
    """An option that `GroupedCommand` shows under the heading ``group``.

    In its help, code stands between double backquotes; ``shown_default`` is a default in words.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        group: str = "Options",
        shown_default: str | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(names, **keywords)
        self.group = group
        self.shown_default = shown_default

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the flags, padded so that all lists share their columns, and the help.

        A second spelling of a flag, with ``_`` for ``-``, is left out.
        """
        record = super().get_help_record(ctx)
        if record is None:
            return None
        flags = re.sub(r", --[A-Za-z]+_\w*", "", record[0])
        return flags.ljust(_COLUMN), record[1].replace("``", "")

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """Return what click adds to the help: the default, but no range, which the help states."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        if self.shown_default is not None:
            extra["default"] = self.shown_default
        return extra


def option(*names: str, **keywords: Any) -> Callable[[_Command], _Command]:
    """Return the decorator that adds a `GroupedOption`."""
    return click.option(*names, cls=GroupedOption, **keywords)


def model_option() -> GroupedOption:
    """Return the option ``--model`` of the commands that translate."""
    return GroupedOption(
        ["-m", "--model"],
        group=MODEL,
        type=PLACE,
        required=True,
        help="The generator: an ONNX file, a TensorRT engine, a checkpoint (.pth, .ckpt, "
        ".safetensors and others) or the folder of a training run; an ONNX file or a checkpoint "
        "may be a URL.",
    )


def progress_option(group: str) -> GroupedOption:
    """Return the option ``--progress``."""
    return GroupedOption(
        ["--progress"],
        group=group,
        type=click.Choice(["auto", "plain", "json", "none"]),
        default="auto",
        shown_default="auto",
        help="How progress is shown on standard error: auto is a live line on a terminal and lines "
        "elsewhere, json is one object a line.",
    )


class GroupedCommand(click.Command):
    """A command whose ``--help`` shows its options under headings, ``--help`` under the last.

    ``table`` returns further parameters. It is called when the command is parsed, so that the
    options of ``train`` and ``export`` are imported only for these commands.
    """

    def __init__(
        self,
        *,
        table: Callable[[], Sequence[click.Parameter]] = tuple,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self._table = table

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters: the command's own, those of its table, and --help."""
        *own, to_help = super().get_params(ctx)
        return [*own, *self._table(), to_help]

    def groups(self, ctx: click.Context) -> dict[str, list[click.Option]]:
        """Return the options by heading, in the order in which they were declared."""
        groups: dict[str, list[click.Option]] = {}
        heading = "Options"
        for param in self.get_params(ctx):
            if isinstance(param, click.Option):
                heading = param.group if isinstance(param, GroupedOption) else heading
                groups.setdefault(heading, []).append(param)
        return groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of options for each heading, all with the same columns."""
        for heading, options in self.groups(ctx).items():
            with formatter.section(heading):
                records = [option.get_help_record(ctx) for option in options]
                formatter.write_dl([each for each in records if each], col_max=_COLUMN)


def table_options(table: type, *, group: str = "") -> list[click.Parameter]:
    """Return the click options of a table; ``group`` is the heading of fields that name none."""
    return [_click_option(each) for each in option_table.options_of(table, group)]


def _click_option(option: Option) -> GroupedOption:
    names = [option.name, f"-{option.short}"] if option.short else [option.name]
    shown = partial(GroupedOption, group=option.group, help=_help(option))
    if option.kind is bool and option.default:
        flags = f"{option.flag}/--{_NO}{option.flag[2:]}"
        return shown([*names, flags], default=True, shown_default=option.flag)
    if option.kind is bool:
        return shown([*names, option.flag], is_flag=True)
    names.append(option.flag)
    if option.kind is dict:
        return shown(names, metavar=option.metavar, multiple=True, callback=key_values)
    notation = _NOTATIONS.get(option.metavar)
    default = "auto" if isinstance(notation, Count) else option.default
    return shown(
        names,
        metavar=option.metavar,
        type=notation or _click_type(option),
        default=default,
        shown_default=None if default is None else str(default),
    )


def _help(option: Option) -> str:
    """Return the help, with the choices where they are too many for the notation of the value."""
    if option.choices and option.metavar:
        return f"{option.help} One of {', '.join(option.choices)}."
    return option.help


def _click_type(option: Option) -> click.ParamType[object]:
    if option.choices:
        return click.Choice(option.choices)
    if option.kind is Path:
        return PATH
    if option.kind in (int, float) and option.least is not None:
        range_of = click.IntRange if option.kind is int else click.FloatRange
        return range_of(option.least, option.most)  # type: ignore[arg-type]
    return click.types.convert_type(option.kind)
