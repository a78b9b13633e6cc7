"""A table of options: a dataclass whose fields also hold how they are shown, written and checked.

The command line, docs/options.md and the checks of values read everything from the table. The type
of a field gives its kind and its choices, the docstring below it is its help, and its metadata,
made by `option`, hold the rest.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a table."""

    name: str
    """The name of the field, which is the keyword of the Python API too."""
    kind: type
    """bool, int, float, str, Path or dict; object where only ``metavar`` describes the value."""
    default: object
    help: str
    """One or more sentences in one line; code stands between double backquotes."""
    choices: tuple[str, ...] = ()
    """The values that a str may have; empty for any."""
    group: str = ""
    """The heading under which ``--help`` and the page show it."""
    metavar: str | None = None
    """The notation of its value, e.g. ``N`` or ``WxH``; None for choices and flags."""
    short: str | None = None
    """The letter of its short flag."""
    least: float | None = None
    """The smallest number that it may be."""
    most: float | None = None
    """The largest number that it may be."""
    applies_to: tuple[str, ...] = ()
    """The kinds of input or output that it has an effect on; empty for all."""

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        # A word of Python's own cannot be a keyword argument, so the field ends in an underscore.
        return f"--{self.name.rstrip('_').replace('_', '-')}"


def option(
    group: str,
    *,
    metavar: str | None = None,
    short: str | None = None,
    least: float | None = None,
    most: float | None = None,
    applies_to: tuple[str, ...] = (),
) -> Mapping[str, object]:
    """Return the ``metadata`` of a field that is an option; the arguments are those of `Option`."""
    return {
        "group": group,
        "metavar": metavar,
        "short": short,
        "least": least,
        "most": most,
        "applies_to": applies_to,
    }


def options_of(table: type, group: str = "") -> tuple[Option, ...]:
    """Return the options of a dataclass in order; ``group`` is that of fields which name none."""
    # Not cached itself: for mypy a plain ``type`` is hashable, but a ``type[T]`` need not be.
    return _options_of(table, group)


@functools.cache
def _options_of(table: type, group: str) -> tuple[Option, ...]:
    return tuple(_options(table, group))


def _options(table: type, group: str) -> Iterator[Option]:
    hints, docstrings = get_type_hints(table), _docstrings(table)
    for each in fields(table):
        kind, choices = _kind(hints[each.name])
        default = each.default if each.default_factory is MISSING else each.default_factory()
        yield Option(
            name=each.name,
            kind=kind,
            default=default,
            choices=choices,
            help=docstrings.get(each.name, ""),
            **{"group": group, **each.metadata},
        )


def options_given(values: object) -> list[Option]:
    """Return the options whose values differ from their defaults."""
    return [each for each in options_of(type(values)) if getattr(values, each.name) != each.default]


def check_values(values: object) -> None:
    """Raise ValueError for a field of a table whose value is not a choice or is out of range."""
    for each in options_of(type(values)):
        value = getattr(values, each.name)
        if value is None:
            continue
        if each.choices and value not in each.choices:
            raise ValueError(f"{each.name} must be one of {', '.join(each.choices)}, got {value!r}")
        if each.least is not None:
            most = math.inf if each.most is None else each.most
            number = isinstance(value, Real) and math.isfinite(value)
            if not number or not each.least <= float(value) <= most:
                upper = "" if each.most is None else f" to {each.most:g}"
                raise ValueError(
                    f"{each.name} must be a number from {each.least:g}{upper}, got {value!r}"
                )


def _kind(hint: object) -> tuple[type, tuple[str, ...]]:
    """Return the kind and the choices that a type stands for, without its None."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        hint = parts[0] if len(parts) == 1 else object
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    kind: object = get_origin(hint) or hint
    if isinstance(kind, type) and kind in (bool, int, float, str, Path, dict):
        return kind, ()
    return object, ()


def _docstrings(table: type) -> dict[str, str]:
    """Return the docstrings below the fields of a class, each in one line."""
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(table))).body
    except OSError:
        return {}  # a program that was frozen without its sources
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            texts[before.target.id] = " ".join(str(after.value.value).split())
    return texts
