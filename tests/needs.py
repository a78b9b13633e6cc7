"""What a test needs and a machine may lack: the one place that skips.

A test names its needs by a mark, ``@pytest.mark.needs("ffprobe", "torch")``, or calls `need`; for a
package that the rest of a file imports, `pytest.importorskip` does the same. Where one is absent,
the test is skipped, and a run looks as green as one with all its evidence. Therefore
``REQUIRE=ffprobe,corpus pytest`` refuses to run where a need that it lists is absent; CI lists all
that it installed. `NEEDS` holds what is not a package; every other name is the import name of one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

DATA = Path(os.environ.get("CYCLEGAN_BATCH_DATA", REPOSITORY.parent / "shared" / "data"))
"""The real models, clips and images."""

BINDINGS = Path(os.environ.get("CYCLEGAN_BATCH_TRT_LAB", REPOSITORY / ".trt-lab")) / "wheels"
"""Wheels of TensorRT's bindings: ``pip download --no-deps -d .trt-lab/wheels
tensorrt-cu13-bindings==VERSION`` for each version of tests/backends/tensorrt/test_bindings.py."""

VAPOURSYNTH = os.environ.get("VAPOURSYNTH_PYTHON", "")
"""A Python of an environment of its own, since it is under the GPL: ``pip install vapoursynth
vapoursynth-mlrt-ort``, which have wheels for Python 3.12 and later."""

REQUIRED = frozenset(filter(None, os.environ.get("REQUIRE", "").split(",")))
"""The needs whose absence is an error."""


def _succeeds(*command: str) -> bool:
    """Return whether a command is there and exits with 0."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


NEEDS: dict[str, Callable[[], bool]] = {
    "ffmpeg": lambda: shutil.which("ffmpeg") is not None,
    "ffprobe": lambda: shutil.which("ffprobe") is not None,
    "gcc": lambda: shutil.which("gcc") is not None,
    "tar": lambda: shutil.which("tar") is not None,
    "corpus": DATA.is_dir,
    "cuda-bindings": lambda: importlib.util.find_spec("cuda") is not None,
    "bindings": lambda: any(BINDINGS.glob("tensorrt_cu13_bindings-*.whl")),
    "cuda": Path("/dev/nvidiactl").exists,
    "two-gpus": lambda: Path("/dev/nvidia1").exists(),
    "vapoursynth": lambda: (
        bool(VAPOURSYNTH)
        and _succeeds(VAPOURSYNTH, "-c", "import vapoursynth; vapoursynth.core.ort")
    ),
    "linux": lambda: sys.platform == "linux",
    "full-device": Path("/dev/full").exists,
    "small-disk": lambda: _succeeds("unshare", "--user", "--map-root-user", "--mount", "true"),
    "root": lambda: os.name == "posix" and os.geteuid() == 0,
    "no-root": lambda: os.name == "posix" and os.geteuid() != 0,
}
"""Everything that can be needed but a Python package, by name: whether this machine has it."""

_MARKS = {"corpus": "corpus", "needs_cuda": "cuda", "needs_tensorrt": "tensorrt"}
"""The marks that stand for a need."""


class Marked(Protocol):
    """A collected test, as far as its marks go."""

    def iter_markers(self, name: str) -> Iterator[pytest.Mark]:
        """Yield the marks of this name, of the test and of what holds it."""


@functools.cache
def has(name: str) -> bool:
    """Tell whether this machine has ``name``: a key of `NEEDS`, or a package."""
    if name in NEEDS:
        return NEEDS[name]()
    return importlib.util.find_spec(name) is not None


def need(*names: str) -> None:
    """Skip the calling test where one of ``names`` is absent."""
    for name in names:
        if not has(name):
            pytest.skip(f"needs {name}")


def refuse_absence() -> None:
    """Raise pytest.UsageError where a need of ``REQUIRE`` is absent."""
    absent = sorted(name for name in REQUIRED if not has(name))
    if absent:
        raise pytest.UsageError(f"REQUIRE lists what this machine lacks: {', '.join(absent)}")


def package(name: str) -> ModuleType:
    """Return the module ``name`` for a test that needs its package."""
    need(name.partition(".")[0])
    return importlib.import_module(name)


def needs_of(test: Marked) -> Iterable[str]:
    """Return what the marks of a test need."""
    for mark in test.iter_markers("needs"):
        yield from mark.args
    for mark_name, name in _MARKS.items():
        if any(test.iter_markers(mark_name)):
            yield name
