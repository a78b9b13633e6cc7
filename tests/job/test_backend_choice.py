"""What a plan takes from an earlier run, from a measurement and from the size of the frames."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cyclegan_batch import cli
from cyclegan_batch.api import plan_translation, prepare_translation, run_plan
from cyclegan_batch.backends import Backend
from cyclegan_batch.errors import BackendError, OutOfMemoryError, OutputError
from cyclegan_batch.frames import Pixels
from cyclegan_batch.job import calibration as calibrations
from cyclegan_batch.job.backend_choice import BackendRequest
from cyclegan_batch.job.calibration import Calibration, keep
from cyclegan_batch.job.plan import JobPlan
from cyclegan_batch.job.plan_text import plan_description, plan_lines
from cyclegan_batch.job.units import Counters
from cyclegan_batch.media.images import shards
from cyclegan_batch.models.model import Model, ModelCard, open_model
from cyclegan_batch.wording import grouped
from tests.needs import need
from tests.synthesis import generators, streams

FOUND = Calibration(
    backend="onnxruntime",
    device="cpu",
    precision="fp32",
    batch_size=3,
    contexts=2,
    workers=2,
    rate=10.0,
)
SIZE = (24, 32)
EVERYTHING = ("batch_size", "contexts", "workers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("onnxruntime")
    return generators.invert(tmp_path_factory.mktemp("model") / "invert.onnx")


@pytest.fixture(scope="module")
def card(model: Path) -> ModelCard:
    return open_model(model).card


@pytest.fixture
def cache(tmp_path: Path, card: ModelCard) -> Path:
    """Return a cache with what `bench` measured for `model` at `SIZE`."""
    keep(FOUND, card, SIZE, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of 20 images, which make three shards."""
    monkeypatch.setattr(shards, "SHARD", 8)
    folder = tmp_path / "pictures"
    for number in range(20):
        picture(folder / f"{number:02}.png", number)
    return folder


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[BackendRequest]:
    """Return the list of the requests by which backends are opened."""
    requests: list[BackendRequest] = []
    really = BackendRequest.open

    def noted(request: BackendRequest, *arguments: Any) -> Backend:
        requests.append(request)
        return really(request, *arguments)

    monkeypatch.setattr(BackendRequest, "open", noted)
    return requests


def picture(path: Path, level: int = 90, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)
    return path


def planned(source: Path, output: Path, model: Path, cache: Path, **options: Any) -> JobPlan:
    backend = options.pop("backend", "onnxruntime")
    return plan_translation(
        source, output, model=model, backend=backend, cache_dir=cache, **options
    )


def numbers(plan: JobPlan) -> tuple[int, int, int]:
    schedule = plan.schedule
    return schedule.batch_size, schedule.contexts, schedule.workers


# From a measurement


def test_what_bench_measured_is_taken_and_told_and_the_model_opened_once(
    pictures: Path, model: Path, cache: Path, tmp_path: Path, openings: list[BackendRequest]
) -> None:
    plan = planned(pictures, tmp_path / "out", model, cache)
    assert numbers(plan) == (3, 2, 2)
    assert [request.contexts for request in openings] == [2]
    # A worker opens the same backend for the same contexts.
    assert plan.backend.request.contexts == 2
    assert plan_lines(plan)[1:3] == [
        "runs on  onnxruntime, cpu, fp32; 3 frames per call, 2 at once, 2 workers",
        "         batch 3, 2 contexts, 2 workers: measured by bench",
    ]
    described = plan_description(plan)
    assert [described[name] for name in EVERYTHING] == [3, 2, 2]
    assert described["measured_by_bench"] == list(EVERYTHING)


