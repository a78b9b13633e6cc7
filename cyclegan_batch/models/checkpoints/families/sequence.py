"""ResNets whose layers are numbered in one Sequential, as in the reference's files.

`config_in_sequence` derives the `ResnetConfig` from names and shapes, and `reading_in_sequence`
maps the names: ``model.1.weight`` is the first convolution, ``model.10.conv_block.1.weight`` one of
a block.
"""

from __future__ import annotations

import re

from .family import BLOCK_EDGES, GROUPS, NO_NORMS, Reading, Shapes, UnfitError
from .resnet import (
    LARGEST_BLUR,
    MOST_BLOCKS,
    MOST_DOWNS,
    Edge,
    ResnetConfig,
    ResnetNorm,
    ResnetUp,
    names_in_file,
    resnet_reading,
)


def config_in_sequence(
    family: str,
    shapes: Shapes,
    *,
    prefix: str = "model.",
    block: str = "conv_block",
    up: ResnetUp = "transposed",
) -> ResnetConfig | None:
    """Return the config of a ResNet of ``family``, derived from what is there of its weights.

    ``prefix`` and ``block`` as for `places_in_sequence`; ``up`` where no filter shows. Blocks whose
    edges are not zeros are taken to reflect. Returns None where there is no 7×7 convolution at
    number 1, or no block; raises UnfitError for more downs, blocks or taps than `Resnet` has.
    """
    stem = shapes.get(f"{prefix}1.weight", ())
    numbered = re.compile(re.escape(prefix) + r"(\d{1,4})\.(.+)")
    layers = [(int(m[1]), m[2], name) for name in shapes if (m := numbered.fullmatch(name))]
    blocks = {number for number, last, _ in layers if last.startswith(f"{block}.")}
    if len(stem) != 4 or stem[2:] != (7, 7) or not blocks:
        return None
    first = min(blocks)
    convolutions = sorted(
        (number, name) for number, last, name in layers
        if last == "weight" and len(shapes[name]) == 4
    )  # fmt: skip
    filters = sorted((number, name) for number, last, name in layers if last == "filt")
    down_filters = [shapes[name] for number, name in filters if number < first]
    up_filters = [shapes[name] for number, name in filters if number > first]
    downs = sum(number < first for number, _ in convolutions) - 1
    if not 1 <= downs <= MOST_DOWNS:
        raise UnfitError(f"has {downs} strides of 2 down where 1 to {MOST_DOWNS} are supported")
    if len(blocks) > MOST_BLOCKS:
        raise UnfitError(f"has {len(blocks)} blocks where up to {MOST_BLOCKS} are supported")
    for shape in (*down_filters, *up_filters):
        if len(shape) != 4 or shape[2] != shape[3] or not 1 <= shape[3] <= LARGEST_BLUR:
            raise UnfitError(
                f"has filters of the shape {shape} where (C, 1, K, K) with K from 1 to "
                f"{LARGEST_BLUR} is supported"
            )
    inside = f"{prefix}{first}.{block}."
    edge: Edge = "zero" if len(shapes.get(f"{inside}0.weight", ())) == 4 else "reflect"
    # The second convolution of a block without dropout is at 3, or at 5 behind two borders.
    second = 4 if edge == "zero" else 6
    return ResnetConfig(
        family,
        downs=downs,
        blocks=len(blocks),
        input_nc=stem[1],
        output_nc=shapes[convolutions[-1][1]][0],
        ngf=stem[0],
        norm=_norm(shapes, f"{prefix}1", f"{prefix}2"),
        bias=f"{prefix}1.bias" in shapes,
        dropout=len(shapes.get(f"{inside}{second}.weight", ())) == 4,
        down_blur=down_filters[0][3] if down_filters else 0,
        up="blur" if up_filters else up,
        up_blur=up_filters[0][3] if up_filters else 0,
        block_edge=edge,
    )


def _norm(shapes: Shapes, convolution: str, norm: str) -> ResnetNorm:
    """Return the kind of norm; one without weights leaves no trace but the bias before it."""
    if f"{norm}.running_mean" in shapes:
        return "batch"
    if f"{norm}.weight" in shapes:
        return "affine_instance"
    return "instance" if f"{convolution}.bias" in shapes else "none"


def assumed(config: ResnetConfig) -> tuple[str, ...]:
    """Return `Reading.assumed` of a file whose layers are numbered: which norms it has."""
    if config.norm == "affine_instance":
        return (GROUPS,)
    return (NO_NORMS,) if config.norm == "none" else ()


def published(config: ResnetConfig) -> tuple[str, ...]:
    """Return `Reading.published` of a file whose layers are numbered: how its blocks pad."""
    return (BLOCK_EDGES,) if config.block_edge == "reflect" else ()


def reading_in_sequence(config: ResnetConfig, *, block: str = "conv_block") -> Reading:
    """Return how a file is read whose layers are numbered as `places_in_sequence` tells."""
    return resnet_reading(
        config,
        names_in_file(config, places_in_sequence(config, block=block)),
        assumed=assumed(config),
        published=published(config),
    )


def places_in_sequence(
    config: ResnetConfig, *, prefix: str = "model.", block: str = "conv_block"
) -> dict[str, str]:
    """Return the file's name of each module where layers are numbered as in the reference.

    Borders that are not of zeros, norms (also where ``norm`` is ``none``), ReLU, filters and
    enlargements have numbers of their own; the layers of a block, its dropout among them, are
    numbered within ``block``.
    """
    places: dict[str, str] = {}
    at = 0

    def pads(edge: Edge) -> int:
        return 0 if edge == "zero" else 1

    def take(module: str) -> None:
        nonlocal at
        places[module] = f"{prefix}{at}"
        at += 1

    at += pads(config.ends_edge)
    take("stem.conv")
    if config.stem_norm:
        take("stem.norm")
    at += 1
    for level in range(config.downs):
        at += pads(config.down_edge)
        take(f"downs.{level}.conv")
        take(f"downs.{level}.norm")
        at += 1
        if config.down_blur:
            take(f"downs.{level}.blur")
    border = pads(config.block_edge)
    second = 2 * border + 3 + config.dropout
    for number in range(config.blocks):
        inside = f"{prefix}{at}.{block}."
        for module, place in (
            ("conv0", border), ("norm0", border + 1), ("conv1", second), ("norm1", second + 1)
        ):  # fmt: skip
            places[f"blocks.{number}.body.{module}"] = f"{inside}{place}"
        at += 1
    for level in range(config.downs):
        if config.up == "blur":
            take(f"ups.{level}.blur")
        elif config.up == "nearest":
            at += 1
        if config.up != "transposed":
            at += pads(config.up_edge)
        take(f"ups.{level}.conv")
        take(f"ups.{level}.norm")
        at += 1
    at += pads(config.ends_edge)
    take("head.conv")
    return places
