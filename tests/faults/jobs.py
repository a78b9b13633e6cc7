"""Jobs of the command line, each in a process of its own: killed, disturbed, compared."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.needs import REPOSITORY

Start = Callable[..., subprocess.Popen[Any]]
"""The fixture `start`."""

INJECTION = Path(__file__).parent / "injection"
FOLDER = ".cyclegan-batch"
"""The folder of a job, in the root of its outputs."""

STRETCH = 250
"""Frames in a stretch at the rate of `clip`."""

Fault = dict[str, Any]
"""A rule of injection/sitecustomize.py."""


def environment(
    faults: Sequence[Fault] = (), clock: Sequence[float] = (), count: tuple[Path, str] | None = None
) -> dict[str, str]:
    """Return the environment of a process in which ``faults`` happen."""
    paths = [INJECTION, REPOSITORY, REPOSITORY / "train", REPOSITORY / "export"]
    changed = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    if faults:
        changed["FAULTS"] = json.dumps(faults, default=str)
    if clock:
        changed["CLOCK"] = json.dumps(clock)
    if count:
        changed["COUNT"] = json.dumps([str(count[0]), count[1]])
    return changed


def command(*words: str | Path) -> list[str]:
    """Return ``translate`` with its words, whose progress is JSON."""
    translate = [sys.executable, "-m", "cyclegan_batch", "translate", "--progress", "json"]
    return translate + list(map(str, words))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code; below 0, the signal that killed it."""
    stderr: str
    events: list[dict[str, Any]]
    """What it printed, as values."""
    seconds: float = 0.0

    @property
    def report(self) -> dict[str, Any]:
        """The last event, the report of the run."""
        assert self.events, self.stderr
        assert self.events[-1]["event"] == "end", self.stderr
        return self.events[-1]

    @property
    def frames(self) -> int:
        """How many frames, or images, this run translated."""
        count = self.report["frames"]
        assert isinstance(count, int)
        return count

    @property
    def error(self) -> str:
        """The sentence with which the command failed."""
        assert self.code == 1, self.stderr
        assert "Traceback" not in self.stderr, self.stderr
        last = self.events[-1]
        return str(last["text"] if last["event"] == "error" else last["error"] or last["failures"])


def ended(process: subprocess.Popen[Any], begin: float) -> Ended:
    """Wait for a process that `launch` started."""
    _, stderr = process.communicate(timeout=240)
    text = stderr.decode(errors="replace")
    events = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                events.append(json.loads(line))
            except ValueError:  # the last line of a process that was killed
                continue
    return Ended(process.returncode, text, events, time.monotonic() - begin)


