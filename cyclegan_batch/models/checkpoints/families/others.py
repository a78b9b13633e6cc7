"""Networks that are no generators of these families, known by the names of their weights.

A file of theirs is refused with what it is, rather than with how it differs from a generator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .family import Shapes


@dataclass(frozen=True)
class _Other:
    """A kind of network, and patterns that each match some of its names."""

    title: str
    signs: tuple[str, ...]


def _other(title: str, *signs: str) -> _Other:
    return _Other(title, tuple(rf"(?:^|\.)(?:{sign})" for sign in signs))


_OTHERS = (
    _other("a LoRA, which changes the weights of another network", r"\w*lora_(up|down|A|B)\b"),
    _other("CycleGAN-Turbo, a diffusion network with text", r"\w*(sd_encoder|rank_unet|vae_b2a)\b"),
    _other(
        "the U-Net of a diffusion network, which needs text or steps",
        r"time_embed(ding)?\.(0|linear_1)\.weight$",
    ),
    _other("ESRGAN, which enlarges images", r"(RDB|rdb)1\.conv1\."),
    _other("SPADE, which draws label maps", r"head_0\.(norm_0\.mlp_shared|conv_0)\."),
    _other("StarGAN v2, which needs a style", r"decode\.\d+\.norm1\.fc\."),
    _other("MUNIT or UNIT, which have an encoder and a decoder", r"enc(_content)?\.model\.\d"),
    _other("AttentionGAN", r"deconv\d_attention\."),
    _other("CUT's netF, which samples features for a loss", r"mlp_0\.0\.weight$", r"mlp_0\.2\."),
    _other("a discriminator (PatchGANs of several scales)", r"scale0_layer0\.0\.weight$"),
    _other("StyleGAN, which draws from noise", r"mapping\.fc0\.", r"synthesis\.b4\."),
    _other("StyleGAN2, which draws from noise", r"style\.1\.weight$", r"to_rgb1\."),
    _other("the U-Net of PyTorch-GAN's pix2pix", r"down1\.model\.0\.weight$", r"up1\.model\.0\."),
    _other("a U-Net of segmentation", r"inc\.(double_conv|conv)\.", r"outc\."),
    _other(
        "a generator of joliGEN, in an encoder and a decoder", r"encoder\.model\.", r"decoder\."
    ),
    _other("InceptionV3, a classifier", r"Mixed_5b\.branch1x1\."),
    _other("a ResNet that classifies images", r"layer1\.0\.conv1\.weight$", r"layer4\.0\."),
    _other("VGG, a classifier", r"features\.0\.weight$", r"classifier\.\d+\.weight$"),
)


def known_as(shapes: Shapes) -> str | None:
    """Return in words whose weights these are, None where they are of no network in the table.

    The names are those of one network, or begin with its name in the file.
    """
    for other in _OTHERS:
        if all(any(re.search(sign, name) for name in shapes) for sign in other.signs):
            return other.title
    return _discriminator(shapes)


def _discriminator(shapes: Shapes) -> str | None:
    """Return which kind of discriminator these weights are of, None for any other network.

    A PatchGAN convolves by 4×4 from the first layer to the last, which has one channel.
    """
    is_unet = any(name.startswith("model.1.model.") for name in shapes)
    if shapes.get("model.0.weight", ())[2:] == (4, 4) and not is_unet:
        return "a discriminator (PatchGAN)"
    if shapes.get("net.0.weight", ())[2:] == (1, 1):
        return "a discriminator (pixel)"
    kernels = [shape for shape in shapes.values() if len(shape) == 4]
    if len(kernels) > 2 and kernels[-1][0] == 1 and {shape[2:] for shape in kernels} == {(4, 4)}:
        return "a discriminator (PatchGAN)"
    return None
