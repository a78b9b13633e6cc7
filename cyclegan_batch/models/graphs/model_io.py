"""``--model-io``: the form of a foreign generator's images, as a user states it and as it is shown.

    [nchw|nhwc] [rgb|bgr] [RANGE] [mean=M] [std=S] [-> [RANGE] [mean=M] [std=S]] [out=NAME]

The words stand in any order; those behind ``->`` are about what the generator returns. RANGE is the
scale on which black and white have its two numbers. A generator that normalises further takes
``(v - mean) / std`` for a channel v on this scale, and one that returns such numbers gives them
back the same way; the scale is 0..1 unless given, as torchvision has it. M and S are one number for
all channels, or three between commas, in the order in which the generator has its channels. NAME is
an output of the file, in quotation marks where it holds a space, a comma or a quotation mark.

`parse_model_io` reads this, ``str`` of a `ModelIO` writes it, and each is the inverse of the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, cast

from ...errors import ModelError
from .contract import RANGES, Layout, Order, Values

MODEL_IO_GRAMMAR = (
    "[nchw|nhwc] [rgb|bgr] [0..255|0..1|-1..1] [mean=M|M,M,M] [std=S|S,S,S] "
    "[-> 0..255|0..1|-1..1 mean=… std=…] [out=NAME]"
)
"""The grammar of ``--model-io`` in one line."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?(?![\w.])"
_WORD = re.compile(
    rf"""[\s,]*(?:
        (?P<arrow>->)
        |(?P<key>mean|std)\s*=\s*(?P<numbers>{_NUMBER}(?:\s*,\s*{_NUMBER})*)
        |out\s*=\s*(?P<name>"(?:[^"\\]|\\.)*"|(?:(?!->)[^\s,"])+)
        |(?P<other>(?:(?!->)[^\s,])+)
    )""",
    re.VERBOSE | re.IGNORECASE,
)
"""One word of the grammar, and the spaces and commas before it."""

_BARE_NAME = re.compile(r'(?:(?!->)[^\s,"])+')
"""A name that needs no quotation marks."""

_LARGEST = 1e6
"""The largest mean and deviation, and 1 ÷ the smallest deviation: float32 can hold the rest."""


@dataclass(frozen=True)
class ModelIO:
    """The parsed ``--model-io``; what is None is read from the graph."""

    layout: Layout | None = None
    order: Order | None = None
    takes: Values | None = None
    returns: Values | None = None
    output: str | None = None
    """The name of the output to take."""

    def __str__(self) -> str:
        """Return the words of which `parse_model_io` makes the same."""
        words: list[str] = [word for word in (self.layout, self.order) if word]
        words += _values_in_words(self.takes)
        if self.returns is not None:
            words += ["->", *_values_in_words(self.returns)]
        if self.output is not None:
            bare = _BARE_NAME.fullmatch(self.output)
            words.append(f"out={self.output if bare else json.dumps(self.output)}")
        return " ".join(words)


def _values_in_words(values: Values | None) -> list[str]:
    if values is None:
        return []
    words = [values.range_name]
    for key, numbers, neutral in (("mean", values.mean, 0.0), ("std", values.std, 1.0)):
        if numbers != (neutral,):
            words.append(f"{key}=" + ",".join(repr(each).removesuffix(".0") for each in numbers))
    return words


def parse_model_io(text: str | None) -> ModelIO:
    """Return ``--model-io`` parsed. Raises ModelError with the grammar."""

    def refuse(what: str) -> NoReturn:
        raise ModelError(f"--model-io {text!r}: {what}; it is {MODEL_IO_GRAMMAR}")

    if text is None:
        return ModelIO()
    # Each word by its kind: those of what is taken, and of what is returned.
    sides: list[dict[str, str]] = [{}]
    output: str | None = None
    for kind, word in _words(text):
        said = sides[-1]
        if kind == "->":
            if len(sides) > 1:
                refuse("it has -> twice")
            sides.append({})
        elif kind == "out":
            if output is not None:
                refuse("out= is given twice")
            output = word
        elif kind == "":
            refuse(f"{word!r} is not known" + (" after ->" if len(sides) > 1 else ""))
        elif len(sides) > 1 and kind in ("layout", "order"):
            refuse(f"{word!r} is for both ends and stands before ->")
        elif kind in said:
            refuse(f"{said[kind]!r} and {word!r} exclude each other")
        else:
            said[kind] = word
    if not any(sides) and output is None and len(sides) == 1:
        refuse("it is empty")
    if len(sides) > 1 and not sides[1]:
        refuse("nothing is stated after ->")

    def values_of(said: dict[str, str]) -> Values | None:
        if not said.keys() & {"range", "mean", "std"}:
            return None
        parts = {key: _numbers(said[key]) for key in ("mean", "std") if key in said}
        for key, numbers in parts.items():
            if len(numbers) not in (1, 3):
                refuse(f"{key} has {len(numbers)} numbers where one or three are expected")
            if any(abs(number) > _LARGEST for number in numbers):
                refuse(f"{key} is {said[key]} where numbers up to {_LARGEST:.0f} are expected")
        if any(number < 1 / _LARGEST for number in parts.get("std", ())):
            refuse(f"std is {said['std']} where numbers above 0 are expected, from 0.000001 on")
        if "range" not in said and any(abs(number) > 1 for number in parts.get("mean", ())):
            refuse(
                f"mean is {said['mean']} where the scale is 0..1, as it is unless given; state the "
                "scale, e.g. 0..255"
            )
        values = Values(RANGES[said.get("range", "0..1")])
        return Values(values.range, parts.get("mean", values.mean), parts.get("std", values.std))

    first = sides[0]
    return ModelIO(
        layout=cast("Layout | None", first.get("layout")),
        order=cast("Order | None", first.get("order")),
        takes=values_of(first),
        returns=values_of(sides[1]) if len(sides) > 1 else None,
        output=output,
    )


def _words(text: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each word; the kind of one that is not known is empty."""
    for found in _WORD.finditer(text):
        if found["arrow"]:
            yield "->", "->"
        elif found["key"]:
            yield found["key"].lower(), found["numbers"]
        elif found["name"]:
            yield "out", _name(found["name"])
        else:
            word = found["other"].lower()
            kind = (
                "layout" if word in ("nchw", "nhwc")
                else "order" if word in ("rgb", "bgr")
                else "range" if word in RANGES
                else ""
            )  # fmt: skip
            yield kind, word


def _name(written: str) -> str:
    if not written.startswith('"'):
        return written
    try:
        return str(json.loads(written))
    except ValueError:
        return written.strip('"')


def _numbers(written: str) -> tuple[float, ...]:
    return tuple(float(number) for number in written.split(","))
