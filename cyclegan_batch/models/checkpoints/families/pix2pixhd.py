"""pix2pixHD's generators, and ResNets between its global one and the reference's.

Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs",
CVPR 2018, section 3.1 and the appendix. The global generator is the reference's ResNet with three
or four strides of 2 each way (here one to five), whose convolutions have a bias before any norm. Of
two strides it is the reference's network unless its blocks pad with zeros, its InstanceNorm has
weights, or its convolutions have a bias before BatchNorm. The other generator is in
local_enhancer.py.
"""

from __future__ import annotations

from .family import Family, Reading, Shapes
from .local_enhancer import read_local_enhancer
from .resnet import ResnetConfig
from .sequence import config_in_sequence, reading_in_sequence


def _read(shapes: Shapes) -> Reading | None:
    if any(name.startswith("model1_1.") for name in shapes):
        return read_local_enhancer(shapes)
    if any(name.endswith(".filt") for name in shapes):
        return None
    config = config_in_sequence("pix2pixhd", shapes)
    if config is None or _is_the_references(config):
        return None
    return reading_in_sequence(config)


def _is_the_references(config: ResnetConfig) -> bool:
    """Return whether reference.py reads a file of this network."""
    with_bias = {"instance": True, "batch": False, "none": False}
    return (
        config.downs == 2
        and config.block_edge == "reflect"
        and with_bias.get(config.norm) is config.bias
    )


PIX2PIXHD = Family("pix2pixhd", "pix2pixHD and kindred ResNets", _read)
