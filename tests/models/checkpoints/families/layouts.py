"""The weights of published generators, as names and shapes: how each project calls its layers.

Each layout was written down from the code of its project. The widths are small (ngf 2), the numbers
of blocks as given; names and order are those of the project's ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Mapping

Shapes = dict[str, tuple[int, ...]]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def conv(place: str, out: int, into: int, side: int, *, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{place}.weight": (out, into, side, side)}
    return shapes | ({f"{place}.bias": (out,)} if bias else {})


def transposed(place: str, into: int, out: int, side: int, *, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{place}.weight": (into, out, side, side)}
    return shapes | ({f"{place}.bias": (out,)} if bias else {})


def norm(place: str, channels: int) -> Shapes:
    """Return the weights of an InstanceNorm or GroupNorm that has some."""
    return {f"{place}.weight": (channels,), f"{place}.bias": (channels,)}


def statistics(place: str, channels: int) -> Shapes:
    """Return what an InstanceNorm with running statistics keeps."""
    return {f"{place}.{name}": () if name[0] == "n" else (channels,) for name in STATISTICS}


def batch_norm(place: str, channels: int) -> Shapes:
    return norm(place, channels) | statistics(place, channels)


NORMS = {"affine": norm, "batch": batch_norm, "tracked": statistics}


def resnet(
    places: str,
    *,
    ups: str = "transposed",
    norms: str = "",
    bias: bool = True,
    head_bias: bool = True,
    down_side: int = 3,
    channels: int = 3,
) -> Shapes:
    """Return the shapes of a ResNet of ngf 2 whose layers have these names, in their order.

    ``places``: stem | downs | the convolutions of the blocks | ups | head; ``conv/norm`` where
    ``norms`` (a key of `NORMS`) says that norms have weights. ``ups``: ``transposed``, or ``conv``.
    """
    stem, downs, blocks, larger, head = (part.split() for part in places.split("|"))
    shapes: Shapes = {}

    def layer(place: str, out: int, into: int, side: int, up: bool = False) -> None:
        name, _, norm_name = place.partition("/")
        if up and ups == "transposed":
            shapes.update(transposed(name, into, out, side, bias=bias))
        else:
            shapes.update(conv(name, out, into, side, bias=bias))
        if norms and norm_name:
            shapes.update(NORMS[norms](norm_name, out))

    width = 2
    layer(stem[0], width, channels, 7)
    for place in downs:
        layer(place, 2 * width, width, down_side)
        width *= 2
    for place in blocks:
        layer(place, width, width, 3)
    for place in larger:
        layer(place, width // 2, width, down_side, up=True)
        width //= 2
    return shapes | conv(head[0], channels, width, 7, bias=head_bias)


def renamed(shapes: Mapping[str, tuple[int, ...]], *pairs: tuple[str, str]) -> Shapes:
    out = dict(shapes)
    for old, new in pairs:
        out = {name.replace(old, new): shape for name, shape in out.items()}
    return out


def numbered(prefix: str, block: str, n: int = 2) -> str:
    """Return the places of layers that are numbered as in the reference."""
    return (
        f"{prefix}.1/{prefix}.2 | {prefix}.4/{prefix}.5 {prefix}.7/{prefix}.8 | "
        + " ".join(
            f"{prefix}.{k}.{block}.{at}/{prefix}.{k}.{block}.{at + 1}"
            for k in range(10, 10 + n)
            for at in (1, 5)
        )
        + f" | {prefix}.{10 + n}/{prefix}.{11 + n} {prefix}.{13 + n}/{prefix}.{14 + n}"
        + f" | {prefix}.{17 + n}"
    )


def linear(place: str, out: int, into: int) -> Shapes:
    return {f"{place}.weight": (out, into), f"{place}.bias": (out,)}


def unet(down: str, up: str, levels: int) -> Shapes:
    """Return the shapes of a U-Net that is 2 wide in every level, with 4×4 convolutions."""
    shapes: Shapes = {}
    for k in range(1, levels + 1):
        shapes |= conv(down.format(k=k), 2, 3 if k == 1 else 2, 4)
    for k in range(1, levels):
        shapes |= transposed(up.format(k=k), 4, 2, 4)
    return shapes
