#!/usr/bin/env python3
"""Verify a bundle in its host: the golden frames go through it, and what comes out is compared.

    python3 verify.py          FFmpeg, VapourSynth (by its own Python) and DeepStream
    python3 verify.py [URL]    Triton's server, http://localhost:8000 unless another is given

This script needs its host and Python 3.8 or newer, nothing else. It imports nothing of the package
that wrote the bundle. Its settings are in card.json.
"""

from __future__ import annotations

import array
import hashlib
import importlib
import json
import math
import os
import runpy
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

Frame = Any
"""A frame of VapourSynth, which may be missing."""

OWN_COPY = "copy the bundle to a folder of your own"
"""The remedy where the bundle cannot be written to."""


def main(words: list[str]) -> None:
    """Run a command line; ends the process with 1 and a message where it fails."""
    if "-h" in words or "--help" in words:
        print((__doc__ or "").partition("\n\n")[2].rstrip())
        return
    folder = Path(__file__).resolve().parent
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(f"card.json cannot be read ({error}); copy the whole bundle again")
    try:
        golden, rule, by_host = card["golden"], card["rule"], HOSTS[card["target"]]
        files = [(card["onnx"], card["onnx_sha256"])]
        files += [(golden[which], golden[which + "_sha256"]) for which in ("input", "output")]
        shape, least, share = golden["shape"], float(rule["psnr"]), float(rule["within2"])
    except (KeyError, TypeError, ValueError) as error:
        fail(f"card.json is not that of a bundle ({error!r}); copy the whole bundle again")
    for name, digest in files:
        check_digest(folder / name, digest)
    frames, expected = ((folder / golden[which]).read_bytes() for which in ("input", "output"))
    translated = by_host(folder, shape, frames, words)
    if len(translated) != len(expected):
        fail(f"{len(translated)} values came out where {len(expected)} are expected")
    psnr, within2, largest = difference(translated, expected)
    measured = f"{psnr:.1f} dB, {within2:.2%} within 2 levels, largest {largest}"
    if not (psnr >= least and within2 >= share):
        fail(
            f"what came out differs from the golden frames: {measured}, where "
            f"{least:.0f} dB and {share:.1%} are expected; do not use it"
        )
    print("the output matches the golden frames: " + measured)


