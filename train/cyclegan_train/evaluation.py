"""Score pictures: against their paired truth, as label maps, or as a set against another set.

What the numbers are:

- PSNR, SSIM and L1 of every picture against its truth, then the mean over the pictures. SSIM is
  that of Wang, Bovik, Sheikh, Simoncelli (IEEE TIP 13, 2004): a Gaussian window of 11 × 11 with
  σ = 1.5, K1 = 0.01, K2 = 0.03, of every channel, pictures reflected at their edges.
- Label maps: every pixel is of the class whose palette colour is nearest in RGB. Pixel accuracy,
  class accuracy and class IoU are those of Long, Shelhamer, Darrell (CVPR 2015, section 5), over
  the pixels of all pictures together, as in the reference implementation's script for Cityscapes;
  a class that is nowhere is left out of a mean, where that script counts it as 0.
- FID (Heusel et al., NeurIPS 2017) and KID (Bińkowski et al., ICLR 2018) of two sets of pictures
  that need not be pairs, by the features of InceptionV3.

The truth is never resized: scores of different networks against the same truth stay comparable.
Beside the results stand predictors that know nothing, made of what was given: a number means
something only above theirs.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.transforms import v2  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as tv  # type: ignore[import-untyped]

from cyclegan_batch.errors import BackendUnavailableError, InputError, ModelError
from cyclegan_batch.models.checkpoints import load_state
from cyclegan_batch.wording import printable

from .data import pictures_in, read_picture

RESULTS = "results"
"""The row of what is scored; every other row is there to compare it with."""
INPUT = "the input"
OTHER_TRUTH = "another picture's truth"
MEAN_COLOUR = "the truth's mean colour"
MODE = "per-pixel mode of the training labels"
OTHER_LABELS = "another scene's labels"
_BLIND = (MODE, OTHER_LABELS)
"""Predictors of labels that never see the input."""

_WINDOW = 11
"""Pixels of SSIM's window."""

_CHUNK = 2**18
"""Pixels whose distances to a palette are held at once."""

_SET_BATCH = 16
"""Pictures that go through the feature extractor at once."""

Colour: TypeAlias = tuple[int, int, int]
"""Red, green, blue, 0..255."""
Pixels: TypeAlias = npt.NDArray[np.uint8]
Classes: TypeAlias = npt.NDArray[np.uint8]
Watch: TypeAlias = Callable[[int, int], None]
"""Called with how many pictures are done, and of how many."""
Features: TypeAlias = Callable[[Tensor], Tensor]
"""RGB uint8 ``(N, 3, H, W)`` becomes features, floating point ``(N, F)``."""


@dataclass(frozen=True)
class PictureScore:
    """How near pictures are to their truth: means over the pictures."""

    psnr: float
    """Decibels; infinite where one of them equals its truth."""
    ssim: float
    l1: float
    """Mean absolute difference in grey levels, 0..255."""


@dataclass(frozen=True)
class PictureEvaluation:
    """Pictures beside their truth."""

    pictures: int
    rows: Mapping[str, PictureScore]
    """`RESULTS` first, then what to compare it with."""
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the table for people."""
        rows = {
            name: (f"{score.psnr:.2f} dB", f"{score.ssim:.4f}", f"{score.l1:.2f}")
            for name, score in self.rows.items()
        }
        counted = f"means over {self.pictures} pictures"
        return _table(counted, ("PSNR", "SSIM", "L1 of 255"), rows)


@dataclass(frozen=True)
class LabelScore:
    """How well label maps agree with the truth, over all pixels of all pictures."""

    pixel_accuracy: float
    """Share of the pixels that are of their true class."""
    class_accuracy: float
    """The same within each class of the truth, and the mean over these classes."""
    class_iou: float
    """Intersection over union, the mean over the classes of the truth and of the prediction."""
    ious: Mapping[str, float | None]
    """Of every class; None where neither the truth nor the prediction has it."""


@dataclass(frozen=True)
class LabelEvaluation:
    """Label maps beside their truth."""

    pictures: int
    rows: Mapping[str, LabelScore]
    """`RESULTS` first, then what to compare it with."""
    ignores_input: bool
    """Whether the results are no better than what never sees the input."""
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the table for people."""
        rows = {
            name: tuple(
                f"{value:.3f}"
                for value in (score.pixel_accuracy, score.class_accuracy, score.class_iou)
            )
            for name, score in self.rows.items()
        }
        counted = f"{self.pictures} label maps"
        return _table(counted, ("pixel accuracy", "class accuracy", "class IoU"), rows)


