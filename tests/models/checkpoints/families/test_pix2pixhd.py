"""pix2pixHD's global generator, and what lies between it and the reference's."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import nn

from cyclegan_batch import cli
from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.models.checkpoints.families import recognise
from cyclegan_batch.models.checkpoints.families.pix2pixhd import PIX2PIXHD
from cyclegan_batch.models.checkpoints.loading import load_generator
from cyclegan_batch.models.model import has_wide_convolutions, open_model
from cyclegan_batch.models.parity import natural_frames, parity
from tests.models.checkpoints.families.checks import (
    exports_and_draws,
    loads_and_draws,
    picture,
    runs_in_torch,
    saved,
    translates,
    varied,
)
from tests.needs import has, need

pytestmark = pytest.mark.behaviour(34, 49)

NORMS = {
    "instance": nn.InstanceNorm2d,
    "affine": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "batch": nn.BatchNorm2d,
}


class Block(nn.Module):
    def __init__(self, channels: int, norm, padding: str, dropout: bool) -> None:
        super().__init__()
        pads = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}
        pad = [pads[padding](1)] if padding in pads else []
        zeros = 0 if pad else 1
        self.conv_block = nn.Sequential(
            *pad,
            nn.Conv2d(channels, channels, 3, padding=zeros),
            norm(channels),
            nn.ReLU(),
            *([nn.Dropout(0.5)] if dropout else []),
            *pad,
            nn.Conv2d(channels, channels, 3, padding=zeros),
            norm(channels),
        )

    def forward(self, x):
        return x + self.conv_block(x)


class Published(nn.Module):
    """The published global generator; its convolutions have a bias whatever the norm."""

    def __init__(
        self,
        downs: int = 3,
        blocks: int = 2,
        ngf: int = 2,
        into: int = 3,
        out: int = 3,
        norm: str = "instance",
        padding: str = "reflect",
        dropout: bool = False,
    ) -> None:
        super().__init__()
        layer = NORMS[norm]
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(into, ngf, 7), layer(ngf), nn.ReLU()]
        width = ngf
        for _ in range(downs):
            layers += [nn.Conv2d(width, 2 * width, 3, 2, 1), layer(2 * width), nn.ReLU()]
            width *= 2
        layers += [Block(width, layer, padding, dropout) for _ in range(blocks)]
        for _ in range(downs):
            layers += [nn.ConvTranspose2d(width, width // 2, 3, 2, 1, 1)]
            width //= 2
            layers += [layer(width), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, out, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


class Local(nn.Module):
    """The published local enhancer, whose parts have these names."""

    def __init__(self, enhancers: int = 1, inner: int = 2, ngf: int = 2, **changes) -> None:
        super().__init__()
        layer, out = NORMS[changes.get("norm", "instance")], changes.pop("out", 3)
        whole = Published(ngf=ngf * 2**enhancers, out=1, **changes).model
        self.model = whole[:-3]
        self.enhancers = enhancers
        for number in range(1, enhancers + 1):
            width = ngf * 2 ** (enhancers - number)
            before = nn.Sequential(
                nn.ReflectionPad2d(3),
                nn.Conv2d(changes.get("into", 3), width, 7),
                layer(width),
                nn.ReLU(),
                nn.Conv2d(width, 2 * width, 3, 2, 1),
                layer(2 * width),
                nn.ReLU(),
            )
            padding = changes.get("padding", "reflect")
            blocks = [Block(2 * width, layer, padding, dropout=False) for _ in range(inner)]
            behind = [nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), layer(width), nn.ReLU()]
            if number == enhancers:
                behind += [nn.ReflectionPad2d(3), nn.Conv2d(width, out, 7), nn.Tanh()]
            setattr(self, f"model{number}_1", before)
            setattr(self, f"model{number}_2", nn.Sequential(*blocks, *behind))
        self.downsample = nn.AvgPool2d(3, 2, 1, count_include_pad=False)

    def forward(self, x):
        pyramid = [x]
        for _ in range(self.enhancers):
            pyramid.append(self.downsample(pyramid[-1]))
        below = self.model(pyramid[-1])
        for number in range(1, self.enhancers + 1):
            own = getattr(self, f"model{number}_1")(pyramid[self.enhancers - number])
            below = getattr(self, f"model{number}_2")(own + below)
        return below


def published(*, seed: int = 0, gain: float = 1.0, **changes) -> nn.Module:
    return varied(Published(**changes), seed=seed, gain=gain)


def test_the_published_file_has_these_names():
    """latest_net_G.pth of ``--netG global``: four strides, nine blocks."""
    with torch.device("meta"):
        weights = Published(downs=4, blocks=9, ngf=64, into=3).state_dict()
    numbers = {name.split(".")[1] for name in weights}
    assert numbers == {str(n) for n in (1, 4, 7, 10, 13, *range(16, 25), 25, 28, 31, 34, 38)}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert shapes["model.24.conv_block.5.weight"] == (1024, 1024, 3, 3)
    config = PIX2PIXHD.read(shapes).config
    assert config.architecture == "pix2pixhd_resnet_9blocks_4downs"
    assert config.sizes == SizeRequirements(16, 32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"downs": 4, "blocks": 9},
        {"downs": 5, "blocks": 1},
        {"downs": 1, "ngf": 5},
        {"norm": "batch"},
        {"norm": "affine"},
        {"padding": "zero"},
        {"padding": "zero", "dropout": True, "norm": "batch"},
        {"dropout": True},
        {"into": 1, "out": 1},
        {"downs": 2, "norm": "affine"},
        {"downs": 2, "norm": "batch"},
        {"downs": 2, "padding": "zero"},
    ],
    ids=str,
)
def test_it_draws_what_the_published_network_draws(tmp_path, changes):
    module = published(**changes)
    step = 2 ** changes.get("downs", 3)
    sizes = ((64, 64), (2 * step, 2 * step), (3 * step, 5 * step))
    generator = loads_and_draws(saved(tmp_path, module), module, *sizes)
    assert generator.family.name == "pix2pixhd"
    assert generator.config.downs == changes.get("downs", 3)
    assert generator.config.blocks == changes.get("blocks", 2)
    reflects = "its blocks reflect at their edges, as published"
    assert any(c.startswith(reflects) for c in generator.published) == ("padding" not in changes)
    weights = any("GroupNorm would have the same names" in c for c in generator.assumed)
    assert weights == (changes.get("norm") == "affine")


def test_of_two_strides_it_is_the_references(tmp_path):
    module = published(downs=2)
    generator = loads_and_draws(saved(tmp_path, module), module, (32, 32))
    assert generator.family.name == "resnet"
    assert generator.assumed == ()


def test_it_runs_in_torch_and_from_the_command(tmp_path):
    module = published(norm="affine", gain=0.4)
    path = saved(tmp_path, module)
    runs_in_torch(path, module, (64, 64))
    translates(path, module, tmp_path, (45, 70), (48, 72))


def test_inspect_tells_the_family_and_what_was_assumed(tmp_path):
    path = saved(tmp_path, published(norm="affine"))
    printed = CliRunner().invoke(cli.main, ["inspect", str(path)]).output
    assert "pix2pixhd_resnet_2blocks_3downs" in printed
    assert "its blocks reflect at their edges, as published" in printed
    assert "GroupNorm would have the same names" in printed


WIDE = {"downs": 1, "ngf": 48, "blocks": 1, "norm": "affine"}
"""OpenVINO gets its blocks by Winograd's method."""


