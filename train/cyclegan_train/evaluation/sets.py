"""FID and KID of a set of images against a set of real ones."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor, nn

from cyclegan_batch.errors import InputError, ModelError, missing_extra
from cyclegan_batch.models.checkpoints.loading import load_state
from cyclegan_batch.wording import printable

from .pairs import Watch, images_in, read_pixels

_BATCH = 16
"""Images that go through the feature extractor at once."""

Features: TypeAlias = Callable[[Tensor], Tensor]
"""Maps RGB uint8 ``(N, 3, H, W)`` to features, floating point ``(N, F)``."""


@dataclass(frozen=True)
class SetEvaluation:
    """The distances of a set of images from a set of real ones."""

    pictures: int
    """Images of the set that is scored."""
    real: int
    """Images of the real set."""
    fid: float
    kid: float
    """The mean over the subsets."""
    kid_std: float
    """The standard deviation over the subsets."""
    kid_subsets: int
    kid_subset_size: int
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the numbers as lines of text."""
        return [
            f"{self.pictures} images against {self.real} real ones",
            f"FID  {self.fid:.2f}",
            f"KID  {self.kid:.5f} ± {self.kid_std:.5f} "
            f"({self.kid_subsets} subsets of {self.kid_subset_size})",
        ]


def evaluate_sets(
    results: Path,
    real: Path,
    features: Features,
    *,
    subset_size: int = 1000,
    subsets: int = 100,
    watch: Watch = lambda done, total: None,
) -> SetEvaluation:
    """Compare two sets of images by FID and KID; the standard ``features`` are Inception's.

    See `inception_features`. KID is computed on ``subsets`` draws of ``subset_size`` images of each
    set, or of as many as the smaller set has; the draws are the same every time. Raises InputError,
    and BackendUnavailableError where torchmetrics is not installed.
    """
    fid_module, kid_module = (_package(f"torchmetrics.image.{name}") for name in ("fid", "kid"))
    folders = (results, real)
    images_and_notes = [images_in(folder) for folder in folders]
    paths = [list(images.values()) for images, _ in images_and_notes]
    for folder, images in zip(folders, paths, strict=True):
        if len(images) < 2:
            raise InputError(f"{printable(folder)}: one image is no set; FID needs at least 2")
    total, smaller = sum(map(len, paths)), min(map(len, paths))
    of_results = _features_of(paths[0], features, lambda done: watch(done, total))
    of_real = _features_of(paths[1], features, lambda done: watch(len(paths[0]) + done, total))
    size = min(subset_size, smaller)
    extractor = _Passthrough(of_results.shape[1])
    fid = fid_module.FrechetInceptionDistance(feature=extractor)
    with warnings.catch_warnings():
        # torchmetrics warns that it keeps the features in memory, where they are already.
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        kid = kid_module.KernelInceptionDistance(extractor, subsets=subsets, subset_size=size)
    for metric in (fid, kid):
        metric.update(of_results, real=False)
        metric.update(of_real, real=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kid_mean, kid_std = (float(value) for value in kid.compute())
    notes = [note for _, folder_notes in images_and_notes for note in folder_notes]
    if smaller < extractor.num_features:
        notes.append(
            f"FID of {smaller} images is too high and changes with their number: its covariance "
            f"of {extractor.num_features} features requires more images than that; compare by "
            "KID, or only with an FID of as many images"
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


class _Passthrough(nn.Module):
    """A feature extractor for torchmetrics that is given features and returns them."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _features_of(paths: Sequence[Path], features: Features, watch: Callable[[int], None]) -> Tensor:
    """Return the features of all images, float64 on the CPU; consecutive equal sizes in batches."""
    batches: list[Tensor] = []
    waiting: list[Tensor] = []

    def extract() -> None:
        with torch.inference_mode():
            batches.append(features(torch.stack(waiting)).double().cpu())
        waiting.clear()

    for number, path in enumerate(paths):
        image = torch.from_numpy(read_pixels(path)).permute(2, 0, 1)
        if waiting and (len(waiting) == _BATCH or waiting[0].shape != image.shape):
            extract()
        waiting.append(image)
        watch(number + 1)
    extract()
    return torch.cat(batches)


INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_REMEDY = (
    f"get {INCEPTION} (torch-fidelity's release v0.2.0 at github.com/toshas/torch-fidelity), the "
    "weights that FID is defined by"
)


def inception_features(weights: Path | None) -> Features:
    """Return the InceptionV3 of FID with ``weights``, on CUDA where there is a device.

    Nothing is downloaded. The weights are TensorFlow's of 2015-12-05, converted to torch by
    torch-fidelity. Raises ModelError, and BackendUnavailableError where torch-fidelity is not
    installed.
    """
    if weights is None:
        raise ModelError(f"FID and KID need --inception WEIGHTS; {_REMEDY}")
    if not weights.is_file():
        raise ModelError(f"{printable(weights)}: no such file; {_REMEDY}")
    package = _package("torch_fidelity.feature_extractor_inceptionv3")
    safe = io.BytesIO()
    try:
        # torch-fidelity unpickles the whole file: pass it a file of the tensors alone.
        torch.save(load_state(weights)[0], safe)
        safe.seek(0)
        network = package.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], safe)
    except (ModelError, RuntimeError) as error:
        raise ModelError(
            f"{printable(weights)}: holds no weights of InceptionV3; {_REMEDY}"
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)

    def features(images: Tensor) -> Tensor:
        pooled: Tensor = network(images.to(device))[0]
        return pooled

    return features


def _package(name: str) -> ModuleType:
    """Return a module that the extra ``train`` installs. Raises BackendUnavailableError."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing_extra("train", error, doing="evaluate") from error
