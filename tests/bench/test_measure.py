"""The whole measurement, with generators so small that it takes seconds."""

from __future__ import annotations

import json
import shlex
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cyclegan_batch import bench
from cyclegan_batch.api import plan_translation
from cyclegan_batch.bench import measure
from cyclegan_batch.bench.load import Load
from cyclegan_batch.bench.whole import Pipeline, Run
from cyclegan_batch.errors import CycleganBatchError, InputError, OutputError
from cyclegan_batch.job.calibration import kept
from cyclegan_batch.models.model import open_model
from cyclegan_batch.options import TranslateOptions
from tests.stopwatch import Stopwatch
from tests.synthesis import generators, pictures, streams

pytestmark = pytest.mark.needs("onnxruntime")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.tiny_resnet(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(autouse=True)
def others(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The share of the CPU that other programs seem to take: what runs beside the tests varies."""
    share = [0.0]
    monkeypatch.setattr(Load, "others", lambda self: share[0])
    return share


@pytest.mark.behaviour(52)
def test_it_tells_the_limit_what_was_reached_and_the_command(model, tmp_path, temporary):
    parts: list[str] = []
    options = TranslateOptions(backend="onnxruntime", cache_dir=tmp_path / "cache")
    # Seconds of computing: whatever else this machine does takes none of them.
    begin = time.process_time()
    found = measure(
        model, None, options, seconds=3, clock=time.process_time,
        tell=lambda part, findings: parts.append(part),
    )  # fmt: skip
    assert time.process_time() - begin < 9
    assert parts == ["subject", "stages", "pipeline", "network", "workers", "advice"]
    assert list(found.stages) == ["read", "to rgb", "network", "from rgb", "write"]
    assert found.subject.size == (64, 64)  # that it was trained at
    assert found.subject.gflop is not None
    limit, run = found.limit, found.pipeline
    assert limit is not None
    assert run is not None
    assert limit.rate == pytest.approx(limit.threads / sum(c.cpu for c in found.stages.values()))
    assert run.share == pytest.approx(run.rate / limit.rate)
    assert run.frames > 0
    assert found.network is not None
    assert {row.backend for row in found.network.rows} == {"onnxruntime"}
    assert found.best is not None
    assert found.command[:4] == ("cyclegan-batch", "translate", "INPUT", "OUTPUT")
    assert "--backend" in found.command  # as it was given
    assert not list(temporary.iterdir())
    calibration = kept(
        open_model(model).card, (64, 64), tmp_path / "cache",
        backend="onnxruntime", device="cpu", precision="fp32",
    )  # fmt: skip
    assert calibration is not None
    assert calibration.contexts == found.best.contexts
    assert calibration.batch_size == found.best.batch_size
    json.dumps(found.to_json(), allow_nan=False)


def test_the_first_frames_of_a_video_or_of_a_folder_are_measured(model, tmp_path, temporary):
    clip = streams.mp4(tmp_path / "clip.mp4", frames=12)
    folder = tmp_path / "some images"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(pictures.photo(seed=number)).save(folder / f"{number}.png")
    options = TranslateOptions(backend="onnxruntime", cache_dir=tmp_path / "cache")
    found = measure(model, clip, options, seconds=1)
    assert found.command[2:4] == (str(clip), "OUTPUT.mp4")
    found = measure(model, folder, options, seconds=1)
    assert shlex.join(found.command).startswith(f"cyclegan-batch translate '{folder}' OUTPUT")
    assert found.subject.input.endswith("3 images")
    assert not list(temporary.iterdir())


def run_of(rate: float, **changes: Any) -> Run:
    fields = {
        "backend": "onnxruntime", "device": "cpu", "precision": "fp32", "batch_size": 1,
        "contexts": 2, "workers": 1, "frames": 100, "seconds": 100 / rate, "rate": rate,
        "limiting_stage": "network",
    }  # fmt: skip
    return Run(**{**fields, **changes})


@pytest.mark.parametrize(("with_it", "expected"), [(2.0, True), (0.5, False)])
def test_what_is_faster_alone_must_be_faster_in_the_pipeline(
    model, tmp_path, monkeypatch, with_it, expected
):
    """The runs are injected: the first one without options, the second with the command's."""
    real = bench.choose

    def another(rows: Any, default: Any, costs: Any, threads: int) -> Any:
        choice = real(rows, default, costs, threads)
        assert choice is not None
        other = replace(choice.best, backend="openvino", batch_size=4)
        return replace(choice, best=other)

    given: list[TranslateOptions] = []

    def run(self: Pipeline, frames: int, seconds: float, options: TranslateOptions) -> Run:
        given.append(options)
        return run_of(100.0 if len(given) == 1 else 100.0 * with_it)

    monkeypatch.setattr(bench, "choose", another)
    monkeypatch.setattr(Pipeline, "run", run)
    options = TranslateOptions(backend="onnxruntime", cache_dir=tmp_path / "cache")
    found = measure(model, None, options, seconds=1)
    assert (given[0].backend, given[1].backend) == ("onnxruntime", "openvino")
    assert ("openvino" in found.command) is expected
    assert (found.confirmed is not None) is expected


def take_batches_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench.choose

    def larger(*arguments: Any) -> Any:
        choice = real(*arguments)
        assert choice is not None
        return replace(choice, best=replace(choice.best, batch_size=4))

    monkeypatch.setattr(bench, "choose", larger)


def test_what_cannot_be_kept_is_said_and_becomes_an_option(model, tmp_path, monkeypatch):
    def full(*arguments: Any) -> Path:
        raise OutputError("no space left")

    monkeypatch.setattr(bench, "keep", full)
    take_batches_of_four(monkeypatch)
    monkeypatch.setattr(Pipeline, "run", lambda self, frames, seconds, options: run_of(100.0))
    said: list[str] = []
    found = measure(
        model, None, TranslateOptions(cache_dir=tmp_path / "cache"), seconds=1, say=said.append
    )
    assert "what was found is not kept: no space left" in said
    assert found.kept == ()
    assert found.command[-4:-2] == ("--batch-size", "4")


def test_errors_are_those_of_a_translation_and_leave_nothing(model, tmp_path, temporary):
    for path, source in ((tmp_path / "missing.onnx", None), (model, tmp_path / "missing.mp4")):
        with pytest.raises(CycleganBatchError):
            measure(path, source, TranslateOptions(cache_dir=tmp_path / "cache"), seconds=1)
    clip = tmp_path / "broken.mp4"
    clip.write_bytes(b"no video")
    with pytest.raises(CycleganBatchError):
        measure(model, clip, TranslateOptions(cache_dir=tmp_path / "cache"), seconds=1)
    assert not list(temporary.iterdir())


def test_where_other_programs_take_the_cpu_nothing_is_kept_and_it_is_said_once(
    model, tmp_path, monkeypatch, others
):
    others[0] = 0.43
    monkeypatch.setattr(Pipeline, "run", lambda self, frames, seconds, options: run_of(100.0))
    said: list[str] = []
    options = TranslateOptions(backend="onnxruntime", cache_dir=tmp_path / "cache")
    found = measure(model, None, options, seconds=1, say=said.append)
    (sentence,) = [each for each in said if "not kept" in each]
    assert "other programs took 43% of the CPU" in sentence
    assert found.kept == ()
    assert not (tmp_path / "cache" / "bench").exists()
    assert found.best is not None
    assert (found.best, found.best.batch_size) == (found.default, 1)
    assert "--batch-size" not in found.command
    assert found.to_json()["network_others"] == 0.43


def test_images_of_several_sizes_are_measured_at_the_one_that_a_plan_looks_up(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr(Pipeline, "run", lambda self, frames, seconds, options: run_of(100.0))
    folder = tmp_path / "images"
    folder.mkdir()
    for number, size in enumerate([(32, 32), (48, 64), (32, 48)]):
        Image.fromarray(pictures.photo(*size)).save(folder / f"{number}.png")
    options = TranslateOptions(backend="onnxruntime", cache_dir=tmp_path / "cache")
    found = measure(model, folder, options, seconds=1)
    assert found.subject.size == (48, 64)
    plan = plan_translation(folder, tmp_path / "out", model=model, **vars(options))
    assert plan.backend.measured


def test_a_folder_of_which_nothing_can_be_read_is_an_error(model, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png: none can be read; translate tells"):
        measure(model, tmp_path / "images", TranslateOptions(cache_dir=tmp_path / "c"), seconds=1)


@pytest.mark.behaviour(24)
def test_ctrl_c_while_the_network_runs_leaves_nothing(model, tmp_path, temporary, monkeypatch):
    monkeypatch.setattr(Pipeline, "run", lambda self, frames, seconds, options: run_of(100.0))
    monkeypatch.setattr(bench, "_STAGES_UNTIL", 0.0)

    def stop(step: str, left: float) -> None:
        if "onnxruntime" in step:
            raise KeyboardInterrupt

    options = TranslateOptions(backend="onnxruntime", cache_dir=tmp_path / "cache")
    with Stopwatch() as clock, pytest.raises(KeyboardInterrupt):
        measure(model, None, options, seconds=30, watch=stop)
    assert clock.seconds < 5
    assert not list(temporary.iterdir())
    assert not (tmp_path / "cache" / "bench").exists()
