"""Report what this machine has: devices, runtimes, FFmpeg, the encoders that open, and the cache.

Each part is tried out. An absent part is listed as absent, and is no error.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import sys
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from ._version import __version__
from .errors import BackendUnavailableError
from .machine import (
    cpu_name,
    cpu_threads,
    default_cache_dir,
    installed_versions,
    jetson_linux,
    nvidia_driver,
    nvidia_gpus,
    own_scheduling,
)
from .wording import byte_size, first_line, printable

ENCODERS = (
    "libx264",
    "libx265",
    "libsvtav1",
    "libvpx-vp9",
    "h264_nvenc",
    "hevc_nvenc",
    "av1_nvenc",
)
"""The encoders that are tried: those that run on the CPU, then NVIDIA's."""

_PACKAGES = (
    *("numpy", "av", "opencv-python-headless", "pillow", "tifffile", "imagecodecs"),
    *("isal", "pillow-heif", "onnx", "s3fs", "pyarrow", "ray"),
)

_RUNTIMES = (
    *("onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-webgpu"),
    *("openvino", "tensorrt-cu13", "torch"),
)

_TRIED_SIZE = (256, 256)
"""Width and height of the frame that is encoded. NVENC refuses less than about 145×49."""


class System(TypedDict):
    """The operating system, Python and the CPU."""

    os: str
    python: str
    executable: str
    cpu: str
    threads: int
    """Threads that this process may run at once."""
    memory: int | None
    """Bytes."""


class GPUs(TypedDict):
    """The NVIDIA GPUs that this process may use."""

    names: list[str]
    driver: str | None
    """Version of the driver."""


class Jetson(TypedDict):
    """The software of a Jetson."""

    linux: str
    """The release of Jetson Linux, such as ``36.4.3``."""
    jetpack: str | None
    """The JetPack that it belongs to and its TensorRT, in words; None where it is older than 6."""


class Runtime(TypedDict):
    """An installed runtime; ``error`` is None where it loads."""

    version: str
    offers: list[str] | None
    """Its providers or devices; None where it does not load, or where nothing is listed."""
    error: str | None


class FFmpeg(TypedDict):
    """The FFmpeg inside PyAV; ``version`` is None without PyAV."""

    version: str | None
    libraries: dict[str, str]


class Cache(TypedDict):
    """The folder of exported models and engines."""

    path: str
    bytes: int | None
    """Size of its files, None where the folder does not exist."""


class Report(TypedDict):
    """What ``doctor --json`` prints."""

    version: str
    system: System
    gpus: GPUs
    jetson: Jetson | None
    packages: dict[str, str]
    runtimes: dict[str, Runtime]
    ffmpeg: FFmpeg
    encoders: dict[str, str | None]
    """None where an encoder opens, else the reason why it does not."""
    cache: Cache
    warnings: list[str]


def examine(cache_dir: Path | None = None) -> Report:
    """Return the whole report, as plain values that JSON takes."""
    return {
        "version": __version__,
        "system": _system(),
        "gpus": _gpus(),
        "jetson": _jetson(),
        "packages": installed_versions(_PACKAGES),
        "runtimes": _runtimes(),
        "ffmpeg": _ffmpeg(),
        "encoders": {name: encoder_error(name) for name in ENCODERS},
        "cache": _cache(cache_dir or default_cache_dir()),
        "warnings": _warnings(),
    }


def lines(report: Report) -> list[str]:
    """Return a report of `examine` as lines for people."""
    system, gpus = report["system"], report["gpus"]
    ffmpeg, cache = report["ffmpeg"], report["cache"]
    memory = "" if system["memory"] is None else f", {byte_size(system['memory'])} of memory"
    driver = f" (driver {gpus['driver']})" if gpus["driver"] else ""
    libraries = f"{ffmpeg['version']}, {_pairs(ffmpeg['libraries'])}"
    size = "not there yet" if cache["bytes"] is None else byte_size(cache["bytes"])
    return [
        f"Version    cyclegan-batch {report['version']}",
        f"System     {system['os']}, Python {system['python']}",
        f"CPU        {system['cpu']}, {system['threads']} threads{memory}",
        f"GPUs       {', '.join(gpus['names']) + driver if gpus['names'] else 'none'}",
        *_jetson_lines(report["jetson"]),
        f"Packages   {_pairs(report['packages'])}",
        *_runtime_lines(report["runtimes"]),
        f"FFmpeg     {libraries if ffmpeg['version'] else 'none: pip install av'}",
        *(
            f"Encoder    {name}: {'opens' if error is None else f'no ({error})'}"
            for name, error in report["encoders"].items()
        ),
        f"Cache      {cache['path']}, {size}",
        *(f"Warning    {warning}" for warning in report["warnings"]),
    ]


def _jetson_lines(jetson: Jetson | None) -> list[str]:
    if jetson is None:
        return []
    return [
        f"Jetson     Jetson Linux {jetson['linux']}, {jetson['jetpack'] or 'JetPack 5 or older'}"
    ]


def _runtime_lines(runtimes: dict[str, Runtime]) -> list[str]:
    if not runtimes:
        return ['Runtimes   none: pip install "cyclegan-batch[cpu]"']
    texts = []
    for name, runtime in runtimes.items():
        state = f": {', '.join(runtime['offers'])}" if runtime["offers"] else ""
        if runtime["error"]:
            state = f": cannot be loaded, {runtime['error']}"
        texts.append(f"Runtime    {name} {runtime['version']}{state}")
    return texts


