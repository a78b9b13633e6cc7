"""What is known of a model file, whatever wrote it: the form that models and engines share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..frames import PixelType, SizeRequirements
from ..wording import Note, grouped, printable


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
    notes: tuple[Note, ...] = ()
    """What the user should be told once."""


def describe(card: ModelCard) -> dict[str, Any]:
    """Return the card as plain values that JSON takes, in the order in which they are shown."""
    fields = asdict(card)
    sizes = fields.pop("sizes")
    kind = "contract ONNX" if card.contract_version else "checkpoint"
    if card.adopted:
        kind = "foreign ONNX, adopted"
    shown = {
        "path": printable(card.path),
        "kind": kind,
        "contract_version": fields.pop("contract_version") or None,
    }
    del fields["path"]
    shown |= {key: list(value) if isinstance(value, tuple) else value for key, value in
              fields.items() if key not in ("digest", "notes")}  # fmt: skip
    shown |= {
        "multiple_of": sizes["multiple_of"],
        "minimum": sizes["minimum"],
        "fixed_size": None if sizes["fixed"] is None else list(sizes["fixed"]),
        "digest": card.digest,
        "notes": list(grouped(card.notes)),
    }
    return shown
