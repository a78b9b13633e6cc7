"""The reference's ResNet, recognised in a contract graph node by node."""

from __future__ import annotations

import math

import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from ..graphs.contract import INPUT, OUTPUT
from ..networks import GeneratorConfig, ResnetGenerator
from .nodes import FLOATS, GraphNode, UnknownNodeError, nodes_of


def as_resnet(proto: onnx.ModelProto) -> ResnetGenerator | None:
    """Return the reference's ResNet where ``proto`` computes exactly it, between bytes; else None.

    It has InstanceNorm, transposed convolutions, three channels in and out, and the contract's own
    nodes around it. Weights are float32; a bias that the file left out before a norm is 0.
    """
    try:
        return _Chain(proto).resnet()
    except (UnknownNodeError, _AnotherNetworkError):
        return None


class _AnotherNetworkError(Exception):
    """The graph is not the reference's ResNet."""


class _Chain:
    """The nodes of a graph in their order, each of which reads the one before it."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        # The values that a Cast or an Identity passes on.
        self._same: dict[str, str] = {}
        self._bytes = proto.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
        self._nodes: list[GraphNode] = []
        for node in nodes_of(proto):
            to_floats = node.kind == "Cast" and int(node.number("to", 0)) in FLOATS
            if node.kind == "Identity" or to_floats or node.output == OUTPUT:
                self._same[node.output] = self._source(node.inputs[0])
            else:
                self._nodes.append(node)
        self._at = INPUT
        self._next = 0

    def resnet(self) -> ResnetGenerator:
        """Return the network. Raises _AnotherNetworkError where the nodes are not its own."""
        self._expect(self._bytes)
        self._scaled("Mul", 2 / 255)
        self._scaled("Add", -1.0)
        self._expect(self._take("Transpose").integers("perm") == [0, 3, 1, 2])
        convolutions = [self._convolution(7, reflects=3)]
        for _ in range(2):
            self._norm(relu=True)
            convolutions.append(self._convolution(3, stride=2, padding=1))
        self._norm(relu=True)
        blocks = 0
        while self._kind() == "Pad":
            block = self._at
            convolutions.append(self._convolution(3, reflects=1))
            self._norm(relu=True)
            convolutions.append(self._convolution(3, reflects=1))
            self._norm(relu=False)
            self._sum_with(block)
            blocks += 1
        for _ in range(2):
            convolutions.append(self._convolution(3, stride=2, padding=1, transposed=True))
            self._norm(relu=True)
        convolutions.append(self._convolution(7, reflects=3))
        self._take("Tanh")
        self._expect(self._take("Transpose").integers("perm") == [0, 2, 3, 1])
        self._scaled("Mul", 127.5)
        self._scaled("Add", 128.0)
        self._take("Floor")
        clip = self._take("Clip")
        self._expect([_number(clip.constant(i)) for i in (1, 2)] == [0.0, 255.0])
        self._expect(self._next == len(self._nodes) and self._source(OUTPUT) == self._at)
        return _filled(convolutions, blocks)

    def _expect(self, condition: bool) -> None:
        if not condition:
            raise _AnotherNetworkError

    def _source(self, name: str) -> str:
        return self._same.get(name, name)

    def _kind(self) -> str:
        return self._nodes[self._next].kind if self._next < len(self._nodes) else ""

    def _take(self, kind: str) -> GraphNode:
        """Return the next node, which is of this kind and reads the value before it."""
        self._expect(self._kind() == kind)
        node = self._nodes[self._next]
        self._expect(self._source(node.inputs[0]) == self._at)
        self._next += 1
        self._at = node.output
        return node

    def _scaled(self, kind: str, by: float) -> None:
        value = _number(self._take(kind).constant(1))
        self._expect(value is not None and math.isclose(value, by, rel_tol=1e-6))

    def _convolution(
        self,
        side: int,
        *,
        reflects: int = 0,
        stride: int = 1,
        padding: int = 0,
        transposed: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the next convolution, which has this form."""
        if reflects:
            pad = self._take("Pad")
            self._expect(pad.word("mode", "") == "reflect")
            border = [reflects, reflects]
            pads = pad.integers("pads") or [int(value) for value in pad.required(1)]
            self._expect(pads == [0, 0, *border, 0, 0, *border])
        node = self._take("ConvTranspose" if transposed else "Conv")
        weight = node.required(1).float()
        self._expect(weight.shape[2:] == (side, side) and not node.has("output_shape"))
        self._expect(node.word("auto_pad", "NOTSET") == "NOTSET" and node.number("group", 1) == 1)
        self._expect(node.integers("strides", (1, 1)) == [stride] * 2)
        self._expect(node.integers("pads", (0, 0, 0, 0)) == [padding] * 4)
        self._expect(node.integers("dilations", (1, 1)) == [1, 1])
        extra = node.integers("output_padding", (0, 0))
        self._expect(extra == ([1, 1] if transposed else [0, 0]))
        bias = node.constant(2)
        return weight, None if bias is None else bias.float()

    def _norm(self, *, relu: bool) -> None:
        node = self._take("InstanceNormalization")
        self._expect(bool((node.required(1) == 1).all() and (node.required(2) == 0).all()))
        self._expect(math.isclose(node.number("epsilon", 1e-5), 1e-5, rel_tol=1e-6))
        if relu:
            self._take("Relu")

    def _sum_with(self, block: str) -> None:
        """Take the Add of a residual block, whose operands may stand in either order."""
        self._expect(self._kind() == "Add")
        node = self._nodes[self._next]
        self._expect({self._source(name) for name in node.inputs} == {block, self._at})
        self._next += 1
        self._at = node.output


def _filled(convolutions: list[tuple[Tensor, Tensor | None]], blocks: int) -> ResnetGenerator:
    """Return the network with these weights. Raises _AnotherNetworkError where they do not fit."""
    try:
        config = GeneratorConfig(f"resnet_{blocks}blocks", ngf=len(convolutions[0][0]))
        network = ResnetGenerator(config)
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        with torch.no_grad():
            for layer, (weight, bias) in zip(layers, convolutions, strict=True):
                if layer.weight.shape != weight.shape:
                    raise ValueError
                layer.weight.copy_(weight)
                assert layer.bias is not None
                layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)
    except (ValueError, RuntimeError) as error:
        raise _AnotherNetworkError from error
    return network.eval().requires_grad_(False)


def _number(value: Tensor | None) -> float | None:
    return float(value) if value is not None and value.numel() == 1 else None
