"""AnimeGANv2: the port's files draw what the published network draws."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

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


def unit(into: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    side = kernel // 2
    return nn.Sequential(
        nn.ReflectionPad2d(side if stride == 1 else (0, 1, 0, 1)),
        nn.Conv2d(into, out, kernel, stride, groups=groups, bias=groups > 1),
        nn.GroupNorm(1, out),
        nn.LeakyReLU(0.2),
    )


class Inverted(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            unit(into, 2 * into, 1),
            unit(2 * into, 2 * into, groups=2 * into),
            nn.Conv2d(2 * into, out, 1, bias=False),
            nn.GroupNorm(1, out),
        )
        self.same = into == out

    def forward(self, x):
        return self.layers(x) + x if self.same else self.layers(x)


class Published(nn.Module):
    """The published generator, with all channels divided by ``32 // ngf``."""

    def __init__(self, ngf: int = 4, blocks: int = 4, into: int = 3, out: int = 3) -> None:
        super().__init__()
        self.block_a = nn.Sequential(
            unit(into, ngf, 7), unit(ngf, 2 * ngf, stride=2), unit(2 * ngf, 2 * ngf)
        )
        self.block_b = nn.Sequential(unit(2 * ngf, 4 * ngf, stride=2), unit(4 * ngf, 4 * ngf))
        inverted = [Inverted(*widths) for widths in pairwise([4 * ngf] + blocks * [8 * ngf])]
        self.block_c = nn.Sequential(
            unit(4 * ngf, 4 * ngf), *inverted, unit((8 if blocks else 4) * ngf, 4 * ngf)
        )
        self.block_d = nn.Sequential(unit(4 * ngf, 4 * ngf), unit(4 * ngf, 4 * ngf))
        self.block_e = nn.Sequential(
            unit(4 * ngf, 2 * ngf), unit(2 * ngf, 2 * ngf), unit(2 * ngf, ngf, 7)
        )
        self.out_layer = nn.Sequential(nn.Conv2d(ngf, out, 1, bias=False), nn.Tanh())

    def forward(self, x):
        half = self.block_a(x)
        y = self.block_c(self.block_b(half))
        y = F.interpolate(y, half.shape[2:], mode="bilinear", align_corners=True)
        y = F.interpolate(self.block_d(y), x.shape[2:], mode="bilinear", align_corners=True)
        return self.out_layer(self.block_e(y))


def published(**settings) -> nn.Module:
    module = varied(Published(**settings))
    with torch.no_grad():
        module.out_layer[0].weight *= 0.4  # as few pixels are at the ends of tanh as in a picture
    return module


@pytest.mark.parametrize(
    "settings",
    [
        {"ngf": 4},
        {"ngf": 3, "blocks": 2},
        {"ngf": 8, "blocks": 1, "into": 1},
        {"ngf": 2, "blocks": 0, "out": 1},
    ],
    ids=str,
)
def test_a_file_draws_what_the_published_network_draws(tmp_path, settings):
    module = published(**settings)
    path = saved(tmp_path, module)
    generator = loads_and_draws(path, module, (8, 8), (9, 14), (33, 47), (64, 64))
    assert generator.config.architecture == "animegan_v2"
    assert generator.config.sizes == SizeRequirements(1, 8)
    told = " ".join(generator.published)
    assert "its edges are reflected" in told
    assert "InstanceNorm with weights" in told


def test_fewer_than_eight_pixels_are_too_few_for_the_published_network():
    with pytest.raises(RuntimeError, match=r"[Pp]adding size"):
        published()(torch.zeros(1, 3, 7, 8))


def test_the_exported_file_draws_it_within_one_level(tmp_path):
    module = published(blocks=1)
    exports_and_draws(tmp_path, module, module.state_dict(), (64, 64), (51, 38))
    runs_in_torch(saved(tmp_path, module), module, (64, 48))


def test_translate_takes_a_frame_of_odd_size_as_it_is(tmp_path):
    module = published()
    translates(saved(tmp_path, module), module, tmp_path, (45, 71), (45, 71))


PUBLISHED_NAMES = """
    block_a.0.1.weight 32,3,7,7   block_a.0.2.weight 32     block_a.0.2.bias 32
    block_a.1.1.weight 64,32,3,3  block_b.0.1.weight 128,64,3,3
    block_c.1.layers.0.1.weight 256,128,1,1  block_c.1.layers.1.1.weight 256,1,3,3
    block_c.1.layers.1.1.bias 256 block_c.1.layers.2.weight 256,256,1,1
    block_c.1.layers.3.weight 256 block_c.4.layers.0.1.weight 512,256,1,1
    block_c.5.1.weight 128,256,3,3  block_e.0.1.weight 64,128,3,3  block_e.2.1.weight 32,64,7,7
    block_e.2.2.bias 32  out_layer.0.weight 3,32,1,1
"""
"""Of face_paint_512_v2.pt, as its README and model tell."""


def test_the_published_size_is_read_as_published(tmp_path):
    module = Published(ngf=32)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name, shape in re.findall(r"(\S+) ([\d,]+)", PUBLISHED_NAMES):
        assert shapes[name] == tuple(map(int, shape.split(","))), name
    config = load_generator(saved(tmp_path, module)).config
    assert config == type(config)()


def test_what_differs_is_told(tmp_path):
    state = dict(published().state_dict())
    state["block_b.1.1.weight"] = torch.ones(16, 16, 5, 5)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=r"'block_b\.1\.1\.weight'.*\(16, 16, 5, 5\)"):
        load_generator(tmp_path / "net.pth")
