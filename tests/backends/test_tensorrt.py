"""Engines of TensorRT: built once, kept with a card, trusted only when ours, and run.

Three kinds of proof, none of them on a GPU. The control flow runs on stand-ins (always). Every name
that the code uses is looked up in the real bindings (where their wheels are). And marked
``needs_tensorrt``, contract files are parsed and built for real (export/README.md says with what):
without a GPU that takes bindings and a library which NVIDIA does not mean to go together. It shows
that the network parses and that a builder of the family takes its types and shapes; it shows no
picture and no speed. What is marked ``needs_cuda`` runs where there is a GPU.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cyclegan_batch import cli, open_generator
from cyclegan_batch.backends import tensorrt as backend
from cyclegan_batch.backends.tensorrt import build as building
from cyclegan_batch.backends.tensorrt import library
from cyclegan_batch.errors import (
    BackendError,
    BackendUnavailableError,
    ModelError,
    OutOfMemoryError,
)
from cyclegan_batch.frames import Pixels
from cyclegan_batch.inspection import inspect_file
from cyclegan_batch.machine import nvidia_gpus
from cyclegan_batch.models import engine_card
from cyclegan_batch.models.engine_card import (
    Build,
    Machine,
    Profile,
    card_path,
    profile_for,
    read_card,
)
from cyclegan_batch.models.model import Model, open_model, write_model
from cyclegan_batch.models.networks import GeneratorConfig, generator_from_config
from cyclegan_batch.wording import grouped
from tests.conftest import REPOSITORY
from tests.synthesis import fake_tensorrt, generators
from tests.synthesis.fake_tensorrt import Gpu

SMALL = Profile((1, 8, 8), (2, 8, 8), (4, 16, 16))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Return the stand-in for a GPU, under the stand-ins for TensorRT and CUDA."""
    return fake_tensorrt.install(monkeypatch)


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where this user's key lies; caches and state are away from the user's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "states"))
    return tmp_path / "states" / "cyclegan-batch" / "engine.key"


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Return a contract file that inverts."""
    return open_model(generators.invert(tmp_path / "invert.onnx"))


def frames(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)


def open_on(gpu: Gpu, model: Model, cache: Path, **options: Any) -> backend.TensorRtBackend:
    options.setdefault("shapes", [(2, 8, 8)])
    return backend.open_tensorrt(model, cache_dir=cache, **options)


# Pictures


@pytest.mark.behaviour(33)
@pytest.mark.parametrize("io", ["uint8", "float16"])
def test_frames_go_in_and_come_out_translated(tmp_path: Path, gpu: Gpu, io: Any) -> None:
    model = open_model(generators.invert(tmp_path / "invert.onnx", io))
    opened = open_on(gpu, model, tmp_path / "cache")
    white = 255 if io == "uint8" else np.float16(1)
    sent = frames(2, 8, 8) if io == "uint8" else (frames(2, 8, 8) / 255).astype(np.float16)
    first = opened.infer(sent)
    second = opened.infer(white - sent)
    assert first.dtype == sent.dtype
    np.testing.assert_array_equal(first, white - sent)
    # The second call wrote into the same buffers, and the first result is the caller's.
    np.testing.assert_allclose(second, sent, atol=1e-3)


def test_an_engine_for_a_batch_takes_every_smaller_one(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    opened = open_on(gpu, model, tmp_path, shapes=[(4, 8, 8)])
    for count in (4, 2, 1, 3):
        sent = frames(count, 8, 8)
        np.testing.assert_array_equal(opened.infer(sent), 255 - sent)
    assert len(gpu.builds) == 1
    assert gpu.builds[0].profile == ((1, 8, 8, 3), (4, 8, 8, 3), (4, 8, 8, 3))


def test_frames_outside_the_profile_get_an_engine_that_takes_many_sizes(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    opened = open_on(gpu, model, tmp_path, shapes=[])
    assert not gpu.builds, "nothing is known yet of what will come"
    for size in ((8, 8), (12, 20), (16, 16), (500, 300)):
        assert opened.infer(frames(1, *size)).shape == (1, *size, 3)
    assert [build.profile[2] for build in gpu.builds] == [(1, 8, 8, 3), (1, 512, 512, 3)]


def test_a_file_of_fixed_shape_is_built_for_it(tmp_path: Path, gpu: Gpu) -> None:
    path = generators.invert(tmp_path / "fixed.onnx", fixed=(16, 8), batch=2)
    opened = open_on(gpu, open_model(path), tmp_path, shapes=[])
    assert gpu.builds[0].profile == ((2, 16, 8, 3),) * 3
    sent = frames(5, 16, 8)
    np.testing.assert_array_equal(opened.infer(sent), 255 - sent)


def test_forks_share_the_engine_and_have_buffers_of_their_own(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    opened = open_on(gpu, model, tmp_path)
    contexts = [opened, opened.fork(), opened.fork()]
    sent = [frames(2, 8, 8) // (index + 1) for index in range(3)]
    found: list[Any] = [None] * 3

    def work(index: int) -> None:
        found[index] = contexts[index].infer(sent[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(3):
        np.testing.assert_array_equal(found[index], 255 - sent[index])
    assert len(gpu.builds) == len(gpu.opened) == 1
    assert gpu.streams == 3
    for context in contexts:
        context.close()
        context.close()
    assert not gpu.live
    assert gpu.streams == 0
    with pytest.raises(BackendError, match="closed"):
        contexts[1].infer(sent[0])


def test_after_cancel_no_call_begins_errors(tmp_path: Path, gpu: Gpu, model: Model) -> None:
    opened = open_on(gpu, model, tmp_path)
    other = opened.fork()
    opened.cancel()
    with pytest.raises(BackendError, match="cut off"):
        opened.infer(frames(2, 8, 8))
    assert other.infer(frames(2, 8, 8)).shape == (2, 8, 8, 3)


@pytest.mark.behaviour(26)
def test_too_large_a_batch_is_out_of_memory_and_half_of_it_is_not_errors(
    tmp_path: Path, gpu: Gpu, model: Model
) -> None:
    opened = open_on(gpu, model, tmp_path, shapes=[(4, 8, 8)])
    # Working memory is ten times the frames here, and four buffers stand beside it.
    gpu.memory = 14 * 3 * 8 * 8 * 3
    with pytest.raises(OutOfMemoryError, match=r"on cuda:0 for a batch of 4,8,8"):
        opened.infer(frames(4, 8, 8))
    assert not gpu.live, "what was allocated before it failed is free again"
    np.testing.assert_array_equal(opened.infer(frames(2, 8, 8)), 255 - frames(2, 8, 8))
    assert len(gpu.builds) == 1


# Building once


@pytest.mark.behaviour(32)
def test_a_second_run_builds_nothing(tmp_path: Path, gpu: Gpu, model: Model) -> None:
    said: list[str] = []
    for _ in range(2):
        opened = open_on(gpu, model, tmp_path / "cache", say=said.append)
        opened.infer(frames(2, 8, 8))
    assert len(gpu.builds) == 1
    assert said == ["building an engine of invert.onnx for NVIDIA Fake 1 (1,8,8 to 2,8,8, tuned "
                    "for 2,8,8) …"]  # fmt: skip


OTHERS: dict[str, Callable[[Gpu], None]] = {
    "GPU": lambda gpu: setattr(gpu, "name", b"NVIDIA Fake 2"),
    "compute capability": lambda gpu: setattr(gpu, "minor", 9),
    "TensorRT": lambda gpu: setattr(gpu, "version", "11.5.0.1"),
    "part of a GPU": lambda gpu: setattr(gpu, "multiprocessors", 16),
    "memory": lambda gpu: setattr(gpu, "memory", 2**32),
}


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
    said = json.loads(card_path(engine).read_text())
    del said["build"]["recipe"], said["machine"]["multiprocessors"], said["machine"]["memory_gib"]
    said["build"]["refit"] = False
    card_path(engine).write_text(json.dumps(said))
    gpu.builds.clear()
    opened = open_on(gpu, open_model(engine), tmp_path / "cache")
    assert len(gpu.builds) == 1
    assert "built for NVIDIA Fake 1 (compute capability 8.6), this is" in grouped(opened.notes)[0]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no card": lambda path: card_path(path).unlink(),
    "half a card": lambda path: card_path(path).write_text(card_path(path).read_text()[:200]),
    "an empty card": lambda path: card_path(path).write_text("{}"),
    "a card of another kind": lambda path: card_path(path).write_text("[1]"),
    "a changed engine": damage,
    "half an engine": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "no engine": Path.unlink,
    "an exchanged engine": lambda path: _exchange(path),
}


def _exchange(path: Path) -> None:
    """Put other bytes in the engine's place, and their digest into the card."""
    path.write_bytes(b"fake engine\nmalice")
    said = json.loads(card_path(path).read_text())
    said["engine_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    card_path(path).write_text(json.dumps(said))


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
    assert len(gpu.builds) == 2, "and then it is whole again"


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
    assert [build.known for build in gpu.builds] == [b"", b"timed " if how == "whole" else b""]


def test_a_build_is_what_was_asked_for(tmp_path: Path, gpu: Gpu, model: Model) -> None:
    build = Build(SMALL, builder_level=5, workspace=64, hardware_compatible=True,
                  version_compatible=True, tf32=True)  # fmt: skip
    backend.write_engine(model, tmp_path / "x.engine", build, cache_dir=tmp_path)
    (made,) = gpu.builds
    assert made.profile == ((1, 8, 8, 3), (2, 8, 8, 3), (4, 16, 16, 3))
    assert made.builder_optimization_level == 5
    assert made.workspace == 64 * 2**20
    assert made.hardware_compatibility_level == "AMPERE_PLUS"
    assert made.flags == {"VERSION_COMPATIBLE", "TF32"}


def test_a_long_build_says_how_far_it_is_and_ctrl_c_ends_it_errors(
    gpu: Gpu, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_SPOKEN", 0.1)
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
    assert not gpu.builds, "the monitor said no, and TensorRT gave nothing"


_LEFT_BUILDING = """
import sys, time
import pytest
from pathlib import Path
from cyclegan_batch.backends.tensorrt import build as building
from cyclegan_batch.models.engine_card import Build, Profile
from tests.synthesis import fake_tensorrt

gpu = fake_tensorrt.install(pytest.MonkeyPatch())
building._SPOKEN, building._STOPPING = 0.1, 0.1

def step():
    time.sleep(1)
    Path(sys.argv[1]).touch()

def say(sentence):
    raise KeyboardInterrupt

gpu.building = step
shape = (1, 8, 8)
try:
    building.engine_from_graph(b"", Build(Profile(shape, shape, shape)), name="x", say=say)
except KeyboardInterrupt:
    assert not Path(sys.argv[1]).exists()
    sys.exit(7)
"""


def test_a_build_that_was_left_has_an_interpreter_until_it_ends(tmp_path: Path) -> None:
    """TensorRT's threads call Python: where the interpreter is gone, that ends in an abort."""
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
    begun = time.monotonic()
    with pytest.raises(BackendError, match="cut off"):
        opened.infer(frames(2, 32, 32))
    assert time.monotonic() - begun < 5
    assert len(gpu.builds) == 1


# What TensorRT refuses


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("builder", "cannot start its builder: no driver"),
        ("parse", r"does not read invert\.onnx: no driver \(node 'n1'\)"),
        ("build", r"builds no engine of invert\.onnx for 1,8,8 to 2,8,8.*: no driver"),
        ("open", "does not open .*: no driver"),
        ("context", "makes no context of .*: no driver"),
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


@pytest.mark.parametrize("what", ["shape", "size", "memory", "enqueue"])
def test_a_failing_call_says_why_errors(tmp_path: Path, gpu: Gpu, model: Model, what: str) -> None:
    opened = open_on(gpu, model, tmp_path)
    gpu.refuse[what] = "illegal address"
    with pytest.raises(BackendError, match=r"invert\.onnx fails on frames of 2,8,8.*illegal addr"):
        opened.infer(frames(2, 8, 8))
    gpu.refuse[what] = "cuda: out of memory"
    with pytest.raises(OutOfMemoryError, match="for a batch of 2,8,8"):
        opened.infer(frames(2, 8, 8))
    gpu.refuse.clear()
    assert opened.infer(frames(2, 8, 8)).shape == (2, 8, 8, 3)


@pytest.mark.behaviour(26)
@pytest.mark.parametrize("what", ["shape", "size", "memory", "enqueue"])
def test_out_of_memory_of_one_context_stays_that_while_another_goes_on_errors(
    tmp_path: Path, gpu: Gpu, model: Model, what: str
) -> None:
    """The second context begins a call of its own between the first one's failure and its words."""
    opened = open_on(gpu, model, tmp_path)
    other = opened.fork()
    sent = frames(2, 8, 8)
    other.infer(sent)
    failing = dict.fromkeys([what], "Error Code 2: OutOfMemory (Requested size was 9 bytes.)")

    def meanwhile() -> None:
        gpu.refuse.clear()
        thread = threading.Thread(target=lambda: other.infer(sent))
        thread.start()
        thread.join()

    gpu.reported, gpu.refuse = meanwhile, failing
    with pytest.raises(OutOfMemoryError, match="for a batch of 2,8,8"):
        opened.infer(sent)
    # And the other way round: what one reports is no failure of the other.
    gpu.reported, gpu.refuse = (lambda: None), {"enqueue": "illegal address"}
    with pytest.raises(BackendError, match="illegal address"):
        opened.infer(sent)
    gpu.refuse = {}
    assert other.infer(frames(1, 8, 8)).shape == (1, 8, 8, 3)


@pytest.mark.behaviour(26)
def test_out_of_memory_is_known_by_its_code_errors(tmp_path: Path, gpu: Gpu, model: Model) -> None:
    opened = open_on(gpu, model, tmp_path)
    gpu.code, gpu.refuse["enqueue"] = "FAILED_ALLOCATION", "words of another version"
    with pytest.raises(OutOfMemoryError, match="for a batch of 2,8,8"):
        opened.infer(frames(2, 8, 8))


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
    log.clear(of_tensorrts_threads=True)
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
    with pytest.raises(BackendUnavailableError, match=r"cuda-bindings.*cyclegan-batch\[tensorrt"):
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
    assert note.startswith(f"invert.onnx: says of itself that it is {precision} and not how near")
    measured = replace(model, card=replace(reduced.card, parity="coarse: 40 dB"))
    assert not grouped(open_on(gpu, measured, tmp_path / "other").notes)


# An engine as a file


@pytest.fixture
def engine(tmp_path: Path, gpu: Gpu, model: Model) -> Path:
    """Return an engine of the model, built here, its cache beside it."""
    path = tmp_path / "night.engine"
    backend.write_engine(model, path, Build(SMALL), cache_dir=tmp_path / "cache")
    return path


def test_an_engine_says_what_it_is(engine: Path) -> None:
    described = inspect_file(engine)
    assert described["kind"] == "TensorRT engine"
    assert described["gpu"] == ("NVIDIA Fake 1 (compute capability 8.6, 84 multiprocessors, 1 GiB)")
    assert described["tensorrt"] == "11.4.0.106"
    assert described["shapes"] == "1,8,8 to 4,16,16, tuned for 2,8,8"
    assert described["built_with"] == {"builder_level": 3, "recipe": engine_card.RECIPE}
    assert described["engine_parity"].startswith("exact")
    assert described["pixel_type"] == "uint8"
    json.dumps(described)


def test_an_engine_translates_as_it_is(tmp_path: Path, gpu: Gpu, engine: Path) -> None:
    gpu.builds.clear()
    (tmp_path / "invert.onnx").unlink()
    opened = open_on(gpu, open_model(engine), tmp_path / "cache")
    for count in (1, 4, 9):
        sent = frames(count, 16, 12)
        np.testing.assert_array_equal(opened.infer(sent), 255 - sent)
    assert not gpu.builds
    with pytest.raises(BackendError, match=r"takes frames of 1,8,8 to 4,16,16.*1,32,32 came"):
        opened.infer(frames(1, 32, 32))


def test_fp32_and_tf32_are_told_apart_errors(
    tmp_path: Path, gpu: Gpu, model: Model, engine: Path
) -> None:
    asked = {"auto": "tf32", "tf32": "tf32", "fp32": "fp32"}
    for word, found in asked.items():
        assert open_on(gpu, model, tmp_path / word, precision=word).precision == found
    assert (
        open_on(gpu, open_model(engine), tmp_path / "cache", precision="fp32").precision == "fp32"
    )
    with pytest.raises(BackendError, match="was built to compute in fp32 and tf32 was asked for"):
        open_on(gpu, open_model(engine), tmp_path / "cache", precision="tf32")
    half = replace(model, card=replace(model.card, precision="fp16"))
    assert open_on(gpu, half, tmp_path / "half").precision == "fp16"


@pytest.mark.behaviour(44)
def test_an_engine_that_we_did_not_build_needs_trust_errors(
    tmp_path: Path, gpu: Gpu, engine: Path, key: Path
) -> None:
    gpu.opened.clear()
    sent_along = key.read_bytes()
    key.unlink()
    with pytest.raises(ModelError, match=r"was not built here.*--trust-engine"):
        open_on(gpu, open_model(engine), tmp_path / "cache")
    key.write_bytes(sent_along)
    _exchange(engine)
    with pytest.raises(ModelError, match=r"was not built here.*--trust-engine"):
        open_on(gpu, open_model(engine), tmp_path / "cache")
    assert not gpu.opened, "TensorRT has not seen a byte of it"


@pytest.mark.behaviour(44)
@pytest.mark.parametrize("named", [True, False], ids=["--cache-dir", "the usual cache"])
def test_a_key_that_came_along_with_an_engine_is_no_key_errors(
    tmp_path: Path,
    gpu: Gpu,
    model: Model,
    key: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: bool,
) -> None:
    """Whoever sends a folder can put a key into it, and whoever shares a cache can read one."""
    cache = tmp_path / "sent" if named else tmp_path / "caches" / "cyclegan-batch"
    with monkeypatch.context() as there:
        there.setenv("XDG_STATE_HOME", str(tmp_path / "of the sender"))
        open_on(gpu, model, cache)
        backend.write_engine(model, cache / "x.engine", Build(SMALL))
    model.card.path.rename(cache / model.card.path.name)
    senders = tmp_path / "of the sender" / "cyclegan-batch" / "engine.key"
    for folder in (cache, cache / "engines"):
        shutil.copy(senders, folder)
    gpu.opened.clear()
    with pytest.raises(ModelError, match=r"was not built here.*--trust-engine"):
        open_on(gpu, open_model(cache / "x.engine"), cache)
    assert not gpu.opened
    # What lies in its cache is no better, and is replaced.
    open_on(gpu, open_model(cache / model.card.path.name), cache)
    assert len(gpu.builds) == 3
    assert gpu.builds[-1].known == b"", "timings of another user are not handed to TensorRT"
    assert senders.read_bytes() != key.read_bytes()


def _group_writable(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


def _readable(path: Path) -> None:
    path.chmod(0o644)


def _of_another_user(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(path, 12345, -1)


@pytest.mark.behaviour(44)
@pytest.mark.parametrize(
    ("which", "spoil", "match"),
    [
        ("file", _group_writable, "may be written by other users.*chmod go-w"),
        ("file", _readable, "is no key"),
        ("file", _of_another_user, "belongs to another user"),
        ("folder", _group_writable, "may be written by other users.*chmod go-w"),
        ("folder", _of_another_user, "belongs to another user"),
        ("file", lambda path: path.write_bytes(b"short"), "is no key"),
    ],
)
def test_a_key_that_others_may_know_or_change_is_no_key_errors(
    tmp_path: Path, gpu: Gpu, model: Model, key: Path, which: str, spoil: Any, match: str
) -> None:
    path = tmp_path / "x.engine"
    backend.write_engine(model, path, Build(SMALL))
    open_on(gpu, model, tmp_path / "cache")
    spoil(key if which == "file" else key.parent)
    with pytest.raises(ModelError, match="was not built here"):
        open_on(gpu, open_model(path), tmp_path / "cache")
    gpu.builds.clear()
    (note,) = grouped(open_on(gpu, model, tmp_path / "cache").notes)
    assert len(gpu.builds) == 1
    assert re.search(f"the next run builds it again: .*{match}", note)
    _, (note,) = backend.write_engine(model, path, Build(SMALL))
    assert re.search(f"loading it will take --trust-engine: .*{match}", note)


@pytest.mark.behaviour(44)
@pytest.mark.parametrize("spoil", [_group_writable, _of_another_user])
def test_a_cache_folder_of_others_is_neither_read_nor_written(
    tmp_path: Path, gpu: Gpu, model: Model, spoil: Any
) -> None:
    open_on(gpu, model, tmp_path)
    spoil(tmp_path / "engines")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "engines").iterdir()}
    gpu.opened.clear()
    opened = open_on(gpu, model, tmp_path)
    assert (len(gpu.builds), len(gpu.opened)) == (2, 1)
    assert gpu.builds[1].known == b""
    assert "the next run builds it again" in grouped(opened.notes)[0]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "engines").iterdir()}


