"""Engines are built once, kept with a card, and accepted by their parity; with stand-ins."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclegan_batch.backends import tensorrt as backend
from cyclegan_batch.backends.tensorrt import build as building
from cyclegan_batch.backends.tensorrt import library
from cyclegan_batch.errors import (
    BackendError,
    BackendUnavailableError,
    ModelError,
    OutOfMemoryError,
)
from cyclegan_batch.models import engine_card
from cyclegan_batch.models.engine_card import Build, card_path
from cyclegan_batch.models.model import Model, open_model
from cyclegan_batch.wording import grouped
from tests.backends.tensorrt.conftest import OTHERS, SMALL, damage, exchange, frames, open_on
from tests.conftest import REPOSITORY
from tests.stopwatch import Stopwatch
from tests.synthesis import fake_tensorrt, generators
from tests.synthesis.fake_tensorrt import Gpu


@pytest.mark.behaviour(32)
def test_a_second_run_builds_nothing(tmp_path: Path, gpu: Gpu, model: Model) -> None:
    sentences: list[str] = []
    for _ in range(2):
        opened = open_on(gpu, model, tmp_path / "cache", say=sentences.append)
        opened.infer(frames(2, 8, 8))
    assert len(gpu.builds) == 1
    assert sentences == [
        "building an engine of invert.onnx for NVIDIA Fake 1 (1,8,8 to 2,8,8, tuned for 2,8,8) …"
    ]


@pytest.mark.behaviour(32)
@pytest.mark.parametrize("other", OTHERS)
def test_an_engine_of_another_machine_is_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model, other: str
) -> None:
    gpu = fake_tensorrt.install(monkeypatch)
    open_on(gpu, model, tmp_path)
    changed = Gpu()
    OTHERS[other](changed)
    fake_tensorrt.install(monkeypatch, changed)
    assert open_on(changed, model, tmp_path).infer(frames(1, 8, 8)).shape == (1, 8, 8, 3)
    assert len(changed.builds) == 1


@pytest.mark.behaviour(32)
def test_an_engine_of_another_onnx_shape_or_arithmetic_is_rebuilt(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    open_on(gpu, model, tmp_path)
    identity = open_model(generators.identity(tmp_path / "identity.onnx"))
    np.testing.assert_array_equal(
        open_on(gpu, identity, tmp_path).infer(frames(1, 8, 8)), frames(1, 8, 8)
    )
    assert len(gpu.builds) == 2
    open_on(gpu, model, tmp_path, shapes=[(2, 8, 12)])
    assert len(gpu.builds) == 3
    open_on(gpu, model, tmp_path, precision="fp32")
    assert len(gpu.builds) == 4
    assert [("TF32" in build.flags) for build in gpu.builds] == [True, True, True, False]


@pytest.mark.behaviour(32)
def test_an_engine_of_an_earlier_recipe_is_rebuilt_and_one_in_a_file_goes_on(
    tmp_path: Path, gpu: Gpu, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_on(gpu, model, tmp_path)
    backend.write_engine(model, tmp_path / "x.engine", Build(SMALL))
    gpu.builds.clear()
    monkeypatch.setattr(
        backend, "Build", lambda *a, **k: Build(*a, **k, recipe=engine_card.RECIPE + 1)
    )
    open_on(gpu, model, tmp_path)
    assert len(gpu.builds) == 1
    open_on(gpu, open_model(tmp_path / "x.engine"), tmp_path)
    assert len(gpu.builds) == 1


@pytest.mark.behaviour(32)
def test_a_card_of_the_first_version_is_read_and_its_engine_rebuilt(
    tmp_path: Path, gpu: Gpu, engine: Path
) -> None:
    card = json.loads(card_path(engine).read_text())
    del card["build"]["recipe"], card["machine"]["multiprocessors"], card["machine"]["memory_gib"]
    card["build"]["refit"] = False
    card_path(engine).write_text(json.dumps(card))
    gpu.builds.clear()
    opened = open_on(gpu, open_model(engine), tmp_path / "cache")
    assert len(gpu.builds) == 1
    assert "built for NVIDIA Fake 1 (compute capability 8.6), this is" in grouped(opened.notes)[0]


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no card": lambda path: card_path(path).unlink(),
    "half a card": lambda path: card_path(path).write_text(card_path(path).read_text()[:200]),
    "an empty card": lambda path: card_path(path).write_text("{}"),
    "a card of another kind": lambda path: card_path(path).write_text("[1]"),
    "a changed engine": damage,
    "half an engine": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "no engine": Path.unlink,
    "an exchanged engine": lambda path: exchange(path),
}


@pytest.mark.behaviour(32, 44)
@pytest.mark.parametrize("how", DAMAGES)
def test_what_is_damaged_in_the_cache_is_rebuilt_and_never_loaded(
    tmp_path: Path, gpu: Gpu, model: Model, how: str
) -> None:
    open_on(gpu, model, tmp_path)
    (path,) = (tmp_path / "engines").glob("*.engine")
    DAMAGES[how](path)
    gpu.opened.clear()
    opened = open_on(gpu, model, tmp_path)
    assert len(gpu.builds) == 2
    assert len(gpu.opened) == 1
    assert opened.infer(frames(1, 8, 8)).shape == (1, 8, 8, 3)
    open_on(gpu, model, tmp_path)
    assert len(gpu.builds) == 2, "the engine of the second run was kept"


def test_an_engine_that_tensorrt_does_not_open_any_more_is_rebuilt(
    tmp_path: Path, gpu: Gpu, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_on(gpu, model, tmp_path)
    gpu.refuse["open"] = "Serialization assertion magicTag failed"
    really = building.engine_from_graph

    def build(*arguments: Any, **options: Any) -> bytes:
        gpu.refuse.clear()
        return really(*arguments, **options)

    monkeypatch.setattr(building, "engine_from_graph", build)
    opened = open_on(gpu, model, tmp_path)
    assert len(gpu.builds) == 2
    assert any("magicTag failed" in note and "built anew" in note for note in grouped(opened.notes))


def test_a_cache_that_cannot_be_written_costs_only_the_next_run(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    (tmp_path / "cache").write_text("a file where a folder is expected")
    opened = open_on(gpu, model, tmp_path / "cache")
    assert opened.infer(frames(1, 8, 8)).shape == (1, 8, 8, 3)
    assert any("the next run builds it again" in note for note in grouped(opened.notes))


@pytest.mark.parametrize("how", ["whole", "damaged", "cut short", "empty"])
def test_timings_are_reused_and_never_when_damaged(
    tmp_path: Path, gpu: Gpu, model: Model, how: str
) -> None:
    open_on(gpu, model, tmp_path)
    (timings,) = (tmp_path / "engines").glob("timing-*")
    content = timings.read_bytes()
    if how == "damaged":
        timings.write_bytes(content[:-1] + b"?")
    elif how == "cut short":
        timings.write_bytes(content[:-3])
    elif how == "empty":
        timings.write_bytes(b"")
    open_on(gpu, model, tmp_path, shapes=[(1, 12, 12)])
    assert [build.timings for build in gpu.builds] == [b"", b"timed " if how == "whole" else b""]


def test_a_build_is_what_was_asked_for(tmp_path: Path, gpu: Gpu, model: Model) -> None:
    build = Build(SMALL, builder_level=5, workspace=64, hardware_compatible=True,
                  version_compatible=True, tf32=True)  # fmt: skip
    backend.write_engine(model, tmp_path / "x.engine", build, cache_dir=tmp_path)
    (config,) = gpu.builds
    assert config.profile == ((1, 8, 8, 3), (2, 8, 8, 3), (4, 16, 16, 3))
    assert config.builder_optimization_level == 5
    assert config.workspace == 64 * 2**20
    assert config.hardware_compatibility_level == "AMPERE_PLUS"
    assert config.flags == {"VERSION_COMPATIBLE", "TF32"}


def test_a_long_build_says_how_far_it_is_and_ctrl_c_ends_it_errors(
    gpu: Gpu, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_REPORT_INTERVAL", 0.1)
    begun, going_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert going_on.wait(10)

    def say(sentence: str) -> None:
        assert sentence.startswith("building an engine of invert.onnx: ")
        going_on.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.engine_from_graph(
            model.graph, Build(SMALL), name="invert.onnx", prepare=wait, say=say
        )
    assert begun.is_set()
    deadline = 50
    while threading.active_count() > 1 and deadline:
        deadline -= 1
        threading.Event().wait(0.1)
    assert not gpu.builds, "the monitor stopped the build, and there is no engine"


_LEFT_BUILDING = """
import sys, threading, time
import pytest
from pathlib import Path
from cyclegan_batch.backends.tensorrt import build as building
from cyclegan_batch.models.engine_card import Build, Profile
from tests.synthesis import fake_tensorrt

