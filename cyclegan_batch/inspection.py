"""What a file says of itself: a model's card, a container's streams, or a picture's header."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .models.checkpoint_files import Direction, is_checkpoint
from .options import TranslateOptions
from .wording import printable

if TYPE_CHECKING:
    from .models.checkpoints import LoadedGenerator


def inspect_file(
    path: Path,
    *,
    count_frames: bool = False,
    model_io: str | None = None,
    direction: Direction | None = None,
) -> dict[str, Any]:
    """Describe the file at ``path`` by its name's ending, else by its content, as JSON-able values.

    Of a run, or another folder of generators, the one of ``direction`` is described. Raises
    InputError, ModelError, and BackendUnavailableError where a checkpoint needs torch.
    """
    from .media.formats import IMAGE_FORMATS

    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError(
            f"{printable(path)}: no such file; inspect describes a model, a clip or a picture"
        )
    if suffix in {".onnx", ".engine", ".plan", ".trt"} or is_checkpoint(path):
        from .models import engine_card, model

        opened = model.open_model(path, model_io=model_io, direction=direction)
        described = {"kind": "model"} | model.describe(opened.card)
        if opened.engine:
            described |= engine_card.describe_engine(opened.engine)
        if opened.checkpoint:
            described |= _describe_generator(opened.checkpoint)
        return described
    if suffix in IMAGE_FORMATS:
        return {"kind": "image"} | _describe_picture(path)
    from .media.description import describe
    from .media.probe import probe

    return {"kind": "media", **describe(probe(path, count_frames=count_frames))}


def _describe_generator(loaded: LoadedGenerator) -> dict[str, Any]:
    """Return the size of a checkpoint's network, and what the file says of its training."""
    parameters = sum(weight.numel() for weight in loaded.network.parameters())
    metadata = {"metadata": dict(loaded.metadata)} if loaded.metadata else {}
    return {"parameters": parameters, **metadata}


def _describe_picture(path: Path) -> dict[str, Any]:
    from .media.headers import read_header

    with path.open("rb") as file:
        header = read_header(file, printable(path), max_pixels=TranslateOptions().max_pixels)
    (height, width), (shown_height, shown_width) = header.size, header.displayed_size
    return {
        "path": printable(path),
        "format": header.format,
        "size": f"{width}×{height}",
        "displayed_size": f"{shown_width}×{shown_height}",
        "mode": header.mode,
        "bits": header.bits,
        "orientation": header.orientation,
        "pages": header.pages,
        "icc_profile_bytes": len(header.icc or b""),
        "exif_bytes": len(header.exif or b""),
    }
