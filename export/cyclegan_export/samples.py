"""Pictures to measure a file on: those that the user names, a run's own, or computed ones."""

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
from cyclegan_batch.media.pictures import decode_picture
from cyclegan_batch.models.parity import natural_frames
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import printable


@dataclass(frozen=True)
class Samples:
    """Frames of one size, and where they are from."""

    frames: Pixels
    """``(count, H, W, 3)`` uint8."""
    said: str
    """What they are, in words: ``4 computed frames``."""


def samples_for(named: Path | None, checkpoint: Path, size: Size, count: int) -> Samples:
    """Return ``count`` frames of ``size`` to measure a generator on.

    From ``named`` (a picture, a video, or a folder of them); else from the folder of pictures that
    the run of ``checkpoint`` was trained on, where it is still there; else computed. Raises
    InputError where ``named`` holds no picture.
    """
    if named is not None:
        return Samples(frames_from_files(named, size, count), f"{count} given frames")
    folder = _folder_of_run(checkpoint)
    if folder is not None:
        # Moved or emptied since, it is not asked for.
        with contextlib.suppress(InputError):
            return Samples(frames_from_files(folder, size, count), f"{count} frames of its run")
    return Samples(natural_frames(size, count), f"{count} computed frames")


def frames_from_files(path: Path, size: Size, count: int) -> Pixels:
    """Return ``count`` frames, evenly spread over ``path``: ``(count, H, W, 3)`` uint8.

    ``path`` is a picture, a video, or a folder of them. Each frame is cut to the shape of ``size``
    about its middle and resized. Where there are fewer pictures than ``count``, some are taken
    several times. Raises InputError.
    """
    files = _media_files(path)
    if not files:
        raise InputError(
            f"{printable(path)}: no picture and no video in it; name a folder, a picture or a video"
        )
    frames = np.empty((count, *size, 3), np.uint8)
    for number in range(count):
        place = (number + 0.5) / count * len(files)
        picture = _picture(files[int(place)], place - int(place))
        frames[number] = _cut(picture, size)
    return frames


def _media_files(path: Path) -> Sequence[Path]:
    if not path.is_dir():
        return [path]
    known = IMAGE_FORMATS.keys() | VIDEO_SUFFIXES
    try:
        found = [
            file
            for file in path.rglob("*")
            if file.suffix.lower() in known and not file.name.startswith(".") and file.is_file()
        ]
    except OSError as error:
        raise InputError(
            f"{printable(path)}: cannot be read: {error.strerror}; check the folder"
        ) from error
    return sorted(found, key=natural_key)


def _picture(path: Path, place: float) -> Pixels:
    """Return the picture at ``path``, or the one at ``place`` (0..1) of a video."""
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
    from cyclegan_batch.media.probe import probe
    from cyclegan_batch.media.video import plan_video
    from cyclegan_batch.media.video_source import VideoSource

    seconds = float(probe(path).duration or 0) * place
    options = TranslateOptions(ss=seconds, frames=1)
    # Its output is never written: a pipe is the one that needs no encoder.
    source = VideoSource(plan_video(path, PIPE, options, pixel_type="uint8"))
    return first_frame(source, f"{printable(path)} at {seconds:.2f} s")


def _cut(picture: Pixels, size: Size) -> Pixels:
    """Return the largest part about the middle that has the shape of ``size``, resized to it."""
    height, width = picture.shape[:2]
    scale = min(height / size[0], width / size[1])
    content = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - content[0]) // 2, (width - content[1]) // 2
    part = picture[top : top + content[0], left : left + content[1]]
    return Geometry(content, size, size).into_network(part)


def _folder_of_run(checkpoint: Path) -> Path | None:
    """Return the folder of the pictures that the run around ``checkpoint`` translates."""
    for folder in checkpoint.resolve().parents[:3]:
        try:
            said = json.loads((folder / "run.json").read_text())["data"]
            named = Path(said["B" if "_B" in checkpoint.name else "A"]["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return named if named.is_dir() else None
    return None
