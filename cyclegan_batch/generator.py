"""A generator as a function on arrays, for a program that has its frames in memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from .backends import Backend, open_backend
from .files import PathLike
from .frames import Pixels, as_pixel_type, geometry, to_uint8
from .models.card import ModelCard
from .opening import open_for_translation
from .options import (
    BackendName,
    Direction,
    FamilyName,
    FrameSize,
    TranslateOptions,
    TranslatePrecision,
)
from .remote import as_path


class Generator:
    """A generator as a function on arrays; a context manager, not thread-safe."""

    def __init__(
        self,
        backend: Backend,
        *,
        size: FrameSize = "native",
        fit: Literal["pad", "stretch"] | None = None,
    ) -> None:
        self._backend = backend
        self._size, self._fit = size, fit

    @property
    def card(self) -> ModelCard:
        """The card of the model."""
        return self._backend.card

    def __call__(self, frames: Pixels) -> Pixels:
        """Translate RGB ``frames``, ``(N, H, W, 3)``, uint8 in 0..255 or floating point in [0, 1].

        The result has the shape of ``frames``, at any H and W, and their dtype; where the model
        takes uint8, floating point is rounded to 8 bits. Raises ValueError for another shape or
        dtype.
        """
        if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise ValueError(f"frames must be (N, H, W, 3) and not empty, got {frames.shape}")
        dtype = frames.dtype
        if dtype != np.uint8 and dtype.kind != "f":
            raise ValueError(f"frames must be uint8 or floating point in [0, 1], got {dtype}")
        if self.card.pixel_type == "uint8":
            inputs = frames if dtype == np.uint8 else to_uint8(frames)
        else:
            inputs = as_pixel_type(frames, "float16") if dtype == np.uint8 else frames
            inputs = inputs.astype(np.float16, copy=False)
        height, width = frames.shape[1:3]
        shape = geometry((height, width), self.card.sizes, size=self._size, fit=self._fit)
        rows = self._backend.infer(np.stack([shape.into_network(frame) for frame in inputs]))
        out = np.stack([shape.out_of_network(row) for row in rows])
        if dtype == np.uint8:
            return to_uint8(out)
        return (out / np.float32(255)).astype(dtype) if out.dtype == np.uint8 else out.astype(dtype)

    def close(self) -> None:
        """Release the model; a second call has no effect."""
        self._backend.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_generator(
    model: PathLike,
    *,
    direction: Direction | None = None,
    weights: str | None = None,
    family: FamilyName | None = None,
    model_io: str | None = None,
    backend: BackendName = "auto",
    device: str = "auto",
    precision: TranslatePrecision = "auto",
    threads: int | None = None,
    trust_engine: bool = False,
    cache_dir: PathLike | None = None,
    size: FrameSize = "native",
    fit: Literal["pad", "stretch"] | None = None,
) -> Generator:
    """Open the generator at ``model`` for use on arrays; the keywords are those of `translate`.

    A checkpoint is exported once and the export kept, so that the pixels equal those that
    `translate` writes; ``backend="torch"`` runs the checkpoint as it is. Raises ModelError,
    BackendError, OutputError, and ValueError for a value that an option does not have.
    """
    options = TranslateOptions(
        direction=direction,
        weights=weights,
        family=family,
        model_io=model_io,
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
        trust_engine=trust_engine,
        size=size,
        fit=fit,
        cache_dir=None if cache_dir is None else Path(cache_dir),
    )
    runtime = open_backend(
        open_for_translation(as_path(model), options),
        backend=options.backend,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        trust_engine=options.trust_engine,
        cache_dir=options.cache_dir,
    )
    return Generator(runtime, size=size, fit=fit)
