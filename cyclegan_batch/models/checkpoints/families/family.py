"""What all families of generators share: how a family reads the weights in a checkpoint.

A family is a network that people publish checkpoints of. Its `Family.read` looks at the names and
shapes of the weights, and nothing else, and returns the network that they are for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

from torch import nn

from ....frames import SizeRequirements

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The shapes of one network's weights by their names, without the prefixes of wrappers."""


NO_NORMS = (
    "it has no norms (InstanceNorm behind convolutions without a bias would have the same names)"
)
"""What is assumed of a network without a trace of norms, as a clause for `Reading.assumed`."""

EDGES = "its edges are reflected, as published (repeated or zero edges would have the same names)"
"""What is published of most networks, as a clause for `Reading.published`."""

BLOCK_EDGES = (
    "its blocks reflect at their edges, as published (replication would have the same names)"
)
"""What is published of the ResNets whose layers are numbered."""

GROUPS = "its norms are InstanceNorm with weights (GroupNorm would have the same names)"
"""What is assumed of norms with weights and without statistics."""


class NetworkConfig(Protocol):
    """The settings of a network: a frozen dataclass, whose fields are written to the card."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def architecture(self) -> str:
        """The name of the network on the card, e.g. ``resnet_9blocks``."""

    @property
    def input_nc(self) -> int:
        """The channels of the images that it takes."""

    @property
    def output_nc(self) -> int:
        """The channels of the images that it returns."""

    @property
    def sizes(self) -> SizeRequirements:
        """The heights and widths that it accepts; its output has the same."""


@dataclass(frozen=True)
class Reading:
    """How a family reads a set of weights."""

    config: NetworkConfig
    build: Callable[[], nn.Module]
    """Returns the network, which maps ``(N, C, H, W)`` in [-1, 1] to the same."""
    names: Mapping[str, str] | None = None
    """The name in the network of each name in the file; None where they are the same."""
    ignored: frozenset[str] = frozenset()
    """The names in the file that the network does not need."""
    assumed: tuple[str, ...] = ()
    """What the weights do not show and published networks differ in, as clauses for the user."""
    published: tuple[str, ...] = ()
    """What the weights do not show and the family's own program always does alike, as clauses."""


class UnfitError(Exception):
    """The weights have the sign of a family and are none of its networks.

    The message is a clause about the file: "is a U-Net of 3 levels where 5 to 16 are supported".
    """


@dataclass(frozen=True)
class Family:
    """A network that people publish checkpoints of, in any size."""

    name: str
    """The value of ``--family``."""
    title: str
    """The family in words, for messages."""
    read: Callable[[Shapes], Reading | None]
    """Returns how the family reads weights of these shapes, None where they lack its sign.

    The network is derived from what is there, even where a weight is missing or has another shape:
    the caller compares every name and shape. Raises UnfitError."""
