"""What is known of a model file, whatever wrote it: the form that models and engines share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..frames import PixelType, SizeRequirements


@dataclass(frozen=True)
class ModelCard:
    """What a model file says of itself (``metadata_props``), completed by what its graph shows."""

    path: Path
    digest: str
    """SHA-256 of the file and of the weights that lie beside it, hexadecimal."""
    contract_version: int
    """0 for a foreign file that was adopted, and for a checkpoint."""
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
    generator: dict[str, Any] | None = None
    """The fields of `generators.GeneratorConfig`, where it was exported from a checkpoint."""
    adopted: str | None = None
    """How a foreign file was understood (``nchw rgb 0..255``), or None."""
    notes: tuple[str, ...] = ()
    """What the user should be told once."""
