"""A model file becomes one described object: the contract ONNX, its card, and foreign ONNX adopted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .frames import PixelType, SizeRequirements


@dataclass(frozen=True)
class ModelCard:
    """What a model file says of itself (``metadata_props``), completed by what its graph shows."""

    path: Path
    digest: str
    """SHA-256 of the file, hexadecimal."""
    contract_version: int
    """0 for a foreign file that was adopted."""
    architecture: str
    pixel_type: PixelType
    sizes: SizeRequirements
    batch: int | None
    """The only batch size the file takes, or None."""
    trained_size: int | None
    direction: str | None
    """``AtoB`` or ``BtoA``."""
    precision: str
    """``fp32``, ``fp16`` or ``int8``: the type of the file's weights."""
    source_digest: str | None
    """SHA-256 of the checkpoint it was exported from."""
    tool_version: str | None
    parity: str | None
    """Measured parity, in words."""
    adopted: str | None = None
    """How a foreign file was understood (``nchw rgb 0..255``), or None."""
    notes: tuple[str, ...] = ()
    """What the user should be told once."""


@dataclass(frozen=True)
class Model:
    """A card, and the contract graph that it describes (adopted already where it was foreign)."""

    card: ModelCard
    graph: bytes
    """The serialised ONNX, inside the contract."""


def open_model(path: Path, *, model_io: str | None = None) -> Model:
    """Read, check and where needed adopt the ONNX at ``path``. Raises ModelError."""
    raise NotImplementedError
