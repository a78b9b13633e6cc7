"""U-GAT-IT, light and full: a generator's weights draw what the published network draws."""

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
from tests.needs import package

pytestmark = pytest.mark.behaviour(34, 49)


def conv(into: int, out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [nn.ReflectionPad2d(kernel // 2), nn.Conv2d(into, out, kernel, stride, bias=False)]


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        norm = nn.InstanceNorm2d(channels)
        self.conv_block = nn.Sequential(
            *conv(channels, channels), norm, nn.ReLU(), *conv(channels, channels), norm
        )

    def forward(self, x):
        return x + self.conv_block(x)


class Mixed(nn.Module):
    """Equations 1 and 2 of the paper, with the unbiased variance of the authors' program."""

    def __init__(self, channels: int, learned: bool = False) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.ones(1, channels, 1, 1))
        if learned:
            self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
            self.beta = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x, gamma=None, beta=None):
        normed = [
            (x - x.mean(axes, keepdim=True)) / (x.var(axes, keepdim=True) + 1e-5).sqrt()
            for axes in ((2, 3), (1, 2, 3))
        ]
        mixed = self.rho * normed[0] + (1 - self.rho) * normed[1]
        if gamma is None:
            return mixed * self.gamma + self.beta
        return mixed * gamma[:, :, None, None] + beta[:, :, None, None]


class Adapted(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, bias=False)
        self.norm1 = Mixed(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, bias=False)
        self.norm2 = Mixed(channels)
        self.pad = nn.ReflectionPad2d(1)

    def forward(self, x, gamma, beta):
        y = torch.relu(self.norm1(self.conv1(self.pad(x)), gamma, beta))
        return x + self.norm2(self.conv2(self.pad(y)), gamma, beta)


class Published(nn.Module):
    """The published generator; only the picture of its three results."""

    def __init__(
        self, ngf: int = 4, blocks: int = 4, size: int = 0, into: int = 3, out: int = 3
    ) -> None:
        super().__init__()
        trunk, self.light, self.blocks = 4 * ngf, not size, blocks
        down: list[nn.Module] = []
        for inputs, outputs, how in (
            (into, ngf, (7, 1)), (ngf, 2 * ngf, (3, 2)), (2 * ngf, trunk, (3, 2)),
        ):  # fmt: skip
            down += [*conv(inputs, outputs, *how), nn.InstanceNorm2d(outputs), nn.ReLU()]
        self.DownBlock = nn.Sequential(*down, *(Residual(trunk) for _ in range(blocks)))
        self.gap_fc = nn.Linear(trunk, 1, bias=False)
        self.gmp_fc = nn.Linear(trunk, 1, bias=False)
        self.conv1x1 = nn.Conv2d(2 * trunk, trunk, 1)
        seen = trunk if self.light else trunk * (size // 4) ** 2
        self.FC = nn.Sequential(
            nn.Linear(seen, trunk, bias=False), nn.ReLU(),
            nn.Linear(trunk, trunk, bias=False), nn.ReLU(),
        )  # fmt: skip
        self.gamma = nn.Linear(trunk, trunk, bias=False)
        self.beta = nn.Linear(trunk, trunk, bias=False)
        for number in range(blocks):
            setattr(self, f"UpBlock1_{number + 1}", Adapted(trunk))
        up: list[nn.Module] = []
        for inputs in (trunk, 2 * ngf):
            outputs = inputs // 2
            up += [nn.Upsample(scale_factor=2), *conv(inputs, outputs)]
            up += [Mixed(outputs, learned=True), nn.ReLU()]
        self.UpBlock2 = nn.Sequential(*up, *conv(ngf, out, 7), nn.Tanh())

    def forward(self, x):
        x = self.DownBlock(x)
        weighed = [x * fc.weight[:, :, None, None] for fc in (self.gap_fc, self.gmp_fc)]
        x = torch.relu(self.conv1x1(torch.cat(weighed, 1)))
        seen = x.mean((2, 3)) if self.light else x.reshape(len(x), -1)
        style = self.FC(seen)
        for number in range(self.blocks):
            block = getattr(self, f"UpBlock1_{number + 1}")
            x = block(x, self.gamma(style), self.beta(style))
        return self.UpBlock2(x)


def published(**settings) -> nn.Module:
    module = varied(Published(**settings))
    with torch.no_grad():
        module.UpBlock2[11].weight *= 0.4  # as few pixels are at the ends of tanh as in a picture
    return module


@pytest.mark.parametrize(
    "settings",
    [
        {"ngf": 4, "blocks": 4},
        {"ngf": 8, "blocks": 2},
        {"ngf": 3, "blocks": 0, "into": 1, "out": 1},
    ],
    ids=str,
)
def test_light_weights_draw_what_the_published_network_draws_at_any_size(tmp_path, settings):
    module = published(**settings)
    path = saved(tmp_path, module)
    generator = loads_and_draws(path, module, (8, 8), (12, 20), (64, 64))
    assert generator.config.sizes == SizeRequirements(4, 8)
    assert generator.config.architecture == f"ugatit_light_{settings['blocks']}blocks"


@pytest.mark.parametrize("settings", [{"ngf": 4, "size": 32}, {"blocks": 6, "size": 64}], ids=str)
def test_full_weights_draw_it_at_the_size_of_their_first_layer(tmp_path, settings):
    module, size = published(**settings), settings["size"]
    path = saved(tmp_path, module)
    generator = loads_and_draws(path, module, (size, size))
    assert generator.config.sizes.fixed == (size, size)
    assert generator.config.architecture == f"ugatit_{settings.get('blocks', 4)}blocks"


def test_fewer_than_eight_pixels_are_too_few_for_the_published_network():
    with pytest.raises(RuntimeError, match=r"[Pp]adding size"):
        published()(torch.zeros(1, 3, 4, 8))


def test_the_exported_light_file_draws_it_within_one_level(tmp_path):
    module = published(blocks=1)
    exports_and_draws(tmp_path, module, module.state_dict(), (64, 64), (52, 36))
    runs_in_torch(saved(tmp_path, module), module, (64, 48))


def test_the_exported_full_file_draws_it_within_one_level(tmp_path):
    module = published(blocks=1, size=64)
    exports_and_draws(tmp_path, module, module.state_dict(), (64, 64), half=False)
    runs_in_torch(saved(tmp_path, module), module, (64, 64))


def test_weights_that_no_onnx_holds_are_told(tmp_path, monkeypatch):
    onnx_export = package("cyclegan_export.onnx_export")
    path = saved(tmp_path, published(ngf=1, blocks=0, size=64))
    for room, told in (
        (
            10000,
            r"take 0\.0 GB where .* holds 0\.0; translate with --backend torch, or export it w",
        ),
        (100, r"translate with --backend torch$"),
    ):
        monkeypatch.setattr(onnx_export, "_LARGEST_FILE", room)
        with pytest.raises(ModelError, match=told):
            onnx_export.export_onnx(path, tmp_path / "net.onnx")


def test_the_one_shape_of_a_full_network_is_told(tmp_path):
    onnx_export = package("cyclegan_export.onnx_export")
    path = saved(tmp_path, published(ngf=1, blocks=0, size=64))
    with pytest.raises(ModelError, match="its H and W are 64 and 64 only; choose these"):
        onnx_export.export_onnx(path, tmp_path / "net.onnx", shape=(1, 96, 96))


def test_translate_pads_a_frame_of_odd_size(tmp_path):
    module = published(blocks=1)
    translates(saved(tmp_path, module), module, tmp_path, (45, 71), (48, 72))


def test_a_share_of_instance_norm_beyond_1_is_used_as_it_is(tmp_path):
    module = published(blocks=1)
    with torch.no_grad():
        module.UpBlock2[3].rho += 0.7
        module.UpBlock1_1.norm2.rho -= 0.7
    loads_and_draws(saved(tmp_path, module), module, (16, 16))


def test_a_first_layer_that_fits_no_square_is_told(tmp_path):
    state = dict(published(size=32).state_dict())
    state["FC.0.weight"] = torch.ones(16, 16 * 63)
    torch.save(state, tmp_path / "net.pth")
    told = r"'FC\.0\.weight' takes 1008 values, which are no square of 16 channels"
    with pytest.raises(ModelError, match=told):
        load_generator(tmp_path / "net.pth")


def test_a_stem_of_another_width_is_told(tmp_path):
    state = dict(published(size=32).state_dict())
    state["DownBlock.1.weight"] = torch.ones(5, 3, 7, 7)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=r"its 'DownBlock\.1\.weight' is \(5, 3, 7, 7\) where"):
        load_generator(tmp_path / "net.pth")
