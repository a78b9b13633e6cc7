"""A short clip that a run translates again and again, to show what its generator does to motion.

The clip is read once, before the first step. Its frames stay in memory in the size of the training,
so the run goes on where the file is gone later.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from cyclegan_batch.errors import CycleganBatchError, InputError
from cyclegan_batch.frames import Frame, Geometry, Pixels, Size, SizeRequirements
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.video.plan import VideoPlan, plan_video
from cyclegan_batch.media.video.sink import VideoSink
from cyclegan_batch.media.video.source import VideoSource
from cyclegan_batch.models.checkpoints.run_folder import VIDEO_ENDING
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import counted, printable

from .cyclegan import CycleGAN
from .data import normalized
from .settings import Settings
from .validation import as_array, evaluating, levels

_SECONDS = 4.0
_MOST_BYTES = 2**28
"""How much of a clip is translated: its beginning, and of that as many frames as fit into so many
bytes."""

_SHARE = 0.25
"""Frames that are translated, as a share of the samples of the epochs since the last video; a frame
counts as many times as it is larger than an image of the training. So videos took 1.2 % of the CPU
time with the networks of the recipe ``cpu``, and 0.9 % with tiny ones (ngf 8, 64²)."""


class SampleVideo:
    """The beginning of a clip, and how it becomes a video of the generator as it is."""

    def __init__(self, settings: Settings, sizes: SizeRequirements) -> None:
        """Read the clip ``sample_video``; ``sizes`` are those that the networks accept.

        Raises InputError where it cannot be read, OutputError where it cannot be encoded.
        """
        run, data, train = settings.run, settings.data, settings.train
        self.clip = Path(run.sample_video)
        self._direction = run.sample_direction
        self._channels = train.input_nc if self._direction == "AtoB" else train.output_nc
        side = data.crop_size if "crop" in data.preprocess else data.load_size
        plan = _planned(self.clip, side)
        self._geometry = Geometry(plan.size, plan.output_size, sizes.smallest_fit(plan.output_size))
        pixels = math.prod(self._geometry.network)
        most = max(1, _MOST_BYTES // (pixels * self._channels))
        plan = replace(plan, options=replace(plan.options, frames=most))
        self._frames = self._read(plan)
        self._plan = _alone(plan)
        self._cost = len(self._frames) * pixels / (side**2 * _SHARE)
        """The samples of the training for which there is one video."""
        self.every = 1
        """Epochs from one video to the next."""

    def sentence(self) -> str:
        """Return what becomes of the clip in words."""
        height, width = self._plan.output_size
        one, other = self._direction[0], self._direction[-1]
        count = len(self._frames)
        return (
            f"sample_video: {counted(count, 'frame')} of {printable(self.clip)}, at "
            f"{width}×{height}, {'is' if count == 1 else 'are'} translated from {one} to {other} "
            "as the run goes on"
        )

    def described(self) -> dict[str, object]:
        """Return what run.json says of the clip."""
        return {
            "clip": printable(self.clip.resolve()),
            "frames": len(self._frames),
            "size": list(self._plan.output_size),
            "direction": self._direction,
            "every_epochs": self.every,
        }

    def follow(self, samples: int) -> None:
        """Translate as often as epochs of so many samples allow."""
        self.every = math.ceil(self._cost / samples)

    def due(self, epoch: int, *, last: bool) -> bool:
        """Return whether an epoch gets a video; the last one always does."""
        return last or epoch % self.every == 0

    def write(self, path: Path, model: CycleGAN) -> None:
        """Translate the frames with the generator as it is, or its moving average, into a file.

        Raises OutputError.
        """
        letter = self._direction[0]
        network: nn.Module = getattr(model, f"ema_{letter}") or getattr(model, f"netG_{letter}")
        assert self._plan.streams is not None
        streams = replace(self._plan.streams, output=path)
        sink = VideoSink(replace(self._plan, output=path, streams=streams))
        encoded = sink.converter()
        try:
            with model.computing(), evaluating(network):
                for frame in self._frames:
                    real = torch.from_numpy(frame.pixels).permute(2, 0, 1)[None].contiguous()
                    fake = levels(network(normalized(real.to(model.device)))[0])
                    pixels = as_array(fake.expand(3, -1, -1))
                    shown = self._geometry.out_of_network(pixels, keep_size=True)
                    sink.write(encoded(replace(frame, pixels=shown)))
            sink.finish()
        finally:
            sink.discard()

    def _read(self, plan: VideoPlan) -> list[Frame]:
        """Return the frames that can be read, as the network takes them. Raises InputError."""
        frames: list[Frame] = []
        lost: CycleganBatchError | None = None
        source = VideoSource(plan)
        upright = source.converter()
        with contextlib.closing(source):
            for item in source.read():
                frame = item if isinstance(item, Dropped) else upright(item)
                if isinstance(frame, Dropped):
                    lost = lost or frame.error
                else:
                    frames.append(replace(frame, pixels=self._fitted(frame.pixels)))
        if not frames:
            raise lost or InputError(f"{plan.name}: has no frames; name another clip")
        return frames

    def _fitted(self, pixels: Pixels) -> Pixels:
        fitted = self._geometry.into_network(pixels)
        if self._channels == 1:
            fitted = cv2.cvtColor(fitted, cv2.COLOR_RGB2GRAY)[..., None]
        return np.ascontiguousarray(fitted)


def open_sample_video(
    settings: Settings, sizes: SizeRequirements, *, resumes: bool, say: Callable[[str], None]
) -> SampleVideo | None:
    """Return the clip of a run.

    A run that is resumed goes on without a clip that can be read no more, which is said: None.
    Raises InputError, OutputError.
    """
    try:
        return SampleVideo(settings, sizes)
    except InputError as error:
        if not resumes:
            raise InputError(f"sample_video: {error}") from error
        say(f"sample_video: {error}; the run goes on without it")
        return None


def _planned(clip: Path, side: int) -> VideoPlan:
    """Return the plan of a clip whose shorter side becomes ``side``, unless it is less."""

    def shrunk(size: Size) -> Size:
        scale = min(1.0, side / min(size))
        # Sides are even, as browsers expect of a video.
        height, width = (max(2, 2 * round(length * scale / 2)) for length in size)
        return height, width

    options = TranslateOptions(
        to=_SECONDS, fps="25", preset="veryfast", pix_fmt="yuv420p", audio="none", overwrite=True
    )
    output = clip.with_name(f"{clip.stem}{VIDEO_ENDING}")
    plan = plan_video(clip, output, options, pixel_type="uint8", output_size=shrunk)
    return replace(plan, stretch_frames=None)


def _alone(plan: VideoPlan) -> VideoPlan:
    """Return a plan whose output holds the frames alone, so that nothing else is read."""
    streams = plan.streams
    assert streams is not None
    frames = tuple(each for each in streams.streams if each.action == "video")
    streams = replace(streams, streams=frames, metadata={}, chapters=())
    return replace(plan, streams=streams, identity=None)