def test_an_engine_built_here_is_ours_whatever_cache_folder_is_named(
    tmp_path: Path, gpu: Gpu, model: Model, key: Path
) -> None:
    path = tmp_path / "x.engine"
    backend.write_engine(model, path, Build(SMALL))
    assert key.stat().st_mode & 0o077 == 0, "nobody else reads it"
    assert key.parent.stat().st_mode & 0o022 == 0, "nobody else writes there"
    assert not list(tmp_path.glob("caches/**/*.key")), "it lies in no cache"
    opened = open_on(gpu, open_model(path), tmp_path / "another folder")
    assert opened.infer(frames(1, 8, 8)).shape == (1, 8, 8, 3)
    key.write_bytes(bytes(32))
    with pytest.raises(ModelError, match="was not built here"):
        open_on(gpu, open_model(path), tmp_path / "another folder")


@pytest.mark.behaviour(44)
def test_a_trusted_engine_is_loaded_if_it_is_the_one_of_its_card_errors(
    tmp_path: Path, gpu: Gpu, engine: Path, key: Path
) -> None:
    key.unlink()
    elsewhere = tmp_path / "elsewhere"
    opened = open_on(gpu, open_model(engine), elsewhere, trust_engine=True)
    np.testing.assert_array_equal(opened.infer(frames(1, 8, 8)), 255 - frames(1, 8, 8))
    damage(engine)
    with pytest.raises(ModelError, match="is not the engine that its card describes"):
        open_on(gpu, open_model(engine), elsewhere, trust_engine=True)


