"""The card of a model file: its description, in one form for every kind of file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ..frames import PixelType, SizeRequirements
from ..options import Direction, FilePrecision
from ..wording import Note, grouped, printable


@dataclass(frozen=True)
class ModelCard:
    """The description of a model file, from its metadata and from its graph or weights."""

    path: Path
    digest: str
    """SHA-256 of the file and of the weights beside it, hexadecimal."""
    contract_version: int
    """0 for an adopted foreign file and for a checkpoint."""
    architecture: str
    pixel_type: PixelType
    sizes: SizeRequirements
    batch: int | None
    """The only batch size that the file accepts, or None."""
    trained_size: int | None
    direction: Direction | None
    precision: FilePrecision
    source_digest: str | None
    """SHA-256 of the checkpoint that the file was exported from."""
    tool_version: str | None
    parity: str | None
    """The measured parity, in words."""
    generator: dict[str, object] | None = None
    """The fields of `networks.GeneratorConfig`, where the file is from a checkpoint."""
    adopted: str | None = None
    """How a foreign file was understood (``nchw rgb 0..255``), or None."""
    notes: tuple[Note, ...] = ()
    """Notes for the user, each to be shown once."""


def describe(card: ModelCard) -> dict[str, object]:
    """Return the card as values that JSON can hold, in the order in which they are shown."""
    fields = asdict(card)
    sizes = fields.pop("sizes")
    kind = "contract ONNX" if card.contract_version else "checkpoint"
    if card.adopted:
        kind = "foreign ONNX, adopted"
    description: dict[str, object] = {
        "path": printable(card.path),
        "kind": kind,
        "contract_version": fields.pop("contract_version") or None,
    }
    del fields["path"]
    description |= {key: list(value) if isinstance(value, tuple) else value for key, value in
              fields.items() if key not in ("digest", "notes")}  # fmt: skip
    description |= {
        "multiple_of": sizes["multiple_of"],
        "minimum": sizes["minimum"],
        "fixed_size": None if sizes["fixed"] is None else list(sizes["fixed"]),
        "digest": card.digest,
        "notes": list(grouped(card.notes)),
    }
    return description