gpu = fake_tensorrt.install(pytest.MonkeyPatch())
building._REPORT_INTERVAL, building._STOP_TIMEOUT = 0.1, 0.1

left = threading.Event()

def step():
    left.wait(60)
    time.sleep(0.3)
    Path(sys.argv[1]).touch()

def say(sentence):
    raise KeyboardInterrupt

gpu.building = step
shape = (1, 8, 8)
try:
    building.engine_from_graph(b"", Build(Profile(shape, shape, shape)), name="x", say=say)
except KeyboardInterrupt:
    assert not Path(sys.argv[1]).exists()
    left.set()
    sys.exit(7)
"""


def test_a_build_that_was_left_has_an_interpreter_until_it_ends(tmp_path: Path) -> None:
    """TensorRT's threads call Python: without an interpreter such a call aborts the process."""
    done = subprocess.run(
        [sys.executable, "-c", _LEFT_BUILDING, tmp_path / "ended"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7, "")
    assert (tmp_path / "ended").exists()


def test_cancel_ends_a_build_in_the_middle_of_a_run_errors(
    tmp_path: Path, gpu: Gpu, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_on(gpu, model, tmp_path)
    gpu.building = lambda: opened.cancel() or threading.Event().wait(0.5)
    with Stopwatch() as watch, pytest.raises(BackendError, match="cancelled"):
        opened.infer(frames(2, 32, 32))
    assert watch.seconds < 5
    assert len(gpu.builds) == 1


# What TensorRT refuses


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("builder", "cannot start its builder: no driver"),
        ("parse", r"does not read invert\.onnx: no driver \(node 'n1'\)"),
        ("build", r"builds no engine of invert\.onnx for 1,8,8 to 2,8,8.*: no driver"),
        ("open", "does not open .*: no driver"),
        ("context", "cannot create a context of .*: no driver"),
    ],
)
def test_what_returns_none_says_the_loggers_words_errors(
    tmp_path: Path, gpu: Gpu, model: Model, what: str, match: str
) -> None:
    gpu.refuse[what] = "[builder.cpp::work::12] no driver"
    with pytest.raises(BackendError, match=match) as caught:
        open_on(gpu, model, tmp_path)
    assert "a warning" not in str(caught.value)
    assert not list(tmp_path.glob("engines/*.engine"))


