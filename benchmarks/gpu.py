"""Measure all open questions about GPUs, the most important first, within the given minutes.

    python benchmarks/gpu.py --out OUT --minutes 9                         all sections
    python benchmarks/gpu.py --out OUT --minutes 4 --sections host,video   these only
    python benchmarks/gpu.py --out OUT --device cpu                        a dry run of tiny sizes

The suite requires a checkout, torch, torchvision, OpenCV, ONNX and safetensors; it requires no
installation of the project and no network. Sections that require PyAV, onnxruntime or Triton write
a row that says so where it is missing, and take no time.

Each section is a process with a time limit of its own, so that a crash, a hang or a lost CUDA
context costs only that section. The limits together never exceed ``--minutes``. Sections without a
row in benchmarks/RESULTS.md run first, then those without a row of this card. A row is written to
OUT/gpu.jsonl as soon as it is measured. At the end the command prints tables to paste into
RESULTS.md; the next run looks for their headings there. The top of each file in gpu_sections/
states what the numbers of its section decide.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = [str(REPOSITORY / folder) for folder in (".", "train", "export")]
sys.path[:0] = PACKAGES

from benchmarks.gpu_sections.rows import Notebook, committed, markdown  # noqa: E402
from cyclegan_batch.machine import nvidia_gpus  # noqa: E402

RESERVE = 10.0
"""Seconds of the whole that no section gets: for ending processes and printing the tables."""

DRY_RUN = "CPU, dry run"


@dataclass(frozen=True)
class Section:
    """A part of the suite, ``gpu_sections/<name>.py``."""

    name: str
    seconds: float
    """How long it takes on an H100, estimated; its time limit where all sections fit."""
    least: float
    """With fewer seconds than this left, the section is not started."""
    timed: bool = True
    """It measures times, so no other process may run beside it."""
    compiled: bool = False
    """It measures compiled networks, which the section ``compiles`` has compiled before."""


COMPILES = Section("compiles", 120, 10)
"""Fills Inductor's cache in the background from the start, beside sections that are not timed."""

SECTIONS = (
    Section("tests", 75, 20, timed=False),
    Section("parity", 45, 15, timed=False),
    Section("ceilings", 14, 6),
    Section("bare", 62, 15),
    Section("training", 90, 25, compiled=True),
    Section("host", 35, 12),
    Section("compiled", 40, 15, compiled=True),
    Section("convolutions", 36, 12),
    Section("memory", 35, 15),
    Section("images", 28, 12),
    Section("video", 45, 15),
    Section("runtimes", 25, 15),
)
"""The most valuable first."""


def in_order(
    sections: Sequence[Section], held: set[tuple[str, str]], card: str, *, compiling: bool
) -> list[Section]:
    """Return the sections in the order in which they run.

    Sections without a committed row (``held``) of any card come first, then those without one of
    this ``card``. While another process compiles, sections that are not timed precede all that are.
    """
    anywhere = {section for section, _ in held}

    def rank(section: Section) -> tuple[bool, int]:
        rows = (section.name in anywhere) + ((section.name, card) in held)
        return compiling and section.timed, rows

    return sorted(sections, key=rank)


def limits(sections: Sequence[Section], seconds: float) -> dict[str, float]:
    """Return the time limits of the sections that run, by name; their sum is at most ``seconds``.

    Earlier sections get theirs first; a section that would get less than its ``least`` gets none.
    Where there is more time than the sections are expected to take, all limits grow in proportion.
    """
    expected = sum(section.seconds for section in sections)
    stretch = max(1.0, seconds / expected) if expected else 1.0
    shares: dict[str, float] = {}
    for section in sections:
        share = min(section.seconds * stretch, seconds - sum(shares.values()))
        if share >= section.least:
            shares[section.name] = share
    return shares


class Process:
    """A section's process. It imports its modules at once, and waits for `begin` to measure."""

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=REPOSITORY,
            env=environment,
        )
        self._output = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def begin(self, end: float) -> None:
        """Let it start rows until ``end`` (monotonic); then it should exit by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the process has died; `wait` reports that
            # The pipe stays open: its end means to the process that this one is gone.
            self._process.stdin.write(f"{end}\n".encode())
            self._process.stdin.flush()

    def wait(self, end: float, limit: float) -> str | None:
        """Wait for its exit until ``end`` (monotonic), which is ``limit`` seconds after its start.

        Returns a description of what went wrong, or None.
        """
        try:
            code = self._process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.end()
            return f"stopped after its {limit:.0f} s{self._words()}"
        if code == 0:
            return None
        self._reader.join(2)
        how = f"code {code}" if code > 0 else signal.Signals(-code).name
        return f"ended with {how}{self._words()}"

    def end(self) -> None:
        """Kill it and its child processes. A second call does nothing."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            # A process that hangs in the driver may not die, so the wait is short.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _read(self) -> None:
        """Keep the end of its output; reading all of it keeps the pipe from filling up."""
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            while chunk := os.read(pipe.fileno(), 1 << 16):
                self._output = (self._output + chunk)[-2000:]

    def _words(self) -> str:
        lines = self._output.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        printable = "".join(c if c.isprintable() else "?" for c in last)
        return f": {printable[:300]}" if printable else ""