@dataclass(frozen=True)
class SetEvaluation:
    """A set of pictures beside a set of real ones."""

    pictures: int
    real: int
    """Pictures of the real set."""
    fid: float
    kid: float
    """Mean over the subsets."""
    kid_std: float
    """Standard deviation over the subsets."""
    kid_subsets: int
    kid_subset_size: int
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the numbers for people."""
        return [
            f"{self.pictures} pictures against {self.real} real ones",
            f"FID  {self.fid:.2f}",
            f"KID  {self.kid:.5f} ± {self.kid_std:.5f} "
            f"({self.kid_subsets} subsets of {self.kid_subset_size})",
        ]


@dataclass(frozen=True)
class Palette:
    """The colours of the classes."""

    colours: Mapping[str, Colour]
    void: Colour | None = None
    """What is of no class: where the truth is nearest to it nothing is scored, and where only the
    results are they are wrong."""
    blind_iou: float = 0.0
    """Class IoU under which a network is known to ignore its input; 0 where that is not known."""

    def classes(self, pixels: Pixels) -> Classes:
        """Return for every pixel the number of the class with the nearest colour, ``(H, W)``.

        Of two that are equally near the first; void comes after the last.
        """
        known = [*self.colours.values(), *([self.void] if self.void else [])]
        flat = pixels.reshape(-1, 3)
        found = np.empty(len(flat), np.uint8)
        for start in range(0, len(flat), _CHUNK):
            part = flat[start : start + _CHUNK].astype(np.float32)
            nearest = np.full(len(part), np.inf, np.float32)
            for number, colour in enumerate(np.array(known, np.float32)):
                # |pixel - colour|² without |pixel|², which is the same for all. Exact: whole
                # numbers under 2²⁴.
                distance = colour @ colour - 2 * (part @ colour)
                np.putmask(found[start : start + _CHUNK], distance < nearest, number)
                np.minimum(nearest, distance, out=nearest)
        return found.reshape(pixels.shape[:2])


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

The few colours of classes that are not scored (parking, bridge, …) go to the nearest of these. What
never sees the photograph reaches a class IoU of about 0.10 on the test pairs of the CycleGAN data
set (benchmarks/cityscapes.md): hence the 0.12.
"""


def palette_from(name: str) -> Palette:
    """Return ``cityscapes``, or the palette of a JSON or TOML file: ``name = [red, green, blue]``.

    The name ``void`` is that of what is of no class. Raises InputError.
    """
    if name == "cityscapes":
        return CITYSCAPES
    path = Path(name)
    shown = printable(path)
    try:
        text = path.read_text("utf-8")
        found = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(
            f"{shown}: no palette: {error.strerror or error}; give cityscapes, or a JSON or TOML "
            "file"
        ) from error
    except ValueError as error:
        raise InputError(f"{shown}: is neither JSON nor TOML: {error}") from error
    colours = {}
    for label, colour in found.items() if isinstance(found, dict) else ():
        whole = isinstance(colour, list) and all(type(value) is int for value in colour)
        if not whole or len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
            raise InputError(f"{shown}: {label} = {colour!r} is to be [red, green, blue] of 0..255")
        colours[label] = (colour[0], colour[1], colour[2])
    distinct = len(set(colours.values()))
    if not 3 <= distinct + ("void" not in colours) <= 256 or distinct < len(colours):
        raise InputError(
            f"{shown}: holds {distinct} colours for {len(colours)} names; give 2 to 255 classes, "
            "each with a colour of its own, as name = [red, green, blue]"
        )
    void = colours.pop("void", None)
    return Palette(colours, void)