def encoder_error(name: str) -> str | None:
    """Encode one frame with the encoder ``name``; return why that fails, or None if it works."""
    try:
        import av
        import av.logging
    except ImportError:
        return "PyAV cannot be loaded"
    import numpy as np

    quiet = {"x265-params": "log-level=none"} if name == "libx265" else {}
    # SVT-AV1 writes to the terminal by itself; only an environment variable stops it.
    svt_log = os.environ.get("SVT_LOG")
    os.environ["SVT_LOG"] = "0"
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        # FFmpeg's log goes to the terminal unless it is captured.
        with own_scheduling(), av.logging.Capture():
            context = av.CodecContext.create(name, "w")
            context.options = quiet
            context.width, context.height = _TRIED_SIZE  # type: ignore[attr-defined]
            context.pix_fmt = "yuv420p"  # type: ignore[attr-defined]
            context.time_base = Fraction(1, 25)
            frame = av.VideoFrame.from_ndarray(
                np.zeros((_TRIED_SIZE[1] * 3 // 2, _TRIED_SIZE[0]), np.uint8), format="yuv420p"
            )
            frame.pts = 0
            # Some encoders open on any machine and fail only at the first frame.
            context.encode(frame)  # type: ignore[attr-defined]
            context.encode(None)  # type: ignore[attr-defined]
    except (av.FFmpegError, av.codec.codec.UnknownCodecError, OSError, ValueError) as error:
        # The encoder's last log line is more precise than the error's number.
        log = getattr(error, "log", None)
        return (log[2].strip() if log else "") or str(getattr(error, "strerror", error))
    finally:
        av.logging.set_level(level)
        if svt_log is None:
            del os.environ["SVT_LOG"]
        else:
            os.environ["SVT_LOG"] = svt_log
    return None


def _system() -> System:
    memory = None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "executable": sys.executable,
        "cpu": cpu_name(),
        "threads": cpu_threads(),
        "memory": memory,
    }


def _gpus() -> GPUs:
    return {"names": list(nvidia_gpus()), "driver": nvidia_driver()}


def _jetson() -> Jetson | None:
    linux = jetson_linux()
    if linux is None:
        return None
    from .backends.tensorrt.jetpack import jetpack_of

    jetpack = jetpack_of(linux)
    return {
        "linux": ".".join(map(str, linux)),
        "jetpack": None if jetpack is None else jetpack.words,
    }


def _runtimes() -> dict[str, Runtime]:
    return {
        name: _runtime(name, version) for name, version in installed_versions(_RUNTIMES).items()
    }


def _runtime(name: str, version: str) -> Runtime:
    """Load an installed runtime; return its devices, or the reason why it does not load."""
    try:
        return {"version": version, "offers": _offers(name), "error": None}
    # A broken installation may raise anything; that is part of the report.
    except Exception as error:
        return {"version": version, "offers": None, "error": first_line(error)}


def _offers(name: str) -> list[str] | None:
    """Load a runtime and return its providers or devices. Raises whatever the import raises."""
    if name == "onnxruntime-ep-webgpu":
        from .backends.onnxruntime_webgpu import gpu_words, webgpu_device

        try:
            return [f"experimental, {gpu_words(webgpu_device())}"]
        except BackendUnavailableError as error:
            return [f"experimental, {error}"]
    if name.startswith("onnxruntime"):
        providers = importlib.import_module("onnxruntime").get_available_providers()
        return [
            _tried_cuda(each) if each == "CUDAExecutionProvider" else each for each in providers
        ]
    if name == "openvino":
        from .backends.openvino import import_openvino

        core = import_openvino().Core()
        return [f"{d} ({core.get_property(d, 'FULL_DEVICE_NAME')})" for d in core.available_devices]
    if name.startswith("tensorrt"):
        importlib.import_module("tensorrt")
        importlib.import_module("cuda.bindings.runtime")
        return [f"experimental, with cuda-bindings {metadata.version('cuda-bindings')}"]
    return None  # torch is not imported here


def _tried_cuda(provider: str) -> str:
    """Return the name of onnxruntime's provider for CUDA, with what became of one node on it."""
    if not nvidia_gpus():
        return f"{provider} (no GPU)"
    from .backends.onnxruntime_cuda import cuda_fault

    fault = cuda_fault(0)
    return f"{provider} ({'computes' if fault is None else f'does not run: {fault}'})"


def _ffmpeg() -> FFmpeg:
    try:
        import av
    except ImportError:
        return {"version": None, "libraries": {}}
    libraries = {name: ".".join(map(str, v)) for name, v in av.library_versions.items()}
    return {"version": str(getattr(av, "ffmpeg_version_info", "unknown")), "libraries": libraries}


def _cache(path: Path) -> Cache:
    size = None
    if path.is_dir():
        # Another run may remove a file meanwhile.
        size = 0
        for file in path.rglob("*"):
            with contextlib.suppress(OSError):
                size += file.lstat().st_size if file.is_file() else 0
    return {"path": printable(path), "bytes": size}


def _warnings() -> list[str]:
    warnings = []
    installed = installed_versions(("onnxruntime", "onnxruntime-gpu", "opencv-python",
                           "opencv-python-headless"))  # fmt: skip
    if {"onnxruntime", "onnxruntime-gpu"} <= installed.keys():
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: the GPU "
            'may be lost; pip uninstall both, then pip install "cyclegan-batch[gpu]"'
        )
    if {"opencv-python", "opencv-python-headless"} <= installed.keys():
        warnings.append(
            "opencv-python and opencv-python-headless are both installed and overwrite each other; "
            "pip uninstall both, then pip install opencv-python-headless"
        )
    linux = jetson_linux()
    if linux is not None:
        from .backends.tensorrt.jetpack import fault_of, jetpack_of

        tensorrt = installed_versions(("tensorrt-cu13",)).get("tensorrt-cu13")
        if fault := fault_of(jetpack_of(linux), tensorrt):
            warnings.append(fault)
    return warnings


def _pairs(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
