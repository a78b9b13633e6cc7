"""Copies of the reference's networks: their files draw what the copies draw, under any names.

Each network is written as its project writes it, with the numbers and words of its modules.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from cyclegan_batch.errors import ModelError
from cyclegan_batch.models.checkpoints.loading import load_generator
from cyclegan_batch.models.networks import GeneratorConfig, generator_from_config
from tests.models.checkpoints.families.checks import (
    loads_and_draws,
    runs_in_torch,
    saved,
    translates,
    varied,
)

pytestmark = pytest.mark.behaviour(34, 49)

Layers = list[nn.Module]


def unit(conv: nn.Module, norm: nn.Module) -> Layers:
    return [conv, norm, nn.ReLU()]


def conv(into: int, out: int, side: int, bias: bool = True) -> Layers:
    pad = {"stride": 2, "padding": 1} if side == 3 else {}
    return unit(nn.Conv2d(into, out, side, **pad, bias=bias), _norm(out, bias))


def up(into: int, out: int, bias: bool = True) -> Layers:
    how = {"stride": 2, "padding": 1, "output_padding": 1, "bias": bias}
    return unit(nn.ConvTranspose2d(into, out, 3, **how), _norm(out, bias))


def _norm(out: int, bias: bool) -> nn.Module:
    return nn.InstanceNorm2d(out) if bias else nn.BatchNorm2d(out)


def inside(dim: int) -> Layers:
    """The layers of a block: 1 and 5 are convolutions."""
    half = [nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), nn.InstanceNorm2d(dim)]
    again = [nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), nn.InstanceNorm2d(dim)]
    return [*half, nn.ReLU(), *again]


class Block(nn.Module):
    """A block whose layers lie in a Sequential of the name ``word``."""

    def __init__(self, word: str, layers: Layers) -> None:
        super().__init__()
        self.word = word
        setattr(self, word, nn.Sequential(*layers))

    def forward(self, x):
        return x + getattr(self, self.word)(x)


class Numbered(nn.Module):
    """All layers in one Sequential of the name ``prefix``."""

    def __init__(self, prefix: str, word: str, blocks: int = 2, dim: int = 4) -> None:
        super().__init__()
        self.prefix = prefix
        layers = [nn.ReflectionPad2d(3), *conv(3, dim, 7)]
        layers += [*conv(dim, 2 * dim, 3), *conv(2 * dim, 4 * dim, 3)]
        layers += [Block(word, inside(4 * dim)) for _ in range(blocks)]
        layers += [*up(4 * dim, 2 * dim), *up(2 * dim, dim)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(dim, 3, 7), nn.Tanh()]
        setattr(self, prefix, nn.Sequential(*layers))

    def forward(self, x):
        return getattr(self, self.prefix)(x)


class Arnab(nn.Module):
    """arnab39/cycleGAN-PyTorch: convolution, norm and ReLU are a Sequential of their own."""

    def __init__(self, blocks: int = 2, dim: int = 4, *, dropout: bool, norm: str) -> None:
        super().__init__()
        bias = norm == "instance"

        def block() -> Layers:
            side = 4 * dim
            first = nn.Sequential(nn.Conv2d(side, side, 3, bias=bias), _norm(side, bias), nn.ReLU())
            return [
                nn.ReflectionPad2d(1),
                first,
                *([nn.Dropout(0.5)] if dropout else []),
                nn.ReflectionPad2d(1),
                nn.Conv2d(side, side, 3, bias=bias),
                _norm(side, bias),
            ]

        self.res_model = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Sequential(*conv(3, dim, 7, bias)),
            nn.Sequential(*conv(dim, 2 * dim, 3, bias)),
            nn.Sequential(*conv(2 * dim, 4 * dim, 3, bias)),
            *(Block("res_block", block()) for _ in range(blocks)),
            nn.Sequential(*up(4 * dim, 2 * dim, bias)),
            nn.Sequential(*up(2 * dim, dim, bias)),
            nn.ReflectionPad2d(3),
            nn.Conv2d(dim, 3, 7),
            nn.Tanh(),
        )

    def forward(self, x):
        return self.res_model(x)


class ArnabUnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet_model = generator_from_config(GeneratorConfig("unet_32", ngf=4)).model

    def forward(self, x):
        return self.unet_model(x)


class Bubbliiiing(nn.Module):
    """bubbliiiing/cyclegan-pytorch: stages."""

    def __init__(self, blocks: int = 2, dim: int = 4) -> None:
        super().__init__()
        self.stage_1 = nn.Sequential(nn.ReflectionPad2d(3), *conv(3, dim, 7))
        self.stage_2 = nn.Sequential(*conv(dim, 2 * dim, 3))
        self.stage_3 = nn.Sequential(*conv(2 * dim, 4 * dim, 3))
        self.stage_4 = nn.Sequential(*(Block("conv_block", inside(4 * dim)) for _ in range(blocks)))
        self.up_stage_1 = nn.Sequential(*up(4 * dim, 2 * dim))
        self.up_stage_2 = nn.Sequential(*up(2 * dim, dim))
        self.head = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(dim, 3, 7), nn.Tanh())

    def forward(self, x):
        for stage in self.children():
            x = stage(x)
        return x


class NamedBlock(nn.Module):
    """alirezakazemipour/Cycle-GAN-PyTorch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pad1, self.conv1 = nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3)
        self.norm1 = nn.InstanceNorm2d(dim)
        self.pad2, self.conv2 = nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3)
        self.norm2 = nn.InstanceNorm2d(dim)

    def forward(self, x):
        y = torch.relu(self.norm1(self.conv1(self.pad1(x))))
        return x + self.norm2(self.conv2(self.pad2(y)))