@pytest.mark.behaviour(33)
def test_a_trusted_engine_is_measured_against_the_onnx_beside_it_errors(
    tmp_path: Path, gpu: Gpu, engine: Path, key: Path
) -> None:
    key.unlink()
    elsewhere = tmp_path / "elsewhere"
    assert not grouped(open_on(gpu, open_model(engine), elsewhere, trust_engine=True).notes)
    gpu.add = 9
    with pytest.raises(ModelError, match="where exact is expected"):
        open_on(gpu, open_model(engine), elsewhere, trust_engine=True)
    (tmp_path / "invert.onnx").unlink()
    (note,) = grouped(open_on(gpu, open_model(engine), elsewhere, trust_engine=True).notes)
    assert "compared with nothing; put invert.onnx beside it" in note


@pytest.mark.behaviour(32)
@pytest.mark.parametrize("other", OTHERS)
def test_an_engine_of_another_machine_is_rebuilt_from_the_onnx_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Path, other: str
) -> None:
    changed = Gpu()
    OTHERS[other](changed)
    fake_tensorrt.install(monkeypatch, changed)
    opened = open_on(changed, open_model(engine), tmp_path / "cache")
    np.testing.assert_array_equal(opened.infer(frames(1, 16, 16)), 255 - frames(1, 16, 16))
    assert [build.profile[2] for build in changed.builds] == [(4, 16, 16, 3)]
    assert any("built" in note and "from invert.onnx" in note for note in grouped(opened.notes))
    open_on(changed, open_model(engine), tmp_path / "cache")
    assert len(changed.builds) == 1


