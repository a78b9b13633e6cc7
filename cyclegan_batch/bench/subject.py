"""What is measured: the model, the device, the runtimes, in values."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from ..frames import Size
from ..machine import cpu_name, cpu_threads, installed_versions, nvidia_gpus
from ..models.card import ModelCard
from ..wording import printable

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "torch")

_INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "amx_fp16": "AMX-FP16",
    "asimd": "NEON",
    "asimddp": "dot product",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}
"""The flags of Linux that decide how fast a network runs, and the names of the instructions."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured."""

    model: str
    """The file."""
    architecture: str
    precision: str
    """Of the file's weights."""
    trained_size: int | None
    size: Size
    """Height and width of a frame in the network."""
    gflop: float | None
    """Billions of operations for a frame (`work.gflop`)."""
    device: str
    """``cpu`` or ``cuda:N``: where the pipeline computes the network by default."""
    gpu: str | None
    """The name of that GPU."""
    cpu: str
    threads: int
    """CPU threads that this process may use."""
    instruction_sets: tuple[str, ...]
    """Those that matter for networks; empty where the system does not tell them."""
    runtimes: dict[str, str]
    """Versions of the installed runtimes."""
    input: str
    """The input in words."""


def subject_of(
    card: ModelCard, size: Size, gflop: float | None, device: str, words: str, path: Path
) -> Subject:
    """Return what is measured; ``words`` describe the input, ``path`` is the given model file."""
    gpu = None
    if device != "cpu":
        names, index = nvidia_gpus(), int(device.partition(":")[2] or 0)
        gpu = names[index] if index < len(names) else "unknown GPU"
    return Subject(
        model=printable(path),
        architecture=card.architecture,
        precision=card.precision,
        trained_size=card.trained_size,
        size=size,
        gflop=gflop,
        device=device,
        gpu=gpu,
        cpu=cpu_name(),
        threads=cpu_threads(),
        instruction_sets=instruction_sets(),
        runtimes=installed_versions(_RUNTIMES),
        input=words,
    )


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return the instructions of this CPU that decide how fast a network runs."""
    flags: set[str] = set()
    with contextlib.suppress(OSError), cpuinfo.open() as lines:
        for line in lines:
            if match := re.match(r"(flags|Features)\s*:\s*(.*)", line):
                flags = set(match[2].split())
                break
    return tuple(name for flag, name in _INSTRUCTION_SETS.items() if flag in flags)
