"""Native threads inherit the priority of their creator; none keeps that of a converter thread."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
from PIL import Image

from cyclegan_batch import doctor, translate
from cyclegan_batch.api import plan_translation, run_plan
from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import OutOfMemoryError
from cyclegan_batch.frames import Pixels
from cyclegan_batch.job.units import Counters
from cyclegan_batch.machine import own_scheduling
from cyclegan_batch.models.model import open_model
from tests.needs import need
from tests.synthesis import generators, streams

pytestmark = pytest.mark.needs("linux")
"""Only Linux has a priority for each thread."""


def nice_values() -> dict[int, int]:
    """Return the nice value of each thread of this process, by its id."""
    nice = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            text = (task / "stat").read_text()
        except OSError:
            continue  # the thread has ended meanwhile
        # Field 3 is the first one after the name, which may hold any character; nice is field 19.
        nice[int(task.name)] = int(text.rpartition(")")[2].split()[16])
    return nice


def lowered() -> dict[int, int]:
    """Return the threads of lower priority than this one, once those that end have ended."""
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    lower: dict[int, int] = {}
    for _ in range(400):
        lower = {number: nice for number, nice in nice_values().items() if nice > own}
        if not lower:
            break
        time.sleep(0.05)  # a joined thread stays in the list for a moment
    return lower


def in_a_lowered_thread(work: Callable[[], Any]) -> dict[int, int]:
    """Call ``work`` in a thread of low priority, like the pipeline's; return the others like it."""
    others: dict[int, int] = {}

    def body() -> None:
        own = threading.get_native_id()
        before = os.getpriority(os.PRIO_PROCESS, own)
        os.setpriority(os.PRIO_PROCESS, own, before + 10)
        work()
        others.update({n: nice for n, nice in nice_values().items() if nice > before and n != own})

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return others


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_priorities_are_the_callers_again_behind_a_translation(
    tmp_path: Path, backend: str
) -> None:
    need(backend)
    model = generators.tiny_resnet(tmp_path / "a.onnx")
    # Large enough for OpenCV to resize in several threads.
    for number in range(3):
        picture = generators.natural((800, 800), seed=number)[0]
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        translate(
            sorted(tmp_path.glob("*.png")),
            f"{tmp_path}/out/",
            model=model,
            backend=backend,
            size=64,
            threads=4,
            keep_size=True,
        )
        assert lowered() == {}
        assert cv2.getNumThreads() == 3, "the setting of the whole process is the caller's again"
    finally:
        cv2.setNumThreads(before)


def test_openvino_that_is_compiled_again_in_a_run_has_threads_of_full_priority(
    tmp_path: Path,
) -> None:
    need("openvino")
    from cyclegan_batch.backends import openvino

    model = open_model(generators.tiny_resnet(tmp_path / "a.onnx"))
    opened = open_backend(model, backend="openvino", threads=4, contexts=2)
    frames = generators.natural((64, 64), 1)
    expected = opened.infer(frames)
    really, failing = openvino._run, [True]

    def fails_once(request: Any, frames: Pixels, *names: str) -> list[Pixels]:
        if failing and failing.pop():
            raise RuntimeError("Could not allocate memory")
        return really(request, frames, *names)

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(openvino, "_run", fails_once)
            with pytest.raises(OutOfMemoryError):
                opened.infer(frames)
            assert (opened.infer(frames) == expected).all()

    assert in_a_lowered_thread(work) == {}


def policies() -> set[int]:
    """Return the scheduling policies of this process's threads."""
    values = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            values.add(os.sched_getscheduler(int(task.name)))
    return values


def test_what_a_library_does_to_the_scheduling_of_its_caller_is_undone() -> None:
    """The test sets SCHED_BATCH, which any user may, instead of SVT-AV1's SCHED_FIFO."""
    done = threading.Event()
    with own_scheduling():
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        thread = threading.Thread(target=done.wait)
        thread.start()
        assert policies() >= {os.SCHED_BATCH}
    try:
        assert policies() == {os.SCHED_OTHER}
    finally:
        done.set()
        thread.join()


@pytest.mark.behaviour(24)
def test_an_encoder_makes_no_thread_a_real_time_one(tmp_path: Path) -> None:
    """SVT-AV1 does so as root, which stops everything else on the machine."""
    source = streams.plain(tmp_path / "in.mp4", audio=None, frames=30)
    plan = plan_translation(
        source,
        tmp_path / "out.mp4",
        model=generators.identity(tmp_path / "a.onnx"),
        codec="libsvtav1",
        preset="12",
    )
    seen = policies()

    def look(counters: Counters) -> None:
        if counters.frames_done:  # the encoder is open by then
            seen.update(policies())

    run_plan(plan, watch=look)
    assert seen | policies() == {os.SCHED_OTHER}
    assert doctor.encoder_error("libsvtav1") is None
    assert policies() == {os.SCHED_OTHER}


def test_the_codec_of_images_leaves_the_threads_of_opencv_to_the_caller() -> None:
    code = (
        "import cv2; cv2.setNumThreads(3); import cyclegan_batch.media.images.codec; "
        "print(cv2.getNumThreads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
