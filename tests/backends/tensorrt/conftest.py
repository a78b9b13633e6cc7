"""Fixtures of this folder: a stand-in for a GPU, models and engines; and helpers to damage them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclegan_batch.backends import tensorrt as backend
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.engine_card import Build, Profile, card_path
from cyclegan_batch.models.model import Model, open_model
from tests.synthesis import fake_tensorrt, generators
from tests.synthesis.fake_tensorrt import Gpu

SMALL = Profile((1, 8, 8), (2, 8, 8), (4, 16, 16))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Return the stand-in for a GPU, used by the stand-ins for TensorRT and CUDA."""
    return fake_tensorrt.install(monkeypatch)


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of this user's key. Caches and state are not in the real user's folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "states"))
    return tmp_path / "states" / "cyclegan-batch" / "engine.key"


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Return a contract file that inverts its frames."""
    return open_model(generators.invert(tmp_path / "invert.onnx"))


def frames(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)


def open_on(gpu: Gpu, model: Model, cache: Path, **options: Any) -> backend.TensorRtBackend:
    options.setdefault("shapes", [(2, 8, 8)])
    return backend.open_tensorrt(model, cache_dir=cache, **options)


OTHERS: dict[str, Callable[[Gpu], None]] = {
    "GPU": lambda gpu: setattr(gpu, "name", b"NVIDIA Fake 2"),
    "compute capability": lambda gpu: setattr(gpu, "minor", 9),
    "TensorRT": lambda gpu: setattr(gpu, "version", "11.5.0.1"),
    "part of a GPU": lambda gpu: setattr(gpu, "multiprocessors", 16),
    "memory": lambda gpu: setattr(gpu, "memory", 2**32),
}


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def exchange(path: Path) -> None:
    """Replace the engine by other bytes, and write their digest into the card."""
    path.write_bytes(b"fake engine\nmalice")
    card = json.loads(card_path(path).read_text())
    card["engine_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    card_path(path).write_text(json.dumps(card))


@pytest.fixture
def engine(tmp_path: Path, gpu: Gpu, model: Model) -> Path:
    """Return an engine of the model that was built here, with the cache in the same folder."""
    path = tmp_path / "night.engine"
    backend.write_engine(model, path, Build(SMALL), cache_dir=tmp_path / "cache")
    return path
