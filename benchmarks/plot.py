"""Draw what peers.py has measured as an SVG, for the README.

    python benchmarks/plot.py peers.json docs/speed.svg

The bars are rates over that of a loop that people write, for a clip and for a folder of images.
"""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

WIDTH, LABELS, RIGHT = 880, 350, 70
ROW, GAP, HEAD = 26, 8, 36
OURS, THEIRS, INK, PALE = "#2f6fb0", "#a9b4bf", "#222", "#667"

TITLES = {"clip": "A clip, frames per second", "folder": "A folder of PNG, images per second"}


def svg(result: Mapping[str, Any]) -> str:
    """Return the plot of a table of peers.py: a panel for each task, a bar for each program."""
    lines: list[str] = []
    top = 14
    for task, title in TITLES.items():
        rows = [row for row in result["rows"] if row["task"] == task and "psnr_to_ours" in row]
        most = max(row["ratio"] for row in rows)
        lines.append(_text(16, top + 16, title, size=16, weight="600"))
        top += HEAD
        for row in sorted(rows, key=lambda row: row["ratio"]):
            lines += _bar(row, top, (WIDTH - LABELS - RIGHT) / most)
            top += ROW + GAP
        top += GAP
    for text in _notes(result):
        lines.append(_text(16, top + 14, text, size=12, colour=PALE))
        top += 18
    top += 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" '
        f'viewBox="0 0 {WIDTH} {top}" font-family="Helvetica, Arial, sans-serif">'
    )
    return "\n".join(
        [head, f'<rect width="{WIDTH}" height="{top}" fill="white"/>', *lines, "</svg>", ""]
    )


def _bar(row: Mapping[str, Any], top: int, scale: float) -> Iterator[str]:
    colour = OURS if row["program"].startswith("cyclegan-batch") else THEIRS
    length = row["ratio"] * scale
    middle = top + ROW / 2 + 5
    yield _text(LABELS - 10, middle, row["program"], anchor="end")
    yield (
        f'<rect x="{LABELS}" y="{top}" width="{length:.1f}" height="{ROW}" rx="2" fill="{colour}"/>'
    )
    yield _text(LABELS + length + 8, middle, f"{row['ratio']:.2f}×", weight="600")


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"Whole programs, {result['frames']} frames of {result['size']}², the generator "
        f"{result['checkpoint']}, medians of {result['rounds']} rounds in turn."
    )
    yield f"{result['threads']} threads of {result['cpu']}, {result['date']}."
    for row in result["rows"]:
        if "psnr_to_ours" not in row:
            yield f"The ceiling for a clip, {row['program']}: {row['ratio']:.1f}×."


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 14,
    weight: str = "400",
    anchor: str = "start",
    colour: str = INK,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'
    )


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    target.write_text(svg(json.loads(source.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
