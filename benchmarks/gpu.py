"""Measure everything that waits for a GPU, the most telling first, in as many minutes as there are.

    python benchmarks/gpu.py --out OUT --minutes 9                         all sections
    python benchmarks/gpu.py --out OUT --minutes 4 --sections host,video   these only
    python benchmarks/gpu.py --out OUT --device cpu                        a dry run of tiny sizes

Needs a checkout, torch, torchvision, OpenCV, ONNX and safetensors; no installation and no network.
With PyAV, onnxruntime or Triton absent, the sections that need them say so and take no time.

Each section is a process with a time limit of its own, so that a crash, a hang or a lost CUDA
context costs that section only. The limits together never exceed ``--minutes``. Sections that
benchmarks/RESULTS.md has no row of come first, then those without a row of this card. A row is in
OUT/gpu.jsonl as soon as it is measured; the last thing printed is a table that can be pasted into
RESULTS.md, where its headings are what the next run looks for. What a section's numbers decide
stands at the top of its file in gpu_sections/.
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
"""Seconds of the whole that no section gets: ending processes, and the table."""

DRY_RUN = "CPU, dry run"


@dataclass(frozen=True)
class Section:
    """A part of the suite, ``gpu_sections/<name>.py``."""

    name: str
    seconds: float
    """What it takes on an H100, as estimated; its limit where all of them fit."""
    least: float
    """With less than so many seconds it is not begun."""
    timed: bool = True
    """Its numbers are times, so nothing else may run beside it."""
    compiled: bool = False
    """It times what torch.compile makes, which the background has compiled before."""


COMPILES = Section("compiles", 120, 10)
"""Fills Inductor's cache in the background from the beginning, beside what is not timed."""

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
"""In order of value."""


def in_order(
    sections: Sequence[Section], held: set[tuple[str, str]], card: str, *, compiling: bool
) -> list[Section]:
    """Return the sections in the order in which they run.

    Those that no card has a committed row of (``held``) come first, then those without one of this
    ``card``. While something compiles in the background, what is not timed goes before all that is.
    """
    anywhere = {section for section, _ in held}

    def rank(section: Section) -> tuple[bool, int]:
        known = (section.name in anywhere) + ((section.name, card) in held)
        return compiling and section.timed, known

    return sorted(sections, key=rank)


def limits(sections: Sequence[Section], seconds: float) -> dict[str, float]:
    """Share ``seconds`` out: the limit of each section that gets one; their sum is no more.

    The first come first; what would get less than its least gets nothing. Where there is more time
    than the sections are expected to take, all limits are stretched alike.
    """
    wanted = sum(section.seconds for section in sections)
    stretch = max(1.0, seconds / wanted) if wanted else 1.0
    found: dict[str, float] = {}
    for section in sections:
        share = min(section.seconds * stretch, seconds - sum(found.values()))
        if share >= section.least:
            found[section.name] = share
    return found


class Process:
    """A section's process. It imports what it needs at once, and begins when it is told to."""

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
        self._said = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def begin(self, end: float) -> None:
        """Let it begin rows until ``end`` (monotonic); then it should end by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died already; `wait` tells
            # Not closed behind it: that its input ends tells the process that this one is gone.
            self._process.stdin.write(f"{end}\n".encode())
            self._process.stdin.flush()

    def wait(self, end: float, limit: float) -> str | None:
        """Wait for its end, until ``end`` (monotonic) at most, which is ``limit`` after its start.

        Returns what went wrong, in words, or None.
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
        """Kill it, and what it started. Twice is fine."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            # A process that hangs inside the driver cannot be waited for.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _read(self) -> None:
        """Keep the end of what it prints: however much that is, its pipe never fills up."""
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            while chunk := os.read(pipe.fileno(), 1 << 16):
                self._said = (self._said + chunk)[-2000:]

    def _words(self) -> str:
        lines = self._said.decode(errors="replace").split("\n")
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
    """Run the sections one after the other, in at most ``seconds``; what fails has a row saying so.

    While one runs, the next one's process imports what it needs and waits. What a section leaves of
    its time goes to those behind it.
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
        coming = [spawned(section) for section in sections[:1]]
        for number, section in enumerate(sections):
            process = coming.pop()
            coming += [spawned(following) for following in sections[number + 1 : number + 2]]
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
    """Return after how much of its limit a section begins no more rows."""
    return limit - min(3.0, limit / 5)


def section_process(
    section: Section, notebook: Notebook, device: str, checkpoint: Path | None, compiled: str
) -> Process:
    """Start the process of a section; ``compiled`` is the folder of what Inductor made."""
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
    wanted = [section for section in SECTIONS if section.name in names]
    compiles = COMPILES if any(section.compiled for section in wanted) else None
    held = committed((REPOSITORY / "benchmarks" / "RESULTS.md").read_text())
    ordered = in_order(wanted, held, card, compiling=compiles is not None)
    # What stops this command from outside still ends its processes and prints the table.
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
