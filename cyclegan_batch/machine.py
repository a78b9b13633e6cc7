"""What this machine has to compute with: the threads a process may use, and the NVIDIA GPUs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path


def cpu_threads() -> int:
    """Return how many threads this process may run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def nvidia_gpus() -> tuple[str, ...]:
    """Return the names of the NVIDIA GPUs that the driver shows, in its order."""
    listed = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    names = [re.search(r"Model:\s*(.+)", file.read_text()) for file in listed]
    if names:
        return tuple(found[1].strip() if found else "NVIDIA GPU" for found in names)
    # Under WSL the driver has no folder there.
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())
