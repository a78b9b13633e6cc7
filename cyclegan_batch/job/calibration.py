"""Keep what ``bench`` measured about a model on this machine, for the plans of later runs.

A file holds what was measured for one key: the model, the size that its network sees, the backend,
the hardware and the versions of the software. After an upgrade the key is another one, and nothing
is found. The files are read as data of unknown origin: a damaged one, or one that another user may
have written, counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from .._version import __version__
from ..errors import OutputError
from ..files import output_error
from ..frames import Size
from ..machine import (
    cpu_name,
    cpu_threads,
    default_cache_dir,
    installed_versions,
    nvidia_driver,
    nvidia_gpus,
)
from ..models.card import ModelCard
from ..models.seal import not_private, write_new_file

_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-webgpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "torch": ("torch", "triton"),
}
"""The packages whose versions decide how fast a backend is, by distribution name."""

_PACKAGES_ON_GPU = ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13")

_MOST = {"batch_size": 4096, "contexts": 16, "workers": 64}
"""The largest values that a plan may take from a file."""

_LONGEST_FILE = 1 << 14
"""Bytes; a file has about a thousand."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was the fastest way to run a model at one size on this machine.

    Raises ValueError where a number is out of its range.
    """

    backend: str
    """What it was measured with, as are device and precision: resolved, not ``auto``."""
    device: str
    """``cpu`` or ``cuda:N``."""
    precision: str
    batch_size: int
    """Frames per call of the network, 1 to 4096."""
    contexts: int
    """Backends that work side by side, 1 to 16, counted as in `units.Schedule`: on a CPU those of
    all workers together, on a GPU those of each worker."""
    workers: int
    """Processes, 1 to 64; 1 is the process that was started itself."""
    rate: float
    """The frames per second that were reached."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, most in _MOST.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} must be a whole number from 1 to {most}, got {value!r}")
        if type(self.rate) is not float or not math.isfinite(self.rate) or self.rate <= 0:
            raise ValueError(f"rate must be a finite number above 0, got {self.rate!r}")


def keep(calibration: Calibration, card: ModelCard, size: Size, cache_dir: Path | None) -> Path:
    """Write a calibration in place of an earlier one of the same key, and return its file.

    ``size``: height and width as the network sees them. ``cache_dir``: None for the user's own
    (`machine.default_cache_dir`). Raises OutputError.
    """
    about = _about(card, size, calibration.backend, calibration.device, calibration.precision)
    path = _path(about, cache_dir)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path.parent, error) from error
    reason = not_private(path.parent)
    if reason is not None:
        raise OutputError(f"what bench measured cannot be kept: {reason}")
    found = {name: getattr(calibration, name) for name in (*_MOST, "rate")}
    text = json.dumps({"about": about, "found": found}, indent=1)
    write_new_file(path, f"{text}\n".encode(), mode=0o600)
    return path


def kept(
    card: ModelCard,
    size: Size,
    cache_dir: Path | None,
    *,
    backend: str,
    device: str,
    precision: str,
) -> Calibration | None:
    """Return the calibration that `keep` wrote for this model, size, backend and machine.

    Returns None where there is none, where it is of another version of the software, where the file
    is damaged, and where another user may have written it.
    """
    if not _folder(cache_dir).is_dir():
        return None  # most users never measure, and the key costs some milliseconds
    about = _about(card, size, backend, device, precision)
    path = _path(about, cache_dir)
    if not path.is_file() or not_private(path.parent) is not None or not_private(path) is not None:
        return None
    try:
        with path.open("rb") as file:
            content: object = json.loads(file.read(_LONGEST_FILE))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("about") != about:
        return None
    found = content.get("found")
    if not isinstance(found, dict):
        return None
    try:
        return Calibration(
            backend=backend,
            device=device,
            precision=precision,
            batch_size=found["batch_size"],
            contexts=found["contexts"],
            workers=found["workers"],
            rate=found["rate"],
        )
    except (KeyError, ValueError):
        return None


def _path(about: dict[str, object], cache_dir: Path | None) -> Path:
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return _folder(cache_dir) / f"{key[:32]}.json"


def _folder(cache_dir: Path | None) -> Path:
    return (cache_dir or default_cache_dir()) / "bench"


def _about(
    card: ModelCard, size: Size, backend: str, device: str, precision: str
) -> dict[str, object]:
    """Return the key in readable values: everything that the fastest way depends on."""
    kind, _, number = device.partition(":")
    packages = _PACKAGES.get(backend, ())
    gpu = driver = None
    if kind != "cpu":
        names, index = nvidia_gpus(), int(number or 0)
        gpu = names[index] if index < len(names) else "unknown"
        driver = nvidia_driver()
        packages += _PACKAGES_ON_GPU
    return {
        "model": card.digest,
        **({} if card.which is None else {"which": card.which}),
        "adopted": card.adopted,
        "size": list(size),
        "backend": backend,
        "device": kind,
        "precision": precision,
        "cpu": cpu_name(),
        "threads": cpu_threads(),
        "gpu": gpu,
        "driver": driver,
        "versions": {"cyclegan-batch": __version__, **installed_versions(packages)},
    }
