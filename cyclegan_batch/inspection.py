"""What a file says of itself: a model's card, a container's streams, or a picture's header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import InputError


def inspect_file(
    path: Path, *, count_frames: bool = False, model_io: str | None = None
) -> dict[str, Any]:
    """Describe the file at ``path`` by its name's ending, else by its content, as JSON-able values.

    Raises InputError or ModelError.
    """
    from .inputs import IMAGE_SUFFIXES

    suffix = path.suffix.lower()
    if not path.is_file():
        raise InputError(f"{path}: no such file; inspect describes a model, a clip or a picture")
    if suffix in {".onnx", ".pth", ".pt", ".safetensors", ".engine"}:
        from . import model

        return {"kind": "model"} | model.describe(model.open_model(path, model_io=model_io).card)
    if suffix in IMAGE_SUFFIXES:
        from .media import images

        return {"kind": "image"} | images.describe(path)
    from .media import containers

    return {"kind": "media"} | containers.describe(
        containers.probe(path, count_frames=count_frames)
    )