def test_an_engine_of_another_machine_without_its_onnx_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Path
) -> None:
    changed = fake_tensorrt.install(monkeypatch, Gpu(name=b"NVIDIA Fake 2"))
    beside = tmp_path / "invert.onnx"
    generators.identity(beside)
    with pytest.raises(ModelError, match=r"put the ONNX that it was built from beside it"):
        open_on(changed, open_model(engine), tmp_path / "cache")
    beside.unlink()
    with pytest.raises(ModelError, match=r"built for NVIDIA Fake 1.*this is NVIDIA Fake 2.*beside"):
        open_on(changed, open_model(engine), tmp_path / "cache")
    assert not changed.opened


@pytest.mark.parametrize(
    ("build", "there", "fits"),
    [
        ({}, Machine("A", (8, 6), "11.4.0"), True),
        ({}, Machine("B", (8, 6), "11.4.0"), False),
        ({"hardware_compatible": True}, Machine("B", (12, 0), "11.4.0"), True),
        ({"hardware_compatible": True}, Machine("B", (7, 5), "11.4.0"), False),
        ({"hardware_compatible": True}, Machine("B", (9, 0), "11.5.0"), False),
        ({"version_compatible": True}, Machine("A", (8, 6), "11.10.0"), True),
        ({"version_compatible": True}, Machine("A", (8, 6), "11.3.9"), False),
        ({"version_compatible": True}, Machine("A", (8, 6), "12.0.0"), False),
        ({"version_compatible": True}, Machine("B", (8, 6), "11.4.0"), False),
    ],
)
def test_what_an_engine_is_bound_to_depends_on_how_it_was_built(
    engine: Path, build: dict[str, bool], there: Machine, fits: bool
) -> None:
    card = replace(
        read_card(engine),
        machine=Machine("A", (8, 6), "11.4.0"),
        build=Build(SMALL, **build),  # type: ignore[arg-type]
    )
    assert (not card.misfits(there)) == fits


