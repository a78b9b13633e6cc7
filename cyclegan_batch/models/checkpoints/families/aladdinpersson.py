"""The CycleGAN of aladdinpersson, Machine-Learning-Collection.

The reference's layers, of which the strided convolutions reflect at their edges as well. The two
revisions that were published since 2021, and copies of them, have an InstanceNorm behind the first
convolution; it has no weights, so a copy without it has the same names.
"""

from __future__ import annotations

import re

from .family import EDGES, GROUPS, Family, Reading, Shapes
from .resnet import ResnetConfig, ResnetNorm, names_in_file, resnet_reading


def _read(shapes: Shapes) -> Reading | None:
    found = (re.match(r"res_blocks\.(\d{1,4})\.block\.[01]\.conv\.0\.", name) for name in shapes)
    blocks = max((int(match[1]) + 1 for match in found if match), default=0)
    if not blocks or shapes.get("initial.0.weight", ())[2:] != (7, 7):
        return None
    ngf, input_nc = shapes["initial.0.weight"][:2]
    norm: ResnetNorm = "instance"
    if "initial.1.weight" in shapes:
        norm = "batch" if "initial.1.running_mean" in shapes else "affine_instance"
    config = ResnetConfig(
        "aladdinpersson",
        blocks=blocks,
        input_nc=input_nc,
        output_nc=next(iter(shapes.get("last.weight", ())), input_nc),
        ngf=ngf,
        norm=norm,
        bias="initial.0.bias" in shapes,
        down_edge="reflect",
    )
    places = {"stem.conv": "initial.0", "stem.norm": "initial.1", "head.conv": "last"}
    for level in range(config.downs):
        for here, there in (("downs", "down_blocks"), ("ups", "up_blocks")):
            places[f"{here}.{level}.conv"] = f"{there}.{level}.conv.0"
            places[f"{here}.{level}.norm"] = f"{there}.{level}.conv.1"
    for block in range(blocks):
        for half in range(2):
            inside = f"res_blocks.{block}.block.{half}.conv"
            places[f"blocks.{block}.body.conv{half}"] = f"{inside}.0"
            places[f"blocks.{block}.body.norm{half}"] = f"{inside}.1"
    published = [EDGES]
    if norm == "instance":
        published.append("there is an InstanceNorm behind its first convolution, as published")
    return resnet_reading(
        config,
        names_in_file(config, places),
        assumed=(GROUPS,) if norm == "affine_instance" else (),
        published=tuple(published),
    )


ALADDINPERSSON = Family("aladdinpersson", "aladdinpersson's CycleGAN", _read)
