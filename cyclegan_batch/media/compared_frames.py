"""Draw a frame and its translation as one picture, with a divider and labels.

- ``split``: one frame, the source left of a divider and the result right of it. In a video the
  divider moves to and fro; its place depends on the time alone.
- ``side``: the source left, the result right of it.
- ``stack``: the source above, the result below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ..frames import Geometry, Pixels, Size
from ..options import ComparisonLayout

MAKE_AGAIN = "delete it, and the same command makes it again"
"""What helps where an output is not what was written. It is up to date while its size is, so
overwriting does not make it again."""

_PERIOD = 8.0
"""Seconds in which the divider goes to and fro."""
_REACH = 0.4
"""The part of the width by which the divider moves away from the middle."""

_SMALLEST_WITH_LABELS = 112
"""Pixels of the shorter side of a frame that has labels."""
_LARGEST_LABEL = 0.45
"""The part of a frame's width that a label takes at most."""
_LONGEST_LABEL = 24
"""Characters of a label."""

_Floats = npt.NDArray[np.float32]


def label_from(name: str, otherwise: str) -> str:
    """Return ``name`` where it can be a label: short, and of letters that the font has."""
    is_plain = name.isascii() and name.isprintable() and name.strip() == name
    return name if is_plain and 0 < len(name) <= _LONGEST_LABEL else otherwise


def compared_size(layout: ComparisonLayout, size: Size) -> Size:
    """Return height and width of the picture of two frames of ``size`` (height, width).

    The sides that double stay even where they were, and become even where they were not.
    """
    height, width = size
    if layout == "side":
        return height, 2 * width + _gap(size)
    if layout == "stack":
        return 2 * height + _gap(size), width
    return size


@dataclass(frozen=True)
class _Layer:
    """Something that is drawn over a rectangle of a frame."""

    top: int
    left: int
    colour: _Floats
    """``(H, W, 3)``, 0 to 1."""
    opacity: _Floats
    """``(H, W, 1)``, 0 to 1."""

    def put(self, pixels: Pixels) -> None:
        """Draw into ``pixels``, uint8 or float16 in [0, 1]; what lies outside is left out."""
        height, width = self.opacity.shape[:2]
        left, right = max(self.left, 0), min(self.left + width, pixels.shape[1])
        if left >= right:
            return
        inside = slice(left - self.left, right - self.left)
        target = pixels[self.top : self.top + height, left:right]
        colour, opacity = self.colour[: len(target), inside], self.opacity[: len(target), inside]
        if pixels.dtype == np.uint8:
            mixed = target * (1 - opacity) + 255 * colour * opacity
            target[:] = np.floor(mixed + 0.5)
        else:
            target[:] = target * (1 - opacity) + colour * opacity


class ComparedFrames:
    """Draws pairs of frames; it has no state, so several threads may share it."""

    def __init__(self, layout: ComparisonLayout, size: Size, labels: tuple[str, str]) -> None:
        """``size``: height and width of the result, to which the source is resized.

        ``labels``: those of source and result. Frames that are too small for them have none.
        """
        self._layout, self._size = layout, size
        self.size = compared_size(layout, size)
        """Height and width of the picture."""
        self._labels = _labels(size, labels, right=layout == "split")

    def __call__(self, source: Pixels, result: Pixels, seconds: float | None = None) -> Pixels:
        """Return the picture of two frames ``(H, W, 3)`` of one pixel type, as a new array.

        ``seconds``: how long after the first pair it is shown; None leaves the divider in the
        middle.
        """
        size = self._size
        pair = [np.array(_resized(each, size)) for each in (source, result)]
        for pixels, label in zip(pair, self._labels, strict=False):
            label.put(pixels)
        height, width = size
        if self._layout == "split":
            middle = round(width * divider_at(seconds))
            pair[1][:, :middle] = pair[0][:, :middle]
            _divider(height, _line(size), left=middle - _line(size) // 2).put(pair[1])
            return pair[1]
        gap = _gap(size)
        picture = np.zeros((*self.size, 3), result.dtype)
        if self._layout == "side":
            picture[:, :width], picture[:, width + gap :] = pair
            _divider(height, gap, left=width).put(picture)
        else:
            picture[:height], picture[height + gap :] = pair
            _divider(width, gap, left=height).put(picture.transpose(1, 0, 2))
        return picture


def divider_at(seconds: float | None) -> float:
    """Return where the divider of ``split`` is, as a part of the width from the left.

    It begins in the middle and moves left first, which shows more of the result.
    """
    if seconds is None:
        return 0.5
    return 0.5 - _REACH * math.sin(2 * math.pi * seconds / _PERIOD)


def _resized(pixels: Pixels, size: Size) -> Pixels:
    height, width = pixels.shape[:2]
    return Geometry((height, width), size, size).into_network(pixels)


def _line(size: Size) -> int:
    """Return how many pixels wide the divider is that lies over a frame."""
    return max(3, round(min(size) / 180))


def _gap(size: Size) -> int:
    """Return how many pixels wide the divider between two frames is: an even number."""
    return 2 * max(1, round(min(size) / 240))


def _divider(length: int, width: int, *, left: int) -> _Layer:
    """Return a light line with dark edges, so that it shows on any ground."""
    edge = max(1, width // 4) if width > 2 else width - 1
    light = np.full(width, 1.0, np.float32)
    light[:edge] = 0.1
    if width > 2:
        light[-edge:] = 0.1
    colour = np.broadcast_to(light[None, :, None], (length, width, 3))
    return _Layer(0, left, colour, np.ones((length, width, 1), np.float32))


def _labels(size: Size, texts: tuple[str, str], *, right: bool) -> list[_Layer]:
    """Return the labels of both frames, none where there is no room for them.

    Each stands in the upper left corner; with ``right`` that of the result in the right one.
    """
    width = size[1]
    if min(size) < _SMALLEST_WITH_LABELS:
        return []
    font_size = min(64, max(12, round(min(size) / 22)))
    labels = [_label(text, font_size) for text in texts]
    if any(each.opacity.shape[1] > _LARGEST_LABEL * width for each in labels):
        return []
    margin = font_size // 2
    wide = labels[1].opacity.shape[1]
    lefts = margin, width - margin - wide if right else margin
    return [
        _Layer(margin, left, each.colour, each.opacity)
        for left, each in zip(lefts, labels, strict=True)
    ]


def _label(text: str, font_size: int) -> _Layer:
    """Return a text in white on a dark plate with round corners."""
    font = ImageFont.load_default(font_size)
    width, height = math.ceil(font.getlength(text)) + font_size, round(1.7 * font_size)
    # Four times as large, for smooth corners.
    plate = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(plate).rounded_rectangle(
        (0, 0, 4 * width - 1, 4 * height - 1), radius=1.4 * font_size, fill=160
    )
    ground = np.asarray(plate.resize((width, height), Image.Resampling.BOX), np.float32) / 255
    letters = Image.new("L", (width, height))
    ImageDraw.Draw(letters).text(
        (font_size / 2, height / 2), text, fill=255, font=font, anchor="lm"
    )
    ink = np.asarray(letters, np.float32) / 255
    opacity = np.asarray(ink + (1 - ink) * ground, np.float32)
    colour = np.divide(ink, opacity, out=np.zeros_like(ink), where=opacity > 0)
    return _Layer(0, 0, np.repeat(colour[..., None], 3, axis=2), opacity[..., None])