def test_an_engine_without_a_card_or_with_a_broken_one_errors(engine: Path) -> None:
    card_path(engine).write_text("{}")
    with pytest.raises(ModelError, match=r"night\.engine\.json cannot be read.*export"):
        open_model(engine)
    card_path(engine).unlink()
    with pytest.raises(ModelError, match="has no card beside it"):
        open_model(engine)
    with pytest.raises(ModelError, match="no such model file"):
        open_model(engine.with_name("none.engine"))
    engine_card.write_engine_file(_card_of(engine, Build(SMALL)), b"")
    with pytest.raises(ModelError, match="leave the option out"):
        open_model(engine, model_io="nchw rgb")


def _card_of(engine: Path, build: Build) -> engine_card.EngineCard:
    model = open_model(engine.with_name("invert.onnx"))
    return engine_card.EngineCard(
        path=engine, model=model.card, engine_sha256="", onnx_sha256="", build=build,
        machine=Machine("A", (8, 6), "11"), tool_version="0",
    )  # fmt: skip


def test_an_engine_of_one_size_has_a_card_of_fixed_size(tmp_path: Path, engine: Path) -> None:
    only = (2, 16, 8)
    card = _card_of(engine, Build(Profile(only, only, only)))
    engine_card.write_engine_file(card, b"")
    found = open_model(engine).card
    assert found.sizes.fixed == (16, 8)
    assert found.batch == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, (2, 8, 8), None), Profile((2, 8, 8), (2, 8, 8), (2, 8, 8))),
        (((1, 4, 4), None, (4, 8, 8)), Profile((1, 4, 4), (4, 8, 8), (4, 8, 8))),
        (((1, 4, 4), (2, 6, 6), None), Profile((1, 4, 4), (2, 6, 6), (2, 6, 6))),
    ],
)
def test_shapes_that_are_left_out_follow_from_the_others(
    model: Model, given: Any, expected: Profile
) -> None:
    assert profile_for(model.card, *given) == expected


