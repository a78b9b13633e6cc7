"""Compare a path on a GPU with the CPU once for each file, GPU and version, and keep the verdict.

Nothing here knows CUDA: two opened backends are compared, and a line of JSON says how it went.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import ModelError, OutputError
from ..files import publish, temporary_path
from ..machine import default_cache_dir, nvidia_gpus
from ..models.model import Model
from .common import Backend, parity_of

_VERSIONS = ("onnxruntime-gpu", "torch", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
"""The packages that decide which arithmetic a GPU does."""


class Verdict:
    """Whether a path on a GPU draws a file's picture, and where that is kept."""

    def __init__(self, model: Model, opened: Backend, cache_dir: Path | None) -> None:
        index, names = int(opened.device.partition(":")[2] or 0), nvidia_gpus()
        self._about = {
            "model": model.card.digest,
            "graph": hashlib.sha256(model.graph).hexdigest(),
            "backend": opened.name,
            "precision": opened.precision,
            "gpu": names[index] if index < len(names) else "unknown",
            "versions": {"cyclegan-batch": __version__, **_versions()},
        }
        key = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        folder = (cache_dir or default_cache_dir()) / "verdicts"
        self._path = folder / f"{key[:32]}.json"
        self._opened = opened

    def stands(self) -> bool:
        """Tell whether the comparison was made, and the picture was in its class."""
        try:
            said: Any = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(said, dict) and said.get("about") == self._about and "parity" in said

    def find(self, on_cpu: Backend) -> str:
        """Compare with ``on_cpu``, keep what was found, and return it in words.

        Raises ModelError where it misses the class of its precision.
        """
        try:
            found = str(parity_of(self._opened, on_cpu, remedy="pass --device cpu"))
        except ModelError as error:
            raise ModelError(f"on {self._about['gpu']}, against the CPU: {error}") from error
        partial = temporary_path(self._path)
        # Where it cannot be kept, the next run compares again.
        with contextlib.suppress(OSError, OutputError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_text(json.dumps({"about": self._about, "parity": found}) + "\n")
                publish(partial, self._path, overwrite=True)
            finally:
                partial.unlink(missing_ok=True)
        return found


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
