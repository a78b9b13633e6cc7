"""The sheet of a preview: what it looks for in videos whose frames last long."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import prepare_translation
from cyclegan_batch.errors import OutputError
from cyclegan_batch.job.preview import write_preview
from tests.synthesis import generators


def slides(path: Path, *, seconds: int, frames: int) -> Path:
    """Write grey frames that each stay for ``seconds``."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=Fraction(1, seconds), options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            grey = np.full((72, 64), 128, np.uint8)
            grey[:48] = 60 + 40 * index
            output.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "yuv420p")))
        output.mux(stream.encode(None))
    return path


def test_a_preview_of_slides_shows_the_last_slide_to_its_end(tmp_path):
    """The last place that is looked at lies behind the last frame's time, while it is shown."""
    clip = slides(tmp_path / "slides.mp4", seconds=30, frames=3)
    model = generators.identity(tmp_path / "model.onnx")
    planned = prepare_translation(clip, tmp_path / "out.mp4", model=model, color="bt601:full")
    sheet = np.asarray(Image.open(write_preview(*planned, 4)))
    assert sheet.shape[1] == 4 * 64 + 3 * 8
    assert sheet[20, -1].tolist() == pytest.approx([140] * 3, abs=2)


def test_a_preview_of_a_store_is_put_beside_the_output(tmp_path, memory_store):
    near = slides(tmp_path / "slides.mkv", seconds=1, frames=4)
    far = memory_store / "raw" / "slides.mkv"
    far.write_bytes(near.read_bytes())
    model = generators.identity(tmp_path / "model.onnx")
    sheets = [
        write_preview(*prepare_translation(source, target, model=model, preview=3), 3).read_bytes()
        for source, target in ((near, tmp_path / "out.mkv"), (far, memory_store / "real.mkv"))
    ]
    assert sheets[0] == sheets[1]
    assert (memory_store / "real.mkv.preview.png").read_bytes() == sheets[1]
    (memory_store / "raw" / "more.mkv").write_bytes(near.read_bytes())
    planned = prepare_translation(memory_store / "raw", memory_store, model=model, preview=3)
    with pytest.raises(OutputError, match="beside a bucket is no place: name a prefix"):
        write_preview(*planned, 3)


def test_a_preview_of_an_image_whose_output_exists_is_drawn_with_n(tmp_path):
    for name in ("in.png", "out.png"):
        Image.fromarray(np.full((16, 24, 3), 90, np.uint8)).save(tmp_path / name)
    model = generators.identity(tmp_path / "model.onnx")
    planned = prepare_translation(
        tmp_path / "in.png", tmp_path / "out.png", model=model, preview=1, skip_existing=True
    )
    assert write_preview(*planned, 1).exists()