def test_shapes_that_a_network_cannot_take_errors(tmp_path: Path, model: Model) -> None:
    with pytest.raises(ModelError, match="pass --opt-shape N,H,W"):
        profile_for(model.card, None, None, None)
    with pytest.raises(ModelError, match="--opt-shape 1,8,8 does not lie between"):
        profile_for(model.card, (1, 16, 16), (1, 8, 8), (1, 32, 32))
    resnet = open_model(generators.tiny_resnet(tmp_path / "resnet.onnx")).card
    with pytest.raises(ModelError, match=r"--opt-shape 1,33,64: .* the next size is 34,64"):
        profile_for(resnet, None, (1, 33, 64), None)
    path = generators.invert(tmp_path / "fixed.onnx", fixed=(16, 8), batch=2)
    fixed = open_model(path).card
    assert profile_for(fixed, None, None, None).max == (2, 16, 8)
    with pytest.raises(ModelError, match="is of fixed shape 2,16,8 and 1,16,8 was asked for"):
        profile_for(fixed, None, (1, 16, 8), None)


# Through the commands


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def test_export_writes_an_engine_of_a_contract_file(
    tmp_path: Path, gpu: Gpu, model: Model, key: Path
) -> None:
    engine = tmp_path / "night.engine"
    command = ("export", model.card.path, engine, "--opt-shape", "2,8,8", "--version-compatible")
    done = run(*command, "--max-shape", "4,16,16", "--builder-level", "1", "--workspace", "9")
    assert done.exit_code == 0, done.output
    assert "night.engine: fp32" in done.output
    assert (gpu.builds[0].builder_optimization_level, gpu.builds[0].workspace) == (1, 9 << 20)
    assert read_card(engine).build.profile == Profile((2, 8, 8), (2, 8, 8), (4, 16, 16))
    shown = run("inspect", engine)
    assert "tensorrt: 11.4.0.106" in shown.output
    done = run(*command)
    assert done.exit_code == 1
    assert "it exists already; pass -y" in done.output
    assert run(*command, "-y").exit_code == 0
    done = run(*command, "-y", "--precision", "fp16")
    assert done.exit_code == 1
    assert "is fp32 and fp16 was asked for; give the checkpoint" in done.output


def test_a_picture_is_translated_with_an_engine(
    tmp_path: Path, gpu: Gpu, model: Model, key: Path
) -> None:
    engine, picture, out = (tmp_path / name for name in ("n.engine", "in.png", "out.png"))
    assert run("export", model.card.path, engine, "--opt-shape", "4,8,8").exit_code == 0
    sent = frames(1, 8, 8)[0]
    Image.fromarray(sent).save(picture)
    done = run("translate", picture, out, "-m", engine)
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.asarray(Image.open(out)), 255 - sent)
    key.unlink()
    done = run("translate", picture, out, "-y", "-m", engine)
    assert done.exit_code == 1
    assert "--trust-engine" in done.output
    assert run("translate", picture, out, "-y", "-m", engine, "--trust-engine").exit_code == 0
    done = run("translate", picture, out, "-y", "-m", engine, "--backend", "onnxruntime")
    assert "is an engine, which only TensorRT runs" in done.output


def test_an_engine_is_a_function_on_arrays(gpu: Gpu, engine: Path, key: Path) -> None:
    sent = frames(6, 9, 16)
    with open_generator(engine) as generator:
        np.testing.assert_array_equal(generator(sent), 255 - sent)
    key.unlink()
    with pytest.raises(ModelError, match="--trust-engine"):
        open_generator(engine)
    with open_generator(engine, trust_engine=True) as generator:
        np.testing.assert_array_equal(generator(sent), 255 - sent)


def test_a_build_for_a_translation_is_said_and_fits_the_plan(
    tmp_path: Path, gpu: Gpu, model: Model, key: Path
) -> None:
    for name, size in (("a.png", (8, 8)), ("b.png", (12, 20))):
        Image.fromarray(frames(1, *size)[0]).save(tmp_path / name)
    command = ("translate", tmp_path / "a.png", tmp_path / "b.png", f"{tmp_path}/out/", "-y")
    done = run(*command, "-m", model.card.path, "--backend", "tensorrt")
    assert done.exit_code == 0, done.output
    assert "building an engine of invert.onnx for NVIDIA Fake 1" in done.output
    (build,) = gpu.builds
    assert build.profile == ((1, 8, 8, 3), (4, 8, 8, 3), (4, 12, 20, 3))
    again = run(*command, "-m", model.card.path, "--backend", "tensorrt")
    assert again.exit_code == 0, again.output
    assert "building" not in again.output
    assert len(gpu.builds) == 1


def test_an_engine_of_a_checkpoint_leaves_its_onnx_beside_it(
    tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_export = pytest.importorskip("cyclegan_export.engine_export")
    told: dict[str, Any] = {}

    def export_onnx(source: Path, output: Path, **options: Any) -> None:
        told.update(options)
        generators.invert(output)

    monkeypatch.setattr(engine_export, "export_onnx", export_onnx)
    engine = tmp_path / "g.engine"
    done = run("export", "latest_net_G.pth", engine)
    assert done.exit_code == 1
    assert "pass --opt-shape N,H,W" in done.output
    done = run("export", "latest_net_G.pth", engine, "--opt-shape", "1,12,16", "--io", "float16")
    assert done.exit_code == 0, done.output
    assert (told["io"], told["precision"], told["verify"]) == ("float16", "fp32", True)
    card = read_card(engine)
    assert card.model.path == tmp_path / "g.onnx"
    assert hashlib.sha256((tmp_path / "g.onnx").read_bytes()).hexdigest() == card.onnx_sha256
    assert card.parity is not None
    assert card.parity.startswith("exact")


def test_options_of_an_engine_for_an_onnx_errors(tmp_path: Path) -> None:
    done = run(
        "export", "g.pth", tmp_path / "a.onnx", "--opt-shape", "1,8,8", "--version-compatible"
    )
    assert done.exit_code == 2
    assert "--opt-shape, --version-compatible: for an engine only" in done.output


def test_an_engine_without_tensorrt_errors_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    done = run("export", tmp_path / "g.pth", tmp_path / "g.engine", "--opt-shape", "1,8,8")
    assert done.exit_code == 1
    assert "tensorrt cannot be loaded" in done.output


# The names that the code uses, in the real bindings

VERSIONS = ("10.16.1.11", "11.4.0.106")

LABORATORY = Path(os.environ.get("CYCLEGAN_BATCH_TRT_LAB", REPOSITORY / ".trt-lab"))

OBJECTS = {
    "_build": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "each": "ParserError",
        "profile": "IOptimizationProfile",
        "timing": "ITimingCache",
    },
    "opened": {"runtime": "Runtime"},
    "_inspected": {"made.engine": "ICudaEngine", "inspector": "EngineInspector"},
    "__init__": {"engine.engine": "ICudaEngine", "self._context": "IExecutionContext"},
    "_prepare": {"context": "IExecutionContext"},
    "infer": {"self._context": "IExecutionContext"},
}
"""What TensorRT's objects are called in which function of the backend, and their classes."""


