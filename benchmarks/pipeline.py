"""Measure the pipeline: against ffmpeg doing the same work, and against its own single stages.

    python benchmarks/pipeline.py ffmpeg CLIP         rate against ffmpeg, identity generator
    python benchmarks/pipeline.py cores CLIP MODEL    rate against cores ÷ CPU seconds per frame

Both print ratios of rates that were measured in turn in the same run; RESULTS.md holds them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from cyclegan_batch.api import prepare_translation, run_plan  # noqa: E402

ACCURATE = (
    "scale=flags=bicubic+accurate_rnd+full_chroma_int,format=rgb24,"
    "scale=flags=bicubic+accurate_rnd,format=yuv420p"
)
"""ffmpeg's filters to RGB and back, with the flags that preserve the colours."""


def ffmpeg_program() -> str:
    """Return the path of ffmpeg: that of the wheel, else the system's."""
    try:
        import imageio_ffmpeg
    except ImportError:
        program = shutil.which("ffmpeg")
        if program is None:
            raise SystemExit("no ffmpeg found: pip install imageio-ffmpeg") from None
        return program
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def write_identity(path: Path) -> Path:
    """Write a contract ONNX of one Identity node, with which only the pipeline costs time."""
    shape = ["N", "H", "W", 3]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["frames"], ["translated"])],
        "identity",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("translated", TensorProto.UINT8, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    card = {"contract_version": "1", "architecture": "identity", "precision": "fp32"}
    card |= {"multiple_of": "1", "minimum": "1"}
    helper.set_model_props(model, {f"cyclegan_batch.{key}": card[key] for key in card})
    onnx.save(model, path)
    return path


def looped(clip: Path, times: int, folder: Path) -> Path:
    """Return ``clip`` repeated by stream copy, so that the start of a process matters little."""
    if times == 1:
        return clip
    target = folder / f"looped{clip.suffix}"
    loop = ["-stream_loop", str(times - 1), "-i", str(clip), "-c", "copy", "-y", str(target)]
    subprocess.run([ffmpeg_program(), "-v", "error", *loop], check=True)
    return target


def seconds_of(command: list[str]) -> tuple[float, float]:
    """Run a command and return the seconds and the CPU seconds that it took."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime


def against_ffmpeg(
    clip: Path, *, pairs: int = 5, loops: int = 10
) -> tuple[list[float], list[float]]:
    """Return our rate over ffmpeg's, and our frames per CPU second over ffmpeg's.

    Whole processes run in turn. The second ratio also holds beside other programs.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = looped(clip, loops, folder)
        model = write_identity(folder / "identity.onnx")
        target = str(folder / "out.mp4")
        encoder = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-c:a", "copy"]
        theirs = [ffmpeg_program(), "-v", "error", "-y", "-i", str(source), "-vf", ACCURATE]
        theirs += [*encoder, target]
        ours = [sys.executable, "-m", "cyclegan_batch", "translate", str(source), target]
        ours += ["-m", str(model), "--preset", "veryfast", "-y", "-q", "--no-resume"]
        seconds_of(ours), seconds_of(theirs)  # warm the caches
        by_rate, by_cpu = [], []
        for _ in range(pairs):
            (mine, mine_cpu), (other, other_cpu) = seconds_of(ours), seconds_of(theirs)
            by_rate.append(other / mine)
            by_cpu.append(other_cpu / mine_cpu)
            print(
                f"  ours {mine:.2f} s ({mine_cpu:.2f} CPU s), ffmpeg {other:.2f} s "
                f"({other_cpu:.2f}), rate ratio {by_rate[-1]:.3f}, by CPU time {by_cpu[-1]:.3f}"
            )
    return by_rate, by_cpu


class CpuTimes:
    """The CPU seconds of this process, of all programs, and the time, from one moment on."""

    def __init__(self) -> None:
        self._begin = self._now()

    def since(self) -> tuple[float, float, float]:
        """Return the CPU seconds of this process and of the others, and the seconds."""
        own, everyone, wall = (
            now - then for now, then in zip(self._now(), self._begin, strict=True)
        )
        return own, max(0.0, everyone - own), wall

    @staticmethod
    def _now() -> tuple[float, float, float]:
        # proc_pid_stat(5): user, nice, system, idle, iowait, irq, softirq, steal. Elsewhere than on
        # Linux the others count as idle.
        everyone = time.process_time()
        with contextlib.suppress(OSError), Path("/proc/stat").open() as lines:
            ticks = [int(word) for word in lines.readline().split()[1:9]]
            everyone = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
        return time.process_time(), everyone, time.perf_counter()


def against_cores(
    clip: Path,
    model: Path,
    *,
    pairs: int = 5,
    frames: int = 528,
    loops: int = 10,
    options: dict[str, Any] | None = None,
) -> list[float]:
    """Return the pipeline's rate over the limit: cores ÷ the sum of the stages' CPU seconds.

    The limit is lower by the share of the cores' time that other programs had meanwhile.
    """
    # It imports PyAV; the sections of gpu.py take `write_identity` from here where there is none.
    from cyclegan_batch.bench.stages import limit_of, stages_alone

    options = {"preset": "veryfast"} | (options or {})
    cores = len(os.sched_getaffinity(0))
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = looped(clip, loops, folder)
        for number in range(pairs):
            plan, backend = prepare_translation(
                clip, folder / f"{number}" / "alone.mp4", model=model, frames=frames, **options
            )
            with contextlib.closing(backend):
                alone = stages_alone(plan, backend)
            limit = limit_of(alone, plan.schedule, threads=cores, on_cpu=True).rate
            prepared = prepare_translation(
                clip, folder / f"{number}" / "out.mp4", model=model, frames=frames, **options
            )
            used = CpuTimes()
            report = run_plan(*prepared)
            own, others, wall = used.since()
            left = 1 - others / wall / cores
            ratios.append(report.rate / limit / left)
            shares = ", ".join(f"{key} {1e3 * cost.cpu:.1f}" for key, cost in alone.items())
            print(
                f"  {report.rate:.2f} frames/s of {limit:.2f} possible on {cores} cores, of whose "
                f"time other programs left {left:.0%}: {ratios[-1]:.3f}; CPU ms per frame alone: "
                f"{shares}; together {1e3 * own / report.frames:.1f} of "
                f"{1e3 * sum(cost.cpu for cost in alone.values()):.1f}; "
                f"the report names {report.limiting_stage}"
            )
    return ratios


def spread(ratios: Iterable[float]) -> str:
    values = list(ratios)
    return f"median {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["ffmpeg", "cores"])
    parser.add_argument("clip", type=Path)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--loops", type=int, default=10, help="the clip, so many times")
    parser.add_argument("--model-io", help="cores: how a foreign MODEL is fed")
    parser.add_argument("--frames", type=int, default=528, help="cores: frames of the clip")
    given = parser.parse_args()
    if given.what == "ffmpeg":
        by_rate, by_cpu = against_ffmpeg(given.clip, pairs=given.pairs, loops=given.loops)
        print("rate over ffmpeg's,", spread(by_rate))
        print("frames per CPU second over ffmpeg's,", spread(by_cpu))
    else:
        if given.model is None:
            parser.error("cores needs a MODEL")
        options = {"model_io": given.model_io} if given.model_io else {}
        ratios = against_cores(
            given.clip,
            given.model,
            pairs=given.pairs,
            frames=given.frames,
            loops=given.loops,
            options=options,
        )
        print("rate over the limit of the cores,", spread(ratios))


if __name__ == "__main__":
    main()
