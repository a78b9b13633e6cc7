"""fast-neural-style's TransformerNet, as the examples of PyTorch store it (``mosaic.pth``, ...).

The network (pytorch/examples, ``fast_neural_style``; after Johnson et al. 2016, "Perceptual Losses
for Real-Time Style Transfer"): a 9×9 convolution, two of stride 2, residual blocks, two times the
size by nearest neighbour with a 3×3 convolution behind, a 9×9 convolution. Borders reflect; behind
every convolution but the last is an InstanceNorm with a weight and a bias for each channel. Its
images are in 0..255 both ways, and nothing keeps its output in that range.

Files of its first years hold running statistics of the InstanceNorms. Its own loader drops them,
since its norms take the statistics of each image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from ....frames import SizeRequirements
from ...networks import InstanceNorm, without_halves
from .family import Family, Reading, Shapes, UnfitError

_MOST_BLOCKS = 99
"""More residual blocks than any network has; a file may claim any number."""

_MIDDLE = 127.5
"""Half the range of the network's images."""

_RANGE = "its images are in 0..255 and its edges are reflected, as published"


@dataclass(frozen=True)
class FastStyleConfig:
    """The settings of a TransformerNet that determine the shapes of its weights."""

    input_nc: int = 3
    output_nc: int = 3
    widths: tuple[int, int, int, int, int] = (32, 64, 128, 64, 32)
    """The channels behind the 9×9 convolution, each stride of 2, and each enlargement."""
    n_blocks: int = 5

    @property
    def architecture(self) -> str:
        """What the card shows."""
        return f"fast_neural_style_{self.n_blocks}blocks"

    @property
    def sizes(self) -> SizeRequirements:
        """The heights and widths that the network accepts; its output has the same."""
        # A trunk of one pixel has no border to reflect.
        return SizeRequirements(4, 8)


class FastStyle(nn.Module):
    """The network: ``(N, C, H, W)`` in [-1, 1], both ways; H and W are multiples of 4."""

    def __init__(self, config: FastStyleConfig) -> None:
        super().__init__()
        stem, half, trunk, up, last = config.widths
        self.down = nn.Sequential(
            _Unit(config.input_nc, stem, 9),
            _Unit(stem, half, 3, stride=2),
            _Unit(half, trunk, 3, stride=2),
        )
        self.blocks = nn.Sequential(*(_Residual(trunk) for _ in range(config.n_blocks)))
        self.up = nn.Sequential(_Unit(trunk, up, 3, enlarge=2), _Unit(up, last, 3, enlarge=2))
        self.head = nn.Sequential(nn.ReflectionPad2d(4), nn.Conv2d(last, config.output_nc, 9))

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``(N, C, H, W)`` in [-1, 1]."""
        out = self.head(self.up(self.blocks(self.down(_scaled(x, _MIDDLE, _MIDDLE)))))
        return _scaled(out, 1.0 / _MIDDLE, -1.0)


class _Unit(nn.Sequential):
    """Nearest neighbour perhaps, a reflected border, a convolution, InstanceNorm, ReLU."""

    def __init__(
        self, into: int, out: int, kernel: int, *, stride: int = 1, enlarge: int = 1
    ) -> None:
        super().__init__()
        if enlarge > 1:
            self.enlarge = nn.Upsample(scale_factor=enlarge, mode="nearest")
        self.border = nn.ReflectionPad2d(kernel // 2)
        self.convolution = nn.Conv2d(into, out, kernel, stride)
        self.norm = InstanceNorm(out, affine=True)
        self.activation = nn.ReLU()


class _Residual(nn.Module):
    """The identity plus two 3×3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _Unit(channels, channels, 3)
        self.border = nn.ReflectionPad2d(1)
        self.convolution = nn.Conv2d(channels, channels, 3)
        self.norm = InstanceNorm(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.norm(self.convolution(self.border(self.first(x))))
        return out


def _scaled(x: Tensor, gain: float, shift: float) -> Tensor:
    """Return ``gain · x + shift``, computed in float32, in the type of ``x``."""
    return (without_halves(x) * gain + shift).to(x.dtype)


def _read(shapes: Shapes) -> Reading | None:
    if "conv1.conv2d.weight" not in shapes:
        return None
    blocks = 0
    while f"res{blocks + 1}.conv1.conv2d.weight" in shapes:
        blocks += 1
    if blocks > _MOST_BLOCKS:
        raise UnfitError(
            f"is a TransformerNet of {blocks} residual blocks where {_MOST_BLOCKS} at most are "
            "supported"
        )

    def channels(name: str, axis: int = 0) -> int:
        shape = shapes.get(f"{name}.conv2d.weight", ())
        return shape[axis] if len(shape) == 4 and shape[axis] > 0 else 1

    config = FastStyleConfig(
        input_nc=channels("conv1", 1),
        output_nc=channels("deconv3"),
        widths=(
            channels("conv1"),
            channels("conv2"),
            channels("conv3"),
            channels("deconv1"),
            channels("deconv2"),
        ),
        n_blocks=blocks,
    )
    layers = _layers(blocks)
    names = {
        f"{theirs}.{word}": f"{ours}.{word}"
        for theirs, ours in layers.items()
        for word in ("weight", "bias")
    }
    norms = {layer for layer in layers if not layer.endswith("conv2d")}
    # InstanceNorm had running statistics before torch 0.4; the network's own loader drops them.
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    ignored = {f"{norm}.{word}" for norm in norms for word in statistics}
    ignored &= shapes.keys()
    return Reading(
        config, partial(FastStyle, config), names, frozenset(ignored), published=(_RANGE,)
    )


def _layers(blocks: int) -> dict[str, str]:
    """Return the name in a file of each layer with weights, and its name in `FastStyle`."""
    units = {("conv1", "in1"): "down.0", ("conv2", "in2"): "down.1", ("conv3", "in3"): "down.2"}
    units |= {("deconv1", "in4"): "up.0", ("deconv2", "in5"): "up.1"}
    for i in range(blocks):
        block = f"res{i + 1}"
        units[f"{block}.conv1", f"{block}.in1"] = f"blocks.{i}.first"
        units[f"{block}.conv2", f"{block}.in2"] = f"blocks.{i}"
    names = {"deconv3.conv2d": "head.1"}
    for (convolution, norm), ours in units.items():
        names[f"{convolution}.conv2d"] = f"{ours}.convolution"
        names[norm] = f"{ours}.norm"
    return names


FAST_STYLE = Family("fast_style", "fast-neural-style", _read)
