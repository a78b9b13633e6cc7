"""index.html in the folder of a run: its curves, its scores and its sheets on one page.

A static page without a script: it names the images beside it by relative paths, so a copied folder
shows the same.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from cyclegan_batch.media.formats import natural_key
from cyclegan_batch.models.checkpoints import run_folder as names
from cyclegan_batch.wording import printable

from .validation import EMA, NAMES, words_of

_STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:80em;padding:0 1em;color:#222}"
    "img,video{max-width:100%;border:1px solid #ddd}table{border-collapse:collapse}"
    "th,td{padding:.15em .8em;text-align:right;border-bottom:1px solid #ddd}"
    ".better{font-weight:bold}h2{margin-top:2em}"
)


Event: TypeAlias = dict[str, Any]
"""A line of a run's log."""


def index_page(run: Path, events: Sequence[Event], rows: Sequence[Path]) -> bytes:
    """Return the page of a run, UTF-8.

    ``events`` are those of the log, and ``rows`` the images that the rows of a sheet show.
    """
    validations = [event for event in events if event["event"] == "validation"]
    title = html.escape(printable(Path(run.name)))
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{title}</h1>",
        *(_image(name) for name in (names.CURVES, names.VALIDATION) if (run / name).exists()),
    ]
    if validations:
        parts += ["<h2>Scores by validation</h2>", _table(validations)]
    sheets, videos = (
        {path.stem: path.name for path in (run / names.SAMPLES).glob(f"*{ending}")}
        for ending in (".png", names.VIDEO_ENDING)
    )
    if sheets or videos:
        parts.append("<h2>Samples</h2>")
    if sheets:
        listed = "".join(f"<li>{html.escape(printable(path))}</li>" for path in rows)
        parts.append(f"<p>The rows of a sheet, from above:</p><ol>{listed}</ol>")
    for stem in sorted({*sheets, *videos}, key=lambda stem: natural_key(Path(stem)), reverse=True):
        parts.append(f'<h3 id="{html.escape(stem)}">{html.escape(stem)}</h3>')
        if stem in sheets:
            parts.append(_image(f"{names.SAMPLES}/{sheets[stem]}"))
        if stem in videos:
            parts.append(_video(f"{names.SAMPLES}/{videos[stem]}"))
    return ("\n".join(parts) + "\n</body></html>\n").encode()


def _image(place: str) -> str:
    name = html.escape(quote(place))
    return (
        f'<p><a href="{name}"><img loading="lazy" src="{name}" alt="{html.escape(place)}"></a></p>'
    )


def _video(place: str) -> str:
    name = html.escape(quote(place))
    return f'<p><video controls loop preload="metadata" src="{name}"></video></p>'


def _table(validations: Sequence[Event]) -> str:
    """Return the scores that decide, an epoch a row, the last one first; better ones are bold."""
    generators = list(validations[-1]["scores"])
    kinds = {each: validations[-1]["by"][each.removesuffix(EMA)] for each in generators}
    heads = "".join(
        f"<th>{html.escape(words_of(each))}<br>{html.escape(NAMES[kinds[each]])}</th>"
        for each in generators
    )
    rows = []
    for event in reversed(validations):
        cells = []
        for each in generators:
            score = event["scores"].get(each, {}).get(kinds[each])
            mark = ' class="better"' if each in event["better"] else ""
            cells.append(f"<td{mark}>{'' if score is None else format(score, '.4g')}</td>")
        name = names.epoch_name(event["epoch"])
        rows.append(
            f'<tr><td><a href="#{name}">{event["epoch"]}</a></td><td>{event["step"]}</td>'
            f"{''.join(cells)}</tr>"
        )
    return (
        "<p>Bold: better than in all epochs before.</p>"
        f"<table><tr><th>epoch</th><th>step</th>{heads}</tr>\n{chr(10).join(rows)}\n</table>"
    )
