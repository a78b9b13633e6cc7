"""What is written: whole files under their final names, or nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import av
import pytest

from cyclegan_batch.errors import OutputError
from cyclegan_batch.media.video import sink as video_sink
from cyclegan_batch.media.video.sink import VideoSink
from tests.media.identity import FAST, leftovers, plan, run, seen
from tests.synthesis import streams


def test_what_the_encoder_refuses_is_not_blamed_on_the_folder_errors(tmp_path, monkeypatch):
    planned = plan(streams.plain(tmp_path / "in.mp4", frames=2, audio=None), tmp_path / "out.mp4")

    def refuse(encoding: video_sink._Encoding, packets: Any) -> None:
        raise av.error.ArgumentError(22, "Invalid argument")

    monkeypatch.setattr(video_sink._Encoding, "_mux", refuse)
    with pytest.raises(OutputError, match=r"libx264 failed \(Invalid argument\); choose"):
        run(planned)


def test_discard_leaves_nothing(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=10, audio=None)
    planned = plan(source, tmp_path / "out.mp4")
    sink = VideoSink(planned)
    convert = sink.converter()
    for frame in seen(planned)[:5]:
        sink.write(convert(frame))
    assert leftovers(tmp_path)
    sink.discard()
    sink.discard()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]
    assert sink.written == []


def test_an_existing_output_is_not_overwritten_unasked(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    output = tmp_path / "out.mp4"
    output.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        run(plan(source, output))
    assert output.read_text() == "precious"
    run(plan(source, output, replace(FAST, overwrite=True)))
    assert output.stat().st_size > 1000


def test_a_folder_is_made_and_a_file_in_its_place_errors(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    run(plan(source, tmp_path / "new" / "er" / "out.mp4"))
    assert (tmp_path / "new" / "er" / "out.mp4").is_file()
    with pytest.raises(OutputError, match=r"in.mp4.out.mp4: (its folder is a file|it exists)"):
        run(plan(source, source / "out.mp4"))
