"""The process of one section: ``python -m benchmarks.gpu_sections NAME DEVICE FILE RUN CARD``.

A checkpoint may follow. The process imports the section's modules, waits on standard input for the
monotonic time at which to end, and writes its rows. When its standard input ends, the command that
started it is gone, and the process ends as well.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from .rows import Notebook, NotRunError, write_rows


def main() -> None:
    name, device, file, run, card, *checkpoint = sys.argv[1:]
    if device == "cpu":
        # Triton reads its variable when kernels are defined. Compiling takes minutes on a CPU.
        os.environ |= {
            "TRITON_INTERPRET": "1",
            "TORCH_COMPILE_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
        }
    notebook = Notebook(Path(file), run, card)
    try:
        from .measuring import bench_on

        section = importlib.import_module(f".{name}", __package__)
    except ImportError as error:
        # A section that cannot be imported takes no time, so it does not wait for its turn.
        notebook.write(name, "the section", not_run=f"{error.name or error} is not installed")
        return
    line = sys.stdin.readline()
    if not line:
        return
    end = float(line)
    threading.Thread(target=end_with_parent, daemon=True).start()
    bench = bench_on(device, *(Path(path) for path in checkpoint))
    try:
        jobs = section.jobs(bench)
        write_rows(notebook, name, jobs, clock=time.monotonic, end=end, after=bench.settle)
    except NotRunError as reason:
        notebook.write(name, "the section", not_run=str(reason))


def end_with_parent() -> None:
    """Wait until standard input ends, then kill this process and its children."""
    sys.stdin.read()
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
