"""Validation: which epoch to keep, by images that both generators translate after it.

The images are those of valA and valB where the data has such folders, otherwise a share of the
training images that the run's seed holds out, and where that would be too few the training images
themselves. testA and testB are left for reports. Every generator, as it is and as its moving
average, has a score of its own, and ``best`` keeps each from the epoch in which it was best:

- where the truth is known (``val_truth``), by PSNR, or by the class IoU of label maps;
- otherwise, where the weights of InceptionV3 are given, by KID to the real images of the domain;
- otherwise by the *unpaired score*, a sum of two shares: the energy distance of the translated
  images from real ones, on the features of a fixed random network, as a share of that of the inputs
  themselves; and the error of the image translated there and back, as a share of that of the mean
  colour. 0 would be perfect. A generator that returns its input has 1, and one that ignores it
  about 1, which *random-feature KID*, logged beside it, would not tell. How both rank epochs was
  measured on drawn domains (train/README.md).

A generator that returns its input has a bad score by all of these. Nothing is drawn at random from
the states that the training draws from, so a validated run has the weights of one that is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.checkpoints.run_folder import (
    SCORES,
    deciding,
    generator_name,
    is_better,
)
from cyclegan_batch.wording import counted

from .cyclegan import CycleGAN, State
from .data import normalized
from .evaluation.features import (
    RandomFeatures,
    energy_distance,
    frechet_distance,
    kernel_distance,
)
from .evaluation.labels import Palette, confusion, label_score, palette_from
from .evaluation.pictures import picture_score, ssim_function
from .evaluation.sets import Features, inception_features
from .settings import Settings
from .validation_images import LEAST, SHARE, Images

Scores: TypeAlias = dict[str, dict[str, float]]
"""The scores by name, of every generator: ``AtoB``, and ``AtoB_ema`` for its moving average."""

_BATCH = 16
"""Images whose features are computed at once."""

_LEAST = 1e-3
"""What a share is at least of, and the least standard deviation of a feature."""

NAMES = {name: score.words for name, score in SCORES.items()}
"""The scores in words."""
_DIRECTIONS = ("AtoB", "BtoA")
EMA = "_ema"


def generator_key(direction: str, *, ema: bool) -> str:
    """Return the name of a generator in `Scores`."""
    return f"{direction}{EMA if ema else ''}"


def words_of(generator: str) -> str:
    """Return the name of a generator for a person."""
    return f"{generator.removesuffix(EMA)} (EMA)" if generator.endswith(EMA) else generator


class Validation:
    """Scores both generators, each as it is and as its moving average, on fixed images."""

    def __init__(
        self, images: tuple[Images, Images], settings: Settings, device: torch.device, samples: int
    ) -> None:
        """Compute the features of the real images; ``samples`` is how many an epoch has.

        Raises ModelError for weights that are not InceptionV3's, BackendUnavailableError where
        torch-fidelity or torchmetrics is missing, InputError for a palette that cannot be read.
        """
        self.images, self._device = images, device
        self.every = 1
        """Epochs from one validation to the next."""
        self.follow(samples)
        run = settings.run
        self._inception = bool(run.inception)
        self._features: Features
        if self._inception:
            self._features = inception_features(Path(run.inception))
        else:
            self._features = RandomFeatures().to(device)
        self._palette: Palette | None = None
        self._labels: int | None = None
        """The number of the domain that holds label maps."""
        self._paired = bool(run.val_truth)
        self._ssim = ssim_function() if run.val_truth == "pictures" else None
        if run.val_truth not in ("", "pictures"):
            self._palette = palette = palette_from(run.val_truth)
            far = [_distance_from(palette, each.pixels) for each in images]
            self._labels = far.index(min(far))
        self._pixels = [[_rgb(image.to(device)) for image in each.pixels] for each in images]
        self._real = [self._features_of(pixels) for pixels in self._pixels]
        if not self._inception:
            # Random features differ in scale, and the kernel would see the largest alone.
            self._scales = [(real.mean(0), real.std(0).clamp_min(_LEAST)) for real in self._real]
            self._input_distances = [
                max(_LEAST, energy_distance(*self._scaled(self._real[1 - target], target)))
                for target in (0, 1)
            ]
            self._colour_errors = [max(_LEAST, _error_of_mean_colour(each)) for each in images]
        self.inputs: Scores = {
            direction: self._scores(self._pixels[source], 1 - source, 0.0)
            for source, direction in enumerate(_DIRECTIONS)
        }
        """The scores of generators that return their input."""
        digest = hashlib.sha256()
        for image in itertools.chain(*(each.pixels for each in images)):
            digest.update(image.numpy().tobytes())
        self.kind = {direction: deciding(scores) for direction, scores in self.inputs.items()}
        """The score that decides in each direction, and a digest of the images.

        Scores of different kinds cannot be compared.
        """
        self.kind["images"] = digest.hexdigest()

    def follow(self, samples: int) -> None:
        """Validate as often as epochs of so many samples allow."""
        most = max(len(each.names) for each in self.images)
        self.every = max(1, round(most / (SHARE * samples)))

    def sentences(self, *, fixed: bool) -> Iterator[str]:
        """Yield on which images and by what epochs are compared; ``fixed``: their length is."""
        for letter, images in zip("AB", self.images, strict=True):
            count = counted(len(images.names), "image")
            yield f"{letter}: validation on {count} {images.words()}"
        often = "after every epoch" if self.every == 1 else f"every {self.every} epochs"
        yield f"best is chosen by {self.words()}{f', {often}' if fixed else ''}"

    def words(self) -> str:
        """Return the scores that decide in words."""
        return " and ".join(dict.fromkeys(NAMES[self.kind[each]] for each in _DIRECTIONS))

    def due(self, epoch: int, epochs: int) -> bool:
        """Return whether an epoch is validated; the last one always is."""
        return epoch % self.every == 0 or epoch == epochs

    def scores(self, model: CycleGAN) -> Scores:
        """Return the scores of the generators as they are now."""
        found: Scores = {}
        for source, direction in enumerate(_DIRECTIONS):
            letter, other = "AB"[source], "BA"[source]
            for ema in (False, True):
                generator: nn.Module | None = getattr(model, f"{'ema' if ema else 'netG'}_{letter}")
                if generator is None:
                    continue
                back: nn.Module = (getattr(model, f"ema_{other}") if ema else None) or getattr(
                    model, f"netG_{other}"
                )
                fakes: list[Tensor] = []
                errors: list[Tensor] = []
                with model.computing(), evaluating(generator, back):
                    for image in self.images[source].pixels:
                        real = normalized(image[None].to(self._device))
                        fake = generator(real)
                        fakes.append(_rgb(levels(fake[0])))
                        if not self._inception:
                            errors.append((back(fake) - real).abs().mean())
                cycle = float(torch.stack(errors).mean()) if errors else 0.0
                key = generator_key(direction, ema=ema)
                found[key] = self._scores(fakes, 1 - source, cycle)
        return found

    def described(self) -> dict[str, object]:
        """Return what run.json says of the validation."""
        return {
            "every_epochs": self.every,
            "chosen_by": {each: NAMES[deciding(self.inputs[each])] for each in _DIRECTIONS},
            "A": self.images[0].described(),
            "B": self.images[1].described(),
            "inputs": self.inputs,
        }

    def _scaled(self, features: Tensor, target: int) -> tuple[Tensor, Tensor]:
        """Return features and the real ones of a domain, in standard deviations of the latter."""
        mean, deviation = self._scales[target]
        return (features - mean) / deviation, (self._real[target] - mean) / deviation

    def _scores(self, fakes: Sequence[Tensor], target: int, cycle: float) -> dict[str, float]:
        """Return the scores of RGB uint8 images as such of the domain ``target`` (0: A, 1: B).

        ``cycle`` is the mean error, in [-1, 1], of the images translated there and back.
        """
        features, real = self._features_of(fakes), self._real[target]
        if self._inception:
            scores = {
                "kid": kernel_distance(features, real),
                "fid": frechet_distance(features, real),
            }
        else:
            own, other = self._scaled(features, target)
            share = max(0.0, energy_distance(own, other)) / self._input_distances[target]
            scores = {
                "unpaired": share + cycle / self._colour_errors[1 - target],
                "random_kid": kernel_distance(own, other),
            }
        if not self._paired:
            return scores
        pairs = [
            (as_array(fake), as_array(true))
            for fake, true in zip(fakes, self._pixels[target], strict=True)
        ]
        if self._ssim is not None:
            each = [picture_score(fake, true, self._ssim) for fake, true in pairs]
            scores["psnr"], scores["ssim"] = (
                sum(values) / len(values) for values in list(zip(*each, strict=True))[:2]
            )
        elif self._palette is not None and self._labels == target:
            palette = self._palette
            number = len(palette.colours)
            counts = np.zeros((number, number + 1), np.int64)
            for fake, true in pairs:
                counts += confusion(palette.classes(true), palette.classes(fake), number)
            scores["iou"] = label_score(counts, tuple(palette.colours)).class_iou
        return scores

    def _features_of(self, images: Sequence[Tensor]) -> Tensor:
        """Return the features of RGB uint8 images, float32 on the CPU; equal sizes in batches."""
        batches: list[Tensor] = []
        with torch.no_grad():
            for _, group in itertools.groupby(images, lambda image: image.shape):
                whole = torch.stack(list(group))
                batches += [
                    self._features(part).float().cpu() for part in torch.split(whole, _BATCH)
                ]
        return torch.cat(batches)


class Best:
    """The best score of every generator, the epoch that had it, and the files of its weights."""

    def __init__(self, validation: Validation) -> None:
        self.validation = validation
        self._epochs: dict[str, int] = {}
        self._scores: dict[str, float] = {}
        self._last = 0
        """The last epoch that was validated."""
        self._files: dict[str, bytes] = {}
        """What was kept since `taken` was called."""
        self._cards: dict[str, object] = {}
        """The cards of all files that were ever kept."""

    def better(self, scores: Scores, epoch: int) -> list[str]:
        """Return the generators that are better than in any epoch before, and remember them."""
        self._last = epoch
        better: list[str] = []
        for generator, own in scores.items():
            name = deciding(own)
            if is_better(name, own[name], self._scores.get(generator, math.nan)):
                self._scores[generator], self._epochs[generator] = own[name], epoch
                better.append(generator)
        return better

    def keep(
        self,
        generators: Sequence[str],
        files: Mapping[str, bytes],
        cards: Mapping[str, object],
    ) -> None:
        """Keep the files of ``generators`` and their cards, in place of earlier ones."""
        for direction, ema in itertools.product(_DIRECTIONS, (False, True)):
            if generator_key(direction, ema=ema) in generators:
                file = generator_name(direction[0], ema=ema)
                self._files[file], self._cards[file] = files[file], cards[file]

    def taken(self) -> tuple[dict[str, bytes], dict[str, object]] | None:
        """Return the files kept since the last call and all cards; None where there are none."""
        files, self._files = self._files, {}
        return (files, self._cards) if files else None

    @property
    def epochs_without_better(self) -> int:
        """The epochs from the last better score of a direction to the last validation.

        Of a generator and its moving average the better one counts, as a translation takes it.
        """
        last = 0
        for direction in _DIRECTIONS:
            weights, taken = (generator_key(direction, ema=ema) for ema in (False, True))
            one, other = (self._scores.get(each, math.nan) for each in (weights, taken))
            if is_better(self.validation.kind[direction], one, other):
                taken = weights
            last = max(last, self._epochs.get(taken, 0))
        return self._last - last

    def sentence(self) -> str:
        """Return the best epochs in words."""
        parts = [
            f"{words_of(generator)} epoch {epoch} "
            f"({NAMES[self.validation.kind[generator.removesuffix(EMA)]]} "
            f"{self._scores[generator]:.4g})"
            for generator, epoch in self._epochs.items()
        ]
        return ", ".join(parts)

    def state_dict(self) -> State:
        """Return the state: plain values only."""
        return {
            "kind": self.validation.kind,
            "epochs": self._epochs,
            "scores": self._scores,
            "last": self._last,
            "cards": self._cards,
        }

    def load_state_dict(self, state: State) -> bool:
        """Go back to where `state_dict` was called; return False where the kind is another one.

        Then no score is taken over, since scores of two kinds cannot be compared.
        """
        if state["kind"] != self.validation.kind:
            return False
        self._epochs, self._scores = dict(state["epochs"]), dict(state["scores"])
        self._last, self._cards = state["last"], dict(state["cards"])
        return True


def levels(image: Tensor) -> Tensor:
    """Return an image in [-1, 1] as uint8, rounded half up as in a translation."""
    return ((image.float() + 1) * 127.5 + 0.5).floor().clamp(0, 255).to(torch.uint8)


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Put networks into eval mode, without gradients, and back."""
    modes = [network.training for network in networks]
    try:
        for network in networks:
            network.eval()
        with torch.no_grad():
            yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


