"""``evaluate``: the scores of `cyclegan_train.evaluation`, printed."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import PATH, GroupedCommand, option
from .process import print_result


@click.command(
    "evaluate",
    cls=GroupedCommand,
    short_help="Score translated images against their truth or real images.",
)
@click.argument("results", type=PATH)
@option(
    "--truth",
    type=PATH,
    metavar="FOLDER",
    help="The expected images, under the same names as the results.",
)
@option(
    "--source",
    type=PATH,
    metavar="FOLDER",
    help="The images that the results were made from, which are scored for comparison.",
)
@option("--resize", is_flag=True, help="Resize results to the size of their truth.")
@option(
    "--palette",
    metavar="cityscapes|FILE",
    help="Score label maps of these colours: Cityscapes', or those of a JSON or TOML file with "
    "``name = [red, green, blue]``.",
)
@option(
    "--train-truth",
    type=PATH,
    metavar="FOLDER",
    help="Label maps of the training set; guesses made from them, without the input, are scored "
    "for comparison.",
)
@option(
    "--real",
    type=PATH,
    metavar="FOLDER",
    help="Real images of the target domain, unpaired, to measure FID and KID against.",
)
@option(
    "--inception",
    type=PATH,
    metavar="WEIGHTS",
    help="The weights of InceptionV3 for FID and KID.",
)
@option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
@option("-q", "--quiet", is_flag=True, help="Print only the scores.")
def command(
    results: Path,
    truth: Path | None,
    source: Path | None,
    resize: bool,
    palette: str | None,
    train_truth: Path | None,
    real: Path | None,
    inception: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score RESULTS, an image or a folder of images, against --truth, --real or both.

    Against a truth: PSNR, SSIM and L1, or with --palette the accuracies and the IoU of label maps.
    Against real images: FID and KID.
    """
    if truth is None and real is None:
        raise click.UsageError("give --truth FOLDER, --real FOLDER, or both.")
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
    from ..wording import printable
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
    for each in evaluations.values():
        for note in each.notes:
            reporter.say(note)
    if as_json:
        print_result(
            json.dumps({kind: scores.as_json(each) for kind, each in evaluations.items()}, indent=2)
        )
    else:
        print_result(
            "\n\n".join("\n".join(map(printable, each.lines())) for each in evaluations.values())
        )
