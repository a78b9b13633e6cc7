"""The images of a run: those to train on, to validate on, and of the sheets of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from cyclegan_batch.errors import InputError
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.wording import counted, printable

from .cyclegan import CycleGAN, generator_config
from .data import Domain, load_domains
from .networks import least_side
from .pixel_file import Disk
from .settings import Settings
from .validation_images import set_apart

_SAMPLES_IN_MEMORY = 2**28
"""Bytes of the images of a sheet, of each domain, above which they go to a file."""


class RunImages:
    """Both domains, read, and what is taken from them or from the folders beside them."""

    def __init__(
        self,
        folders: tuple[Path, Path, Path | None, Path | None],
        validation_folders: tuple[Path | None, Path | None],
        settings: Settings,
        sizes: SizeRequirements,
        *,
        workers: int,
        disk: Disk,
        held_out: tuple[int, int] | None,
        watch: Callable[[str, int, int], None],
    ) -> None:
        """Read the images of ``folders``: trainA, trainB, testA, testB.

        ``workers`` threads decode. What does not fit into memory is kept on ``disk``. ``held_out``
        is how many of each domain a resumed run has held out. ``watch`` is called with A or B, how
        many of its images are read, and of how many. Raises InputError.
        """
        data = dataclasses.replace(settings.data, workers=workers)
        self._settings = settings = dataclasses.replace(settings, data=data)
        channels = settings.train.input_nc, settings.train.output_nc
        self.a, self.b = load_domains(
            folders[:2], data, channels=channels, sizes=sizes, disk=disk, watch=watch
        )
        self._refuse_mixed_sizes()
        self.validation = set_apart((self.a, self.b), validation_folders, settings, sizes, held_out)
        """The images of A and of B to validate on, none where nothing is validated."""
        if settings.run.early_stop and not self.validated:
            raise InputError(
                f"early_stop compares the scores of epochs, and none gets one: {self._too_few()}; "
                "leave early_stop out, or add images"
            )
        self.samples: tuple[Domain, Domain] | None = None
        """The images of the sheets: those for testing, or some of the training."""
        if count := settings.run.samples:
            a, b = (
                Domain(
                    test or train.folder,
                    data,
                    channels=nc,
                    sizes=sizes,
                    budget=_SAMPLES_IN_MEMORY,
                    disk=disk,
                    most=count,
                )
                for test, train, nc in zip(folders[2:], (self.a, self.b), channels, strict=True)
            )
            self.samples = a, b

    @property
    def validated(self) -> bool:
        """Whether there are images to validate on, two of each domain at least."""
        return min(len(each.names) for each in self.validation) > 1

    def _too_few(self) -> str:
        few = min(zip("AB", self.validation, strict=True), key=lambda each: len(each[1].names))
        return (
            f"{few[0]} has {counted(len(few[1].names), 'image')} to validate on, and 2 are needed"
        )

    def sentences(self, processes: int) -> Iterator[str]:
        """Yield what was read, left out and skipped, for the user of so many processes."""
        for letter, domain in (("A", self.a), ("B", self.b)):
            count = counted(len(domain), "image")
            yield f"{letter}: {count} of {printable(domain.folder)}, {domain.where}"
            yield from domain.sentences(letter)
        for images in self.validation:
            yield from images.told
        for domain, train in zip(self.samples or (), (self.a, self.b), strict=False):
            if domain.folder != train.folder:
                yield from domain.sentences(domain.folder.name)
        if self._settings.run.val_images and not self.validated:
            yield f"nothing is validated, and there will be no best: {self._too_few()}"
        together = self._settings.data.batch_size * processes
        if together > max(len(self.a), len(self.b)):
            yield (
                f"a step takes {together} images of each domain, which is more than either has: "
                "every step repeats some of them, each time with its own cut and flip"
            )

    def to_device(self, device: torch.device) -> None:
        """Move the images to a GPU, where they take less than half of what is free."""
        free, _ = torch.cuda.mem_get_info(device)
        cached = self.a.cached is not None and self.b.cached is not None
        if cached and self.a.bytes + self.b.bytes < free // 2:
            self.a.to(device)
            self.b.to(device)

    def close(self) -> None:
        """Remove the temporary files."""
        for domain in (self.a, self.b, *(self.samples or ())):
            domain.close()

    def _refuse_mixed_sizes(self) -> None:
        """Refuse images of several sizes where a step needs one. Raises InputError."""
        sizes = list(dict.fromkeys((*self.a.shapes, *self.b.shapes)))
        if self._settings.train.gan_mode == "wgangp" and len(sizes) > 1:
            (height, width), (other_height, other_width) = sizes[:2]
            raise InputError(
                f"gan_mode = wgangp mixes real and fake images of one size, and there are "
                f"{width}×{height} and {other_width}×{other_height}; use a preprocess that crops, "
                "or lsgan"
            )


def trainable_sizes(model: CycleGAN, settings: Settings) -> SizeRequirements:
    """Return the sizes that all four networks can be trained on. Raises InputError."""
    config, data = settings.train, settings.data
    sizes = generator_config(config, "AtoB").sizes
    least = least_side(model.netD_A, data.batch_size)
    if "crop" in data.preprocess and data.crop_size < least:
        raise InputError(
            f"crop_size = {data.crop_size}: the discriminator (netD = {config.netD}, "
            f"n_layers_D = {config.n_layers_D}) needs images of at least {least}×{least}; "
            "choose a larger crop_size, or n_layers with a smaller n_layers_D"
        )
    return dataclasses.replace(sizes, minimum=max(sizes.minimum, least))
