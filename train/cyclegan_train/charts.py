"""Sheets of samples and charts of curves, drawn as PNG by Pillow."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cyclegan_batch.frames import Pixels

_LARGEST = 256
"""Pixels of the longer side of an image in a sheet."""
_GAP = 4
_HEAD = 18
"""Pixels of a line of text: the title, the names of the columns, the caption of a row."""

_PANELS = (
    ("adversarial losses by step", ("G_A", "G_B", "D_A", "D_B")),
    ("cycle and identity losses by step", ("cycle_A", "cycle_B", "idt_A", "idt_B")),
)
_CONSISTENCY = (
    "consistency losses by step",
    ("geometry_A", "geometry_B", "temporal_A", "temporal_B"),
)
"""The panel of a run that has such losses."""
_COLOURS = {
    "G_A": (214, 39, 40), "G_B": (255, 127, 14), "D_A": (31, 119, 180), "D_B": (23, 190, 207),
    "cycle_A": (44, 160, 44), "cycle_B": (148, 103, 189), "idt_A": (140, 86, 75),
    "idt_B": (127, 127, 127), "geometry_A": (44, 160, 44), "geometry_B": (148, 103, 189),
    "temporal_A": (31, 119, 180), "temporal_B": (255, 127, 14),
}  # fmt: skip
_GREY = (96, 96, 96)
_MARK_ROWS = 3
"""The rows in which the words of marks stand, so that those of close ones do not overlap; what
finds no room in any of them is left out."""
_POINTS = 300
"""Points of a curve, at most: in a longer log each point is the mean of several lines."""
_OVER = 2
"""Charts are drawn larger by this factor and scaled down, since Pillow does not antialias lines."""

Panels: TypeAlias = Sequence[tuple[str, Sequence[str]]]
"""The titles of the panels of a chart, and the names of their curves."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: a line across a panel, with a few words at its top."""

    step: float
    words: str


def sheet_png(
    rows: Sequence[Sequence[tuple[str, Pixels]]], title: str = "", captions: Sequence[str] = ()
) -> bytes:
    """Return rows of named images, uint8 ``(H, W, 1 or 3)``, as one PNG.

    The names stand above a row only where they differ from those of the row before. ``title``
    stands above all rows, and the captions, where there are any, one above each row.
    """
    bands = [_line(title)] if title else []
    before: list[str] = []
    for number, row in enumerate(rows):
        names = [name for name, _ in row]
        tiles = [_tile(pixels) for _, pixels in row]
        height = max(tile.height for tile in tiles)
        head = 0 if names == before else _HEAD
        under = _HEAD if captions else 0
        width = sum(tile.width + _GAP for tile in tiles) + _GAP
        band = Image.new("RGB", (width, head + under + height + _GAP), "white")
        draw, left = ImageDraw.Draw(band), _GAP
        for name, tile in zip(names, tiles, strict=True):
            if head:
                draw.text((left, 3), name, fill="black", font=_font(11))
            band.paste(tile, (left, head + under))
            left += tile.width + _GAP
        if captions:
            draw.text((_GAP, head + 3), captions[number], fill=_GREY, font=_font(11))
        bands.append(band)
        before = names
    sheet = Image.new("RGB", (max(b.width for b in bands), sum(b.height for b in bands)), "white")
    top = 0
    for band in bands:
        sheet.paste(band, (0, top))
        top += band.height
    return _png(sheet)


def losses_png(
    steps: Sequence[int], losses: Mapping[str, Sequence[float]], marks: Sequence[Mark] = ()
) -> bytes:
    """Return the curves of the losses against the steps, in two or three panels, as one PNG."""
    more = (_CONSISTENCY,) if any(name in losses for name in _CONSISTENCY[1]) else ()
    return curves_png(steps, losses, _PANELS + more, marks)


