"""What the stages cost alone, and the limit that follows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import prepare_translation
from cyclegan_batch.bench.stages import StageCost, limit_of, stages_alone
from cyclegan_batch.job.schedule import Schedule
from cyclegan_batch.media.video import sink as video_sink
from tests.synthesis import generators, pictures, streams

SCHEDULE = Schedule(batch_size=1, contexts=2, converters=2)


def costs(**changes: StageCost) -> dict[str, StageCost]:
    cheap = StageCost(cpu=0.001, wall=0.001)
    return dict.fromkeys(SCHEDULE.stages, cheap) | {
        name.replace("_", " "): cost for name, cost in changes.items()
    }


@pytest.mark.behaviour(30)
def test_on_a_cpu_the_threads_divided_by_the_cpu_time_of_all_stages_are_the_limit():
    alone = costs(network=StageCost(cpu=0.096, wall=0.096))
    limit = limit_of(alone, SCHEDULE, threads=2, on_cpu=True)
    assert limit.cpu_seconds == pytest.approx(0.1)
    assert limit.rate == limit.by_cpu == pytest.approx(20)
    assert limit.slowest == "network"
    assert limit.by_slowest == pytest.approx(2 / 0.096)


@pytest.mark.behaviour(30)
def test_on_a_gpu_the_slowest_stage_alone_is_the_limit():
    alone = costs(network=StageCost(cpu=0.0, wall=0.004), write=StageCost(cpu=0.002, wall=0.003))
    limit = limit_of(alone, SCHEDULE, threads=16, on_cpu=False)
    # Two contexts take 0.002 s a frame, the one writer takes 0.003.
    assert (limit.slowest, limit.rate) == ("write", pytest.approx(1 / 0.003))
    # With few threads the CPU time of the other stages is less than that.
    assert limit_of(alone, SCHEDULE, threads=1, on_cpu=False).rate == pytest.approx(1 / 0.005)


class Spending:
    """A backend that spends CPU time in `infer` and as much in a thread after it has returned."""

    def __init__(self, inner: Any, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds
        self.batches: list[int] = []

    def infer(self, frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.batches.append(len(frames))
        end = time.thread_time() + self._seconds
        while time.thread_time() < end:
            pass
        return np.asarray(self._inner.infer(frames))


def test_each_stage_of_a_video_is_measured_and_its_output_is_whole(tmp_path):
    clip = streams.mp4(tmp_path / "clip.mp4", frames=30)
    model = generators.identity(tmp_path / "model.onnx")
    out = tmp_path / "out.mp4"
    plan, backend = prepare_translation(clip, out, model=model, batch_size=4)
    assert backend is not None
    spending = Spending(backend, 0.004)
    alone = stages_alone(plan, spending)
    backend.close()
    assert list(alone) == list(SCHEDULE.stages)
    # The first call is not measured; 30 frames are 8 batches, of which the last is filled up.
    assert spending.batches == [4] * 9
    assert alone["network"].cpu == pytest.approx(8 * 0.004 / 30, rel=0.5)
    assert all(cost.cpu > 0 and cost.wall > 0 for cost in alone.values())
    assert out.is_file()


def test_what_an_encoder_does_after_a_call_has_returned_counts_as_writing(tmp_path, monkeypatch):
    clip = streams.mp4(tmp_path / "clip.mp4", frames=10)
    model = generators.identity(tmp_path / "model.onnx")
    plan, backend = prepare_translation(clip, tmp_path / "out.mp4", model=model)
    assert backend is not None
    threads: list[Any] = []
    write = video_sink.VideoSink.write

    def lagging(self: Any, item: Any) -> Any:
        import threading

        def spend() -> None:
            end = time.thread_time() + 0.01
            while time.thread_time() < end:
                pass

        threads.append(threading.Thread(target=spend))
        threads[-1].start()
        return write(self, item)

    monkeypatch.setattr(video_sink.VideoSink, "write", lagging)
    alone = stages_alone(plan, backend)
    backend.close()
    for thread in threads:
        thread.join()
    assert alone["write"].cpu > 0.009
    assert alone["read"].cpu + alone["to rgb"].cpu < 0.009


def test_it_stops_when_it_has_enough_frames_and_images_are_measured_too(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        size = (48, 64) if number < 7 else (32, 32)  # a batch is of one size
        Image.fromarray(pictures.photo(*size, seed=number)).save(folder / f"{number:02}.png")
    (folder / "02.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    model = generators.identity(tmp_path / "model.onnx")
    seen: list[int] = []

    def enough(frames: int) -> bool:
        seen.append(frames)
        return frames >= 5

    for name, stop in (("some", enough), ("all", lambda frames: False)):
        plan, backend = prepare_translation(folder, tmp_path / name, model=model, batch_size=2)
        assert backend is not None
        alone = stages_alone(plan, backend, enough=stop)
        backend.close()
        assert min(cost.cpu for cost in alone.values()) > 0
    assert 5 <= max(seen) < 11
    assert len(list(Path(tmp_path / "all").glob("*.png"))) == 11
