"""Pixel accuracy, class accuracy and class IoU of label maps, by the colours of a palette."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cyclegan_batch.errors import InputError
from cyclegan_batch.frames import Pixels
from cyclegan_batch.wording import printable

from .pairs import (
    INPUT,
    RESULTS,
    Classes,
    Sizes,
    Watch,
    images_in,
    match,
    nearest,
    other_pair,
    read_pixels,
    table,
)

MODE = "per-pixel mode of the training labels"
OTHER_LABELS = "another scene's labels"
_BLIND = (MODE, OTHER_LABELS)
"""Predictors of labels that never see the input."""

_CHUNK = 2**18
"""Pixels whose distances to a palette are in memory at once."""

Colour: TypeAlias = tuple[int, int, int]
"""Red, green, blue, 0..255."""


@dataclass(frozen=True)
class LabelScore:
    """How well label maps agree with the truth, over all pixels of all images."""

    pixel_accuracy: float
    """Share of the pixels that have their true class."""
    class_accuracy: float
    """The mean of that share within each class, over the classes of the truth."""
    class_iou: float
    """The mean intersection over union, over the classes of the truth and of the prediction."""
    ious: Mapping[str, float | None]
    """The IoU of every class; None where neither the truth nor the prediction has it."""


@dataclass(frozen=True)
class LabelEvaluation:
    """The scores of label maps against their truth."""

    pictures: int
    """How many label maps were scored."""
    rows: Mapping[str, LabelScore]
    """`RESULTS` first, then the rows to compare it with."""
    ignores_input: bool
    """Whether the results are no better than predictors that never see the input."""
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return a table of the scores."""
        rows = {
            name: tuple(
                f"{value:.3f}"
                for value in (score.pixel_accuracy, score.class_accuracy, score.class_iou)
            )
            for name, score in self.rows.items()
        }
        title = f"{self.pictures} label maps"
        return table(title, ("pixel accuracy", "class accuracy", "class IoU"), rows)


@dataclass(frozen=True)
class Palette:
    """The colours of the classes."""

    colours: Mapping[str, Colour]
    void: Colour | None = None
    """The colour of no class. Pixels whose truth is nearest to it are not scored; where only the
    result is nearest to it, the result is wrong."""
    blind_iou: float = 0.0
    """Class IoU below which a network certainly ignores its input; 0 where no such bound exists."""

    def classes(self, pixels: Pixels) -> Classes:
        """Return for every pixel the number of the class with the nearest colour, ``(H, W)``.

        Of two equally near classes it is the first; the number of void comes after the last class.
        """
        colours = [*self.colours.values(), *([self.void] if self.void else [])]
        flat = pixels.reshape(-1, 3)
        classes = np.empty(len(flat), np.uint8)
        for start in range(0, len(flat), _CHUNK):
            part = flat[start : start + _CHUNK].astype(np.float32)
            nearest = np.full(len(part), np.inf, np.float32)
            for number, colour in enumerate(np.array(colours, np.float32)):
                # |pixel - colour|² less |pixel|², which is the same for all colours. float32 is
                # exact here: the values are whole numbers below 2²⁴.
                distance = colour @ colour - 2 * (part @ colour)
                np.putmask(classes[start : start + _CHUNK], distance < nearest, number)
                np.minimum(nearest, distance, out=nearest)
        return classes.reshape(pixels.shape[:2])


CITYSCAPES = Palette(
    {
        "road": (128, 64, 128), "sidewalk": (244, 35, 232), "building": (70, 70, 70),
        "wall": (102, 102, 156), "fence": (190, 153, 153), "pole": (153, 153, 153),
        "traffic light": (250, 170, 30), "traffic sign": (220, 220, 0),
        "vegetation": (107, 142, 35), "terrain": (152, 251, 152), "sky": (70, 130, 180),
        "person": (220, 20, 60), "rider": (255, 0, 0), "car": (0, 0, 142), "truck": (0, 0, 70),
        "bus": (0, 60, 100), "train": (0, 80, 100), "motorcycle": (0, 0, 230),
        "bicycle": (119, 11, 32),
    },
    void=(0, 0, 0),
    blind_iou=0.12,
)  # fmt: skip
"""The 19 classes that Cityscapes is scored on, and black (cityscapesScripts, helpers/labels.py).

The few colours of classes that are not scored (parking, bridge, …) count as the nearest of these.
The limit of 0.12 is a little above what predictors that never see the photograph reach on the test
pairs of the CycleGAN data set, a class IoU of about 0.10 (benchmarks/cityscapes.md).
"""


