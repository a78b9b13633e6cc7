"""What the values of options are: times, sizes, shapes, counts, pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

PATH = click.Path(path_type=Path)


class Seconds(click.ParamType[float]):
    """Seconds, or ``[HH:]MM:SS[.fff]`` as FFmpeg users write it."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
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


class Size(click.ParamType[Any]):
    """``native``, the shorter side, or ``WxH``."""

    name = "native|N|WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Literal["native"] | int | tuple[int, int]:
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


class Count(click.ParamType[Any]):
    """``auto`` (None) or a whole number from 1."""

    name = "auto|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Return the number, None for ``auto``. Raises click.BadParameter."""
        if value == "auto":
            return None
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither auto nor a whole number from 1", param, ctx)
        return int(value)


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


class Shape(click.ParamType[tuple[int, int, int]]):
    """``N,H,W``: a batch, a height and a width."""

    name = "N,H,W"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int]:
        """Return (batch, height, width). Raises click.BadParameter."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
            self.fail(f"{value!r} is not N,H,W: three whole numbers from 1", param, ctx)
        batch, height, width = map(int, parts)
        return batch, height, width


def options_of(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the decorator that applies several, in the order in which ``--help`` shows them."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate
