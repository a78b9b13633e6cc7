"""The preview of a job: a few frames as one image, each source above its result."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ..backends import Backend
from ..errors import InputError, OutputError
from ..files import writing
from ..frames import Pixels, to_uint8
from ..generator import Generator
from ..media import first_frame
from ..media.formats import PIPE, Entry
from ..media.images.codec import encode_picture
from ..media.images.shards import ImageSource, plan_images
from ..media.tars.plan import TarPlan
from ..media.tars.source import TarSource
from ..media.video.plan import VideoPlan
from ..media.video.source import VideoSource
from ..remote import is_bucket
from ..wording import printable
from .plan import JobPlan

_COLUMN = 480
"""Largest width of a frame in the preview, in pixels."""
_GAP = 8
"""Pixels between frames."""


def preview_path(plan: JobPlan) -> Path:
    """Return the path of a job's preview, beside its only output or beside its output folder.

    Raises OutputError where the output is a pipe or a whole bucket.
    """
    output = plan.entries[0].output if len(plan.entries) == 1 else plan.output
    if output == PIPE:
        raise OutputError("-: a preview is a file and needs a name: name a file as OUTPUT")
    if is_bucket(output):
        raise OutputError(
            f"{printable(output)}: a preview lies beside the output, and beside a bucket is no "
            "place: name a prefix in it as OUTPUT"
        )
    if output.name in ("", ".."):
        output = output.resolve()
    return output.with_name(output.name + ".preview.png")


def write_preview(plan: JobPlan, backend: Backend, count: int) -> Path:
    """Translate ``count`` frames, evenly spread over the inputs, and write them as one image.

    Each frame is a column, its source above its result; of a tar it is the first image. Returns the
    path of the image. Raises what the job would raise.
    """
    target = preview_path(plan)
    if target.exists() and not plan.options.overwrite:
        raise OutputError(f"{printable(target)}: exists already; -y overwrites it")
    sources: list[VideoPlan | TarPlan | Entry] = [*plan.videos, *plan.tars]
    sources += [entry for shard in plan.shards for entry in shard.entries]
    if not sources:
        raise InputError("nothing among the inputs can be previewed: none of them is translated")
    columns = []
    with Generator(backend, size=plan.options.size, fit=plan.options.fit) as generator:
        for number in range(count):
            place = (number + 0.5) / count * len(sources)
            pixels = _frame(plan, sources[int(place)], place - int(place))
            result = generator(pixels[np.newaxis])[0]
            columns.append(np.vstack([_shrunk(pixels), _gap(_shrunk(pixels)), _shrunk(result)]))
    encoded = encode_picture(_side_by_side(columns), "png")
    with writing(target, overwrite=plan.options.overwrite) as partial:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(encoded)
    return target


def _frame(plan: JobPlan, source: VideoPlan | TarPlan | Entry, place: float) -> Pixels:
    """Return the frame at ``place`` (0 the beginning, 1 the end) of an input, ``(H, W, 3)``."""
    if isinstance(source, Entry):
        # With overwrite, an existing output of the job is not refused; it is not touched either.
        options = plan.options.replacing
        shard = plan_images([source], options, pixel_type=plan.model.card.pixel_type)[0]
        return first_frame(ImageSource(shard), printable(source.source))
    if isinstance(source, TarPlan):
        return first_frame(TarSource(source), source.name)
    if source.path == PIPE:
        raise InputError("-: a pipe cannot be previewed, since it is read only once; name a file")
    # No frame begins after the last one, which may be shown for long: then look earlier.
    for earlier in (place, place / 2):
        with contextlib.suppress(InputError):
            return first_frame(VideoSource(_only_frame_at(source, earlier)), source.name)
    return first_frame(VideoSource(_only_frame_at(source, 0.0)), source.name)


def _only_frame_at(video: VideoPlan, place: float) -> VideoPlan:
    """Return a plan for the one frame at ``place`` (0..1) of the range that ``video`` covers."""
    begin = video.options.ss or 0.0
    seconds = float(video.info.length or 0)
    end = min(seconds, video.options.to if video.options.to is not None else seconds)
    options = replace(video.options, ss=begin + place * max(0.0, end - begin), to=None, frames=1)
    return replace(video, options=options)


def _shrunk(pixels: Pixels) -> Pixels:
    pixels = to_uint8(pixels)
    height, width = pixels.shape[:2]
    if width <= _COLUMN:
        return pixels
    size = (_COLUMN, max(1, round(height * _COLUMN / width)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _gap(pixels: Pixels) -> Pixels:
    return np.full((_GAP, pixels.shape[1], 3), 255, np.uint8)


def _side_by_side(columns: list[Pixels]) -> Pixels:
    height = max(len(column) for column in columns)
    padded = []
    for column in columns:
        below = ((0, height - len(column)), (_GAP, 0), (0, 0))
        padded.append(np.pad(column, below, constant_values=255))
    return np.hstack(padded)[:, _GAP:]
