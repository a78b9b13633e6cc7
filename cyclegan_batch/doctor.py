"""Say what this machine has: devices, runtimes, FFmpeg, the encoders that open, and the cache.

Everything is found by trying it; what is absent is said and is no error.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

from ._version import __version__
from .machine import cpu_threads, default_cache_dir, nvidia_gpus, own_scheduling
from .wording import printable

ENCODERS = (
    "libx264",
    "libx265",
    "libsvtav1",
    "libvpx-vp9",
    "h264_nvenc",
    "hevc_nvenc",
    "av1_nvenc",
)
"""The encoders that are tried: those in FFmpeg's software, then NVIDIA's."""

_PACKAGES = (
    *("numpy", "av", "opencv-python-headless", "pillow", "tifffile", "imagecodecs"),
    *("pillow-heif", "onnx"),
)

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt-cu13", "torch")

_TRIED_SIZE = (256, 256)
"""NVENC refuses pictures of less than about 145×49."""


def examine(cache_dir: Path | None = None) -> dict[str, Any]:
    """Return all there is to know, as plain values that JSON takes."""
    return {
        "version": __version__,
        "system": _system(),
        "gpus": _gpus(),
        "packages": _versions(_PACKAGES),
        "runtimes": _runtimes(),
        "ffmpeg": _ffmpeg(),
        "encoders": {name: encoder_error(name) for name in ENCODERS},
        "cache": _cache(cache_dir or default_cache_dir()),
        "warnings": _warnings(),
    }


def lines(report: dict[str, Any]) -> list[str]:
    """Return a report of `examine` as lines for people."""
    system, cache = report["system"], report["cache"]
    memory = "" if system["memory"] is None else f", {_gibibytes(system['memory'])} of memory"
    said = [
        f"Version    cyclegan-batch {report['version']}",
        f"System     {system['os']}, Python {system['python']}",
        f"CPU        {system['cpu']}, {system['threads']} threads{memory}",
    ]
    gpus = report["gpus"]
    driver = f" (driver {gpus['driver']})" if gpus["driver"] else ""
    said.append(f"GPUs       {', '.join(gpus['names']) + driver if gpus['names'] else 'none'}")
    said.append(f"Packages   {_pairs(report['packages'])}")
    if not report["runtimes"]:
        said.append('Runtimes   none: pip install "cyclegan-batch[cpu]"')
    for name, found in report["runtimes"].items():
        offers = f": {', '.join(found['offers'])}" if found["offers"] else ""
        broken = f": cannot be loaded, {found['error']}" if found["error"] else offers
        said.append(f"Runtime    {name} {found['version']}{broken}")
    ffmpeg = report["ffmpeg"]
    found = f"{ffmpeg['version']}, {_pairs(ffmpeg['libraries'])}"
    said.append(f"FFmpeg     {found if ffmpeg['version'] else 'none: pip install av'}")
    for name, error in report["encoders"].items():
        said.append(f"Encoder    {name}: {'opens' if error is None else f'no ({error})'}")
    size = "not there yet" if cache["bytes"] is None else _gibibytes(cache["bytes"])
    said.append(f"Cache      {cache['path']}, {size}")
    said += [f"Warning    {warning}" for warning in report["warnings"]]
    return said


def encoder_error(name: str) -> str | None:
    """Encode one picture with the encoder ``name``; return why it cannot, or None if it does."""
    try:
        import av
        import av.logging
    except ImportError:
        return "PyAV cannot be loaded"
    import numpy as np

    quiet = {"x265-params": "log-level=none"} if name == "libx265" else {}
    # SVT-AV1 writes to the terminal by itself and listens only to its environment.
    said = os.environ.get("SVT_LOG")
    os.environ["SVT_LOG"] = "0"
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        # Captured, or it goes to the terminal.
        with own_scheduling(), av.logging.Capture():
            context = av.CodecContext.create(name, "w")
            context.options = quiet
            context.width, context.height = _TRIED_SIZE  # type: ignore[attr-defined]
            context.pix_fmt = "yuv420p"  # type: ignore[attr-defined]
            context.time_base = Fraction(1, 25)
            picture = av.VideoFrame.from_ndarray(
                np.zeros((_TRIED_SIZE[1] * 3 // 2, _TRIED_SIZE[0]), np.uint8), format="yuv420p"
            )
            picture.pts = 0
            # Some encoders take their time to say that they cannot: only with the first picture.
            context.encode(picture)  # type: ignore[attr-defined]
            context.encode(None)  # type: ignore[attr-defined]
    except (av.FFmpegError, av.codec.codec.UnknownCodecError, OSError, ValueError) as error:
        # What the encoder wrote to the log says more than the error's number.
        logged = getattr(error, "log", None)
        return (logged[2].strip() if logged else "") or str(getattr(error, "strerror", error))
    finally:
        av.logging.set_level(level)
        if said is None:
            del os.environ["SVT_LOG"]
        else:
            os.environ["SVT_LOG"] = said
    return None


def _system() -> dict[str, Any]:
    memory = None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else name
    return {
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "executable": sys.executable,
        "cpu": name,
        "threads": cpu_threads(),
        "memory": memory,
    }


def _gpus() -> dict[str, Any]:
    driver = None
    with contextlib.suppress(OSError):
        found = re.search(r"  (\d+\.\d+(\.\d+)?) ", Path("/proc/driver/nvidia/version").read_text())
        driver = found[1] if found else None
    if driver is None and (tool := shutil.which("nvidia-smi")):
        query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
            driver = answer.stdout.partition("\n")[0].strip() or None
    return {"names": list(nvidia_gpus()), "driver": driver}


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _runtimes() -> dict[str, dict[str, Any]]:
    """Return each installed runtime: version, and what it offers or why it does not load."""
    found: dict[str, dict[str, Any]] = {}
    for name, version in _versions(_RUNTIMES).items():
        offers, error = None, None
        try:
            if name.startswith("onnxruntime"):
                offers = importlib.import_module("onnxruntime").get_available_providers()
            elif name == "openvino":
                from .backends.openvino import import_openvino

                core = import_openvino().Core()
                offers = [f"{d} ({core.get_property(d, 'FULL_DEVICE_NAME')})"
                          for d in core.available_devices]  # fmt: skip
            elif name.startswith("tensorrt"):
                importlib.import_module("tensorrt")
                importlib.import_module("cuda.bindings.runtime")
                offers = [f"experimental, with cuda-bindings {metadata.version('cuda-bindings')}"]
        except Exception as failure:
            # Whatever a broken installation raises belongs into the report.
            error = str(failure).partition("\n")[0] or type(failure).__name__
        found[name] = {"version": version, "offers": offers, "error": error}
    return found


def _ffmpeg() -> dict[str, Any]:
    try:
        import av
    except ImportError:
        return {"version": None, "libraries": {}}
    libraries = {name: ".".join(map(str, v)) for name, v in av.library_versions.items()}
    return {"version": str(getattr(av, "ffmpeg_version_info", "unknown")), "libraries": libraries}


def _cache(path: Path) -> dict[str, Any]:
    size = None
    if path.is_dir():
        # A file may go while we look: another run tidies up.
        size = 0
        for file in path.rglob("*"):
            with contextlib.suppress(OSError):
                size += file.lstat().st_size if file.is_file() else 0
    return {"path": printable(path), "bytes": size}


def _warnings() -> list[str]:
    found = []
    installed = _versions(("onnxruntime", "onnxruntime-gpu", "opencv-python",
                           "opencv-python-headless"))  # fmt: skip
    if {"onnxruntime", "onnxruntime-gpu"} <= installed.keys():
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: the GPU "
            'may be lost; pip uninstall both, then pip install "cyclegan-batch[gpu]"'
        )
    if {"opencv-python", "opencv-python-headless"} <= installed.keys():
        found.append(
            "opencv-python and opencv-python-headless are both installed and overwrite each other; "
            "pip uninstall both, then pip install opencv-python-headless"
        )
    return found


def _pairs(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
