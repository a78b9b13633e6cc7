#!/usr/bin/env python3
"""Build the engine of a bundle on its device, and verify the engine's output.

    python3 edge.py build      trtexec builds model.engine from model.onnx, which takes minutes
    python3 edge.py verify     trtexec runs it on the golden frames, and the output is compared

This script needs trtexec, which comes with TensorRT, and Python 3.8 or newer. It imports nothing of
the package that wrote the bundle, since a device's Python may be too old for that. Its settings are
in card.json. Options after the command are passed on to trtexec.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec")
"""The places where JetPack installs it, which are not in PATH."""


def main(words: list[str]) -> None:
    """Run a command line; ends the process with 1 and a message where it fails."""
    folder = Path(__file__).resolve().parent
    if not words or words[0] not in ("build", "verify"):
        sys.exit((__doc__ or "").partition("\n\n")[2].rstrip())
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"Error: card.json cannot be read ({error}); copy the whole bundle again")
    if words[0] == "build":
        build(folder, card, words[1:])
    else:
        verify(folder, card, words[1:])


def build(folder: Path, card: dict[str, Any], more: list[str]) -> None:
    """Build the engine."""
    _check_digest(folder / "model.onnx", card["onnx_sha256"])
    command = ["--onnx=model.onnx", "--saveEngine=model.engine", "--stronglyTyped"]
    command += ["--skipInference", "--timingCacheFile=timing.cache"]
    if card["shapes"] is not None:
        for which in ("min", "opt", "max"):
            command.append(f"--{which}Shapes=frames:{_spec(card['shapes'][which])}")
    print("building model.engine, which takes minutes; build.log shows the progress", flush=True)
    _run(folder, command + more, "build.log")
    if not (folder / "model.engine").is_file():
        sys.exit("Error: trtexec wrote no model.engine; build.log says more")
    print("model.engine is built for this device; now: python3 edge.py verify")


def verify(folder: Path, card: dict[str, Any], more: list[str]) -> None:
    """Run the engine on the golden frames and compare."""
    golden = card["golden"]
    for which in ("input", "output"):
        _check_digest(folder / golden[which], golden[which + "_sha256"])
    if not (folder / "model.engine").is_file():
        sys.exit("Error: there is no model.engine yet; first: python3 edge.py build")
    output_file = folder / "verify.json"
    if output_file.exists():
        output_file.unlink()
    # File names without a folder, since trtexec splits its options at colons and commas.
    command = ["--loadEngine=model.engine", "--loadInputs=frames:" + golden["input"]]
    command += ["--exportOutput=verify.json", "--iterations=1", "--warmUp=0", "--duration=0"]
    if card["shapes"] is not None:
        command.append("--shapes=frames:" + _spec(golden["shape"]))
    _run(folder, command + more, "verify.log")
    if not output_file.is_file():
        sys.exit("Error: trtexec wrote no verify.json; verify.log says more")
    expected = (folder / golden["output"]).read_bytes()
    try:
        values = output_values(output_file.read_bytes(), len(expected))
    except ValueError as error:
        sys.exit(f"Error: verify.json cannot be read: {error}; keep it for a report")
    psnr, within2, largest = difference(values, expected)
    measured = f"{psnr:.1f} dB, {within2:.2%} within 2 levels, largest {largest}"
    rule = card["rule"]
    if psnr < rule["psnr"] or within2 < rule["within2"]:
        sys.exit(
            f"Error: this engine's output differs from the golden frames: {measured}, where "
            f"{rule['psnr']:.0f} dB and {rule['within2']:.1%} are expected; do not use it"
        )
    print("the engine's output matches the golden frames: " + measured)


def output_values(content: bytes, count: int) -> list[int]:
    """Return the ``count`` pixels in what ``trtexec --exportOutput`` wrote. Raises ValueError.

    From TensorRT 10.16 on that is JSON. Earlier versions write a uint8 as that one byte instead of
    a number (print in TensorRT's samples/common/sampleUtils.cpp).
    """
    head = re.search(rb'"name" *: *"translated".*?"values" *: *\[ ', content, re.DOTALL)
    if head is None:
        raise ValueError("no output 'translated' in it")
    begin, end = head.end(), head.end() + 3 * count - 2
    body = content[begin:end]
    single = body[::3]
    separated = body[1::3] == b"," * (count - 1) and body[2::3] == b" " * (count - 1)
    if separated and content[end : end + 2] == b" ]" and not single.isdigit():
        return list(single)
    text = content[begin:].partition(b"]")[0]
    values = [int(value) for value in text.split(b",")]
    if len(values) != count:
        raise ValueError(f"{len(values)} values where {count} are expected")
    return values


def difference(values: list[int], expected: bytes) -> tuple[float, float, int]:
    """Return PSNR in dB, the share within two grey levels, and the largest difference."""
    apart = [abs(a - b) for a, b in zip(values, expected)]  # noqa: B905 - Python 3.8 has no strict
    mean_square = sum(each * each for each in apart) / len(apart)
    psnr = 10 * math.log10(255.0**2 / mean_square) if mean_square else math.inf
    return psnr, sum(each <= 2 for each in apart) / len(apart), max(apart)


def _spec(shape: list[int]) -> str:
    return "x".join(str(side) for side in shape)


def _check_digest(path: Path, expected: str) -> None:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        sys.exit(f"Error: {path.name} cannot be read ({error}); copy the whole bundle again")
    if digest != expected:
        sys.exit(f"Error: {path.name} is not the file of this bundle; copy it again")


def _run(folder: Path, options: list[str], log: str) -> None:
    """Run trtexec in ``folder`` with its output in ``log``; end the process where it fails."""
    command = [_trtexec(), *options]
    with (folder / log).open("wb") as file:
        try:
            process = subprocess.run(command, cwd=folder, stdout=file, stderr=file, check=False)
        except OSError as error:
            sys.exit(f"Error: {command[0]} does not start: {error}")
    if process.returncode:
        lines = (folder / log).read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "[E]" in line] or lines
        for line in errors[-5:]:
            print(line, file=sys.stderr)
        sys.exit(f"Error: trtexec failed (exit code {process.returncode}); {log} says more")


def _trtexec() -> str:
    from_environment = os.environ.get("TRTEXEC")
    path = (
        from_environment or shutil.which("trtexec") or next(filter(os.path.exists, _PLACES), None)
    )
    if path is None or shutil.which(path) is None:
        where = from_environment or f"not in PATH, not in {_PLACES[0]}"
        sys.exit(
            f"Error: trtexec is not found ({where}); it comes with TensorRT (on a Jetson: sudo apt "
            "install nvidia-jetpack); where it is elsewhere, set TRTEXEC=/path/to/trtexec"
        )
    return path


if __name__ == "__main__":
    main(sys.argv[1:])
