"""Export a torch generator as an ONNX graph: its nodes, its number types, its free axes.

All changes to the trained network (`deployable`, and half precision in `graph_from_network`) are
made in torch before the export, so that torch and the file compute the same and can be compared.
This module reads and writes no file and no card.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cyclegan_batch.errors import BackendError
from cyclegan_batch.frames import BatchShape, SizeRequirements
from cyclegan_batch.models.networks import InstanceNorm
from cyclegan_batch.wording import first_line

from . import OPSET


def deployable(network: nn.Module) -> nn.Module:
    """Return a copy of ``network`` that computes the same with fewer layers, in eval mode.

    BatchNorm is folded into the convolution before it. The bias of a convolution before an
    InstanceNorm is removed: the norm subtracts every constant, and a large bias would cost half
    precision accuracy.
    """
    smaller = copy.deepcopy(network).eval()
    for (name, module), (next_name, following) in pairwise(list(_layers(smaller))):
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            continue
        if isinstance(following, InstanceNorm):
            module.bias = None
        elif isinstance(following, nn.BatchNorm2d | nn.SyncBatchNorm):
            transposed = isinstance(module, nn.ConvTranspose2d)
            smaller.set_submodule(name, fuse_conv_bn_eval(module, following, transpose=transposed))
            smaller.set_submodule(next_name, nn.Identity())
    return smaller


def graph_from_network(
    network: nn.Module,
    sizes: SizeRequirements,
    *,
    channels: int,
    half: bool = False,
    half_norm: bool = False,
    shape: BatchShape | None = None,
) -> onnx.ModelProto:
    """Export a `deployable` network: one input ``image``, one output ``picture``, NCHW in [-1, 1].

    ``half``: weights, convolutions, input and output are float16; InstanceNorm stays float32, with
    a Cast before and behind it, unless ``half_norm`` is given as well. ``shape`` fixes all axes;
    None leaves N free, and H and W free as multiples according to ``sizes``, unless these name one
    size. The graph holds no trace of the machine that made it, and the same network gives the same
    bytes. Raises BackendError.
    """
    if half:
        network = copy.deepcopy(network).half()
        if half_norm:
            replace_norms(network, lambda name, norm: _HalfNorm(norm))
    example: BatchShape = shape or (2, *(sizes.fixed or _two_sides(sizes)))
    image = torch.zeros(example[0], channels, *example[1:], dtype=torch.half if half else None)
    free = None
    if shape is None:
        axes: dict[int, Any] = {0: Dim("batch")}
        if sizes.fixed is None:
            step = sizes.multiple_of
            least = sizes.minimum // step
            axes[2], axes[3] = (step * Dim(name, min=least) for name in ("height", "width"))
        free = (axes,)
    try:
        program = torch.onnx.export(
            network,
            (image,),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=["image"],
            output_names=["picture"],
            dynamic_shapes=free,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise BackendError(
            f"torch {torch.__version__} does not export this network: {first_line(error)}; "
            "install the versions of constraints.txt"
        ) from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    _strip(proto)
    return proto


def replace_norms(
    network: nn.Module, replacement: Callable[[str, InstanceNorm], nn.Module]
) -> None:
    """Replace each InstanceNorm of ``network`` by what ``replacement`` returns for it, in place."""
    norms = [(name, m) for name, m in network.named_modules() if isinstance(m, InstanceNorm)]
    for name, norm in norms:
        network.set_submodule(name, replacement(name, norm))


class _HalfNorm(nn.Module):
    """InstanceNorm that takes and gives float16; how it computes is up to the runtime."""

    def __init__(self, norm: InstanceNorm) -> None:
        """Normalise like ``norm``, whose weight and bias are float16 where it has any."""
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each image, ``(N, C, H, W)``."""
        norm = self.norm
        return F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that compute, in the order of the computation."""
    for name, module in network.named_modules():
        if not any(True for _ in module.children()):
            yield name, module


def _two_sides(sizes: SizeRequirements) -> tuple[int, int]:
    """Return two different sides above the minimum: the exporter would unify equal ones."""
    step = sizes.multiple_of
    first = (sizes.minimum // step + 1) * step
    return first, first + step


def _strip(proto: onnx.ModelProto) -> None:
    """Remove the exporter's traces: names of source files, lines and stack traces."""
    from cyclegan_batch._version import __version__

    graph = proto.graph
    proto.producer_name, proto.producer_version = "cyclegan-batch", __version__
    proto.doc_string = graph.doc_string = ""
    parts: tuple[Any, ...] = (*graph.node, *graph.initializer, *graph.input, *graph.output)
    for part in (proto, graph, *parts):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]
