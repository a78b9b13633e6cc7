"""Describe a file as ``inspect`` prints it: a model's card, a container's streams, or an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, TypedDict

from .errors import InputError, SeveralGeneratorsError
from .models.checkpoints.file_names import has_checkpoint_name
from .models.checkpoints.files import ANY_GENERATOR, Selection, is_checkpoint
from .options import MAX_PIXELS
from .remote import RemotePath
from .wording import printable, why_store_failed

if TYPE_CHECKING:
    from .models.checkpoints.loading import LoadedGenerator


class ImageDescription(TypedDict):
    """The header of an image file."""

    path: str
    format: str
    size: str
    """Width × height, as stored."""
    displayed_size: str
    """Width × height, upright by its EXIF orientation."""
    mode: str
    bits: int
    orientation: int
    pages: int
    icc_profile_bytes: int
    exif_bytes: int


def inspect_file(
    path: Path,
    *,
    count_frames: bool = False,
    model_io: str | None = None,
    selection: Selection = ANY_GENERATOR,
) -> dict[str, object]:
    """Return a description of the file at ``path``, as values that JSON can hold.

    The ending of its name, or the first bytes of a checkpoint, show which kind of file it is; any
    other file is opened as a video. Of several generators, the one of ``selection`` is described.
    A model of a store is fetched into the cache folder, and known by the ending of its name only.
    Raises InputError, ModelError, OutputError, and BackendUnavailableError where a checkpoint needs
    torch.
    """
    from .media.formats import ANIMATION_SUFFIXES, IMAGE_FORMATS, TAR_SUFFIX
    from .media.pattern import parse_pattern

    suffix = path.suffix.lower()
    by_name = suffix in {".onnx", ".engine", ".plan", ".trt"}
    if isinstance(path, RemotePath):
        _refuse_no_object(path)
        if by_name or has_checkpoint_name(path.name):
            from .models.fetched import fetched_model

            local, _ = fetched_model(path)
            described = _describe_model(local, model_io, selection)
            return {"kind": "model", **described, "path": printable(path)}
    elif not path.exists() and parse_pattern(path.name) and path.parent.is_dir():
        return {"kind": "numbered images", **_describe_numbered(path)}
    elif not path.exists():
        raise InputError(
            f"{printable(path)}: no such file; inspect describes a model, a video or an image"
        )
    elif by_name or is_checkpoint(path):
        return {"kind": "model", **_describe_model(path, model_io, selection)}
    from .media.animations.reading import describe_animation
    from .media.animations.structure import is_animation
    from .media.demux.description import describe

    if suffix in ANIMATION_SUFFIXES and is_animation(path):
        animation = describe_animation(path, max_pixels=MAX_PIXELS)
        assert animation is not None
        return {"kind": "media", **describe(animation)}
    if suffix in IMAGE_FORMATS:
        return {"kind": "image", **_describe_image(path)}
    if suffix == TAR_SUFFIX:
        from .media.tars.description import describe_tar

        return {"kind": "tar", **describe_tar(path)}
    from .media.demux.probe import probe

    return {"kind": "media", **describe(probe(path, count_frames=count_frames))}


_LISTED = 20
"""Rows of consecutive numbers that are listed."""


def _describe_numbered(path: Path) -> dict[str, object]:
    """Return which numbers there are of a pattern of images, and the header of the first one."""
    from .media.pattern import as_spans, numbered_files

    files = numbered_files(path)
    if not files:
        raise InputError(
            f"{printable(path)}: no file of this name, and none that matches it as a pattern; "
            "check the number of digits (%06d means six)"
        )
    spans = as_spans(files)
    words = [f"{a}–{b}" if b > a else f"{a}" for a, b in spans[:_LISTED]]
    words += [f"{len(spans) - _LISTED} more rows"] if len(spans) > _LISTED else []
    first = next(iter(files.values()))
    return {
        "path": printable(path),
        "images": len(files),
        "numbers": ", ".join(words),
        "missing": spans[-1][1] - spans[0][0] + 1 - len(files),
        "bytes": sum(each.stat().st_size for each in files.values()),
        "first": {**_describe_image(first)},
    }


def _refuse_no_object(url: RemotePath) -> None:
    try:
        is_prefix = S_ISDIR(url.stat().st_mode)
    except OSError as error:
        raise InputError(f"{printable(url)}: {why_store_failed(error)}") from error
    if is_prefix:
        raise InputError(f"{printable(url)}: is a prefix; inspect describes one object of a store")


def _describe_model(path: Path, model_io: str | None, selection: Selection) -> dict[str, object]:
    from .models.engine_card import describe_engine
    from .models.model import describe, open_model

    try:
        model = open_model(path, model_io=model_io, selection=selection)
    except SeveralGeneratorsError as error:
        return {
            "path": printable(path),
            "kind": "checkpoint of several generators",
            "generators": dict(error.generators),
            "remedy": error.remedy,
        }
    card = model.card
    if model.checkpoint:
        # The card has what was assumed in a list of its own.
        told = set(model.checkpoint.assumptions)
        card = replace(card, notes=tuple(note for note in card.notes if note not in told))
    description = describe(card)
    if model.io:
        in_part = "in part assumed (its graph does not show all)"
        description |= {
            "certainty": in_part
            if model.assumed
            else "certain (its graph and --model-io tell all)",
            "read_from_graph": list(model.read),
            "assumed": list(model.assumed),
        }
    if model.engine:
        description |= describe_engine(model.engine)
    if model.checkpoint:
        description |= _describe_generator(model.checkpoint)
    return description


def _describe_generator(loaded: LoadedGenerator) -> dict[str, object]:
    """Return how large a checkpoint's network is, and what else is in its file."""
    parameters = sum(weight.numel() for weight in loaded.network.parameters())
    metadata = {"metadata": dict(loaded.metadata)} if loaded.metadata else {}
    return {"parameters": parameters, "also_holds": dict(loaded.others), **metadata}


def _describe_image(path: Path) -> ImageDescription:
    from .media.images.headers import read_header

    with path.open("rb") as file:
        header = read_header(file, printable(path), max_pixels=MAX_PIXELS)
    (height, width), (displayed_height, displayed_width) = header.size, header.displayed_size
    return {
        "path": printable(path),
        "format": header.format,
        "size": f"{width}×{height}",
        "displayed_size": f"{displayed_width}×{displayed_height}",
        "mode": header.mode,
        "bits": header.bits,
        "orientation": header.orientation,
        "pages": header.pages,
        "icc_profile_bytes": len(header.icc or b""),
        "exif_bytes": len(header.exif or b""),
    }