def evaluate_pictures(
    results: Path,
    truth: Path,
    *,
    source: Path | None = None,
    resize: bool = False,
    watch: Watch = lambda done, total: None,
) -> PictureEvaluation:
    """Score pictures against their truth, and beside them ``source``, what they were made from.

    Each is a picture, or a folder whose pictures have the same names (endings apart). With
    ``resize`` results of another size than their truth are resized to it, bicubic. Raises
    InputError, and BackendUnavailableError where torchmetrics is missing.
    """
    ssim = _package("torchmetrics.functional.image").structural_similarity_index_measure
    matched = _match(results, truth, source)
    pairs, sizes = matched.pairs, _Sizes(resize)
    total = 2 * len(pairs)
    sums, count = np.zeros(3), 0
    for number, pair in enumerate(pairs):
        pixels = _read(pair.truth)
        sums += pixels.sum((0, 1), np.float64)
        count += pixels.shape[0] * pixels.shape[1]
        watch(number + 1, total)
    colour = np.rint(sums / count).astype(np.uint8)
    scores: dict[str, list[tuple[float, float, float]]] = {}
    for number, pair in enumerate(pairs):
        true = _read(pair.truth)
        size = (true.shape[0], true.shape[1])
        if min(size) < _WINDOW:
            raise InputError(
                f"{printable(pair.truth)}: {_size(size)} is too small for SSIM, which looks at "
                f"{_WINDOW} × {_WINDOW} pixels; leave it out"
            )
        rows = {RESULTS: sizes.fitted(_read(pair.result), pair.result, size)}
        if pair.source is not None:
            rows[INPUT] = sizes.fitted(_read(pair.source), pair.source, size)
        if len(pairs) > 1:
            rows[OTHER_TRUTH] = _resized(_read(_other(pairs, number).truth), size)
        rows[MEAN_COLOUR] = np.broadcast_to(colour, true.shape)
        for name, pixels in rows.items():
            scores.setdefault(name, []).append(_picture_score(pixels, true, ssim))
        watch(len(pairs) + number + 1, total)
    means = {name: PictureScore(*np.mean(found, 0).tolist()) for name, found in scores.items()}
    notes = [*matched.notes, *sizes.notes()]
    if INPUT in means and math.isfinite(gain := means[RESULTS].psnr - means[INPUT].psnr):
        way = "nearer to the truth than" if gain >= 0 else "farther from the truth than"
        notes.append(f"{abs(gain):.1f} dB {way} the input")
    return PictureEvaluation(len(pairs), means, tuple(notes))