def test_without_a_measurement_nothing_is_said_of_one(
    pictures: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> None:
        pytest.fail("the key of a measurement was computed, which takes some milliseconds")

    monkeypatch.setattr(calibrations, "_about", asked)
    plan = planned(pictures, tmp_path / "out", model, tmp_path / "empty")
    assert (plan.schedule.batch_size, plan.schedule.workers) == (1, 1)
    assert not any("measured" in line for line in plan_lines(plan))
    assert plan_description(plan)["measured_by_bench"] == []


@pytest.mark.parametrize(
    ("options", "batch_size", "workers", "measured"),
    [
        ({"batch_size": 5}, 5, 2, ("contexts", "workers")),
        ({"workers": 1}, 3, 1, ("batch_size", "contexts")),
        ({"workers": 3}, 3, 3, ("batch_size", "contexts")),
        # More contexts or processes than threads would break the limit.
        ({"threads": 1}, 3, 1, ("batch_size",)),
        ({"threads": 1, "workers": 2}, 3, 2, ("batch_size",)),
    ],
)
def test_what_is_given_is_not_measured(
    options: dict[str, int],
    batch_size: int,
    workers: int,
    measured: tuple[str, ...],
    pictures: Path,
    model: Path,
    cache: Path,
    tmp_path: Path,
) -> None:
    plan = planned(pictures, tmp_path / "out", model, cache, **options)
    contexts = 1 if "threads" in options else 2
    assert numbers(plan) == (batch_size, contexts, workers)
    assert plan.backend.measured == measured


def test_a_fixed_batch_is_the_models_own(pictures: Path, tmp_path: Path) -> None:
    need("onnxruntime")
    fixed = generators.invert(tmp_path / "fixed.onnx", batch=4)
    keep(FOUND, open_model(fixed).card, SIZE, tmp_path / "cache")
    plan = planned(pictures, tmp_path / "out", fixed, tmp_path / "cache")
    assert (numbers(plan), plan.backend.measured) == ((4, 2, 2), ("contexts", "workers"))


@pytest.mark.behaviour(28)
@pytest.mark.parametrize("change", [{"backend": "openvino"}, {"precision": "bf16"}])
def test_backend_and_precision_are_never_taken_from_a_measurement(
    change: dict[str, str], pictures: Path, model: Path, card: ModelCard, tmp_path: Path
) -> None:
    before = planned(pictures, tmp_path / "out", model, tmp_path / "cache")
    keep(replace(FOUND, rate=1e6, **change), card, SIZE, tmp_path / "cache")
    after = planned(pictures, tmp_path / "out", model, tmp_path / "cache")
    assert (after.backend, after.schedule, after.jobs) == (
        before.backend,
        before.schedule,
        before.jobs,
    )


def test_auto_takes_the_measurement_of_the_backend_that_it_becomes(
    pictures: Path,
    model: Path,
    card: ModelCard,
    cache: Path,
    tmp_path: Path,
    openings: list[BackendRequest],
) -> None:
    need("openvino")
    plan = planned(pictures, tmp_path / "out", model, cache, backend="auto")
    assert (plan.backend.name, plan.backend.measured) == ("openvino", ())
    keep(replace(FOUND, backend="openvino", contexts=1, batch_size=2), card, SIZE, cache)
    plan = planned(pictures, tmp_path / "out", model, cache, backend="auto")
    assert (plan.backend.name, numbers(plan)) == ("openvino", (2, 1, 2))
    assert [request.contexts for request in openings][1:] == [1]


def test_where_another_backend_opens_than_was_expected_it_is_opened_for_its_own_contexts(
    pictures: Path,
    model: Path,
    card: ModelCard,
    cache: Path,
    tmp_path: Path,
    openings: list[BackendRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need("openvino")
    keep(replace(FOUND, backend="openvino", contexts=7), card, SIZE, cache)

    def broken(*_: object, **__: object) -> Backend:
        raise BackendError("an operator is missing")

    monkeypatch.setattr("cyclegan_batch.backends.openvino.open_openvino", broken)
    plan = planned(pictures, tmp_path / "out", model, cache, backend="auto")
    assert (plan.backend.name, numbers(plan)) == ("onnxruntime", (3, 2, 2))
    assert [request.contexts for request in openings] == [7, 2]
    assert any("going on with onnxruntime" in note for note in grouped(plan.notes))


def test_the_size_that_the_network_sees_is_what_counts(
    pictures: Path, model: Path, card: ModelCard, cache: Path, tmp_path: Path
) -> None:
    plan = planned(pictures, tmp_path / "out", model, cache, size=(48, 64))
    assert plan.backend.measured == ()
    keep(replace(FOUND, batch_size=6), card, (48, 64), cache)
    plan = planned(pictures, tmp_path / "out", model, cache, size=(48, 64))
    assert numbers(plan) == (6, 2, 2)


def test_of_several_sizes_the_largest_counts(
    pictures: Path, model: Path, card: ModelCard, cache: Path, tmp_path: Path
) -> None:
    for name in ("large", "larger", "largest"):
        picture(pictures / f"{name}.png", size=(40, 30))
    assert planned(pictures, tmp_path / "out", model, cache).backend.measured == ()
    keep(replace(FOUND, batch_size=2), card, (40, 30), cache)
    assert numbers(planned(pictures, tmp_path / "out", model, cache)) == (2, 2, 2)


# Workers


def test_measured_workers_do_the_work(
    pictures: Path, model: Path, cache: Path, tmp_path: Path
) -> None:
    plan, backend = prepare_translation(
        pictures, tmp_path / "out", model=model, backend="onnxruntime", cache_dir=cache
    )
    counters = Counters()
    report = run_plan(plan, backend, counters=counters)
    assert (report.status, report.frames, counters.workers) == ("whole", 20, 2)
    assert np.unique(np.asarray(Image.open(tmp_path / "out" / "07.png"))) == [248]


def test_a_job_of_few_pieces_has_no_more_workers(
    model: Path, card: ModelCard, tmp_path: Path
) -> None:
    folder, cache = tmp_path / "in", tmp_path / "cache"
    folder.mkdir()
    clip = streams.plain(folder / "clip.mp4", frames=550, size=SIZE, audio=None)
    keep(replace(FOUND, workers=8), card, SIZE, cache)
    plan = planned(clip, tmp_path / "out.mp4", model, cache)
    assert (plan.videos[0].stretches, plan.schedule.workers) == (3, 3)
    assert plan.backend.measured == ("batch_size", "contexts")
    picture(folder / "a.png")
    assert planned(folder, tmp_path / "out", model, cache).schedule.workers == 4


@pytest.mark.parametrize(
    ("output", "options"),
    [
        ("-", {}),
        # A bit rate spans all frames.
        ("one.mp4", {"encoder_opt": {"b": "500k"}}),
        ("a.mp4", {"preview": 1}),
    ],
    ids=["pipe", "one piece", "preview"],
)
def test_a_job_that_one_process_does_leaves_auto_at_one(
    output: str,
    options: dict[str, Any],
    model: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    clip = streams.plain(tmp_path / "clip.mp4", frames=600, size=SIZE, audio=None)
    plan = planned(clip, Path(output), model, cache, **options)
    assert plan.videos[0].stretches == (3 if options.get("preview") else 1)
    assert numbers(plan) == (3, 2, 1)
    assert plan.backend.measured == ("batch_size", "contexts")
    if output == "-":
        with pytest.raises(OutputError, match="standard output is written by one process"):
            planned(clip, Path(output), model, cache, workers=2)


def test_on_windows_auto_is_one(
    pictures: Path, model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The whole of sys cannot be another system's: only this module's view of it is.
    monkeypatch.setattr(
        "cyclegan_batch.job.backend_choice.sys",
        SimpleNamespace(platform="win32", modules=sys.modules),
    )
    assert numbers(planned(pictures, tmp_path / "out", model, cache)) == (3, 2, 1)


# An earlier run comes first


def command(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.main, ["translate", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout + result.stderr


@pytest.mark.behaviour(20)
def test_a_finished_job_has_nothing_to_do_after_a_measurement(
    pictures: Path, model: Path, card: ModelCard, tmp_path: Path
) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    words = (pictures, out, "-m", model, "--backend=onnxruntime", f"--cache-dir={cache}")
    assert command(*words)[0] == 0
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    keep(replace(FOUND, batch_size=7), card, SIZE, cache)
    assert planned(pictures, tmp_path / "new", model, cache).schedule.batch_size == 7
    code, said = command(*words)
    assert (code, said.strip()) == (0, "Done: nothing to do, 20 files are up to date")
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    plan, backend = prepare_translation(
        pictures, out, model=model, backend="onnxruntime", cache_dir=cache
    )
    assert (backend, plan.units, numbers(plan)[::2]) == (None, (), (1, 1))


@pytest.mark.behaviour(19)
def test_a_resumed_job_goes_on_with_its_own_batch_and_contexts(
    pictures: Path,
    model: Path,
    card: ModelCard,
    tmp_path: Path,
    openings: list[BackendRequest],
) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    keep(replace(FOUND, batch_size=2, contexts=3), card, SIZE, cache)
    first = planned(pictures, out, model, cache)
    assert numbers(first) == (2, 3, 2)
    run_plan(first)
    for name in ("03.png", "12.png", "19.png"):
        (out / name).unlink()
    keep(replace(FOUND, batch_size=7, contexts=5), card, SIZE, cache)
    openings.clear()
    plan = planned(pictures, out, model, cache)
    # The number of processes changes no pixel, so that it is not recorded.
    assert (numbers(plan), plan.backend.measured) == ((2, 3, 2), ("workers",))
    assert [request.contexts for request in openings] == [3]
    assert {job.id for job in plan.jobs} == {job.id for job in first.jobs}
    assert run_plan(plan).frames == 3


# By the pixels, on a GPU


class FakeGpu:
    """A context on a GPU that computes 255 − x, and has memory for so many frames at once."""

    name, precision, notes = "onnxruntime", "tf32", ()

    def __init__(self, card: ModelCard, device: str = "cuda:0", room: int = 1 << 20) -> None:
        self.card, self.device, self.room = card, device, room

    def infer(self, frames: Pixels) -> Pixels:
        if len(frames) > self.room:
            raise OutOfMemoryError(f"no memory on {self.device} for a batch of {len(frames)}")
        return 255 - frames

    def fork(self) -> FakeGpu:
        return self

    def cancel(self) -> None: ...

    def close(self) -> None: ...


Gpu = Callable[..., list[BackendRequest]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Return the function that makes every backend open on a GPU with this room for frames."""

    def install(room: int = 1 << 20) -> list[BackendRequest]:
        requests: list[BackendRequest] = []

        def opened(request: BackendRequest, model: Model, _: object) -> FakeGpu:
            requests.append(request)
            return FakeGpu(model.card, room=room)

        monkeypatch.setattr(BackendRequest, "open", opened)
        return requests

    return install


@pytest.mark.parametrize(
    ("size", "batch_size"),
    [
        ((256, 256), 32),
        ((64, 64), 32),
        ((512, 512), 8),
        ((720, 1280), 2),
        ((1088, 1920), 1),
        ((2160, 3840), 1),
    ],
)
def test_the_batch_on_a_gpu_has_two_million_pixels(
    size: tuple[int, int], batch_size: int, model: Path, tmp_path: Path, gpu: Gpu
) -> None:
    requests = gpu()
    for number in range(40):
        picture(tmp_path / "in" / f"{number}.png", size=(8, 8))
    plan = planned(tmp_path / "in", tmp_path / "out", model, tmp_path, device="cuda", size=size)
    assert numbers(plan) == (batch_size, 2, 1)
    # An engine is built for what will be translated.
    assert [request.shapes for request in requests] == [((batch_size, *size),)]
    assert plan.backend.request.device == "cuda:0"


@pytest.mark.parametrize(
    ("sizes", "batch_size"),
    [
        ([SIZE], 1),
        ([SIZE] * 5, 5),
        ([SIZE] * 40, 32),
        ([SIZE] * 10 + [(32, 24)] * 10, 10),
        ([SIZE, (32, 24)] * 10, 1),
        ([SIZE, SIZE, (32, 24)] * 4, 1),
        ([SIZE] * 15 + [(32, 24)], 8),
    ],
    ids=["1", "5", "40", "10+10", "mixed", "2+1", "15+1"],
)
def test_a_batch_is_no_larger_than_what_can_share_it(
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    model: Path,
    card: ModelCard,
    tmp_path: Path,
    gpu: Gpu,
) -> None:
    """A batch is of one unit and one size, and is filled up by repeating its last frame."""
    requests = gpu()
    for number, size in enumerate(sizes):
        picture(tmp_path / "in" / f"{number:02}.png", size=size)
    plan = planned(tmp_path / "in", tmp_path / "out", model, tmp_path, device="cuda")
    assert plan.schedule.batch_size == batch_size
    # An engine is kept and serves other jobs, too: it does not depend on how many images there are.
    kinds = tuple((32, *size) for size in dict.fromkeys(sizes))
    assert [request.shapes for request in requests] == [kinds]
    # At one size of the network they all share a batch.
    plan = planned(
        tmp_path / "in",
        tmp_path / "out",
        model,
        tmp_path,
        device="cuda",
        size=(8, 8),
        fit="stretch",
    )
    assert plan.schedule.batch_size == min(32, len(sizes))


def test_a_short_video_has_a_small_batch(
    model: Path, card: ModelCard, tmp_path: Path, gpu: Gpu
) -> None:
    gpu()
    clips = tmp_path / "in"
    clips.mkdir()
    streams.plain(clips / "a.mp4", frames=5, size=SIZE, audio=None)
    assert planned(clips, tmp_path / "o", model, tmp_path, device="cuda").schedule.batch_size == 5
    streams.plain(clips / "b.mp4", frames=30, size=SIZE, audio=None)
    assert planned(clips, tmp_path / "o", model, tmp_path, device="cuda").schedule.batch_size == 30


def test_a_measured_batch_is_no_larger_than_what_can_share_it(
    model: Path, cache: Path, tmp_path: Path
) -> None:
    source = picture(tmp_path / "a.png")
    plan = planned(source, tmp_path / "b.png", model, cache)
    assert (numbers(plan), plan.backend.measured) == ((1, 2, 1), ("contexts",))


@pytest.mark.behaviour(19, 32)
def test_a_resumed_job_takes_the_engine_that_its_first_run_took(
    model: Path, tmp_path: Path, gpu: Gpu
) -> None:
    requests = gpu()
    for number in range(6):
        picture(tmp_path / "in" / f"{number}.png")
    words = (tmp_path / "in", tmp_path / "out", model, tmp_path)
    first = planned(*words, device="cuda")
    run_plan(first)
    (tmp_path / "out" / "3.png").unlink()
    requests.clear()
    plan = planned(*words, device="cuda")
    assert (first.schedule.batch_size, plan.schedule.batch_size, len(plan.entries)) == (6, 6, 1)
    assert [request.shapes for request in requests] == [((32, *SIZE),)]


def test_a_size_that_is_not_known_counts_as_720p(model: Path, tmp_path: Path, gpu: Gpu) -> None:
    requests = gpu()
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png").write_text("no picture")
    plan = planned(tmp_path / "in", tmp_path / "out", model, tmp_path, device="cuda")
    assert (plan.schedule.batch_size, requests[0].shapes) == (2, ())


def test_what_is_given_or_fixed_comes_before_the_pixels(
    model: Path, tmp_path: Path, gpu: Gpu
) -> None:
    requests = gpu()
    source = picture(tmp_path / "a.png")
    plan = planned(source, tmp_path / "b.png", model, tmp_path, device="cuda", batch_size=5)
    fixed = generators.invert(tmp_path / "fixed.onnx", batch=3)
    other = planned(source, tmp_path / "b.png", fixed, tmp_path, device="cuda")
    assert (plan.schedule.batch_size, other.schedule.batch_size) == (5, 3)
    assert [request.shapes for request in requests] == [((5, *SIZE),), ((3, *SIZE),)]


@pytest.mark.parametrize(("most", "batch_size"), [(4, 4), (64, 32)])
def test_an_engine_takes_no_more_than_it_was_built_for(
    most: int,
    batch_size: int,
    model: Path,
    tmp_path: Path,
    gpu: Gpu,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = gpu()
    for number in range(40):
        picture(tmp_path / "in" / f"{number}.png")
    profile = SimpleNamespace(max=(most, 512, 512))
    card = SimpleNamespace(build=SimpleNamespace(profile=profile, tf32=True))
    engine: Any = replace(open_model(model), engine=card)  # type: ignore[arg-type]
    monkeypatch.setattr("cyclegan_batch.opening.open_for_translation", lambda *_, **__: engine)
    monkeypatch.setitem(sys.modules, "tensorrt", sys)  # installed
    plan = planned(tmp_path / "in", tmp_path / "out", model, tmp_path, backend="auto")
    assert plan.schedule.batch_size == batch_size
    assert requests[0].shapes == ((batch_size, *SIZE),)


def test_what_bench_measured_on_a_gpu_is_taken(
    pictures: Path,
    model: Path,
    card: ModelCard,
    tmp_path: Path,
    gpu: Gpu,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = gpu()
    monkeypatch.setattr(calibrations, "nvidia_gpus", lambda: ("NVIDIA H100",))
    monkeypatch.setattr(calibrations, "nvidia_driver", lambda: "570.1")
    on_gpu = replace(FOUND, device="cuda:0", precision="tf32", batch_size=7, contexts=3)
    keep(on_gpu, card, SIZE, tmp_path / "cache")
    plan = planned(pictures, tmp_path / "out", model, tmp_path / "cache", device="cuda")
    assert (numbers(plan), plan.backend.measured) == ((7, 3, 2), EVERYTHING)
    assert [request.shapes for request in requests] == [((7, *SIZE),)]
    # GPUs that are given are as many processes as they are.
    plan = planned(pictures, tmp_path / "out", model, tmp_path / "cache", gpus="0,0,0")
    assert (numbers(plan), plan.backend.measured) == ((7, 3, 3), ("batch_size", "contexts"))


@pytest.mark.behaviour(26)
@pytest.mark.parametrize("room", [1, 5, 16, 31])
def test_the_batch_by_pixels_is_halved_where_the_memory_is_short(
    room: int, model: Path, tmp_path: Path, gpu: Gpu
) -> None:
    """The estimate of the batch may be wrong: no frame is missing, and the report tells."""
    gpu(room)
    source = tmp_path / "in"
    for number in range(70):
        picture(source / f"{number:02}.png", number)
    plan, backend = prepare_translation(source, tmp_path / "out", model=model, device="cuda")
    assert plan.schedule.batch_size == 32
    report = run_plan(plan, backend)
    assert (report.status, report.frames) == ("whole", 70)
    for number in range(70):
        levels = np.unique(np.asarray(Image.open(tmp_path / "out" / f"{number:02}.png")))
        assert levels.tolist() == [255 - number]
    halved = [note for note in grouped(report.notes) if "out of memory" in note]
    last = 32
    for note in halved:
        assert f"out of memory with a batch of {last} at frame " in note
        last //= 2
        assert note.endswith(f"going on with {last}")
    assert last <= room < 2 * last
