"""The CPU, GPUs and packages of this machine, and the folders for a user's cache and state."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path


def cpu_threads() -> int:
    """Return how many threads this process may run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Return the name of the CPU, or of its architecture where the system tells no name."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        for line in lines:  # a machine of many cores has a long file
            if match := re.match(r"model name\s*:\s*(\S.*)", line):
                return match[1].strip()
    return platform.processor() or platform.machine()


def cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware, as far as Linux tells."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        for line in lines:
            if line.startswith("flags"):
                return not {"avx512_bf16", "amx_bf16"}.isdisjoint(line.split())
    return False


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those among the distributions ``names`` that are installed."""
    from importlib import metadata  # takes a while to import, and --help needs no version

    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@contextlib.contextmanager
def opencv_without_threads() -> Iterator[None]:
    """Keep OpenCV from starting threads of its own; restore its number of threads at the end.

    Its callers have a thread for each core already. Threads of OpenCV would begin with the priority
    of the thread that calls it first, which a pipeline lowers, and outlive it; and what some of its
    functions return would depend on the number of cores.
    """
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@contextlib.contextmanager
def own_scheduling() -> Iterator[None]:
    """At the end, restore this thread's scheduling, and set it for the threads started meanwhile.

    SVT-AV1 sets the thread that opens it and its own threads to real time (SCHED_FIFO, 99) where it
    is permitted to, which is as root. Every thread and process that starts later inherits that:
    everything else on the machine stands still, and a runtime that spins while it waits for its own
    threads does so for minutes. Only Linux schedules each thread separately.
    """
    if sys.platform != "linux":
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    before = _threads()
    try:
        yield
    finally:
        for thread in {0, *(_threads() - before)}:
            # The thread may have ended, and the process may lack the permission.
            with contextlib.suppress(OSError):
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, parameters)


def _threads() -> set[int]:
    """Return the system's numbers of this process's threads."""
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def return_free_memory() -> None:
    """Return memory that was freed to the system, where the C library keeps it (glibc).

    Each run of an encoder has threads of its own, and what they freed stays in parts: 700 frames in
    stretches grew a process by 16 MiB, and by 9 with this.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def nvidia_gpus() -> tuple[str, ...]:
    """Return the names of the NVIDIA GPUs that this process may use, ``cuda:0`` first.

    The names come from CUDA's driver library, which every machine that computes on a GPU has,
    Jetsons and WSL included, and which obeys ``CUDA_VISIBLE_DEVICES``. Where the library cannot be
    used, they come from the kernel's driver, without those that the variable hides.
    """
    names = _gpus_by_cuda()
    return _visible(_gpus_by_driver()) if names is None else names


def nvidia_driver() -> str | None:
    """Return the version of NVIDIA's driver; None where there is none, or none that tells it."""
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        if match := re.search(r"  (\d+\.\d+(\.\d+)?) ", text):
            return match[1]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return answer.stdout.partition("\n")[0].strip() or None
    return None


_TEGRA_RELEASE = Path("/etc/nv_tegra_release")
"""A file that every Jetson has. Its first line is like ``# R36 (release), REVISION: 4.3, …``."""


def jetson_linux() -> tuple[int, ...] | None:
    """Return the release of Jetson Linux, such as (36, 4, 3); None where this is no Jetson."""
    with contextlib.suppress(OSError):
        text = _TEGRA_RELEASE.read_text(errors="replace")
        if match := re.match(r"# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text):
            return (int(match[1]), *map(int, match[2].split(".")))
    return None


_NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE: there is no GPU, or none is visible."""


def _gpus_by_cuda() -> tuple[str, ...] | None:
    """Return the names by CUDA's driver library; None where it is missing or does not work."""
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
        has_device = cuda.cuDeviceGet(ctypes.byref(device), index) == 0
        if has_device and cuda.cuDeviceGetName(text, len(text), device) == 0:
            names.append(text.value.decode(errors="replace"))
        else:
            names.append("NVIDIA GPU")
    return tuple(names)


def _gpus_by_driver() -> list[tuple[str, str]]:
    """Return name and UUID of each GPU that the kernel's driver lists, in its order."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if files:
        texts = [file.read_text() for file in files]
        return [(_field(text, "Model") or "NVIDIA GPU", _field(text, "GPU UUID")) for text in texts]
    # Under WSL the driver has no such folder.
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
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        return tuple(name for name, _ in gpus)
    visible = []
    for word in (part.strip() for part in variable.split(",")):
        if word.isdecimal() and int(word) < len(gpus):
            visible.append(gpus[int(word)][0])
            continue
        matches = [name for name, uuid in gpus if word.startswith("GPU-") and uuid.startswith(word)]
        if not matches:
            break  # CUDA also ignores everything behind an entry that matches no GPU
        visible.append(matches[0])
    return tuple(visible)


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{name}:[ \t]*(\S.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def default_cache_dir() -> Path:
    """Return the default folder of the cache, in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    return _xdg_dir("XDG_CACHE_HOME", ".cache")


def default_state_dir() -> Path:
    """Return the folder of this user's state, in ``XDG_STATE_HOME`` or ``~/.local/state``."""
    return _xdg_dir("XDG_STATE_HOME", ".local/state")


def _xdg_dir(variable: str, otherwise: str) -> Path:
    folder = Path(os.environ.get(variable, ""))
    # The XDG Base Directory Specification requires that a relative path be ignored.
    base = folder if folder.is_absolute() else Path.home() / otherwise
    return base / "cyclegan-batch"
