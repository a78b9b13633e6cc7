"""The table of the runtimes: its rows and ratios, on a tiny network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import runtimes
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import parity
from tests.needs import need
from tests.synthesis import generators


@pytest.mark.parametrize("batch", [None, 1])
def test_every_way_is_measured_against_plain_onnxruntime(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: int | None
) -> None:
    need("onnxruntime", "openvino")
    file = generators.tiny_resnet(tmp_path / "tiny.onnx", batch=batch)
    runtimes.main([str(file), "--size=32", "--pairs=1", "--seconds=0.02", "--threads=2"])
    heading, _, name, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert "2 threads, 2 contexts" in heading
    assert name == "tiny.onnx at 32²"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
    assert cells[0][:3] == ["onnxruntime fp32, plain", "**1.00** (1.00 to 1.00)", "1.00"]
    names = [row[0].partition(" (")[0] for row in cells]
    for expected in ("openvino fp32, plain", "ours, default", "ours, --backend onnxruntime"):
        assert cells[names.index(expected)][4].startswith("exact")


def test_the_rate_counts_the_frames_of_all_contexts() -> None:
    seen: list[int] = []

    def run(frames: np.ndarray) -> np.ndarray:
        seen.append(len(frames))
        return frames

    per_second, per_cpu_second = runtimes.rate([run, run], np.zeros((4, 2, 2, 3), np.uint8), 0.02)
    assert set(seen) == {1}
    assert 0 < per_second <= len(seen) / 0.02
    assert per_cpu_second > 0


def test_the_baseline_is_the_file_as_it_is(tmp_path: Path) -> None:
    need("onnxruntime")
    model = open_model(generators.tiny_resnet(tmp_path / "tiny.onnx"))
    frames = generators.natural((16, 16))
    first, second = runtimes.plain_onnxruntime(model, 2, 2)
    expected = generators.run(model.graph, frames)
    for run in (first, second):
        assert parity(run(frames), expected).cls == "exact"
