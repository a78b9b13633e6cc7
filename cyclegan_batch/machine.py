"""What this machine has to compute with: the threads a process may use, and the NVIDIA GPUs."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path


def cpu_threads() -> int:
    """Return how many threads this process may run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
