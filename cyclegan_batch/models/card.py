"""The card of a model file: its description, in one form for every kind of file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..frames import PixelType, PlanarType, SizeRequirements
from ..options import Direction, FilePrecision
from ..wording import Note, grouped, printable


@dataclass(frozen=True)
class Recognition:
    """What the weights of a checkpoint were recognised as, and how sure that is."""

    family: str
    """The value of ``--family``."""
    title: str
    """The family in words."""
    assumed: tuple[str, ...] = ()
    """What the weights do not show and published networks differ in, as clauses."""
    published: tuple[str, ...] = ()
    """What the weights do not show and the family's own program always does alike, as clauses."""
    weights: str | None = None
    """What stands before the names of this generator's weights, the value of ``--weights``; None
    where nothing does."""
    also_fits: tuple[str, ...] = ()
    """The other families that have such weights, so that ``--family`` named this one."""

    @property
    def certainty(self) -> str:
        """How sure that is, in words."""
        if self.also_fits:
            in_part = ", and in part assumed" if self.assumed else ""
            fit = f"{' and '.join(self.also_fits)} fit{'s' if len(self.also_fits) == 1 else ''}"
            return f"named by --family{in_part} ({fit} these weights, too)"
        if self.assumed:
            return "in part assumed (names and shapes are this network's, and do not show all)"
        if self.published:
            return (
                "certain but for what is taken as published (names and shapes are this network's)"
            )
        return "certain (names and shapes are this network's, and show every option of its program)"


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
    """The pixels of a translation with it. A planar file is run in uint8, by nodes around it."""
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
    recognised: Recognition | None = None
    """What the weights were recognised as, where the file is from a checkpoint."""
    adopted: str | None = None
    """How a foreign file was understood (``nchw rgb 0..255``), or None."""
    planar: PlanarType | None = None
    """What a planar file takes and returns itself, RGB in [0, 1]; None for any other file."""
    notes: tuple[Note, ...] = ()
    """Notes for the user, each to be shown once."""

    @property
    def which(self) -> str | None:
        """What tells the generator of a checkpoint from the others with its digest, if anything.

        An ONNX and an engine hold one generator.
        """
        if self.recognised is None or self.contract_version:
            return None
        named = self.recognised.family if self.recognised.also_fits else None
        return ", ".join(filter(None, (self.recognised.weights, named))) or None


def planar_in_words(planar: PlanarType) -> str:
    """Return what a planar file takes and returns, as its card says it."""
    return f"{planar} rgb 0..1"


def recognition_from_json(fields: Mapping[str, object]) -> Recognition:
    """Return what `asdict` made of a recognition and JSON has kept.

    What a later version has added is left out. Raises ValueError, with what is expected.
    """
    family, title, weights = (fields.get(key) for key in ("family", "title", "weights"))
    if not isinstance(family, str) or not isinstance(title, str):
        raise ValueError("a family and its title")
    if weights is not None and not isinstance(weights, str):
        raise ValueError("weights as text")
    assumed, published, also_fits = (
        _texts(fields, key) for key in ("assumed", "published", "also_fits")
    )
    return Recognition(family, title, assumed, published, weights, also_fits)


def _texts(fields: Mapping[str, object], key: str) -> tuple[str, ...]:
    values = fields.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key} as a list of texts")
    return tuple(values)


def describe(card: ModelCard) -> dict[str, object]:
    """Return the card as values that JSON can hold, in the order in which they are shown."""
    fields = asdict(card)
    sizes = fields.pop("sizes")
    kind = "contract ONNX" if card.contract_version else "checkpoint"
    if card.adopted:
        kind = "foreign ONNX, adopted"
    elif card.planar:
        kind = "planar ONNX"
    description: dict[str, object] = {
        "path": printable(card.path),
        "kind": kind,
        "contract_version": fields.pop("contract_version") or None,
    }
    if card.recognised:
        description |= {
            "family": card.recognised.family,
            "family_title": card.recognised.title,
            "certainty": card.recognised.certainty,
            "assumed": list(card.recognised.assumed),
            "as_published": list(card.recognised.published),
            "also_fits": list(card.recognised.also_fits),
            "weights": card.recognised.weights,
        }
    del fields["path"]
    description |= {key: list(value) if isinstance(value, tuple) else value for key, value in
              fields.items() if key not in ("digest", "notes", "planar", "recognised")}  # fmt: skip
    description |= {
        "multiple_of": sizes["multiple_of"],
        "minimum": sizes["minimum"],
        "planar": planar_in_words(card.planar) if card.planar else None,
        "fixed_size": None if sizes["fixed"] is None else list(sizes["fixed"]),
        "digest": card.digest,
        "notes": list(grouped(card.notes)),
    }
    return description
