"""Compare a path on a GPU with the CPU once for each file, GPU and version, and keep the verdict.

This module does not use CUDA: it compares two open backends, and a line of JSON holds the result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from .._version import __version__
from ..errors import ModelError, OutputError
from ..files import writing
from ..machine import default_cache_dir, installed_versions, nvidia_gpus
from ..models.model import Model
from .common import Backend, parity_of

_VERSIONS = (
    *("onnxruntime-gpu", "torch", "triton", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    *("onnxruntime", "onnxruntime-ep-webgpu"),
)
"""The packages whose versions decide which kernels a GPU runs, and so the pixels."""


class Verdict:
    """Whether a path on a GPU gives the same images as the CPU, and the file that holds it."""

    def __init__(self, model: Model, on_gpu: Backend, cache_dir: Path | None) -> None:
        # What torch computes with depends on what works on this machine, too; on WebGPU it is the
        # name of the GPU.
        how = getattr(on_gpu, "how", "")
        index, names = int(on_gpu.device.partition(":")[2] or 0), nvidia_gpus()
        gpu = names[index] if index < len(names) else "unknown"
        self._about = {
            "model": model.card.digest,
            "which": model.card.which,
            "graph": model.graph_sha256,
            "backend": on_gpu.name,
            "precision": on_gpu.precision,
            "how": how,
            "gpu": how if on_gpu.device == "webgpu" else gpu,
            "versions": {"cyclegan-batch": __version__, **installed_versions(_VERSIONS)},
        }
        key = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        folder = (cache_dir or default_cache_dir()) / "verdicts"
        self._path = folder / f"{key[:32]}.json"
        self._on_gpu = on_gpu

    def stands(self) -> bool:
        """Tell whether an earlier comparison reached its parity class, and was kept."""
        try:
            content: object = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return False
        return (
            isinstance(content, dict)
            and content.get("about") == self._about
            and "parity" in content
        )

    def compare(self, on_cpu: Backend) -> str:
        """Compare the GPU's path with ``on_cpu``, keep the parity, and return it in words.

        Raises ModelError where the parity misses the class of the precision.
        """
        try:
            parity = str(parity_of(self._on_gpu, on_cpu, remedy="pass --device cpu"))
        except ModelError as error:
            raise ModelError(f"on {self._about['gpu']}, against the CPU: {error}") from error
        # Where the verdict cannot be kept, the next run compares again.
        with contextlib.suppress(OSError, OutputError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with writing(self._path, overwrite=True) as partial:
                partial.write_text(json.dumps({"about": self._about, "parity": parity}) + "\n")
        return parity
