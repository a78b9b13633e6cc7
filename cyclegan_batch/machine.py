"""What this machine has, its threads and NVIDIA GPUs, and where a user's files belong on it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def cpu_threads() -> int:
    """Return how many threads this process may run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def own_scheduling() -> Iterator[None]:
    """Give this thread, and those that start meanwhile, the scheduling that this thread has now.

    SVT-AV1 makes the thread that opens it and all of its own real-time ones (SCHED_FIFO, 99) where
    it may, which is as root. From there it spreads to every thread and process that starts later:
    whatever else the machine has to do stands still, and a runtime that spins for its own threads
    does so for minutes. Only Linux schedules each thread by itself.
    """
    if sys.platform != "linux":
        yield
        return
    wanted = os.sched_getscheduler(0), os.sched_getparam(0)
    before = _threads()
    try:
        yield
    finally:
        for thread in {0, *(_threads() - before)}:
            # One may have ended, and a process may not be allowed to.
            with contextlib.suppress(OSError):
                if os.sched_getscheduler(thread) != wanted[0]:
                    os.sched_setscheduler(thread, *wanted)


def _threads() -> set[int]:
    """Return the threads of this process, by the system's numbers."""
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def nvidia_gpus() -> tuple[str, ...]:
    """Return the names of the NVIDIA GPUs that this process may use, ``cuda:0`` first.

    CUDA's own driver library is asked, which is on every machine that computes on a GPU, Jetsons
    and WSL included, and obeys ``CUDA_VISIBLE_DEVICES``. Where it cannot be used, what the kernel's
    driver shows is told, less what that variable hides.
    """
    names = _of_cuda()
    return _visible(_of_driver()) if names is None else names


_NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE: there is none, or none is visible."""


def _of_cuda() -> tuple[str, ...] | None:
    """Return what CUDA's driver library names; None where it is missing or does not work."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    code = cuda.cuInit(0)
    count = ctypes.c_int()
    if code == _NO_DEVICE:
        return ()
    if code != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return None
    names = []
    for index in range(count.value):
        text, device = ctypes.create_string_buffer(256), ctypes.c_int()
        found = cuda.cuDeviceGet(ctypes.byref(device), index) == 0
        if found and cuda.cuDeviceGetName(text, len(text), device) == 0:
            names.append(text.value.decode(errors="replace"))
        else:
            names.append("NVIDIA GPU")
    return tuple(names)


def _of_driver() -> list[tuple[str, str]]:
    """Return name and UUID of each GPU that the kernel's driver shows, in its order."""
    listed = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if listed:
        texts = [file.read_text() for file in listed]
        return [(_field(text, "Model") or "NVIDIA GPU", _field(text, "GPU UUID")) for text in texts]
    # Under WSL the driver has no folder there.
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = (line.rpartition(",") for line in answer.stdout.splitlines() if line.strip())
    return [(name.strip(), uuid.strip()) for name, _, uuid in lines]


def _visible(gpus: list[tuple[str, str]]) -> tuple[str, ...]:
    """Return the names that ``CUDA_VISIBLE_DEVICES`` leaves, in its order."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return tuple(name for name, _ in gpus)
    found = []
    for word in (part.strip() for part in said.split(",")):
        if word.isdecimal() and int(word) < len(gpus):
            found.append(gpus[int(word)][0])
            continue
        named = [name for name, uuid in gpus if word.startswith("GPU-") and uuid.startswith(word)]
        if not named:
            break  # as CUDA does: what comes behind a name that is none, is not visible
        found.append(named[0])
    return tuple(found)


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}:[ \t]*(\S.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def default_cache_dir() -> Path:
    """Return where caches lie unless told otherwise: under ``XDG_CACHE_HOME``, or ``~/.cache``."""
    return _xdg_dir("XDG_CACHE_HOME", ".cache")


def default_state_dir() -> Path:
    """Return where this user's own state lies: ``XDG_STATE_HOME``, or ``~/.local/state``."""
    return _xdg_dir("XDG_STATE_HOME", ".local/state")


def _xdg_dir(variable: str, otherwise: str) -> Path:
    said = os.environ.get(variable, "")
    # The XDG specification: a relative path is to be ignored.
    base = Path(said) if Path(said).is_absolute() else Path.home() / otherwise
    return base / "cyclegan-batch"
