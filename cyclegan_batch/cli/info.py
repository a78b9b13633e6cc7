"""``inspect``, ``doctor`` and ``demo``: describe a file, describe this machine, show the tool."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import click

from ..options import Direction, FamilyName
from .options import PATH, PLACE, GroupedCommand, option
from .process import print_result


@click.command(
    cls=GroupedCommand, short_help="Describe a model, a run folder, a video, an image or a tar."
)
@click.argument("file", type=PLACE)
@option("--json", "as_json", is_flag=True, help="Print JSON.")
@option(
    "--direction",
    type=click.Choice(get_args(Direction)),
    help="Which of the two generators in a run folder or in one file to describe; AtoB unless "
    "given, where a folder holds both.",
)
@option(
    "--weights",
    metavar="PREFIX",
    help="Which of several generators in one checkpoint to describe: the beginning of the names of "
    "its weights, such as ``netG_A``.",
)
@option(
    "--family",
    type=click.Choice(get_args(FamilyName)),
    metavar="FAMILY",
    help="Which network the weights of a checkpoint are for, where the names and shapes of two "
    f"fit. One of {', '.join(get_args(FamilyName))}.",
)
@option("--count", is_flag=True, help="Count the frames of a video by decoding them all.")
@option(
    "--model-io",
    metavar="SPEC",
    help='Images of a foreign ONNX, e.g. ``"nchw rgb 0..255"``, as for translate.',
)
def inspect(
    file: Path,
    as_json: bool,
    direction: Direction | None,
    weights: str | None,
    family: FamilyName | None,
    count: bool,
    model_io: str | None,
) -> None:
    """Describe FILE: a model, a checkpoint, a run folder, a media file, an image or a tar."""
    from ..inspection import inspect_file
    from ..models.checkpoints.files import Selection

    selection = Selection(direction, weights, family)
    description = inspect_file(file, count_frames=count, model_io=model_io, selection=selection)
    _print_description(description, as_json=as_json)


@click.command(cls=GroupedCommand, short_help="Describe this machine: devices, runtimes, encoders.")
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Describe this machine: devices, runtimes, FFmpeg, encoders that open, the cache folder."""
    from ..doctor import examine, lines

    report = examine()
    print_result(json.dumps(report, indent=2) if as_json else "\n".join(lines(report)))


@click.command(
    cls=GroupedCommand, short_help="Draw a clip and images, and translate them from day to night."
)
@click.argument("folder", type=PATH, default="demo")
@option(
    "--training-data",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write the images that the demo's generator was trained on instead: N valleys by day in "
    "trainA, N others by night in trainB, and test valleys by day and by night in testA and testB.",
)
def demo(folder: Path, training_data: int | None) -> None:
    """Draw a clip and images by day, and translate them into night.

    FOLDER receives the drawings, their translations and a contact sheet of both.
    """
    from ..wording import counted, printable

    if training_data is not None:
        from ..demo.landscapes import write_domains

        write_domains(folder, training_data)
        print(
            f"{printable(folder)}: {counted(training_data, 'valley')} by day in trainA and as many "
            "others by night in trainB; further ones by day in testA, the same by night in testB",
            file=sys.stderr,
        )
        run = shlex.join(["cyclegan-batch", "train", printable(folder), "run", "--recipe", "demo"])
        print(f"next: {run}", file=sys.stderr)
        return
    from ..demo import run_demo

    run_demo(folder, say=lambda sentence: print(printable(sentence), file=sys.stderr))


def _print_description(described: Mapping[str, object], *, as_json: bool) -> None:
    from ..wording import printable

    if as_json:
        print_result(json.dumps(described, indent=2, default=str))
        return
    lines: list[str] = []

    def show(value: Mapping[str, object], indent: str) -> None:
        for key, item in value.items():
            if isinstance(item, dict) and item:
                lines.append(f"{indent}{key}:")
                show(item, indent + "  ")
            elif isinstance(item, (list, tuple)) and item and isinstance(item[0], dict):
                for number, one in enumerate(item):
                    lines.append(f"{indent}{key} {number}:")
                    show(one, indent + "  ")
            elif isinstance(item, list) and item and all(isinstance(each, str) for each in item):
                lines.append(f"{indent}{key}:")
                lines.extend(f"{indent}  {each}" for each in item)
            elif item not in (None, "", [], (), {}):
                lines.append(f"{indent}{key}: {item}")

    show(described, "")
    print_result("\n".join(map(printable, lines)))
