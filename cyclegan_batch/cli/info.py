"""``inspect``, ``doctor`` and ``demo``: what a file, this machine and the tool itself show."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import click

from .options import PATH
from .process import print_result


@click.command()
@click.argument("file", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option(
    "--direction", type=click.Choice(["AtoB", "BtoA"]), help="Which generator of a run folder."
)
@click.option("--count", is_flag=True, help="Count the frames of a video by decoding it.")
@click.option("--model-io", metavar="SPEC", help="How a foreign ONNX is fed.")
def inspect(
    file: Path,
    as_json: bool,
    direction: Literal["AtoB", "BtoA"] | None,
    count: bool,
    model_io: str | None,
) -> None:
    """Print what a model, a checkpoint, a run, a media file or an image says of itself."""
    from ..inspection import inspect_file

    described = inspect_file(file, count_frames=count, model_io=model_io, direction=direction)
    _print_description(described, as_json=as_json)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> None:
    """Print devices, runtimes, FFmpeg, the encoders that really open, and the cache."""
    from ..doctor import examine, lines

    report = examine()
    print_result(json.dumps(report, indent=2) if as_json else "\n".join(lines(report)))


@click.command()
@click.argument("folder", type=PATH, default="demo")
@click.option(
    "--training-data",
    type=click.IntRange(min=1),
    metavar="N",
    help="Draw what the demo's generator learned from into FOLDER instead, N pictures of each "
    "domain: valleys by day in trainA, others by night in trainB, the truth in testB.",
)
def demo(folder: Path, training_data: int | None) -> None:
    """Translate a clip and pictures made on the spot into FOLDER, with a sheet to look at."""
    from ..wording import printable

    if training_data is not None:
        from ..demo.landscapes import write_domains

        write_domains(folder, training_data)
        return
    from ..demo import run_demo

    run_demo(folder, say=lambda sentence: print(printable(sentence), file=sys.stderr))


def _print_description(described: Any, *, as_json: bool) -> None:
    from ..wording import printable

    if as_json:
        print_result(json.dumps(described, indent=2, default=str))
        return
    lines: list[str] = []

    def show(value: Any, indent: str) -> None:
        for key, item in value.items():
            if isinstance(item, dict):
                lines.append(f"{indent}{key}:")
                show(item, indent + "  ")
            elif isinstance(item, (list, tuple)) and item and isinstance(item[0], dict):
                for number, one in enumerate(item):
                    lines.append(f"{indent}{key} {number}:")
                    show(one, indent + "  ")
            elif item not in (None, "", [], (), {}):
                lines.append(f"{indent}{key}: {item}")

    show(described, "")
    print_result("\n".join(map(printable, lines)))
