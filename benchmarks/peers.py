"""Measure whole programs that do the same work side by side: this one, and what people write.

    python benchmarks/peers.py CLIP CHECKPOINT [--out FILE.json]

The work is to translate a clip of 256² by a generator, and the same frames as a folder of PNG
images. In each round all programs take turns, each with its start and its end; the figures are
ratios within a round. ffmpeg without a network, through RGB with flags that preserve the colours,
is the ceiling for a clip. The translated pictures of all programs are compared, so that none is
fast because it does something else.

plot.py draws FILE.json. RESULTS.md holds the table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "export")]

from benchmarks.images import SIDE, middle  # noqa: E402
from benchmarks.pipeline import ACCURATE, ffmpeg_program  # noqa: E402
from benchmarks.runtimes import cpu  # noqa: E402
from cyclegan_batch.machine import cpu_threads  # noqa: E402

LOOPS = REPOSITORY / "benchmarks" / "peer_loops"

OPENCV = "a loop of OpenCV and onnxruntime"
TORCH = "a loop of torch, like the authors' test.py"
OURS = "cyclegan-batch translate"
OURS_BF16 = "cyclegan-batch translate --precision bf16"
FFMPEG = "ffmpeg without a network"


@dataclass(frozen=True)
class Program:
    """One way to do the work."""

    name: str
    task: str
    """``clip`` or ``folder``."""
    command: Sequence[str]
    output: Path
    translates: bool = True


def programs(source: Path, frames: Path, checkpoint: Path, folder: Path) -> list[Program]:
    """Return all programs for the clip ``source`` and for the same frames as PNG in ``frames``.

    The generator is exported once for each of them, in the form that it takes.
    """
    ours, plain = folder / "contract.onnx", folder / "plain.onnx"
    cli = [sys.executable, "-m", "cyclegan_batch"]
    subprocess.run([*cli, "export", str(checkpoint), str(ours), "-q"], check=True)
    export_plainly(checkpoint, plain)
    translate = [*cli, "translate", "-m", str(ours), "-y", "--no-resume", "-q"]
    video = ["--preset", "veryfast"]
    encoder = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18"]
    loop = [sys.executable, str(LOOPS / "opencv_loop.py")]
    images = [sys.executable, str(LOOPS / "torch_loop.py")]
    bf16 = ["--precision", "bf16"]
    found = [
        Program(OPENCV, "clip", [*loop, str(source), str(plain)], folder / "opencv.mp4"),
        Program(OURS, "clip", [*translate, *video, str(source)], folder / "ours.mp4"),
        Program(
            FFMPEG,
            "clip",
            [ffmpeg_program(), "-v", "error", "-y", "-i", str(source), "-vf", ACCURATE, *encoder],
            folder / "ffmpeg.mp4",
            translates=False,
        ),
        Program(TORCH, "folder", [*images, str(frames), str(checkpoint)], folder / "torch"),
        Program(OURS, "folder", [*translate, str(frames)], folder / "ours"),
    ]
    if has_bf16():
        found += [
            Program(OURS_BF16, "clip", [*translate, *video, *bf16, str(source)], folder / "b.mp4"),
            Program(OURS_BF16, "folder", [*translate, *bf16, str(frames)], folder / "b"),
        ]
    return found


def export_plainly(checkpoint: Path, target: Path) -> None:
    """Write a generator as ``torch.onnx.export`` does: float32, NCHW, from -1 to 1, of any size."""
    import torch

    from cyclegan_batch.models.checkpoints.loading import load_generator

    network = load_generator(checkpoint).network.eval()
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, SIDE, SIDE),),
        str(target),
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=(sizes,),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def has_bf16() -> bool:
    """Tell whether OpenVINO is there and this CPU computes in bf16."""
    try:
        from cyclegan_batch.backends.openvino import import_openvino

        core = import_openvino().Core()
    except ImportError:
        return False
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def cut(clip: Path, most: int, target: Path, frames: Path) -> int:
    """Write the first frames of ``clip`` at 256², as a video and as a folder of PNG.

    Returns how many there are: ``most``, or all of the clip.
    """
    frames.mkdir()
    with av.open(str(clip)) as source, av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "12", "preset": "veryfast"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for number, frame in zip(range(most), source.decode(video=0), strict=False):
            pixels = middle(frame.to_ndarray(format="rgb24"), SIDE)
            cv2.imwrite(str(frames / f"{number:05}.png"), pixels[:, :, ::-1])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    return len(list(frames.iterdir()))


def pictures(output: Path) -> list[np.ndarray]:
    """Return some of the translated pictures, evenly spread."""
    if output.is_dir():
        files = sorted(output.glob("*.png"))
        return [cv2.imread(str(path))[:, :, ::-1] for path in files[:: max(1, len(files) // 8)]]
    with av.open(str(output)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return decoded[:: max(1, len(decoded) // 8)]


def likeness(ones: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Return the PSNR in dB between two sequences of pictures of the same frames."""
    assert len(ones) == len(others), "a program has lost frames"
    errors = [
        np.square(one.astype(float) - other).mean() for one, other in zip(ones, others, strict=True)
    ]
    return float(10 * np.log10(255**2 / max(np.mean(errors), 1e-9)))


def measure(
    found: Sequence[Program], rounds: int, say: Callable[[str], None]
) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each program in each round, after one round that is not counted."""
    seconds: dict[tuple[str, str], list[float]] = {(p.task, p.name): [] for p in found}
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    }
    for number in range(rounds + 1):
        for program in found:
            begin = time.perf_counter()
            command = [*program.command, str(program.output)]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            took = time.perf_counter() - begin
            if number:
                seconds[program.task, program.name].append(took)
            say(f"  round {number}, {program.task}: {program.name}: {took:.2f} s")
    return seconds


def table(
    found: Sequence[Program], seconds: dict[tuple[str, str], list[float]]
) -> list[dict[str, object]]:
    """Return a row for each program: its rate over that of its task's loop, and how like ours."""
    rows: list[dict[str, object]] = []
    for task, base in (("clip", OPENCV), ("folder", TORCH)):
        reference = next(p.output for p in found if (p.task, p.name) == (task, OURS))
        for program in (p for p in found if p.task == task):
            ratios = [
                theirs / mine
                for theirs, mine in zip(
                    seconds[task, base], seconds[task, program.name], strict=True
                )
            ]
            row: dict[str, object] = {
                "task": task,
                "program": program.name,
                "over": base,
                "ratio": round(statistics.median(ratios), 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
            }
            if program.translates:
                like = likeness(pictures(program.output), pictures(reference))
                row["psnr_to_ours"] = round(like, 1)
                assert like > 25, f"{program.name} draws something else: {like:.1f} dB"
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=120, help="of the clip, at most")
    parser.add_argument("--out", type=Path, help="write the table as JSON, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = cut(given.clip, given.frames, folder / "clip.mp4", folder / "frames")
        found = programs(folder / "clip.mp4", folder / "frames", given.checkpoint, folder)
        rows = table(found, measure(found, given.rounds, print))
    result = {
        "cpu": cpu(),
        "threads": cpu_threads(),
        "date": datetime.date.today().isoformat(),
        "frames": count,
        "size": SIDE,
        "rounds": given.rounds,
        "checkpoint": given.checkpoint.name,
        "rows": rows,
    }
    for row in rows:
        like = f", {row['psnr_to_ours']} dB to ours" if "psnr_to_ours" in row else ""
        print(
            f"{row['task']:7} {row['ratio']:6.2f} ({row['least']} to {row['most']}) "
            f"{row['program']}{like}"
        )
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