def launch(start: Start, *words: str | Path, **faults: Any) -> subprocess.Popen[Any]:
    """Start ``translate`` as the leader of a process group of its own."""
    return start(
        command(*words),
        env=environment(**faults),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def translate(*words: str | Path, **faults: Any) -> Ended:
    """Run ``translate`` until it ends; ``faults`` are those of `environment`."""
    begin = time.monotonic()
    with subprocess.Popen(
        command(*words),
        env=environment(**faults),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        return ended(process, begin)


def whole(*words: str | Path, **faults: Any) -> Ended:
    """Run ``translate``, which must exit with 0."""
    run = translate(*words, **faults)
    assert run.code == 0, run.stderr
    return run


# Inputs


def clip(
    path: Path,
    *,
    frames: int,
    rate: int = 10,
    size: tuple[int, int] = (48, 64),
    sound: bool = True,
    seed: int = 0,
) -> Path:
    """Write a clip of moving noise, with sound. `STRETCH` frames are a stretch."""
    height, width = size
    noise = np.random.default_rng(seed).integers(0, 256, (2 * height, 2 * width, 3), np.uint8)
    with av.open(str(path), "w") as output:
        video: Any = output.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        video.height, video.width, video.pix_fmt = height, width, "yuv420p"
        if sound:
            audio: Any = output.add_stream("aac", rate=8000, layout="mono")
            count = 1024
            tone = np.sin(np.arange(frames * 8000 // rate) / 4.0).astype(np.float32)
            for begin in range(0, len(tone), count):
                samples = av.AudioFrame.from_ndarray(
                    tone[None, begin : begin + count], "fltp", "mono"
                )
                samples.sample_rate, samples.pts = 8000, begin
                samples.time_base = Fraction(1, 8000)
                output.mux(audio.encode(samples))
            output.mux(audio.encode(None))
        for number in range(frames):
            row, column = number * 5 % height, number * 7 % width
            pixels = np.ascontiguousarray(noise[row : row + height, column : column + width])
            output.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(video.encode(None))
    return path


def pictures(folder: Path, count: int, *, side: int = 32, suffix: str = ".png") -> Path:
    """Write images of noise, in two folders, no two of which are alike."""
    noise = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels = np.roll(noise, number, axis=number // side % 2)
        pixels[0, 0] = number % 256, number // 256 % 256, 7
        name = "a" if number < count // 3 else "b"
        Image.fromarray(pixels).save(folder / name / f"{number:05}{suffix}", compress_level=1)
    return folder


def tars(folder: Path, count: int, *, images: int) -> Path:
    """Write ``count`` tars, each of so many images with a label, no two of which are alike."""
    whole = pictures(folder.with_name("unpacked"), count * images)
    paths = sorted(whole.rglob("*.png"))
    folder.mkdir()
    for number in range(count):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for path in paths[number * images : (number + 1) * images]:
                tar.add(path, path.name)
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"7"))
    return folder


# What is there


def video_content(path: Path) -> dict[str, object]:
    """Return what a video holds: every packet of every stream, and every decoded frame."""
    packets: list[tuple[object, ...]] = []
    with av.open(str(path)) as container:
        streams = [
            (
                stream.type,
                stream.codec_context.name,
                stream.time_base,
                stream.codec_context.extradata,
            )
            for stream in container.streams
        ]
        metadata = dict(container.metadata)
        for packet in container.demux():
            if packet.size:
                times = packet.pts, packet.dts, packet.duration, packet.time_base
                digest = hashlib.sha256(bytes(packet)).hexdigest()
                packets.append((packet.stream.index, *times, packet.is_keyframe, digest))
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            planes = b"".join(bytes(plane) for plane in frame.planes)
            frames.append((frame.pts, hashlib.sha256(planes).hexdigest()))
    return {"streams": streams, "metadata": metadata, "packets": packets, "frames": frames}


def tree(folder: Path) -> dict[str, str]:
    """Return the digest of every file under ``folder`` by its name, without the job's folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and FOLDER not in path.relative_to(folder).parts
    }


def assert_same(found: Path, expected: Path) -> None:
    """Compare two outputs: images byte for byte, videos packet by packet and frame by frame."""
    if is_numbered(expected):
        found, expected = found.parent, expected.parent
    if expected.is_dir():
        assert tree(found) == tree(expected)
        return
    ours, theirs = video_content(found), video_content(expected)
    for part, content in theirs.items():
        assert ours[part] == content, part


def is_numbered(output: Path) -> bool:
    """Return whether an output is a pattern of numbered images, which are alone in their folder."""
    return "%" in output.name


def left_over(root: Path) -> list[str]:
    """Return the hidden files and folders under ``root`` that a job that has ended must not leave.

    Its folder stays, with the journal and the locks, which are empty of meaning once it has ended.
    """
    found = []
    for path in root.rglob("*"):
        name = path.relative_to(root)
        if path.name.endswith(".partial"):
            found.append(str(name))
        elif FOLDER in name.parts:
            if path.is_dir() and path.name != FOLDER:
                found.append(str(name))  # the stretches of a video
        elif path.name.startswith("."):
            found.append(str(name))
    return sorted(found)


def job_folder(output: Path) -> Path:
    """Return the hidden folder of the job that writes ``output``."""
    return (output.parent if output.suffix else output) / FOLDER


def journal_lines(output: Path) -> list[dict[str, Any]]:
    """Return what the journals beside ``output`` hold, without the lines that are damaged."""
    lines = []
    for path in sorted(job_folder(output).glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    return lines


def recorded(output: Path, total: int) -> int:
    """Return how many images, or frames of a video that has ``total``, the journal has as done."""
    lines = journal_lines(output)
    whole = {
        row[0]: line.get("translated", 1)  # those of a tar; an image is one
        for line in lines
        if line["line"] == "whole"
        for row in line["outputs"]
    }
    if output.suffix:
        stretches = {line["number"]: line["frames"] for line in lines if line["line"] == "stretch"}
        return total if whole else sum(stretches.values())
    return sum(whole.values())


# Kills


def seed() -> random.Random:
    """Return random numbers; FAULTS_SEED repeats those of a test that failed."""
    number = int(os.environ.get("FAULTS_SEED") or random.randrange(2**32))
    print(f"FAULTS_SEED={number}")
    return random.Random(number)


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill a command and all its workers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def interrupt(process: subprocess.Popen[Any]) -> None:
    """Send SIGINT to a command, and wait until it has got it."""
    process.send_signal(signal.SIGINT)

    def is_pending() -> bool:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        masks = [line.split()[1] for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
        return any(int(mask, 16) >> (signal.SIGINT - 1) & 1 for mask in masks)

    wait_for(lambda: not is_pending())


def living(process: subprocess.Popen[Any]) -> list[int]:
    """Return the ids of the processes in the group of a command that have not ended, but its own.

    What Python itself starts to clean up behind its processes is not among them.
    """
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = (status.parent / "cmdline").read_bytes()
            state, _, group = status.read_bytes().rpartition(b")")[2].split()[:3]
            number = int(status.parent.name)
            ours = b"resource_tracker" not in words and b"forkserver" not in words
            if int(group) == process.pid != number and state not in (b"Z", b"X") and ours:
                found.append(number)
    return sorted(found)


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until ``condition`` holds; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def wait_for_journal(output: Path, process: subprocess.Popen[Any]) -> None:
    """Wait until the run of ``process`` has begun its journal, or has ended."""
    folder = job_folder(output)
    wait_for(lambda: process.poll() is not None or any(folder.glob("*.jsonl")))


def wait_for_workers(process: subprocess.Popen[Any]) -> None:
    """Wait until a command has started a worker, or has ended."""
    wait_for(lambda: living(process) or process.poll() is not None)


def wait_for_end_of_workers(process: subprocess.Popen[Any]) -> None:
    """Wait until no worker of a command that has ended lives; fail where one stays."""
    wait_for(lambda: not living(process))
