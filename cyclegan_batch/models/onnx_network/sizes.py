"""Nodes that change height and width, and those that compute with the lengths of axes.

Exporters write "as large as that tensor" as arithmetic on what Shape returns. These integers stay
on the host, where they are sizes, and not on the device of the pictures: a copy from one to the
other would wait for the device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from .nodes import GraphNode, Step, UnknownNodeError

_COORDINATES: dict[str, Callable[[Tensor, float, int, int], Tensor]] = {
    "half_pixel": lambda i, scale, before, after: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, scale, before, after: (
        (i + 0.5) / scale - 0.5 if after > 1 else torch.zeros_like(i)
    ),
    "align_corners": lambda i, scale, before, after: i * ((before - 1) / max(after - 1, 1)),
    "asymmetric": lambda i, scale, before, after: i / scale,
}
"""The place in the input, in pixels, of pixel ``i`` of the output, by ONNX's Resize. ``before`` and
``after`` are the lengths of the axis."""

_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round_prefer_floor": lambda x: (x - 0.5).ceil(),
    "round_prefer_ceil": lambda x: (x + 0.5).floor(),
}
"""The pixel that is nearest to a place, by ONNX's ``nearest_mode``."""

_REPEATING = {
    ("asymmetric", "floor"),
    *itertools.product(
        ("half_pixel", "pytorch_half_pixel"), ("round_prefer_floor", "round_prefer_ceil")
    ),
}
"""Coordinates and roundings that repeat each pixel as often as a whole factor tells."""


class Resize(nn.Module):
    """Resize and Upsample of height and width: nearest neighbour, or bilinear."""

    def __init__(self, node: GraphNode) -> None:
        """Read the node. Raises UnknownNodeError."""
        super().__init__()
        node.only("mode", "nearest", "linear")
        node.only("keep_aspect_ratio_policy", "stretch")
        if node.has("axes") or node.number("antialias", 0):
            raise UnknownNodeError(node, f"{node.kind} with axes or antialias")
        # Upsample and the first Resize have the factors behind the values, and these coordinates.
        # Later ones have them behind a region, and sizes behind the factors.
        oldest = node.kind == "Upsample" or len(node.inputs) == 2
        coordinates, rounding = "asymmetric", "floor"
        if not oldest:
            node.only("coordinate_transformation_mode", "half_pixel", *_COORDINATES)
            node.only("nearest_mode", "round_prefer_floor", *_ROUNDINGS)
            coordinates = node.word("coordinate_transformation_mode", "half_pixel")
            rounding = node.word("nearest_mode", "round_prefer_floor")
        self._linear = node.word("mode", "nearest") == "linear"
        self._coordinates, self._rounded = _COORDINATES[coordinates], _ROUNDINGS[rounding]
        scales = node.constant(1 if oldest else 2)
        factors = node.numbers("scales") if scales is None else [float(value) for value in scales]
        self._factors, self._sizes = factors[2:], node.constant(3)
        if factors and (len(factors) != 4 or factors[:2] != [1, 1] or min(factors) <= 0):
            raise UnknownNodeError(node, f"{node.kind} by {factors}")
        if not factors and (oldest or len(node.inputs) < 4):
            raise UnknownNodeError(
                node, f"{node.kind} by factors that are computed from the frames"
            )
        # Whatever the coordinates, these repeat each pixel.
        self._repeats = not self._linear and (coordinates, rounding) in _REPEATING

    def forward(self, x: Tensor, *computed: Tensor) -> Tensor:
        """Return ``x``, (N, C, H, W), at the sizes that are ``computed``, if any."""
        sides = x.shape[2:]
        if self._factors:
            factors = self._factors
            after = [math.floor(side * f) for side, f in zip(sides, factors, strict=True)]
        else:
            sizes = computed[0] if computed else self._sizes
            assert sizes is not None
            after = [int(side) for side in sizes[2:]]
            factors = [new / side for new, side in zip(after, sides, strict=True)]
        if self._repeats and all(factor.is_integer() for factor in factors):
            return F.interpolate(x, size=after, mode="nearest")
        for axis, side, factor in zip((2, 3), after, factors, strict=True):
            x = self._along(x, axis, side, factor)
        return x

    def _along(self, x: Tensor, axis: int, after: int, factor: float) -> Tensor:
        """Return ``x`` with an axis of the length ``after``."""
        last = x.shape[axis] - 1
        places = torch.arange(after, device=x.device, dtype=torch.float64)
        places = self._coordinates(places, factor, last + 1, after).clamp(0, last)
        if not self._linear:
            return torch.index_select(x, axis, self._rounded(places).clamp(0, last).long())
        below = places.floor()
        share = (places - below).float().view([-1 if each == axis else 1 for each in range(4)])
        first = torch.index_select(x, axis, below.long()).float()
        second = torch.index_select(x, axis, (below + 1).clamp(max=last).long()).float()
        return torch.lerp(first, second, share).to(x.dtype)


def shape_of(node: GraphNode) -> nn.Module:
    """Return the module of Shape: the lengths of the axes, on the host."""
    start = int(node.number("start", 0))
    end = int(node.number("end", 2**31))
    return Step(lambda x: torch.tensor(x.shape[start:end]))


def slice_of(node: GraphNode) -> nn.Module:
    """Return the module of Slice by constants. Raises UnknownNodeError."""
    if node.has("starts"):
        starts, ends = node.integers("starts"), node.integers("ends")
        axes, steps = node.integers("axes"), []
    else:
        starts, ends = ([int(value) for value in node.required(i)] for i in (1, 2))
        axes, steps = ([int(v) for v in _given(node, i)] for i in (3, 4))
    steps = steps or [1] * len(starts)
    if any(step < 1 for step in steps):
        raise UnknownNodeError(node, "Slice backwards")
    parts = dict(zip(axes or range(len(starts)), map(slice, starts, ends, steps), strict=True))

    def cut(x: Tensor) -> Tensor:
        of_axis = {axis % x.ndim: part for axis, part in parts.items()}
        return x[tuple(of_axis.get(axis, slice(None)) for axis in range(x.ndim))]

    return Step(cut)


def squeezed(node: GraphNode) -> nn.Module:
    """Return the module of Squeeze or Unsqueeze by constant axes. Raises UnknownNodeError.

    Squeeze without axes removes each axis of length 1.
    """
    if node.kind == "Squeeze" and not node.has("axes") and len(node.inputs) == 1:
        return Step(torch.squeeze)
    axes = node.integers("axes") or [int(value) for value in node.required(1)]
    if node.kind == "Squeeze":
        return Step(lambda x: x.squeeze(tuple(axes)))

    def unsqueeze(x: Tensor) -> Tensor:
        rank = x.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return Step(unsqueeze)


def _given(node: GraphNode, index: int) -> Tensor:
    """Return a constant input, empty where it is left out. Raises UnknownNodeError."""
    absent = index >= len(node.inputs) or not node.inputs[index]
    return torch.empty(0) if absent else node.required(index)