def _error_of_mean_colour(images: Images) -> float:
    """Return the mean error, in [-1, 1], of images that are all of their mean colour."""
    each = [image.flatten(1).float() for image in images.pixels]
    colour = torch.stack([image.mean(1) for image in each]).mean(0)
    errors = [(image - colour[:, None]).abs().mean() for image in each]
    return float(torch.stack(errors).mean()) / 127.5


def _rgb(image: Tensor) -> Tensor:
    """Return ``(3, H, W)`` of an image of 1 or 3 channels."""
    return image.expand(3, -1, -1)


def as_array(image: Tensor) -> Pixels:
    """Return an image ``(C, H, W)`` as an array ``(H, W, C)``."""
    pixels: Pixels = image.permute(1, 2, 0).cpu().numpy()
    return pixels


def _distance_from(palette: Palette, images: Sequence[Tensor]) -> float:
    """Return the mean distance of the pixels of images from the nearest colour of a palette."""
    colours = np.array([*palette.colours.values(), *([palette.void] if palette.void else [])])
    distances = []
    for image in images[:LEAST]:
        pixels = as_array(_rgb(image))
        near = colours[palette.classes(pixels)]
        distances.append(float(np.abs(pixels.astype(np.int16) - near).mean()))
    return sum(distances) / len(distances)