def test_it_is_exported(tmp_path):
    module = published(**WIDE)
    exports_and_draws(tmp_path, module, module.state_dict(), (64, 64), (48, 80))
    assert has_wide_convolutions(open_model(tmp_path / "fp32.onnx"))


def test_batch_norm_and_borders_of_zeros_are_exported(tmp_path):
    module = published(norm="batch", padding="zero")
    model = open_model(exported(tmp_path, module, shape=(1, 64, 64)))
    frames = natural_frames((64, 64), 1)
    for name in filter(has, ("openvino", "onnxruntime")):
        backend = open_backend(model, backend=name, device="cpu")
        assert parity(backend.infer(frames), picture(module, frames)).reaches("exact")
        backend.close()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"enhancers": 2, "downs": 2, "inner": 3},
        {"enhancers": 3, "downs": 1, "blocks": 1, "inner": 1},
        {"norm": "batch", "out": 1},
        {"norm": "affine", "into": 1},
        {"padding": "zero", "inner": 0},
    ],
    ids=str,
)
def test_the_local_enhancer_draws_what_the_published_one_draws(tmp_path, changes):
    module = varied(Local(**changes))
    step = 2 ** (changes.get("downs", 3) + changes.get("enhancers", 1))
    sizes = ((2 * step, 2 * step), (64, 96))
    generator = loads_and_draws(saved(tmp_path, module), module, *sizes)
    assert generator.family.name == "pix2pixhd"
    assert generator.config.sizes == SizeRequirements(step, 2 * step)
    assert generator.config.architecture.startswith("pix2pixhd_local_resnet_")