def _picture_score(
    pixels: Pixels, true: Pixels, ssim: Callable[..., Tensor]
) -> tuple[float, float, float]:
    difference = pixels.astype(np.float64) - true
    mean_square = float(np.mean(np.square(difference)))
    psnr = 10 * math.log10(255.0**2 / mean_square) if mean_square else math.inf
    # In float32: exact to 1e-6, and twenty times as fast as in float64.
    planes = [
        torch.from_numpy(np.array(each, np.float32)).permute(2, 0, 1)[None]
        for each in (pixels, true)
    ]
    alike = float(ssim(*planes, sigma=1.5, data_range=255.0, k1=0.01, k2=0.03))
    return psnr, alike, float(np.abs(difference).mean())


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
    """Score pictures of label maps against their truth, by the nearest colours of ``palette``.

    ``train_truth`` holds the labels of a training: the predictors that never see the input are made
    of them. With ``resize`` results of another size than their truth are resized to it, each pixel
    being the nearest one's class. Raises InputError.
    """
    matched = _match(results, truth, source)
    pairs, sizes = matched.pairs, _Sizes(resize)
    known = () if train_truth is None else tuple(_pictures(train_truth)[0].values())
    total = len(known) + len(pairs)
    mode = None
    if known:
        first = palette.classes(_read(pairs[0].truth))
        mode = _mode(known, palette, first.shape, lambda done: watch(done, total))
    counts: dict[str, npt.NDArray[np.int64]] = {}
    for number, pair in enumerate(pairs):
        true = palette.classes(_read(pair.truth))
        size = (true.shape[0], true.shape[1])
        classes = palette.classes(_read(pair.result))
        rows = {RESULTS: sizes.fitted_labels(classes, pair.result, size)}
        if pair.source is not None:
            classes = palette.classes(_read(pair.source))
            rows[INPUT] = sizes.fitted_labels(classes, pair.source, size)
        if mode is not None:
            rows[MODE] = _nearest(mode, size)
        if known or len(pairs) > 1:
            # Those of a training in even steps; else half the pairs away: neighbours are often
            # the same street.
            other = known[number * len(known) // len(pairs)] if known else None
            other = other or _other(pairs, number).truth
            rows[OTHER_LABELS] = _nearest(palette.classes(_read(other)), size)
        for name, classes in rows.items():
            counts[name] = counts.get(name, 0) + _confusion(true, classes, len(palette.colours))
        watch(len(known) + number + 1, total)
    scores = {name: _label_score(found, tuple(palette.colours)) for name, found in counts.items()}
    blind = _blindness(scores, palette.blind_iou)
    notes = (*matched.notes, *sizes.notes(), *blind)
    return LabelEvaluation(len(pairs), scores, bool(blind), notes)


def _blindness(rows: Mapping[str, LabelScore], limit: float) -> list[str]:
    """Return what there is to say where the results could have been made without the input."""
    iou = rows[RESULTS].class_iou
    said = f"ignores its input, or does no better: a class IoU of {iou:.3f}, and "
    for name in _BLIND:
        if name in rows and iou <= rows[name].class_iou:
            return [f"{said}{name} has {rows[name].class_iou:.3f} without seeing it"]
    return [f"{said}without seeing it one comes close to {limit}"] if iou < limit else []


def _mode(
    labels: Sequence[Path], palette: Palette, size: tuple[int, ...], watch: Callable[[int], None]
) -> Classes:
    """Return the commonest class at every pixel, never void: it would never be right."""
    counts = np.zeros((len(palette.colours), *size), np.int32)
    for number, path in enumerate(labels):
        classes = _nearest(palette.classes(_read(path)), (size[0], size[1]))
        for index, plane in enumerate(counts):
            plane += classes == index
        watch(number + 1)
    mode: Classes = counts.argmax(0).astype(np.uint8)
    return mode


def _confusion(true: Classes, found: Classes, classes: int) -> npt.NDArray[np.int64]:
    """Return how many pixels of every true class (rows) were found to be of which, void last."""
    scored = true < classes
    both = true[scored].astype(np.int64) * (classes + 1) + found[scored]
    return np.bincount(both, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def _label_score(counts: npt.NDArray[np.int64], names: Sequence[str]) -> LabelScore:
    right, true = np.diag(counts), counts.sum(1)
    either = true + counts.sum(0)[:-1] - right
    if not true.any():
        raise InputError("no pixel of the truth is of a class of the palette; check the palette")
    here, seen = true > 0, either > 0
    ious = {
        name: float(right[number] / either[number]) if seen[number] else None
        for number, name in enumerate(names)
    }
    return LabelScore(
        pixel_accuracy=float(right.sum() / true.sum()),
        class_accuracy=float(np.mean(right[here] / true[here])),
        class_iou=float(np.mean(right[seen] / either[seen])),
        ious=ious,
    )


def evaluate_sets(
    results: Path,
    real: Path,
    features: Features,
    *,
    subset_size: int = 1000,
    subsets: int = 100,
    watch: Watch = lambda done, total: None,
) -> SetEvaluation:
    """Compare two sets of pictures by FID and KID; ``features`` is `inception_features` for both.

    KID takes ``subsets`` draws of ``subset_size`` pictures of each set, or of as many as the
    smaller set has; the same draws every time. Raises InputError, and BackendUnavailableError where
    torchmetrics is missing.
    """
    fid_module, kid_module = (_package(f"torchmetrics.image.{name}") for name in ("fid", "kid"))
    folders = (results, real)
    listed = [_pictures(folder) for folder in folders]
    paths = [list(pictures.values()) for pictures, _ in listed]
    for folder, own in zip(folders, paths, strict=True):
        if len(own) < 2:
            raise InputError(f"{printable(folder)}: one picture is no set; FID needs 2 at least")
    total, smaller = sum(map(len, paths)), min(map(len, paths))
    found: list[Tensor] = []
    for own in paths:
        before = sum(map(len, found))
        found.append(_features_of(own, features, lambda done, b=before: watch(b + done, total)))  # type: ignore[misc]
    size = min(subset_size, smaller)
    given = _Given(found[0].shape[1])
    fid = fid_module.FrechetInceptionDistance(feature=given)
    with warnings.catch_warnings():
        # It warns that it keeps the features; they are here already.
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        kid = kid_module.KernelInceptionDistance(given, subsets=subsets, subset_size=size)
    for metric in (fid, kid):
        metric.update(found[0], real=False)
        metric.update(found[1], real=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kid_mean, kid_std = (float(value) for value in kid.compute())
    notes = [note for _, left_out in listed for note in left_out]
    if smaller < given.num_features:
        notes.append(
            f"FID of {smaller} pictures is too high and changes with their number: its covariance "
            f"of {given.num_features} features wants more pictures than that; compare by KID, or "
            "only with an FID of as many pictures"
        )
    return SetEvaluation(
        pictures=len(paths[0]),
        real=len(paths[1]),
        fid=float(fid.compute()),
        kid=kid_mean,
        kid_std=kid_std,
        kid_subsets=subsets,
        kid_subset_size=size,
        notes=tuple(notes),
    )


class _Given(nn.Module):
    """Stands for torchmetrics' feature extractor where the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _features_of(paths: Sequence[Path], features: Features, watch: Callable[[int], None]) -> Tensor:
    """Return the features of the pictures, float64 on the CPU, those of one size in batches."""
    found: list[Tensor] = []
    waiting: list[Tensor] = []

    def extract() -> None:
        with torch.inference_mode():
            found.append(features(torch.stack(waiting)).double().cpu())
        waiting.clear()

    for number, path in enumerate(paths):
        picture = torch.from_numpy(_read(path)).permute(2, 0, 1)
        if waiting and (len(waiting) == _SET_BATCH or waiting[0].shape != picture.shape):
            extract()
        waiting.append(picture)
        watch(number + 1)
    extract()
    return torch.cat(found)


INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_WHERE = (
    f"get {INCEPTION} (torch-fidelity's release v0.2.0 at github.com/toshas/torch-fidelity), the "
    "weights that FID is defined by"
)


def inception_features(weights: Path | None) -> Features:
    """Return the InceptionV3 of FID with ``weights``, on CUDA where there is one.

    It downloads nothing. The weights are TensorFlow's of 2015-12-05, converted to torch by
    torch-fidelity. Raises ModelError, and BackendUnavailableError where torch-fidelity is missing.
    """
    if weights is None:
        raise ModelError(f"FID and KID need --inception WEIGHTS; {_WHERE}")
    if not weights.is_file():
        raise ModelError(f"{printable(weights)}: no such file; {_WHERE}")
    package = _package("torch_fidelity.feature_extractor_inceptionv3")
    safe = io.BytesIO()
    try:
        # torch-fidelity unpickles whatever a file holds: it is given nothing but tensors.
        torch.save(load_state(weights)[0], safe)
        safe.seek(0)
        network = package.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], safe)
    except (ModelError, RuntimeError) as error:
        raise ModelError(
            f"{printable(weights)}: holds no weights of InceptionV3; {_WHERE}"
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)

    def features(pictures: Tensor) -> Tensor:
        pooled: Tensor = network(pictures.to(device))[0]
        return pooled

    return features


def _package(name: str) -> Any:
    """Return a module that an extra brings. Raises BackendUnavailableError."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendUnavailableError(
            f"cannot evaluate: {(error.name or name).split('.')[0]} is not installed; "
            "pip install 'cyclegan-batch[train]' brings it"
        ) from error


# Which picture belongs to which


@dataclass(frozen=True)
class _Pair:
    result: Path
    truth: Path
    source: Path | None


@dataclass(frozen=True)
class _Matched:
    pairs: list[_Pair]
    notes: list[str]


def _match(results: Path, truth: Path, source: Path | None) -> _Matched:
    """Return what has the same name in all of them. Raises InputError."""
    places = [place for place in (results, truth, source) if place is not None]
    if all(place.is_file() for place in places):
        return _Matched([_Pair(results, truth, source)], [])
    folders = [_pictures(place) for place in places]
    named = [pictures for pictures, _ in folders]
    own, true, sources = named[0], named[1], named[2] if source is not None else None
    common = [name for name in own if all(name in each for each in named[1:])]
    if not common:
        raise InputError(
            f"{printable(results)}: none of its {len(own)} pictures has a partner in "
            f"{' and '.join(printable(place) for place in places[1:])}: it holds "
            f"{printable(next(iter(own.values())))} and not the name of "
            f"{printable(next(iter(true.values())))}; a partner has the same path and name in its "
            "folder, endings apart"
        )
    pairs = [_Pair(own[name], true[name], sources[name] if sources else None) for name in common]
    notes = [note for _, notes in folders for note in notes]
    notes += [
        f"{printable(place)}: {len(each) - len(common)} of its {len(each)} pictures have no "
        "partner and are left out"
        for place, each in zip(places, named, strict=True)
        # One picture may be looked up in a whole folder.
        if len(each) > len(common) and not results.is_file()
    ]
    return _Matched(pairs, notes)


def _pictures(place: Path) -> tuple[dict[Path, Path], tuple[str, ...]]:
    """Return the pictures in a folder, or the one, by their paths within it, endings apart.

    And sentences that tell what of the folder is left out.
    """
    if not place.exists():
        raise InputError(f"{printable(place)}: no such file or folder; check the name")
    if place.is_file():
        return {Path(place.stem): place}, ()
    found: dict[Path, Path] = {}
    pictures, left_out = pictures_in(place)
    for path in pictures:
        name = path.relative_to(place).with_suffix("")
        if name in found:
            raise InputError(
                f"{printable(path)} and {printable(found[name])}: differ in their endings only; "
                "leave one of them"
            )
        found[name] = path
    return found, left_out


def _other(pairs: Sequence[_Pair], number: int) -> _Pair:
    return pairs[(number + len(pairs) // 2) % len(pairs)]


# Pixels and sizes


def _read(path: Path) -> Pixels:
    return read_picture(path)[0]


class _Sizes:
    """Brings pictures to the size of their truth where that is allowed, and counts them."""

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self._seen: dict[tuple[tuple[int, int], tuple[int, int]], int] = {}

    def fitted(self, pixels: Pixels, path: Path, size: tuple[int, int]) -> Pixels:
        return _resized(pixels, size) if self._differs(pixels.shape, path, size) else pixels

    def fitted_labels(self, classes: Classes, path: Path, size: tuple[int, int]) -> Classes:
        return _nearest(classes, size) if self._differs(classes.shape, path, size) else classes

    def notes(self) -> Iterator[str]:
        for (own, size), count in self._seen.items():
            yield f"{count} pictures of {_size(own)} are resized to their truth's {_size(size)}"

    def _differs(self, shape: tuple[int, ...], path: Path, size: tuple[int, int]) -> bool:
        own = (shape[0], shape[1])
        if own == size:
            return False
        if not self._allowed:
            raise InputError(
                f"{printable(path)}: is {_size(own)}, and its truth is {_size(size)}; --resize "
                "brings it to the size of its truth"
            )
        self._seen[own, size] = self._seen.get((own, size), 0) + 1
        return True


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]}"


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return a picture at another size, by the filter that training resizes with."""
    if pixels.shape[:2] == size:
        return pixels
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    planes = tv.resize(
        planes, list(size), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
    )
    resized: Pixels = planes.permute(1, 2, 0).numpy()
    return resized


def _nearest(classes: Classes, size: tuple[int, int]) -> Classes:
    """Return a label map at another size; every pixel takes the class at its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(size, classes.shape, strict=True)
    )
    resized: Classes = classes[rows[:, None], columns]
    return resized


def _table(title: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    width = max(len(title), *map(len, rows))
    lines = [f"{title:<{width}}" + "".join(f"  {head:>14}" for head in heads)]
    for name, values in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"  {value:>14}" for value in values))
    return lines


def as_json(evaluation: PictureEvaluation | LabelEvaluation | SetEvaluation) -> dict[str, Any]:
    """Return it for JSON, which has no infinity: None stands for it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    plained: dict[str, Any] = plain(asdict(evaluation))
    return plained
