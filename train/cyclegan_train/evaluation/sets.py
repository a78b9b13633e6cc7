"""FID and KID of a set of images against a set of real ones."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cyclegan_batch.errors import InputError, ModelError, missing_extra
from cyclegan_batch.models.checkpoints import load_state
from cyclegan_batch.wording import printable

from .pairs import Watch, images_in, read_pixels

_SET_BATCH = 16
"""Pictures that go through the feature extractor at once."""

Features: TypeAlias = Callable[[Tensor], Tensor]
"""RGB uint8 ``(N, 3, H, W)`` becomes features, floating point ``(N, F)``."""


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
    listed = [images_in(folder) for folder in folders]
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
        picture = torch.from_numpy(read_pixels(path)).permute(2, 0, 1)
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
        raise missing_extra("train", error, doing="evaluate") from error