def palette_from(name: str) -> Palette:
    """Return ``cityscapes``, or the palette of a JSON or TOML file: ``name = [red, green, blue]``.

    The name ``void`` is that of the colour of no class. Raises InputError.
    """
    if name == "cityscapes":
        return CITYSCAPES
    path = Path(name)
    name = printable(path)
    try:
        text = path.read_text("utf-8")
        content = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(
            f"{name}: no palette: {error.strerror or error}; give cityscapes, or a JSON or TOML "
            "file"
        ) from error
    except ValueError as error:
        raise InputError(f"{name}: is neither JSON nor TOML: {error}") from error
    colours = {}
    for label, colour in content.items() if isinstance(content, dict) else ():
        integers = isinstance(colour, list) and all(type(value) is int for value in colour)
        if not integers or len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
            raise InputError(
                f"{name}: {label} = {colour!r} must be [red, green, blue], each of 0..255"
            )
        colours[label] = (colour[0], colour[1], colour[2])
    distinct = len(set(colours.values()))
    if not 3 <= distinct + ("void" not in colours) <= 256 or distinct < len(colours):
        raise InputError(
            f"{name}: holds {distinct} colours for {len(colours)} names; give 2 to 255 classes, "
            "each with a colour of its own, as name = [red, green, blue]"
        )
    void = colours.pop("void", None)
    return Palette(colours, void)


def evaluate_labels(
    results: Path,
    truth: Path,
    palette: Palette,
    *,
    source: Path | None = None,
    train_truth: Path | None = None,
    resize: bool = False,
    watch: Watch = lambda done, total: None,
) -> LabelEvaluation:
    """Score images of label maps against their truth, by the nearest colours of ``palette``.

    ``train_truth`` holds the labels of the training, from which the predictors that never see the
    input are made. With ``resize``, results of another size than their truth are resized to it,
    each pixel taking the class of the nearest one. Raises InputError.
    """
    matches = match(results, truth, source)
    pairs, sizes = matches.pairs, Sizes(resize)
    training = () if train_truth is None else tuple(images_in(train_truth)[0].values())
    total = len(training) + len(pairs)
    mode = None
    if training:
        first = palette.classes(read_pixels(pairs[0].truth))
        mode = _mode(training, palette, first.shape, lambda done: watch(done, total))
    counts: dict[str, npt.NDArray[np.int64]] = {}
    for number, pair in enumerate(pairs):
        true = palette.classes(read_pixels(pair.truth))
        size = (true.shape[0], true.shape[1])
        classes = palette.classes(read_pixels(pair.result))
        rows = {RESULTS: sizes.fitted_labels(classes, pair.result, size)}
        if pair.source is not None:
            classes = palette.classes(read_pixels(pair.source))
            rows[INPUT] = sizes.fitted_labels(classes, pair.source, size)
        if mode is not None:
            rows[MODE] = nearest(mode, size)
        if training:
            other = training[number * len(training) // len(pairs)]  # in even steps through all
            rows[OTHER_LABELS] = nearest(palette.classes(read_pixels(other)), size)
        elif len(pairs) > 1:
            other = other_pair(pairs, number).truth
            rows[OTHER_LABELS] = nearest(palette.classes(read_pixels(other)), size)
        for name, classes in rows.items():
            counts[name] = counts.get(name, 0) + confusion(true, classes, len(palette.colours))
        watch(len(training) + number + 1, total)
    scores = {name: label_score(each, tuple(palette.colours)) for name, each in counts.items()}
    blind = _blindness(scores, palette.blind_iou)
    notes = (*matches.notes, *sizes.notes(), *blind)
    return LabelEvaluation(len(pairs), scores, bool(blind), notes)


def _blindness(rows: Mapping[str, LabelScore], limit: float) -> list[str]:
    """Return a note where the results are no better than a predictor that never sees the input."""
    iou = rows[RESULTS].class_iou
    beginning = f"ignores its input, or does no better: a class IoU of {iou:.3f}, and "
    for name in _BLIND:
        if name in rows and iou <= rows[name].class_iou:
            return [f"{beginning}{name} has {rows[name].class_iou:.3f} without seeing it"]
    return [f"{beginning}predictors that never see it come close to {limit}"] if iou < limit else []


def _mode(
    labels: Sequence[Path], palette: Palette, size: tuple[int, ...], watch: Callable[[int], None]
) -> Classes:
    """Return the commonest class at every pixel, never void, which would never be right."""
    counts = np.zeros((len(palette.colours), *size), np.int32)
    for number, path in enumerate(labels):
        classes = nearest(palette.classes(read_pixels(path)), (size[0], size[1]))
        for index, plane in enumerate(counts):
            plane += classes == index
        watch(number + 1)
    mode: Classes = counts.argmax(0).astype(np.uint8)
    return mode


def confusion(true: Classes, predicted: Classes, classes: int) -> npt.NDArray[np.int64]:
    """Return the pixels of every true class (rows) by their predicted class, void last."""
    scored = true < classes
    both = true[scored].astype(np.int64) * (classes + 1) + predicted[scored]
    return np.bincount(both, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def label_score(counts: npt.NDArray[np.int64], names: Sequence[str]) -> LabelScore:
    """Return the scores of the counts of `confusion`, added up over all images."""
    right, true = np.diag(counts), counts.sum(1)
    either = true + counts.sum(0)[:-1] - right
    if not true.any():
        raise InputError("no pixel of the truth has a class of the palette; check the palette")
    in_truth, in_either = true > 0, either > 0
    ious = {
        name: float(right[number] / either[number]) if in_either[number] else None
        for number, name in enumerate(names)
    }
    return LabelScore(
        pixel_accuracy=float(right.sum() / true.sum()),
        class_accuracy=float(np.mean(right[in_truth] / true[in_truth])),
        class_iou=float(np.mean(right[in_either] / either[in_either])),
        ious=ious,
    )
