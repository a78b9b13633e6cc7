"""``evaluate``: the scores of `cyclegan_train.evaluation`, and the flicker of videos, printed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PATH, PLACE, GroupedCommand, option
from .process import print_result

if TYPE_CHECKING:
    from .progress import Reporter

_IMAGES, _VIDEO = "Images", "Video"


@click.command(
    "evaluate",
    cls=GroupedCommand,
    short_help="Score translated images, or measure the flicker of a translated video.",
)
@click.argument("results", type=PLACE)
@option(
    "--source",
    type=PLACE,
    metavar="FOLDER|VIDEO",
    help="The images that the results were made from, which are scored for comparison; or the "
    "video that RESULTS was made from.",
)
@option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
@option("-q", "--quiet", is_flag=True, help="Print only the scores.")
@option(
    "--truth",
    group=_IMAGES,
    type=PATH,
    metavar="FOLDER",
    help="The expected images, under the same names as the results.",
)
@option("--resize", group=_IMAGES, is_flag=True, help="Resize results to the size of their truth.")
@option(
    "--palette",
    group=_IMAGES,
    metavar="cityscapes|FILE",
    help="Score label maps of these colours: Cityscapes', or those of a JSON or TOML file with "
    "``name = [red, green, blue]``.",
)
@option(
    "--train-truth",
    group=_IMAGES,
    type=PATH,
    metavar="FOLDER",
    help="Label maps of the training set; guesses made from them, without the input, are scored "
    "for comparison.",
)
@option(
    "--real",
    group=_IMAGES,
    type=PATH,
    metavar="FOLDER",
    help="Real images of the target domain, unpaired, to measure FID and KID against.",
)
@option(
    "--inception",
    group=_IMAGES,
    type=PATH,
    metavar="WEIGHTS",
    help="The weights of InceptionV3 for FID and KID.",
)
@option(
    "--per-frame",
    group=_VIDEO,
    type=PLACE,
    metavar="VIDEO",
    help="The same translation without --temporal: how much of its flicker is left, what that has "
    "cost, and what a blur of the same cost would leave.",
)
@option(
    "--frames",
    group=_VIDEO,
    type=click.IntRange(min=1),
    metavar="N",
    help="Measure the first N frames only.",
)
def command(
    results: Path,
    truth: Path | None,
    source: Path | None,
    resize: bool,
    palette: str | None,
    train_truth: Path | None,
    real: Path | None,
    inception: Path | None,
    per_frame: Path | None,
    frames: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score RESULTS, an image or a folder of images, or measure the flicker of RESULTS, a video.

    Images are scored against --truth, --real or both. Against a truth: PSNR, SSIM and L1, or with
    --palette the accuracies and the IoU of label maps. Against real images: FID and KID.

    A video is compared with --source, the video that it was made from: how much it flickers along
    the motion of that one, how much its mean colour pumps, and how sharp it is.
    """
    from ..flicker import is_video

    of_images = {
        "--truth": truth,
        "--real": real,
        "--palette": palette,
        "--train-truth": train_truth,
        "--inception": inception,
        "--resize": resize,
    }
    given = [flag for flag, value in of_images.items() if value]
    if is_video(results, by_name=bool(given)):
        if given:
            raise click.UsageError(
                f"RESULTS is a video, and {given[0]} is for images: give --source VIDEO alone."
            )
        if source is None:
            raise click.UsageError("give --source VIDEO, the video that RESULTS was made from.")
        _measure(results, source, per_frame, frames, as_json=as_json, quiet=quiet)
        return
    if per_frame or frames:
        raise click.UsageError("--per-frame and --frames are for a video, and RESULTS is none.")
    if truth is None and real is None:
        if source and is_video(source):
            raise click.UsageError("--source is a video, and RESULTS is none: give both alike.")
        raise click.UsageError(
            "give --truth FOLDER, --real FOLDER, or both; for a video, --source VIDEO."
        )
    if truth is None and (source or palette or train_truth or resize):
        raise click.UsageError("--source, --palette, --train-truth and --resize need --truth.")
    if train_truth and not palette:
        raise click.UsageError("--train-truth holds label maps: give their --palette, too.")
    if inception and not real:
        raise click.UsageError("--inception is for FID and KID: give --real FOLDER, too.")
    try:
        from cyclegan_train import evaluation as scores
    except ImportError as error:
        from ..errors import missing_extra

        raise missing_extra("train", error, doing="evaluate") from error
    from .progress import Reporter

    reporter = Reporter(quiet=quiet)

    def watch(done: int, total: int) -> None:
        sentence = f"{done} of {total} images read"
        reporter.show(lambda columns: sentence[:columns], lambda: sentence, dict)

    try:
        evaluations = scores.evaluate(
            results,
            truth=truth,
            source=source,
            palette=palette,
            train_truth=train_truth,
            resize=resize,
            real=real,
            inception=inception,
            watch=watch,
        )
    finally:
        reporter.close()
    _print(
        {kind: scores.as_json(each) for kind, each in evaluations.items()},
        [each.lines() for each in evaluations.values()],
        [note for each in evaluations.values() for note in each.notes],
        reporter,
        as_json=as_json,
    )


def _measure(
    output: Path,
    source: Path,
    per_frame: Path | None,
    frames: int | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print how much a video flickers."""
    from .. import flicker
    from .progress import Reporter

    reporter = Reporter(quiet=quiet)
    shown = 0.0

    def watch(what: str, done: int, total: int | None) -> None:
        nonlocal shown
        if (now := time.monotonic()) < shown + 0.1:
            return
        shown = now
        sentence = f"{done} of {total} frames {what}" if total else f"{done} frames {what}"
        reporter.show(lambda columns: sentence[:columns], lambda: sentence, dict)

    try:
        found = flicker.evaluate_flicker(output, source, per_frame, frames=frames, watch=watch)
    finally:
        reporter.close()
    content = {"flicker": flicker.as_json(found)}
    _print(content, [found.lines()], found.notes, reporter, as_json=as_json)


def _print(
    content: Mapping[str, object],
    tables: Iterable[list[str]],
    notes: Iterable[str],
    reporter: Reporter,
    *,
    as_json: bool,
) -> None:
    """Print the notes, and either ``content`` as JSON or the lines of the tables."""
    from ..wording import printable

    for note in notes:
        reporter.say(note)
    if as_json:
        print_result(json.dumps(content, indent=2))
    else:
        print_result("\n\n".join("\n".join(map(printable, lines)) for lines in tables))