def curves_png(
    steps: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    panels: Panels,
    marks: Sequence[Mark] = (),
    rings: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> bytes:
    """Return ``curves`` against the steps as one PNG, in ``panels`` of a title and names.

    Values that are not finite are left out. A curve is interrupted behind step 0: the steps up to
    there are before the first epoch.
    ``rings`` are points of curves, by their names, that are encircled.
    """
    width, height = 520, 360
    span = min([0, *steps]), max(steps, default=1) or 1
    chart = Image.new("RGB", (len(panels) * width * _OVER, height * _OVER), "white")
    for number, (title, names) in enumerate(panels):
        points = {name: _thinned(steps, curves[name]) for name in names if name in curves}
        _panel(chart, (number * width, 0, width, height), title, points, span, marks, rings)
    return _png(chart.resize((chart.width // _OVER, chart.height // _OVER), Image.Resampling.BOX))


def _panel(
    chart: Image.Image,
    place: tuple[int, int, int, int],
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    span: tuple[float, float],
    marks: Sequence[Mark],
    rings: Mapping[str, tuple[float, float]],
) -> None:
    draw = ImageDraw.Draw(chart)
    x, y, width, height = (side * _OVER for side in place)
    left, right, top, bottom = x + 90, x + width - 24, y + 88, y + height - 56
    small, large = _font(11 * _OVER), _font(13 * _OVER)
    points = [point for curve in curves.values() for point in curve]
    first, last = span
    # The axis omits the largest 0.5 %: high losses of the first steps would flatten the rest.
    values = sorted(value for _, value in points)
    most = values[min(len(values) - 1, int(len(values) * 0.995))] * 1.1 if values else 1.0
    least = min(0.0, values[0]) if values else 0.0
    most = most if most > least else least + 1.0

    def at(step: float, value: float) -> tuple[float, float]:
        share = min(1.0, (value - least) / (most - least))
        across = left + (right - left) * (step - first) / (last - first)
        return across, bottom - (bottom - top) * share

    draw.text((left, y + 14), title, fill="black", font=large)
    for value in _ticks(least, most):
        _, level = at(0, value)
        draw.line([(left, level), (right, level)], fill=(228, 228, 228), width=1)
        draw.text((left - 10, level), f"{value:g}", fill="black", font=small, anchor="rm")
    for step in _ticks(first, last):
        across, _ = at(step, 0)
        draw.line([(across, bottom), (across, bottom + 8)], fill="black", width=_OVER)
        draw.text((across, bottom + 12), _short(step), fill="black", font=small, anchor="ma")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill="black", width=_OVER)
    for mark in marks:
        across, _ = at(mark.step, 0)
        for level in range(top, bottom, 6 * _OVER):
            draw.line([(across, level), (across, level + 3 * _OVER)], fill=_GREY, width=_OVER)
    across = left
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS.get(name) or list(_COLOURS.values())[number % len(_COLOURS)]
        draw.line([(across, y + 66), (across + 36, y + 66)], fill=colour, width=3 * _OVER)
        draw.text((across + 44, y + 66), name, fill="black", font=small, anchor="lm")
        across += 64 + int(draw.textlength(name, font=small))
        before = [at(*point) for point in curve if point[0] <= 0]
        for line in (before, [at(*point) for point in curve if point[0] > 0]):
            if len(line) == 1:
                ((cx, cy),) = line
                draw.ellipse([cx - 5, cy - 5, cx + 5, cy + 5], fill=colour)
            else:
                draw.line(line, fill=colour, width=_OVER + 1)
        if name in rings:
            cx, cy = at(*rings[name])
            draw.ellipse([cx - 9, cy - 9, cx + 9, cy + 9], outline=colour, width=_OVER + 1)
    ends = [left] * _MARK_ROWS
    for mark in sorted(marks, key=lambda mark: mark.step):
        across, _ = at(mark.step, 0)
        length = int(draw.textlength(mark.words, font=small))
        begin = int(across) + 6 if across + 6 + length <= right else int(across) - 6 - length
        row = next((row for row, end in enumerate(ends) if end <= begin), None)
        if row is not None:
            level = top + 4 + 13 * _OVER * row
            draw.text(
                (begin, level),
                mark.words,
                fill=_GREY,
                font=small,
                stroke_width=2 * _OVER,
                stroke_fill="white",
            )
            ends[row] = begin + length + 12


def _line(text: str) -> Image.Image:
    """Return a line of text as an image."""
    font = _font(11)
    line = Image.new("RGB", (int(font.getlength(text)) + 2 * _GAP, _HEAD), "white")
    ImageDraw.Draw(line).text((_GAP, 3), text, fill="black", font=font)
    return line


def _thinned(steps: Sequence[int], values: Sequence[float]) -> list[tuple[float, float]]:
    points = [(s, v) for s, v in zip(steps, values, strict=True) if np.isfinite(v)]
    group = -(-len(points) // _POINTS) or 1
    parts = [points[start : start + group] for start in range(0, len(points), group)]
    return [(part[-1][0], sum(v for _, v in part) / len(part)) for part in parts]


def _ticks(least: float, most: float) -> list[float]:
    """Return four to ten round numbers from ``least`` to ``most``."""
    rough = (most - least) / 4
    power = 10 ** np.floor(np.log10(rough))
    step = next(power * k for k in (5, 2, 1) if power * k <= rough)
    return [float(step * k) for k in range(int(np.ceil(least / step)), int(most / step) + 1)]


def _short(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"


def _tile(pixels: Pixels) -> Image.Image:
    three = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels
    tile = Image.fromarray(np.ascontiguousarray(three))
    longer = max(tile.size)
    if longer > _LARGEST:
        size = [max(1, side * _LARGEST // longer) for side in tile.size]
        tile = tile.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    elif longer <= _LARGEST // 2:
        # Enlarge small images by whole pixels, so that the network's own pixels stay visible.
        times = _LARGEST // 2 // longer
        tile = tile.resize((tile.width * times, tile.height * times), Image.Resampling.NEAREST)
    return tile


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
