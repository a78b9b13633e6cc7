"""CUT, FastCUT and DCLGAN: their files draw what the published network draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.models.checkpoints.families.cut import CUT
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


class Filter(nn.Module):
    """A binomial filter in each channel, kept in the file as a buffer."""

    def __init__(self, channels: int, side: int, gain: float) -> None:
        super().__init__()
        row = torch.tensor([float(math.comb(side - 1, i)) for i in range(side)])
        taps = gain * torch.outer(row, row) / row.sum() ** 2
        self.side, self.channels = side, channels
        self.register_buffer("filt", taps.expand(channels, 1, side, side).clone())


class Downsample(Filter):
    def __init__(self, channels: int, side: int) -> None:
        super().__init__(channels, side, 1.0)

    def forward(self, x):
        if self.side == 1:
            return x[:, :, ::2, ::2]
        less, more = (self.side - 1) // 2, math.ceil((self.side - 1) / 2)
        x = F.pad(x, (less, more, less, more), mode="reflect")
        return F.conv2d(x, self.filt, stride=2, groups=self.channels)


class Upsample(Filter):
    def __init__(self, channels: int, side: int) -> None:
        super().__init__(channels, side, 4.0)

    def forward(self, x):
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        padding = 1 + (self.side - 1) // 2
        x = F.conv_transpose2d(x, self.filt, stride=2, padding=padding, groups=self.channels)
        x = x[:, :, 1:, 1:]
        return x if self.side % 2 else x[:, :, :-1, :-1]


class Block(nn.Module):
    def __init__(self, channels: int, norm, bias: bool, dropout: bool) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            norm(channels),
            nn.ReLU(),
            *([nn.Dropout(0.5)] if dropout else []),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            norm(channels),
        )

    def forward(self, x):
        return x + self.conv_block(x)


class Published(nn.Module):
    """The published generator; ``down`` and ``up`` are the sides of the filters, None leaves out.

    The published program has no other sides than 3 and 4, but its modules have.
    """

    def __init__(
        self,
        blocks: int = 2,
        ngf: int = 4,
        into: int = 3,
        out: int = 3,
        norm: str = "instance",
        dropout: bool = False,
        down: int | None = 3,
        up: int | None = 4,
    ) -> None:
        super().__init__()
        layer = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d}.get(
            norm, lambda channels: nn.Identity()
        )
        bias = norm == "instance"
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(into, ngf, 7, bias=bias), layer(ngf), nn.ReLU()]
        for width in (ngf, 2 * ngf):
            stride = 1 if down else 2
            layers += [
                nn.Conv2d(width, 2 * width, 3, stride, 1, bias=bias), layer(2 * width), nn.ReLU(),
                *([Downsample(2 * width, down)] if down else []),
            ]  # fmt: skip
        layers += [Block(4 * ngf, layer, bias, dropout) for _ in range(blocks)]
        for width in (4 * ngf, 2 * ngf):
            half = width // 2
            if up:
                larger = [Upsample(width, up), nn.Conv2d(width, half, 3, padding=1, bias=bias)]
            else:
                larger = [nn.ConvTranspose2d(width, half, 3, 2, 1, 1, bias=bias)]
            layers += [*larger, layer(half), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, out, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


def published(*, seed: int = 0, gain: float = 1.0, **changes) -> Published:
    """Return the network with weights that matter and the filters as published."""
    module = Published(**changes)
    filters = {n: value.clone() for n, value in module.state_dict().items() if "filt" in n}
    varied(module, seed=seed, gain=gain)
    module.load_state_dict(filters, strict=False)
    return module


def test_the_published_file_has_these_names():
    """The names of latest_net_G.pth, by the numbers of its layers."""
    names = {n.split(".")[1] for n in Published(blocks=9).state_dict()}
    assert names == {str(n) for n in (1, 4, 7, 8, 11, *range(12, 21), 21, 22, 25, 26, 30)}
    shapes = {n: tuple(v.shape) for n, v in Published(blocks=9, ngf=64).state_dict().items()}
    assert shapes["model.7.filt"] == (128, 1, 3, 3)
    assert shapes["model.21.filt"] == (256, 1, 4, 4)
    config = CUT.read(shapes).config
    assert config.architecture == "cut_resnet_9blocks"
    assert config.sizes == SizeRequirements(4, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"blocks": 9, "ngf": 2},
        {"blocks": 6, "ngf": 3},
        {"blocks": 4, "ngf": 5},
        {"norm": "batch"},
        {"norm": "batch", "dropout": True},
        {"norm": "none", "gain": 1.5},
        {"dropout": True},
        {"into": 1},
        {"out": 1},
        {"up": None},
        {"down": None},
        {"up": None, "norm": "batch"},
        *({"down": side, "up": side} for side in (1, 2, 4, 5, 6, 7)),
    ],
    ids=str,
)
def test_it_draws_what_the_published_network_draws(tmp_path, changes):
    module = published(**changes)
    generator = loads_and_draws(saved(tmp_path, module), module, (32, 32), (8, 8), (12, 40))
    assert generator.family.name == "cut"
    assert generator.config.blocks == changes.get("blocks", 2)
    assert generator.config.dropout == changes.get("dropout", False)


def test_without_filters_it_is_the_references(tmp_path):
    module = published(down=None, up=None)
    generator = loads_and_draws(saved(tmp_path, module), module, (32, 32))
    assert generator.family.name == "resnet"


def test_it_runs_everywhere(tmp_path):
    module = published(gain=0.4)
    path = saved(tmp_path, module)
    exports_and_draws(tmp_path, module, module.state_dict(), (64, 64), (48, 80))
    runs_in_torch(path, module, (64, 64))
    translates(path, module, tmp_path, (45, 70), (48, 72))


def test_what_is_no_generator_of_it_errors(tmp_path):
    sampling = nn.Sequential(nn.Linear(3, 256), nn.ReLU(), nn.Linear(256, 256))
    weights = {f"mlp_0.{name}": value for name, value in sampling.state_dict().items()}
    torch.save(weights, tmp_path / "latest_net_F.pth")
    with pytest.raises(ModelError, match=r"is no generator of a CycleGAN: it is CUT's netF"):
        load_generator(tmp_path / "latest_net_F.pth")
    module = published(down=9)
    with pytest.raises(ModelError, match=r"filters of the shape \(8, 1, 9, 9\) where"):
        load_generator(saved(tmp_path, module))
    layers = nn.Sequential(nn.Conv2d(3, 4, 4, padding=1), nn.LeakyReLU(0.2), Downsample(4, 3))
    torch.save({f"model.{n}": v for n, v in layers.state_dict().items()}, tmp_path / "D.pth")
    with pytest.raises(ModelError, match="discriminator"):
        load_generator(tmp_path / "D.pth")
