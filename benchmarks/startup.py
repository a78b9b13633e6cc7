"""Measure where the time of a command goes that translates one second of video.

    python benchmarks/startup.py CLIP MODEL...     seconds of each part outside of the frames' work

CLIP is cut to its first second and made 256² pixels; a MODEL that needs it is followed by
``=MODEL_IO``. Every command is a process of its own, with a cache of compiled modules as an
installed package has it. CPU seconds tell more than seconds where other programs run beside.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY)]

BUDGET = 1.5
"""Seconds that the command may take outside of decoding, inference and encoding."""

FRAMES = "frames"
"""The part of the pipeline: decoding, inference and encoding."""


@dataclass(frozen=True)
class Spent:
    """What one command took."""

    cpu: Mapping[str, float]
    """CPU seconds by part; those of all imports are one part."""
    wall: Mapping[str, float]
    """Seconds by part."""
    imports: Mapping[str, float]
    """CPU seconds that the modules of each package took to import."""

    @property
    def outside(self) -> float:
        """CPU seconds outside of decoding, inference and encoding."""
        return sum(self.cpu.values()) - self.cpu[FRAMES]

    @property
    def outside_wall(self) -> float:
        """Seconds outside of decoding, inference and encoding."""
        return sum(self.wall.values()) - self.wall[FRAMES]


class _Clock:
    """Adds the time of the main thread's parts, each without those within it."""

    def __init__(self) -> None:
        self.cpu: Counter[str] = Counter()
        self.wall: Counter[str] = Counter()
        self._parts = ["starting the interpreter"]
        self._cpu, self._wall = 0.0, time.perf_counter()

    def begin(self, part: str) -> None:
        self._add()
        self._parts.append(part)

    def end(self) -> None:
        self._add()
        self._parts.pop()

    def _add(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        self.cpu[self._parts[-1]] += cpu - self._cpu
        self.wall[self._parts[-1]] += wall - self._wall
        self._cpu, self._wall = cpu, wall

    def move(self, part: str, cpu: float, wall: float) -> None:
        """Count what another thread spent within the current part as ``part``."""
        for spent, seconds in ((self.cpu, cpu), (self.wall, wall)):
            spent[part] += seconds
            spent[self._parts[-1]] -= seconds


def _count_imports(clock: _Clock) -> None:
    """Make every import of the main thread a part of its own, named after the package."""
    original, main = builtins.__import__, threading.main_thread()

    def timed(
        name: str, namespace: Any = None, local: Any = None, names: Any = (), level: int = 0
    ) -> Any:
        is_loaded = not level and not names and name in sys.modules
        if is_loaded or threading.current_thread() is not main:
            return original(name, namespace, local, names, level)
        package = str((namespace or {}).get("__name__", "")) if level else name
        clock.begin(f"import {package.partition('.')[0]}")
        try:
            return original(name, namespace, local, names, level)
        finally:
            clock.end()

    builtins.__import__ = timed


def _make_part(clock: _Clock, owner: Any, name: str, part: str) -> None:
    """Count the time in a function as ``part``; in another thread it is moved there at its end."""
    function: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **named: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            clock.begin(part)
            try:
                return function(*args, **named)
            finally:
                clock.end()
        cpu, wall = time.thread_time(), time.perf_counter()
        try:
            return function(*args, **named)
        finally:
            clock.move(part, time.thread_time() - cpu, time.perf_counter() - wall)

    setattr(owner, name, timed)


def _measured_command(arguments: list[str], result: Path) -> int:
    """Run the command line in this process, and write what its parts took to ``result``."""
    clock = _Clock()
    clock.begin("the rest")
    _count_imports(clock)
    from cyclegan_batch import api, backends, cli, opening
    from cyclegan_batch.job import pipeline
    from cyclegan_batch.media.video import sink

    _make_part(clock, api, "prepare_translation", "planning")
    _make_part(clock, opening, "open_for_translation", "reading the model")
    _make_part(clock, backends, "open_backend", "opening the runtime")
    _make_part(clock, pipeline._Run, "execute", FRAMES)
    for name in ("join", "publish"):
        _make_part(clock, sink._Output, name, "joining and publishing")
    _make_part(clock, api, "report_run", "reporting")
    code = 0
    try:
        cli.main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    clock.end()
    result.write_text(json.dumps([clock.cpu, clock.wall, time.process_time(), time.time()]))
    return code


def spent(arguments: list[str], folder: Path, environment: Mapping[str, str]) -> Spent:
    """Run ``cyclegan-batch`` with ``arguments`` in a process of its own; return what it took."""
    result = folder / "spent.json"
    command = [sys.executable, str(Path(__file__)), "--within", str(result), *arguments]
    begin = time.time()
    process = subprocess.Popen(command, env=dict(environment))
    _, status, usage = os.wait4(process.pid, 0)
    ended = time.time()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the command failed: {' '.join(command)}")
    by_cpu, by_wall, used, last = json.loads(result.read_text())
    imports = {name.removeprefix("import "): t for name, t in by_cpu.items() if _is_import(name)}
    parts = []
    for times, ending in (
        (by_cpu, usage.ru_utime + usage.ru_stime - used),
        (by_wall, ended - last),
    ):
        imported = sum(seconds for name, seconds in times.items() if _is_import(name))
        own = {name: seconds for name, seconds in times.items() if not _is_import(name)}
        parts.append({"imports": imported} | own | {"ending the process": ending})
    parts[1]["starting the interpreter"] += ended - begin - sum(parts[1].values())
    return Spent(*parts, imports)


def _is_import(part: str) -> bool:
    return part.startswith("import ")


@contextlib.contextmanager
def compiled_modules() -> Iterator[dict[str, str]]:
    """Yield an environment in which modules are compiled once, as installing a package does."""
    with tempfile.TemporaryDirectory() as name:
        environment = dict(os.environ, PYTHONPYCACHEPREFIX=name)
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        yield environment


def command_line(clip: Path, output: Path, model: Path, model_io: str | None = None) -> list[str]:
    """Return the arguments of a translation that takes nothing from earlier runs."""
    options = ["-m", str(model), "-y", "-q", "--no-resume"]
    return [
        "translate",
        str(clip),
        str(output),
        *options,
        *(["--model-io", model_io] if model_io else []),
    ]


def first_second(clip: Path, folder: Path) -> Path:
    """Return the first second of ``clip`` at 256²."""
    from benchmarks.pipeline import ffmpeg_program

    target = folder / "second.mp4"
    cut = ["-i", str(clip), "-t", "1", "-vf", "scale=256:256", "-c:a", "copy", str(target)]
    subprocess.run([ffmpeg_program(), "-v", "error", "-y", *cut], check=True)
    return target


def median(rounds: list[Spent]) -> Spent:
    """Return the round with the median of the CPU seconds outside of the frames' work."""
    return sorted(rounds, key=lambda each: each.outside)[len(rounds) // 2]


def table(name: str, chosen: Spent) -> str:
    """Return the parts of one command in words, the packages that take most behind the imports."""
    lines = [
        f"{name}: {chosen.outside:.2f} CPU seconds ({chosen.outside_wall:.2f} s) outside of the "
        f"frames' work, of {sum(chosen.cpu.values()):.2f} ({sum(chosen.wall.values()):.2f} s)"
    ]
    for part, seconds in chosen.cpu.items():
        lines.append(f"  {part:<26}{seconds:6.3f} CPU s {chosen.wall[part]:6.3f} s")
        if part == "imports":
            most = sorted(chosen.imports.items(), key=lambda each: -each[1])[:8]
            lines.append("    " + ", ".join(f"{package} {took:.3f}" for package, took in most))
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--within"]:
        sys.exit(_measured_command(sys.argv[3:], Path(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL[=MODEL_IO]")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, compiled_modules() as environment:
        folder = Path(name)
        clip = first_second(given.clip, folder)
        found: dict[str, list[Spent]] = {model: [] for model in given.models}
        for number in range(given.rounds + 1):
            for model, rounds in found.items():
                path, _, model_io = model.partition("=")
                line = command_line(clip, folder / "out.mp4", Path(path), model_io or None)
                one = spent(line, folder, environment)
                if number:  # the first one compiles modules, and exports a checkpoint
                    rounds.append(one)
    for model, rounds in found.items():
        print(table(Path(model.partition("=")[0]).name, median(rounds)))


if __name__ == "__main__":
    main()
