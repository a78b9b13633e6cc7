"""The one network of all ResNets that are not exactly the reference's: its names and its sizes."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from cyclegan_batch.models.checkpoints.families.resnet import (
    Resnet,
    ResnetConfig,
    modules,
    names_in_file,
)

CONFIGS = [
    ResnetConfig("f", ngf=2),
    ResnetConfig("f", downs=5, blocks=0, ngf=1, input_nc=1, output_nc=1),
    ResnetConfig("f", downs=1, blocks=64, ngf=2, norm="batch", bias=False, stem_norm=False),
    ResnetConfig("f", blocks=1, ngf=2, norm="affine_instance", up="nearest", block_edge="zero"),
    ResnetConfig("f", blocks=1, ngf=2, norm="none", down_blur=3, up="blur", up_blur=4),
    ResnetConfig("f", blocks=2, ngf=2, ends_edge="zero", down_edge="reflect",
                 block_edge="replicate", up_edge="reflect", up="nearest"),
    ResnetConfig("f", blocks=1, ngf=2, ends_edge="replicate", down_edge="replicate",
                 up_edge="replicate", up="blur", up_blur=1, down_blur=7),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_modules_are_those_of_the_network_and_every_size_is_kept(config):
    network = Resnet(config).eval()
    listed = [f"{module}.{weight}" for module, weights in modules(config) for weight in weights]
    assert listed == list(network.state_dict())
    names = names_in_file(config, {module: f"{i}" for i, (module, _) in enumerate(modules(config))})
    assert list(names.values()) == listed
    least, step = config.sizes.minimum, config.sizes.multiple_of
    for size in ((least, least), (least + step, least + 2 * step)):
        with torch.inference_mode():
            out = network(torch.rand(1, config.input_nc, *size))
        assert out.shape == (1, config.output_nc, *size)


def test_every_field_can_be_written_to_a_card():
    assert all(isinstance(v, str | int | bool) for v in asdict(CONFIGS[0]).values())


@pytest.mark.parametrize("edge", ["zero", "reflect", "replicate"])
def test_each_convolution_pads_as_its_edge_says(edge):
    beyond = {"zero": 0.0, "reflect": 2.0, "replicate": 1.0}[edge]
    convolutions = {
        "ends_edge": ("stem.conv", "head.conv"),
        "down_edge": ("downs.0.conv",),
        "block_edge": ("blocks.0.body.conv0", "blocks.0.body.conv1"),
        "up_edge": ("ups.0.conv",),
    }
    for part, names in convolutions.items():
        network = Resnet(ResnetConfig("f", 1, 1, ngf=1, up="nearest", **{part: edge}))
        for name in names:
            conv = network.get_submodule(name)
            centre = conv.kernel_size[0] // 2
            with torch.no_grad():
                # It draws what is one pixel to the left.
                conv.weight.zero_()[:, :, centre, centre - 1] = 1
                conv.bias.zero_()
                row = torch.arange(1.0, 13.0).expand(1, conv.in_channels, 12, 12)
                assert float(conv(row)[0, 0, 0, 0]) == beyond * conv.in_channels


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"downs": 6}, "downs = 6 is not from 1 to 5"),
        ({"blocks": 65}, "blocks = 65 is not from 0 to 64"),
        ({"ngf": 0}, "ngf = 0"),
        ({"up": "blur"}, "up_blur = 0 is not from 1 to 7"),
        ({"down_blur": 8}, "down_blur = 8 is not from 0 to 7"),
        ({"block_edge": "circular"}, "'circular' is none of zero, reflect, replicate"),
        ({"norm": "group"}, "'group' is none of instance, affine_instance, batch, none"),
    ],
)
def test_a_network_that_cannot_be_built_errors(changes, match):
    with pytest.raises(ValueError, match=match):
        ResnetConfig("f", **changes)
