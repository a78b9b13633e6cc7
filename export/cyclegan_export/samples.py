"""The frames that a file is measured on: from files of the user, a run's data, or computed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cyclegan_batch.errors import InputError
from cyclegan_batch.frames import Geometry, Pixels, Size
from cyclegan_batch.media import first_frame
from cyclegan_batch.media.formats import IMAGE_FORMATS, PIPE, VIDEO_SUFFIXES, natural_key
from cyclegan_batch.media.images.codec import decode_picture
from cyclegan_batch.models.checkpoints.run_folder import DESCRIPTION
from cyclegan_batch.models.parity import natural_frames
from cyclegan_batch.options import Direction, TranslateOptions
from cyclegan_batch.wording import printable


@dataclass(frozen=True)
class Samples:
    """Frames of one size, and their origin."""

    frames: Pixels
    """``(count, H, W, 3)`` uint8."""
    description: str
    """The frames in words: ``4 computed frames``."""


def samples_for(
    files: Path | None, source: Path, direction: Direction | None, size: Size, count: int
) -> Samples:
    """Return ``count`` frames of ``size`` to measure a generator on.

    They are from ``files`` (an image, a video, or a folder of them) where that is given; else from
    the training images of the run whose folder holds ``source``, where these still exist; else
    computed. ``direction`` is the generator's, AtoB where unknown. Raises InputError where
    ``files`` holds no image.
    """
    if files is not None:
        return Samples(frames_from_files(files, size, count), f"{count} given frames")
    folder = _data_folder(source, direction)
    if folder is not None:
        # Where the folder no longer holds images, frames are computed.
        with contextlib.suppress(InputError):
            return Samples(frames_from_files(folder, size, count), f"{count} frames of its run")
    return Samples(natural_frames(size, count), f"{count} computed frames")


def frames_from_files(path: Path, size: Size, count: int) -> Pixels:
    """Return ``count`` frames, evenly spread over ``path``: ``(count, H, W, 3)`` uint8.

    ``path`` is an image, a video, or a folder of them. Each frame is cropped about its middle to
    the proportions of ``size`` and resized. Where there are fewer images than ``count``, some are
    used several times. Raises InputError.
    """
    files = _media_files(path)
    if not files:
        raise InputError(
            f"{printable(path)}: no image and no video in it; name a folder, an image or a video"
        )
    frames = np.empty((count, *size, 3), np.uint8)
    for number in range(count):
        place = (number + 0.5) / count * len(files)
        image = _image(files[int(place)], place - int(place))
        frames[number] = _cropped(image, size)
    return frames


def _media_files(path: Path) -> Sequence[Path]:
    if not path.is_dir():
        return [path]
    suffixes = IMAGE_FORMATS.keys() | VIDEO_SUFFIXES
    try:
        files = [
            file
            for file in path.rglob("*")
            if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
        ]
    except OSError as error:
        raise InputError(
            f"{printable(path)}: cannot be read: {error.strerror}; check the folder"
        ) from error
    return sorted(files, key=natural_key)


def _image(path: Path, place: float) -> Pixels:
    """Return the image at ``path``, or the frame at ``place`` (0..1) of a video."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return _frame_of_video(path, place)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{printable(path)}: cannot be read: {error.strerror}; check the name"
        ) from error
    return decode_picture(data, printable(path)).pixels


def _frame_of_video(path: Path, place: float) -> Pixels:
    from cyclegan_batch.media.demux.probe import probe
    from cyclegan_batch.media.video.plan import plan_video
    from cyclegan_batch.media.video.source import VideoSource

    seconds = float(probe(path).duration or 0) * place
    options = TranslateOptions(ss=seconds, frames=1)
    # Nothing is written; a pipe is the only output that needs no encoder.
    source = VideoSource(plan_video(path, PIPE, options, pixel_type="uint8"))
    return first_frame(source, f"{printable(path)} at {seconds:.2f} s")


def _cropped(image: Pixels, size: Size) -> Pixels:
    """Return the largest part about the middle with the proportions of ``size``, resized to it."""
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1])
    content = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - content[0]) // 2, (width - content[1]) // 2
    part = image[top : top + content[0], left : left + content[1]]
    return Geometry(content, size, size).into_network(part)


def _data_folder(source: Path, direction: Direction | None) -> Path | None:
    """Return the source images of the run whose folder holds ``source``; None without a run."""
    domain = "B" if direction == "BtoA" else "A"
    for run in source.resolve().parents[:3]:
        try:
            description = json.loads((run / DESCRIPTION).read_text())
            data = Path(description["data"][domain]["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return data if data.is_dir() else None
    return None