class Alireza(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(3), *conv(3, 4, 7), *conv(4, 8, 3), *conv(8, 16, 3)]
        layers += [NamedBlock(16), NamedBlock(16), NamedBlock(16), *up(16, 8), *up(8, 4)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(4, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


COPIES = {
    "Lornatang": Numbered("main", "res", 9, 2),
    "Rushabh318": Numbered("net", "net"),
    "yuohan": Numbered("model", "model"),
    "Ladun": Numbered("model", "block", 1, 7),
    "arnab39": Arnab(dropout=False, norm="instance"),
    "arnab39, dropout": Arnab(6, 3, dropout=True, norm="instance"),
    "arnab39, BatchNorm": Arnab(dropout=False, norm="batch"),
    "arnab39, U-Net": ArnabUnet(),
    "bubbliiiing": Bubbliiiing(),
    "alirezakazemipour": Alireza(),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_file_draws_what_the_copy_draws(tmp_path, name):
    module = varied(COPIES[name])
    generator = loads_and_draws(saved(tmp_path, module), module, (32, 64), (64, 64))
    assert generator.family.name == "copies"
    assert isinstance(generator.config, GeneratorConfig)
    assert generator.config.dropout == ("dropout" in name)


def test_what_is_translated_is_the_same_picture(tmp_path):
    module = varied(Bubbliiiing(1), gain=0.4)
    path = saved(tmp_path, module)
    runs_in_torch(path, module, (64, 48))
    translates(path, module, tmp_path, (45, 71), (48, 72))


@pytest.mark.parametrize(("counts", "told"), [(True, True), (False, False)])
def test_what_is_taken_of_running_statistics_of_instance_norms_is_told(tmp_path, counts, told):
    module = varied(Numbered("main", "res"))
    state = dict(module.state_dict())
    for name, layer in module.named_modules():
        if isinstance(layer, nn.InstanceNorm2d):
            state[f"{name}.running_mean"] = torch.rand(layer.num_features)
            state[f"{name}.running_var"] = torch.rand(layer.num_features)
            if counts:  # since torch 0.4.1
                state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    torch.save(state, tmp_path / "net.pth")
    generator = loads_and_draws(tmp_path / "net.pth", module, (32, 32))
    assert told == any("statistics of each frame" in clause for clause in generator.assumed)


@pytest.mark.parametrize(
    ("copy", "name"),
    [
        ("arnab39", "res_model.5.res_block.3.bias"),
        ("arnab39, U-Net", "unet_model.model.1.model.3.model.1.bias"),
        ("Rushabh318", "net.11.net.5.bias"),
        ("bubbliiiing", "up_stage_2.0.bias"),
    ],
)
def test_what_differs_is_told_by_the_names_of_the_file(tmp_path, copy, name):
    state = dict(varied(COPIES[copy]).state_dict())
    del state[name]
    torch.save(state, tmp_path / "net.pth")
    named = repr(name.removeprefix("net."))
    with pytest.raises(ModelError, match=f"a copy of .* lacks {re.escape(named)}"):
        load_generator(tmp_path / "net.pth")