@pytest.mark.parametrize("what", ["build", "open", "context"])
def test_no_memory_for_an_engine_errors(tmp_path: Path, gpu: Gpu, model: Model, what: str) -> None:
    gpu.refuse[what] = "Requested amount of GPU memory: out of memory"
    with pytest.raises(OutOfMemoryError, match="no memory"):
        open_on(gpu, model, tmp_path)


def test_a_thread_hears_its_own_errors_and_a_build_those_of_tensorrts_threads(gpu: Gpu) -> None:
    trt = library.import_tensorrt()
    log, severity = library.logger(trt), trt.ILogger.Severity.ERROR

    def in_a_thread(work: Callable[[], Any]) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    def of_another() -> None:
        log.clear()
        log.log(severity, "of another")

    log.clear()
    log.log(severity, "of this one")
    in_a_thread(of_another)
    in_a_thread(log.clear)
    in_a_thread(lambda: log.log(severity, "of TensorRT's own"))
    assert log.words() == "of this one"
    log.clear(include_tensorrts_threads=True)
    in_a_thread(of_another)
    in_a_thread(lambda: log.log(severity, "of TensorRT's own"))
    assert log.words() == "of TensorRT's own"


def test_without_gpu_driver_package_or_such_a_device_errors(
    tmp_path: Path, gpu: Gpu, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendUnavailableError, match="asked for cuda:3 and this machine has 1"):
        open_on(gpu, model, tmp_path, device="cuda:3")
    with pytest.raises(BackendUnavailableError, match="runs on NVIDIA GPUs only"):
        open_on(gpu, model, tmp_path, device="cpu")
    gpu.memory = 0
    with pytest.raises(BackendUnavailableError, match=r"finds no NVIDIA GPU.*InsufficientDriver"):
        open_on(gpu, model, tmp_path)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendUnavailableError, match=r"cuda-bindings.*pip install .cuda-bindings"):
        open_on(gpu, model, tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install .cyclegan-batch\[tensorrt"):
        open_on(gpu, model, tmp_path)


@pytest.mark.behaviour(33)
def test_an_engine_that_draws_something_else_is_not_accepted_errors(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    gpu.add = 4
    with pytest.raises(ModelError, match=r"its engine on NVIDIA Fake 1 is .*, where half is exp"):
        open_on(gpu, model, tmp_path)
    gpu.add = 2
    with pytest.raises(ModelError, match=r"where exact is expected \(largest difference 1\)"):
        open_on(gpu, model, tmp_path, precision="fp32")
    assert not list(tmp_path.glob("engines/*.engine"))


@pytest.mark.behaviour(33)
def test_half_precision_is_confirmed_or_said_to_be_missing(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    halved = replace(model, card=replace(model.card, precision="fp16", parity="half: 60 dB"))
    path = tmp_path / "x.engine"
    card, notes = backend.write_engine(halved, path, Build(SMALL), cache_dir=tmp_path)
    assert card.layers == "1 of 2 with half precision"
    assert notes == ()
    gpu.layers = '{"Layers": [{"Name": "a", "Inputs": [{"Format/Datatype": "Float"}]}]}'
    card, notes = backend.write_engine(halved, path, Build(SMALL), cache_dir=tmp_path)
    assert card.layers == "0 of 1 with half precision"
    assert "shows no layer in half precision" in notes[0].text


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_reduced_file_that_was_never_measured_is_told(
    tmp_path: Path, gpu: Gpu, model: Model, precision: str
) -> None:
    """Its engine is compared with the file itself, where the file's own error does not show."""
    reduced = replace(model, card=replace(model.card, precision=precision))
    (note,) = grouped(open_on(gpu, reduced, tmp_path).notes)
    assert note.startswith(f"invert.onnx: is {precision}, and its card holds no parity with fp32;")
    measured = replace(model, card=replace(reduced.card, parity="coarse: 40 dB"))
    assert not grouped(open_on(gpu, measured, tmp_path / "other").notes)