def exported(folder, module, **options):
    """Return the path of the exported ``module``, measured at 64²."""
    need("onnxscript")
    from cyclegan_export import export_onnx

    path, output = folder / "net.safetensors", folder / "net.onnx"
    safetensors.torch.save_file(dict(module.state_dict()), path, {"trained_size": "64"})
    return export_onnx(path, output, **options).path


def test_the_local_enhancer_runs_everywhere(tmp_path):
    module = varied(Local(downs=1, blocks=1, inner=1), gain=0.4)
    runs_in_torch(saved(tmp_path, module), module, (64, 64))
    model, frames = open_model(exported(tmp_path, module)), natural_frames((48, 80), 1)
    for name in filter(has, ("openvino", "onnxruntime", "torch")):
        backend = open_backend(model, backend=name, device="cpu")
        assert parity(backend.infer(frames), picture(module, frames)).reaches("exact")
        backend.close()


def test_weights_of_a_norm_stay_in_a_file_whose_norms_are_in_half_precision(tmp_path):
    module = published(norm="affine", downs=1, blocks=1, gain=0.4)
    path = exported(tmp_path, module, precision="fp16", half_norm=True, shape=(1, 64, 64))
    frames = natural_frames((64, 64), 1)
    backend = open_backend(open_model(path), backend="onnxruntime", device="cpu")
    assert parity(backend.infer(frames), picture(module, frames)).reaches("half")
    backend.close()


def test_half_of_a_local_enhancer_errors(tmp_path):
    state = {n: v for n, v in varied(Local()).state_dict().items() if not n.startswith("model.")}
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(ModelError, match="local enhancer without its global generator"):
        load_generator(tmp_path / "half.pth")
    state = {n: v for n, v in varied(Local()).state_dict().items() if "model1_2.2" not in n}
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(
        ModelError, match=r"pix2pixHD and kindred ResNets, but it lacks 'model1_2\.2\.weight'"
    ):
        load_generator(tmp_path / "half.pth")


def test_a_label_map_is_no_image_errors(tmp_path):
    path = saved(tmp_path, published(into=36))
    with pytest.raises(ModelError, match="its input has 36 channels where an image has 3, or 1"):
        open_model(path)


def test_a_discriminator_is_named_errors(tmp_path):
    weights = {f"scale{k}_layer{n}.0.weight": torch.rand(4, 4, 4, 4) for k in "01" for n in "01"}
    torch.save(weights, tmp_path / "latest_net_D.pth")
    with pytest.raises(ModelError, match=r": it is a discriminator \(PatchGANs of several scales"):
        load_generator(tmp_path / "latest_net_D.pth")


def test_what_is_beyond_the_bounds_errors(tmp_path):
    for changes, match in (
        ({"downs": 6, "ngf": 1, "blocks": 1}, "has 6 strides of 2 down where 1 to 5"),
        ({"blocks": 65, "ngf": 1, "downs": 1}, "has 65 blocks where up to 64"),
    ):
        with pytest.raises(ModelError, match=match):
            load_generator(saved(tmp_path, published(**changes)))


@pytest.mark.parametrize("network", [Published, Local])
@pytest.mark.parametrize("shape", [(), (0,), (2**62, 0, 7, 7), (2**62, 1, 7, 7), (1, 1, 2**40, 9)])
def test_shapes_that_no_network_has_fit_nothing(network, shape):
    shapes = {name: tuple(value.shape) for name, value in network().state_dict().items()}
    for name in shapes:
        changed = {**shapes, name: shape}
        assert recognise(changed).fits == ()