def source_of_the_backend() -> str:
    """Return the source of all modules of the package."""
    folder = Path(backend.__file__).parent
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.py")))


def names_used() -> set[str]:
    """Return every name of TensorRT that the backend uses, as ``Class.name``."""
    tree = ast.parse(source_of_the_backend())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain = ast.unparse(node).removeprefix("self._")
            if re.fullmatch(r"trt(\.\w+)+", chain):
                found.add(chain.removeprefix("trt."))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            classes = OBJECTS.get(function.name, {})
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) in classes:
                    found.add(f"{classes[ast.unparse(node.value)]}.{node.attr}")
    return found


def test_the_names_used_are_found() -> None:
    assert {
        "Builder",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "IBuilderConfig.progress_monitor",
        "IExecutionContext.execute_async_v3",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "ICudaEngine.create_engine_inspector",
    } <= names_used()
    gone = {"EXPLICIT_BATCH", "FP16", "INT8", "int8_calibrator", "max_workspace_size"}
    assert not gone & {name.rpartition(".")[2] for name in names_used()}


_ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
"""What the bindings want of TensorRT's libraries to be imported at all."""


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists_in_the_bindings(tmp_path: Path, version: str) -> None:
    """The bindings are imported over empty libraries: classes and names need no more."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = list(LABORATORY.glob(f"wheels/tensorrt_cu13_bindings-{version}-{tag}-*.whl"))
    if not wheels:
        pytest.skip(
            f"no bindings: pip download --no-deps -d {LABORATORY / 'wheels'} "
            f"tensorrt-cu13-bindings=={version}"
        )
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to make the empty libraries with")
    zipfile.ZipFile(wheels[0]).extractall(tmp_path)
    source = tmp_path / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _ENTRY_POINTS))
    for each in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        name = f"lib{each}.so.{version.partition('.')[0]}"
        command = ["gcc", "-shared", "-fPIC", "-o", tmp_path / "tensorrt_bindings" / name, source]
        subprocess.run(command, check=True)
    script = (
        "import functools, json, sys, tensorrt_bindings as trt\n"
        "def there(name):\n"
        "    try: functools.reduce(getattr, name.split('.'), trt)\n"
        "    except AttributeError: return False\n"
        "    return True\n"
        "print(json.dumps([trt.__version__, [n for n in sys.argv[1:] if not there(n)]]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, *names_used()],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [version, []]


def test_every_name_of_cuda_exists_in_its_bindings() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    source = source_of_the_backend()
    used = set(re.findall(r"\bcuda[A-Z]\w+", source)) - {"cudaErrorMemoryAllocation"}
    assert {"cudaMallocHost", "cudaMemcpyAsync", "cudaStreamSynchronize"} <= used
    there = set(dir(runtime)) | set(dir(runtime.cudaMemcpyKind))
    assert not used - there


# The real thing, without a GPU


def half(path: Path) -> Path:
    """Write a contract file of half precision."""
    model = open_model(generators.foreign_resnet(path.with_name("foreign.onnx"), half=True))
    contract = onnx.ModelProto.FromString(model.graph)
    write_model(path, contract, architecture="r", sizes=model.card.sizes, precision="fp16")
    return path


VARIANTS: dict[str, Callable[[Path], Path]] = {
    "fp32": generators.tiny_resnet,
    "fp32 io float16": lambda path: generators.tiny_resnet(path, io="float16"),
    "fp32 fixed": lambda path: generators.tiny_resnet(path, fixed=(64, 48), batch=2),
    "one channel": generators.one_channel,
    "fp16": half,
}


@pytest.mark.needs_tensorrt
@pytest.mark.parametrize("variant", VARIANTS)
def test_tensorrt_parses_and_builds_every_variant(tmp_path: Path, variant: str) -> None:
    pytest.importorskip("tensorrt")
    model = open_model(VARIANTS[variant](tmp_path / "model.onnx"))
    shapes = (None, None, None) if "fixed" in variant else ((1, 32, 32), (2, 64, 64), (4, 96, 64))
    profile = profile_for(model.card, *shapes)
    content = backend.engine_from_graph(model.graph, Build(profile), name="model.onnx")
    assert len(content) > 10_000


EXPORTED: dict[str, tuple[GeneratorConfig, dict[str, Any]]] = {
    "resnet fp32": (GeneratorConfig("resnet_2blocks", ngf=8), {}),
    "resnet fp16": (GeneratorConfig("resnet_2blocks", ngf=8), {"precision": "fp16"}),
    "resnet fp16 io float16": (
        GeneratorConfig("resnet_2blocks", ngf=8), {"precision": "fp16", "io": "float16"},
    ),
    "resnet fixed": (GeneratorConfig("resnet_2blocks", ngf=8), {"shape": (2, 64, 48)}),
    "resnet batch norm": (GeneratorConfig("resnet_2blocks", ngf=8, norm="batch"), {}),
    "unet fp32": (GeneratorConfig("unet_32", ngf=8), {}),
    "unet fp16": (GeneratorConfig("unet_32", ngf=8, norm="batch"), {"precision": "fp16"}),
    "mobile grey fp16": (
        GeneratorConfig("mobile_resnet_1blocks", 1, 3, 8, upsample="resize"),
        {"precision": "fp16"},
    ),
}  # fmt: skip


def exported(folder: Path, name: str) -> Model:
    """Return a variant, exported from a checkpoint."""
    pytest.importorskip("onnxscript")
    torch = pytest.importorskip("torch")
    from cyclegan_export import export_onnx

    config, options = EXPORTED[name]
    torch.save(generator_from_config(config).state_dict(), folder / "g.pth")
    return open_model(
        export_onnx(folder / "g.pth", folder / "g.onnx", verify=False, **options).path
    )


@pytest.mark.needs_tensorrt
@pytest.mark.parametrize("name", EXPORTED)
def test_tensorrt_parses_and_builds_every_exported_variant(tmp_path: Path, name: str) -> None:
    pytest.importorskip("tensorrt")
    model = exported(tmp_path, name)
    given = (None, None, None) if "fixed" in name else ((1, 32, 32), (2, 64, 64), (4, 96, 64))
    profile = profile_for(model.card, *given)
    assert backend.engine_from_graph(model.graph, Build(profile), name="g.onnx")


@pytest.mark.needs_tensorrt
def test_tensorrt_convolves_an_fp16_export_in_half_and_normalises_it_in_float(
    tmp_path: Path,
) -> None:
    trt = pytest.importorskip("tensorrt")
    graph = exported(tmp_path, "resnet fp16").graph
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    assert trt.OnnxParser(network, logger).parse(graph)
    layers = [network.get_layer(index) for index in range(network.num_layers)]

    def types(*kinds: Any) -> list[Any]:
        return [layer.get_output(0).dtype for layer in layers if layer.type in kinds]

    # Two blocks of two, one at each end, two down and two up; the last is not normalised.
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
    assert types(*kinds) == [trt.DataType.HALF] * 10
    assert types(trt.LayerType.NORMALIZATION) == [trt.DataType.FLOAT] * 9


@pytest.mark.needs_tensorrt
def test_tensorrt_says_why_it_refuses_errors(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    model = open_model(generators.invert(tmp_path / "invert.onnx"))
    with pytest.raises(BackendError, match=r"does not read x\.onnx: .*[Ff]ailed to parse"):
        backend.engine_from_graph(b"no ONNX" * 9, Build(SMALL), name="x.onnx")
    backwards = Build(Profile((4, 8, 8), (2, 8, 8), (1, 8, 8)))
    with pytest.raises(BackendError, match=r"does not take the shapes .*MIN<=OPT<=MAX"):
        backend.engine_from_graph(model.graph, backwards, name="x.onnx")


@pytest.mark.needs_tensorrt
def test_tensorrt_reports_to_the_recorder_of_what_failed_and_not_to_the_logger() -> None:
    """Of a runtime here, as a context takes a GPU."""
    trt = pytest.importorskip("tensorrt")
    log, recorder = library.logger(trt), library.error_recorder(trt)
    log.clear()
    runtime = trt.Runtime(log)
    assert runtime.deserialize_cuda_engine(b"no engine" * 9) is None
    assert "magicTag" in log.words()
    log.clear()
    runtime.error_recorder = recorder
    assert runtime.deserialize_cuda_engine(b"no engine" * 9) is None
    assert "magicTag" in recorder.words()
    assert recorder.num_errors() >= 1
    assert not recorder.out_of_memory()
    assert log.words() == ""
    recorder.report_error(trt.ErrorCodeTRT.FAILED_ALLOCATION, "")
    assert recorder.out_of_memory()
    del runtime  # it refers to the recorder


@pytest.mark.needs_tensorrt
def test_tensorrt_tells_how_far_it_is_and_keeps_its_timings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt")
    monkeypatch.setattr(building, "_SPOKEN", 0.2)
    model = open_model(generators.tiny_resnet(tmp_path / "resnet.onnx"))
    said: list[str] = []
    for _ in range(2):
        backend.engine_from_graph(
            model.graph, Build(SMALL), name="r", timing_cache=tmp_path / "t", say=said.append
        )
    assert engine_card.unsealed((tmp_path / "t").read_bytes())
    assert any("step" in sentence for sentence in said)


# On a GPU


@pytest.mark.needs_cuda
@pytest.mark.needs_tensorrt
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_engine_on_a_gpu_draws_what_its_file_says(tmp_path: Path, variant: str) -> None:
    """Never run so far: no machine of ours has had a GPU."""
    pytest.importorskip("tensorrt")
    if not nvidia_gpus():
        pytest.skip("no NVIDIA GPU")
    model = open_model(VARIANTS[variant](tmp_path / "model.onnx"))
    first = backend.open_tensorrt(model, shapes=[(2, 64, 48)], cache_dir=tmp_path)
    second = backend.open_tensorrt(model, shapes=[(2, 64, 48)], cache_dir=tmp_path)
    assert len(list(tmp_path.glob("engines/*.engine"))) == 1
    sent = generators.natural((64, 48), 2)
    if model.card.pixel_type == "float16":
        sent = (sent / 255).astype(np.float16)
    np.testing.assert_array_equal(first.infer(sent), second.fork().infer(sent))
