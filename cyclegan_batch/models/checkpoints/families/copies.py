"""Copies of the reference's networks that differ from it in the names of the weights alone.

A file of such a project is read as the reference's after its names have been translated. Where the
layers are numbered as in the reference, the blocks may have any name: ``model.10.block.1.weight``,
also with another word before all (``main.10.res.1.weight``, Lornatang/CycleGAN-PyTorch), since the
caller takes such a file for a sequence and calls it ``model``. `_LAYOUTS` lists projects with other
names. Each was compared with the code of its project: the same layers, in the same order, with the
same edges.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .family import Family, Reading, Shapes
from .reference import MOST_BLOCKS, REFERENCE_RESNET, REFERENCE_UNET


@dataclass(frozen=True)
class _Layout:
    """How a project names the layers of a ResNet; ``n`` is the number of blocks.

    Each layer is ``(convolution, norm)``.
    """

    stem: tuple[str, str]
    downs: tuple[tuple[str, str], tuple[str, str]]
    block: Callable[[int, bool], tuple[tuple[str, str], tuple[str, str]]]
    """The layers of a block, by its number and whether the training has dropout."""
    ups: Callable[[int], tuple[tuple[str, str], tuple[str, str]]]
    head: Callable[[int], str]
    dropout: str = ""
    """A convolution that only a network with dropout has; empty where the names do not tell."""


_LAYOUTS = (
    # arnab39/cycleGAN-PyTorch
    _Layout(
        stem=("res_model.1.0", "res_model.1.1"),
        downs=(("res_model.2.0", "res_model.2.1"), ("res_model.3.0", "res_model.3.1")),
        block=lambda k, dropout: (
            (f"res_model.{k + 4}.res_block.1.0", f"res_model.{k + 4}.res_block.1.1"),
            (f"res_model.{k + 4}.res_block.{3 + dropout}",
             f"res_model.{k + 4}.res_block.{4 + dropout}"),
        ),
        ups=lambda n: (
            (f"res_model.{n + 4}.0", f"res_model.{n + 4}.1"),
            (f"res_model.{n + 5}.0", f"res_model.{n + 5}.1"),
        ),
        head=lambda n: f"res_model.{n + 7}",
        dropout="res_model.4.res_block.4",
    ),
    # bubbliiiing/cyclegan-pytorch
    _Layout(
        stem=("stage_1.1", "stage_1.2"),
        downs=(("stage_2.0", "stage_2.1"), ("stage_3.0", "stage_3.1")),
        block=lambda k, dropout: (
            (f"stage_4.{k}.conv_block.1", f"stage_4.{k}.conv_block.2"),
            (f"stage_4.{k}.conv_block.5", f"stage_4.{k}.conv_block.6"),
        ),
        ups=lambda n: (("up_stage_1.0", "up_stage_1.1"), ("up_stage_2.0", "up_stage_2.1")),
        head=lambda n: "head.1",
    ),
    # alirezakazemipour/Cycle-GAN-PyTorch
    _Layout(
        stem=("model.1", "model.2"),
        downs=(("model.4", "model.5"), ("model.7", "model.8")),
        block=lambda k, dropout: (
            (f"model.{k + 10}.conv1", f"model.{k + 10}.norm1"),
            (f"model.{k + 10}.conv2", f"model.{k + 10}.norm2"),
        ),
        ups=lambda n: (
            (f"model.{n + 10}", f"model.{n + 11}"), (f"model.{n + 13}", f"model.{n + 14}")
        ),
        head=lambda n: f"model.{n + 17}",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class _Words:
    """How the names of a file become the reference's, and back."""

    to_reference: Mapping[str, str]
    to_file: Callable[[str], str]


def _read(shapes: Shapes) -> Reading | None:
    for words in (_numbered(shapes), _unet(shapes), *(_named(shapes, at) for at in _LAYOUTS)):
        if words is None:
            continue
        renamed = {words.to_reference.get(name, name): shape for name, shape in shapes.items()}
        for family in (REFERENCE_RESNET, REFERENCE_UNET):
            reading = family.read(renamed)
            if reading is not None:
                with torch.device("meta"):
                    own = reading.build().state_dict()
                # Weights that the file lacks are told by the names that they would have in it.
                return dataclasses.replace(reading, names={words.to_file(n): n for n in own})
    return None


def _numbered(shapes: Shapes) -> _Words | None:
    """Return the words of a file whose layers are numbered as in the reference."""
    blocks = (re.fullmatch(r"model\.10\.(\w+)\.1\.weight", name) for name in shapes)
    block = next((match[1] for match in blocks if match), "conv_block")
    if block == "conv_block" or shapes.get("model.1.weight", ())[2:] != (7, 7):
        return None
    inside = re.compile(rf"(model\.\d+)\.{block}\.")
    return _Words(
        {name: inside.sub(r"\1.conv_block.", name) for name in shapes},
        lambda name: name.replace(".conv_block.", f".{block}."),
    )


def _unet(shapes: Shapes) -> _Words | None:
    """Return the words of arnab39's U-Net, which is called ``unet_model``."""
    if len(shapes.get("unet_model.model.0.weight", ())) != 4:
        return None
    return _Words(
        {name: re.sub("^unet_model", "model", name) for name in shapes},
        lambda name: f"unet_{name}",
    )


def _named(shapes: Shapes, layout: _Layout) -> _Words | None:
    """Return the words of a project that names its layers as ``layout`` has it."""
    dropout = len(shapes.get(f"{layout.dropout}.weight", ())) == 4
    n = 0
    while n < MOST_BLOCKS and f"{layout.block(n, dropout)[0][0]}.weight" in shapes:
        n += 1
    if n == 0 or shapes.get(f"{layout.stem[0]}.weight", ())[2:] != (7, 7):
        return None
    second = 6 if dropout else 5
    layers = [
        (layout.stem, "model", 1), (layout.downs[0], "model", 4), (layout.downs[1], "model", 7)
    ]  # fmt: skip
    for k in range(n):
        first_layer, second_layer = layout.block(k, dropout)
        inside = f"model.{k + 10}.conv_block"
        layers += [(first_layer, inside, 1), (second_layer, inside, second)]
    layers += [(up, "model", n + 10 + 3 * level) for level, up in enumerate(layout.ups(n))]
    modules = {f"model.{n + 17}": layout.head(n)}
    for (conv, norm), inside, number in layers:
        modules |= {f"{inside}.{number}": conv, f"{inside}.{number + 1}": norm}

    def to_file(name: str) -> str:
        module, _, part = name.rpartition(".")
        return f"{modules[module]}.{part}" if module in modules else name

    theirs = {own: module for module, own in modules.items()}
    parts = ((name, *name.rpartition(".")[::2]) for name in shapes)
    return _Words(
        {name: f"{theirs[own]}.{part}" for name, own, part in parts if own in theirs}, to_file
    )


COPIES = Family("copies", "a copy of the reference's network under other names", _read)
