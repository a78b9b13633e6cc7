"""Translate a video by the identity, as the pipeline does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclegan_batch.media import Dropped
from cyclegan_batch.media.video.numbered_sink import NumberedSink
from cyclegan_batch.media.video.plan import VideoPlan, plan_video
from cyclegan_batch.media.video.sink import VideoSink
from cyclegan_batch.media.video.source import VideoSource
from cyclegan_batch.options import TranslateOptions

FAST = TranslateOptions(preset="ultrafast")
LOSSLESS = TranslateOptions(preset="ultrafast", crf=0)


def plan(source: Path, output: Path, options: TranslateOptions = FAST, **how: Any) -> VideoPlan:
    return plan_video(source, output, options, pixel_type=how.pop("pixel_type", "uint8"), **how)


def run(plan: VideoPlan) -> tuple[list[Dropped], VideoSink | NumberedSink]:
    """Send every frame through both converters, as the pipeline does."""
    source = VideoSource(plan)
    sink: Any = NumberedSink(plan) if plan.is_numbered else VideoSink(plan)
    from_raw, to_encoded = source.converter(), sink.converter()
    dropped = []
    for item in source.read():
        frame = item if isinstance(item, Dropped) else from_raw(item)
        if isinstance(frame, Dropped):
            dropped.append(frame)
        else:
            sink.write(to_encoded(frame))
    source.close()
    sink.finish()
    return dropped, sink


def seen(plan: VideoPlan) -> list[Any]:
    """Return all frames as the network sees them, and the dropped ones in their places."""
    source = VideoSource(plan)
    convert = source.converter()
    items = [each if isinstance(each, Dropped) else convert(each) for each in source.read()]
    source.close()
    return items


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