def measure(
    sections: Sequence[Section],
    seconds: float,
    *,
    spawn: Callable[[Section], Process],
    notebook: Notebook,
    compiles: Section | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Run the sections one after the other in at most ``seconds``; a failed one has a row about it.

    While a section runs, the process of the next one imports its modules and waits. Time that a
    section does not use goes to later ones.
    """
    end = time.monotonic() + seconds
    processes: list[Process] = []

    def spawned(section: Section) -> Process:
        processes.append(spawn(section))
        return processes[-1]

    def closed(section: Section, process: Process, begin: float, limit: float) -> None:
        if (wrong := process.wait(begin + limit, limit)) is not None:
            notebook.write(section.name, "the section", error=wrong)

    try:
        compiler, compiler_begin, compiler_limit = None, time.monotonic(), 0.0
        if compiles is not None:
            compiler, compiler_limit = spawned(compiles), min(compiles.seconds, seconds / 3)
            compiler.begin(compiler_begin + _soft(compiler_limit))
        waiting = [spawned(section) for section in sections[:1]]
        for number, section in enumerate(sections):
            process = waiting.pop()
            waiting += [spawned(following) for following in sections[number + 1 : number + 2]]
            if compiler is not None and compiles is not None and section.timed:
                closed(compiles, compiler, compiler_begin, compiler_limit)
                compiler = None
            begin = time.monotonic()
            limit = limits(sections[number:], end - begin).get(section.name)
            if limit is None:
                notebook.write(section.name, "the section", not_run="no time was left")
                process.end()
                continue
            process.begin(begin + _soft(limit))
            closed(section, process, begin, limit)
            count = sum(row["section"] == section.name for row in notebook.rows())
            say(f"{section.name}: {count} rows in {time.monotonic() - begin:.0f} s")
    finally:
        for process in processes:
            process.end()


def _soft(limit: float) -> float:
    """Return how much of its limit must have passed for a section to start no more rows."""
    return limit - min(3.0, limit / 5)


def section_process(
    section: Section, notebook: Notebook, device: str, checkpoint: Path | None, compiled: str
) -> Process:
    """Start the process of a section; ``compiled`` is the folder of Inductor's cache."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*PACKAGES, os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_CACHE_DIR": compiled,
    }
    command = [sys.executable, "-m", "benchmarks.gpu_sections", section.name, device]
    command += [str(notebook.file), notebook.run, notebook.card]
    return Process([*command, *([str(checkpoint)] if checkpoint else [])], environment)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.jsonl")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--sections", help=f"with commas: {','.join(s.name for s in SECTIONS)}")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--checkpoint", type=Path, help="parity: of this generator, too")
    given = parser.parse_args()
    begin = time.monotonic()
    names = [s.name for s in SECTIONS] if given.sections is None else given.sections.split(",")
    if unknown := sorted(set(names) - {s.name for s in SECTIONS}):
        parser.error(f"no section {', '.join(unknown)}: they are {[s.name for s in SECTIONS]}")
    gpus = nvidia_gpus()
    if given.device == "cuda" and not gpus:
        parser.error("this machine shows no NVIDIA GPU; --device cpu makes a dry run")
    card = DRY_RUN if given.device == "cpu" else gpus[0]
    given.out.mkdir(parents=True, exist_ok=True)
    run = time.strftime("%Y-%m-%d %H:%M:%S")
    notebook = Notebook((given.out / "gpu.jsonl").resolve(), run, card)
    chosen = [section for section in SECTIONS if section.name in names]
    compiles = COMPILES if any(section.compiled for section in chosen) else None
    held = committed((REPOSITORY / "benchmarks" / "RESULTS.md").read_text())
    ordered = in_order(chosen, held, card, compiling=compiles is not None)
    # Where SIGTERM stops this command, it still ends its processes and prints the tables.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="inductor") as folder:
            measure(
                ordered,
                60 * given.minutes - RESERVE - (time.monotonic() - begin),
                spawn=lambda section: section_process(
                    section, notebook, given.device, given.checkpoint, folder
                ),
                notebook=notebook,
                compiles=compiles,
                say=lambda line: print(line, file=sys.stderr, flush=True),
            )
    finally:
        print(markdown(notebook.rows()), flush=True)


if __name__ == "__main__":
    main()
