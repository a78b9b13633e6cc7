"""aladdinpersson's CycleGAN: its files draw what the published network draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.models.checkpoints.loading import load_generator
from tests.models.checkpoints.families.checks import (
    exports_and_draws,
    loads_and_draws,
    runs_in_torch,
    saved,
    translates,
    varied,
)

pytestmark = pytest.mark.behaviour(34, 49)


class ConvBlock(nn.Module):
    def __init__(self, into: int, out: int, down: bool = True, act: bool = True, **how) -> None:
        super().__init__()
        layer = (
            nn.Conv2d(into, out, padding_mode="reflect", **how)
            if down
            else nn.ConvTranspose2d(into, out, **how)
        )
        self.conv = nn.Sequential(
            layer, nn.InstanceNorm2d(out), nn.ReLU() if act else nn.Identity()
        )

    def forward(self, x):
        return self.conv(x)


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            ConvBlock(dim, dim, kernel_size=3, padding=1),
            ConvBlock(dim, dim, act=False, kernel_size=3, padding=1),
        )

    def forward(self, x):
        return x + self.block(x)


class Published(nn.Module):
    def __init__(self, channels: int = 3, dim: int = 4, residuals: int = 2) -> None:
        super().__init__()
        ends = {"kernel_size": 7, "stride": 1, "padding": 3, "padding_mode": "reflect"}
        down = {"kernel_size": 3, "stride": 2, "padding": 1}
        up = {"down": False, **down, "output_padding": 1}
        self.initial = nn.Sequential(
            nn.Conv2d(channels, dim, **ends), nn.InstanceNorm2d(dim), nn.ReLU()
        )
        self.down_blocks = nn.ModuleList(
            [ConvBlock(dim, 2 * dim, **down), ConvBlock(2 * dim, 4 * dim, **down)]
        )
        self.res_blocks = nn.Sequential(*(Block(4 * dim) for _ in range(residuals)))
        self.up_blocks = nn.ModuleList(
            [ConvBlock(4 * dim, 2 * dim, **up), ConvBlock(2 * dim, dim, **up)]
        )
        self.last = nn.Conv2d(dim, channels, **ends)

    def forward(self, x):
        x = self.initial(x)
        for layer in self.down_blocks:
            x = layer(x)
        x = self.res_blocks(x)
        for layer in self.up_blocks:
            x = layer(x)
        return torch.tanh(self.last(x))


@pytest.mark.parametrize(("channels", "dim", "blocks"), [(3, 4, 2), (3, 2, 9), (1, 7, 1)])
def test_a_file_draws_what_the_published_network_draws(tmp_path, channels, dim, blocks):
    module = varied(Published(channels, dim, blocks))
    generator = loads_and_draws(saved(tmp_path, module), module, (8, 8), (12, 20), (64, 64))
    assert generator.family.name == "aladdinpersson"
    assert generator.config.architecture == f"aladdinpersson_resnet_{blocks}blocks"
    assert generator.config.sizes == SizeRequirements(4, 8)
    assert any("behind its first convolution, as published" in each for each in generator.published)
    assert any(each.startswith("its edges are reflected") for each in generator.published)


def test_the_kind_of_a_norm_with_weights_is_assumed(tmp_path):
    state = dict(varied(Published(residuals=1)).state_dict())
    for convolution in [name for name in state if name.endswith("0.weight")]:
        norm = convolution.replace("0.weight", "1")
        channels = state[convolution.replace("weight", "bias")].shape
        state |= {f"{norm}.weight": torch.ones(channels), f"{norm}.bias": torch.ones(channels)}
    torch.save(state, tmp_path / "net.pth")
    generator = load_generator(tmp_path / "net.pth")
    assert generator.config.norm == "affine_instance"
    assert any("GroupNorm would have the same names" in each for each in generator.assumed)


def test_what_is_exported_and_translated_is_the_same_picture(tmp_path):
    module = varied(Published(residuals=1), gain=0.4)
    path = saved(tmp_path, module)
    exports_and_draws(tmp_path, module, module.state_dict(), (64, 64), (40, 24))
    runs_in_torch(path, module, (64, 48))
    translates(path, module, tmp_path, (45, 71), (48, 72))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("last.bias", "lacks 'last.bias'"),
        ("res_blocks.9998.block.0.conv.0.weight", "blocks = 9999 is not from 0 to 64"),
    ],
    ids=["absent", "absurd"],
)
def test_what_differs_is_told(tmp_path, name, sentence):
    state = dict(varied(Published()).state_dict())
    if name in state:
        del state[name]
    else:
        state[name] = torch.ones(1)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=f"aladdinpersson.*{sentence}"):
        load_generator(tmp_path / "net.pth")
