"""The generators of the reference CycleGAN, and those of GAN compression, as `networks` has them.

The mobile ResNet is Li et al., "GAN Compression", CVPR 2020.
"""

from __future__ import annotations

import re
from functools import partial

from ...networks import GeneratorConfig, Norm, generator_from_config
from .family import BLOCK_EDGES, NO_NORMS, Family, Reading, Shapes, UnfitError

MOST_BLOCKS = 999
"""`GeneratorConfig.netG` has three digits for them."""


def _read_resnet(shapes: Shapes) -> Reading | None:
    if shapes.get("model.1.weight", ())[2:] != (7, 7):
        return None
    blocks = [m for name in shapes if (m := re.match(r"model\.(\d{1,4})\.(conv_block\.\d)?", name))]
    numbers = {int(match[1]) for match in blocks if match[2]}
    n_blocks = max(numbers) - 9 if numbers else 0
    norm = _norm(shapes, "model.1", "model.2")
    if (
        norm is None
        or (numbers and min(numbers) != 10)
        or n_blocks > MOST_BLOCKS
        or any(match[2] == "conv_block.0" for match in blocks)  # without a pad before it
        or any(re.fullmatch(r"model\.\d+\.(filt|block\..*)", name) for name in shapes)
    ):
        return None
    up, last = f"model.{10 + n_blocks}", f"model.{17 + n_blocks}.weight"
    mobile = "model.10.conv_block.1.conv.0.weight" in shapes
    resize = f"{up}.2.weight" in shapes
    ngf, input_nc = shapes["model.1.weight"][:2]
    config = partial(
        GeneratorConfig,
        input_nc=input_nc,
        output_nc=_axis(shapes, last, 0, 3),
        ngf=ngf,
        norm=norm,
        upsample="resize" if resize else "deconv",
    )
    if not mobile:
        dropout = len(shapes.get("model.10.conv_block.6.weight", ())) == 4
        return _reading(config(f"resnet_{n_blocks}blocks", dropout=dropout))
    plain = config(f"mobile_resnet_{n_blocks}blocks")
    outs = [f"model.{10 + n_blocks + 3 * k}" for k in range(2)]
    widths = (
        ngf,
        _axis(shapes, "model.4.weight", 0, 2 * ngf),
        _axis(shapes, "model.7.weight", 0, 4 * ngf),
        *(_axis(shapes, f"model.{k}.conv_block.1.conv.2.weight", 0, 4 * ngf)
          for k in range(10, 10 + n_blocks)),
        *(_axis(shapes, f"{out}.2.weight", 0, 1) if resize else
          _axis(shapes, f"{out}.weight", 1, 1) for out in outs),
    )  # fmt: skip
    return _reading(plain if widths == plain.all_widths else config(plain.netG, widths=widths))


def _read_unet(shapes: Shapes) -> Reading | None:
    if len(shapes.get("model.model.0.weight", ())) != 4:
        return None
    # The next level is the second module of the outermost level, and the fourth of every other.
    num_downs, inside = 1, "model.model.1.model."
    while f"{inside}1.weight" in shapes:
        num_downs += 1
        inside += "3.model."
    if not 5 <= num_downs <= 16:
        raise UnfitError(f"is a U-Net of {num_downs} levels where 5 to 16 are supported")
    norm = _norm(shapes, "model.model.0", "model.model.1.model.2")
    if norm is None:
        raise UnfitError(
            "is a U-Net whose norms are neither InstanceNorm without weights nor BatchNorm behind "
            "convolutions without a bias"
        )
    ngf, input_nc = shapes["model.model.0.weight"][:2]
    resize = "model.model.3.2.weight" in shapes
    name, axis = ("model.model.3.2.weight", 0) if resize else ("model.model.3.weight", 1)
    return _reading(
        GeneratorConfig(
            f"unet_{2**num_downs}",
            input_nc=input_nc,
            output_nc=_axis(shapes, name, axis, 3),
            ngf=ngf,
            norm=norm,
            upsample="resize" if resize else "deconv",
        )
    )


def _reading(config: GeneratorConfig) -> Reading:
    return Reading(
        config,
        partial(generator_from_config, config),
        assumed=(NO_NORMS,) if config.norm == "none" else (),
        published=() if config.family == "unet" else (BLOCK_EDGES,),
    )


def _norm(shapes: Shapes, convolution: str, norm: str) -> Norm | None:
    """Return the kind of norm, by its statistics and by the bias of the first convolution.

    None for a norm of another network: an InstanceNorm has no weights, and a convolution before a
    BatchNorm no bias. Two settings do not show, since neither changes a translation: the dropout of
    a U-Net, and whether BatchNorm was synchronised.
    """
    bias = f"{convolution}.bias" in shapes
    if f"{norm}.running_mean" in shapes:
        return None if bias else "batch"
    if f"{norm}.weight" in shapes:
        return None
    return "instance" if bias else "none"


def _axis(shapes: Shapes, name: str, axis: int, default: int) -> int:
    """Return the length of an axis; ``default`` where it is absent, which is refused later."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) == 4 and shape[axis] > 0 else default


REFERENCE_RESNET = Family("resnet", "the reference CycleGAN's ResNet", _read_resnet)
REFERENCE_UNET = Family("unet", "the reference CycleGAN's U-Net", _read_unet)