def by_ffmpeg(folder: Path, shape: list[int], frames: bytes, words: list[str]) -> bytes:
    """Return the golden frames as the filter of filter.txt translates them."""
    try:
        filters = (folder / "filter.txt").read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        fail(f"filter.txt cannot be read ({error}); copy the whole bundle again")
    command = ["ffmpeg", "-v", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{shape[2]}x{shape[1]}"]
    command += ["-i", "pipe:0", "-vf", filters, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    remedy = "needs FFmpeg 9.0 or later with ONNX Runtime, first in PATH"
    return run(folder, command, remedy, frames)


def by_vapoursynth(folder: Path, shape: list[int], frames: bytes, words: list[str]) -> bytes:
    """Return the golden frames as ``translated`` of translate.vpy draws them."""
    try:
        vapoursynth = importlib.import_module("vapoursynth")
    except ImportError as error:
        fail(f"{error}; run this with the Python that VapourSynth is installed in")
    core = vapoursynth.core
    count, height, width = shape[:3]
    size = height * width

    def fill(n: int, f: Frame) -> Frame:
        frame = f.copy()
        pixels = frames[3 * size * n : 3 * size * (n + 1)]
        for channel in range(3):
            plane = pixels[channel::3]
            for row in range(height):
                line = plane[row * width : (row + 1) * width]
                for column in range(width):
                    frame[channel][row, column] = line[column]
        return frame

    blank = core.std.BlankClip(format=vapoursynth.RGB24, width=width, height=height, length=count)
    clip = core.std.ModifyFrame(blank, blank, fill)
    try:
        translated = runpy.run_path(str(folder / "translate.vpy"))["translated"]
    except Exception as error:  # it is a program, and may be damaged in any way
        fail(f"translate.vpy does not run ({error!r}); copy the whole bundle again")
    try:
        clip = translated(clip)
        out = bytearray(len(frames))
        for n in range(count):
            frame = clip.get_frame(n)
            for channel in range(3):
                # tobytes leaves out the padding at the end of each row.
                plane = memoryview(frame[channel]).tobytes()
                out[3 * size * n + channel : 3 * size * (n + 1) : 3] = plane
    except vapoursynth.Error as error:
        fail(f"VapourSynth reports: {error}")
    return bytes(out)


def by_triton(folder: Path, shape: list[int], frames: bytes, words: list[str]) -> bytes:
    """Return the golden frames as Triton's server translates them, by KServe's protocol."""
    url = (words[0] if words else "http://localhost:8000").rstrip("/")
    if not url.startswith(("http://", "https://")):
        fail(f"{url} is no address of a server; give one like http://localhost:8000")
    wanted = {"name": "translated", "parameters": {"binary_data": True}}
    sent = {
        "name": "frames",
        "shape": shape,
        "datatype": "UINT8",
        "parameters": {"binary_data_size": len(frames)},
    }
    head = json.dumps({"inputs": [sent], "outputs": [wanted]}).encode()
    request = urllib.request.Request(
        url + "/v2/models/generator/infer",
        data=head + frames,
        headers={
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
        },
    )
    try:
        with urllib.request.urlopen(request) as answer:
            length = int(answer.headers["Inference-Header-Content-Length"])
            content = bytes(answer.read())
    except urllib.error.HTTPError as error:
        fail(f"Triton refuses the frames: {error.read().decode(errors='replace')}")
    except (OSError, TypeError, ValueError) as error:
        fail(
            f"{url} does not answer as Triton does ({error}); start its server first, as "
            "README.txt says, or give its address"
        )
    (output,) = json.loads(content[:length])["outputs"]
    if (output["datatype"], output["shape"]) != ("UINT8", shape):
        fail(f"Triton returns {output['datatype']} {output['shape']} where UINT8 {shape} is due")
    return content[length:]


def by_deepstream(folder: Path, shape: list[int], frames: bytes, words: list[str]) -> bytes:
    """Return the golden frame as the tensor that nvinfer writes to a file."""
    _, height, width = shape[:3]
    # gst_nvinfer's own name for the file (write_infer_output_to_file in gstnvinfer.cpp).
    tensor = folder / "gstnvdsinfer_uid-01_layer-translated_batch-0000000000_batchsize-01.bin"
    try:
        if tensor.exists():
            tensor.unlink()
    except OSError as error:
        fail(f"{tensor.name} cannot be removed ({error.strerror}); {OWN_COPY}")
    if not os.access(folder, os.W_OK):
        fail(f"{folder} cannot be written to, and nvinfer writes its tensor there; {OWN_COPY}")
    pipeline = (
        f"filesrc location=golden_input.bin ! rawvideoparse format=rgb width={width} "
        f"height={height} framerate=1/1 ! videoconvert ! nvvideoconvert ! "
        "video/x-raw(memory:NVMM),format=RGBA ! mux.sink_0 nvstreammux name=mux batch-size=1 "
        f"width={width} height={height} ! nvinfer config-file-path=config_infer.txt "
        "raw-output-file-write=1 ! fakesink"
    )
    command = ["gst-launch-1.0", "-q", *pipeline.split()]
    run(folder, command, "needs DeepStream's container, or its programs in PATH")
    if not tensor.is_file():
        fail(f"nvinfer wrote no {tensor.name}; keep gie-unique-id=1 in config_infer.txt")
    values = array.array("f")
    values.frombytes(tensor.read_bytes())
    if any(math.isnan(each) for each in values):
        fail("nvinfer returns NaN; use another network-mode, or a bundle of another checkpoint")
    out = bytearray(len(values))
    for channel in range(3):
        plane = values[channel * height * width : (channel + 1) * height * width]
        out[channel::3] = bytes(min(255, max(0, int(255 * each + 0.5))) for each in plane)
    return bytes(out)


HOSTS: dict[str, Callable[[Path, list[int], bytes, list[str]], bytes]] = {
    "ffmpeg": by_ffmpeg,
    "vapoursynth": by_vapoursynth,
    "triton": by_triton,
    "deepstream": by_deepstream,
}


def difference(values: bytes, expected: bytes) -> tuple[float, float, int]:
    """Return PSNR in dB, the share within two grey levels, and the largest difference."""
    apart = [abs(a - b) for a, b in zip(values, expected)]  # noqa: B905 - Python 3.8 has no strict
    mean_square = sum(each * each for each in apart) / len(apart)
    psnr = 10 * math.log10(255.0**2 / mean_square) if mean_square else math.inf
    return psnr, sum(each <= 2 for each in apart) / len(apart), max(apart)


def check_digest(path: Path, expected: str) -> None:
    """End the process where a file is not that of the bundle."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        fail(f"{path.name} cannot be read ({error}); copy the whole bundle again")
    if digest != expected:
        fail(f"{path.name} is not the file of this bundle; copy it again")


def run(folder: Path, command: list[str], remedy: str, fed: bytes = b"") -> bytes:
    """Run a program in ``folder`` on ``fed``; return what it prints, or end the process."""
    if shutil.which(command[0]) is None:
        fail(f"{command[0]} is not found; this bundle {remedy}")
    done = subprocess.run(command, cwd=folder, input=fed, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr or done.stdout
        for line in said.decode(errors="replace").splitlines()[-5:]:
            print(line, file=sys.stderr)
        fail(f"{command[0]} failed (exit code {done.returncode}); this bundle {remedy}")
    return done.stdout


def fail(reason: str) -> NoReturn:
    """End the process with a message."""
    sys.exit("Error: " + reason)


if __name__ == "__main__":
    main(sys.argv[1:])
