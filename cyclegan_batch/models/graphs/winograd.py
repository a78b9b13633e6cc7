"""3×3 convolutions by Winograd's F(4×4, 3×3), in operators that every runtime has.

A tile of 4×4 outputs takes a window of 6×6 inputs. Both are transformed by small constant matrices,
and between them each of the 36 places of a window is a matrix product over the channels: 2.25
multiplications for each output, input channel and output channel, where a convolution takes 9
(Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.3, whose
matrices these are). Wide layers gain, as the transforms cost the same for each channel.

The result differs from a convolution's by its rounding only, in float32 about 1e-6 of a layer's
spread; in half precision it would be too coarse. A window's tensor holds 2.25 times the pixels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx

from .rewriting import PREFIX, Graph, Values, attribute_of, new_node, plain_convolution

TILE, WINDOW = 4, 6

_INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
    ]
)  # fmt: skip
_WEIGHTS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_OUTPUT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)

_FEWEST_CHANNELS = 96
"""With fewer channels on either side the transforms cost more than they save."""


_ELEMENTWISE = ("Relu", "LeakyRelu", "Add", "Identity")
"""Operators that compute each value by itself, in whatever order the pixels are."""

_OLDEST_OPSET = 13
"""The first opset whose Squeeze and Unsqueeze take their axes as an input."""


def wide_convolutions_by_winograd(graph: Graph) -> None:
    """Replace each wide 3×3 convolution behind a reflected border of one pixel, in float32.

    What stands between two of them keeps their layout: a row for each pixel, ``(N, H·W, C)``.
    """
    found = _found(graph)
    if found:
        graph.rebuild(_InRows(graph, found).nodes())


def has_wide_convolutions(graph: Graph) -> bool:
    """Return whether there is anything to replace."""
    return bool(_found(graph))


def _found(graph: Graph) -> dict[int, _Wide]:
    """Return what is replaced, by the identity of its node."""
    if graph.opset < _OLDEST_OPSET:
        return {}
    return {id(node): wide for node in graph.nodes if (wide := _wide(graph, node)) is not None}


@dataclass(frozen=True)
class _Wide:
    """A convolution to replace."""

    source: str
    """Its input without the border."""
    weights: Values
    bias: Values | None


def _wide(graph: Graph, node: onnx.NodeProto) -> _Wide | None:
    """Return what is replaced of ``node``, None where it stays."""
    weights = plain_convolution(graph, node)
    if weights is None or weights.shape[2:] != (3, 3):
        return None
    pad = graph.producer(node.input[0], "Pad")
    if min(weights.shape[:2]) < _FEWEST_CHANNELS or pad is None or not _reflects(graph, pad):
        return None
    bias = graph.constant(node.input[2]) if len(node.input) > 2 else None
    if len(node.input) > 2 and bias is None:
        return None
    return _Wide(pad.input[0], weights, bias)


class _InRows:
    """Goes through a graph and writes it again, with the tensors at wide convolutions in rows."""

    def __init__(self, graph: Graph, wide: dict[int, _Wide]) -> None:
        self._graph, self._wide = graph, wide
        self._new: list[onnx.NodeProto] = []
        self._rows: dict[str, str] = {}
        """The name of a tensor in rows, by the name of the tensor."""
        self._only_in_rows: set[str] = set()
        self._indices: dict[str, tuple[str, str, str]] = {}
        """The indices for images of the size of a tensor, by its name; see `_indices`."""
        self._size: dict[str, str] = {}
        """The tensor that gave the indices its size, by the name of each that has that size."""

    def nodes(self) -> list[onnx.NodeProto]:
        """Return the nodes of the whole graph."""
        graph = self._graph
        borders = {node.input[0] for node in graph.nodes if id(node) in self._wide}
        read = Counter(
            name for node in graph.nodes if id(node) not in self._wide for name in node.input
        )
        for node in graph.nodes:
            out = node.output[0]
            if id(node) in self._wide:
                self._convolution(self._wide[id(node)], out)
            elif node.op_type == "Pad" and out in borders and not read[out]:
                continue
            elif not self._between(node, out):
                for name in node.input:
                    self._in_planes(name)
                self._new.append(node)
        for value in graph.proto.graph.output:
            self._in_planes(value.name)
        return self._new

    def _add(self, kind: str, *names: str, to: str | None = None, **attributes: object) -> str:
        name = to or f"{PREFIX}{len(self._new)}_{kind}"
        self._new.append(new_node(kind, names, name, **attributes))
        return name

    def _ints(self, *values: int) -> str:
        return self._graph.weight(np.array(values, np.int64))

    def _reshape(self, x: str, *shape: int) -> str:
        return self._add("Reshape", x, self._ints(*shape))

    def _in_planes(self, name: str) -> None:
        """Compute a tensor ``(N, C, H, W)`` of which there are only the rows so far."""
        if name in self._only_in_rows:
            self._only_in_rows.remove(name)
            shape = self._indices[self._size[name]][2]
            x = self._add("Reshape", self._rows[name], shape)
            self._add("Transpose", x, to=name, perm=[0, 3, 1, 2])

    def _in_rows(self, name: str, channels: int) -> str:
        """Return the name of a tensor in rows, and of the indices for its size."""
        if name not in self._rows:
            x = self._add("Transpose", name, perm=[0, 2, 3, 1])
            self._rows[name] = self._reshape(x, 0, -1, channels)
            self._size[name] = name
            self._indices[name] = self._indices_of(name)
        return self._rows[name]

    def _keep(self, out: str, rows: str, like: str) -> None:
        self._rows[out], self._size[out] = rows, self._size[like]
        self._only_in_rows.add(out)

    def _between(self, node: onnx.NodeProto, out: str) -> bool:
        """Compute a node in rows where all that it reads is in rows; return whether it was."""
        graph = self._graph
        if node.op_type == "InstanceNormalization":
            x = node.input[0]
            scale, offset = (graph.constant(name) for name in node.input[1:])
            if x not in self._only_in_rows or scale is None or offset is None:
                return False
            epsilon = attribute_of(node, "epsilon", 1e-5)
            self._keep(out, self._norm(self._rows[x], scale, offset, epsilon), x)
            return True
        sizes = {self._size.get(name) for name in node.input}
        if node.op_type not in _ELEMENTWISE or len(sizes) != 1 or None in sizes:
            return False
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        del copied.input[:], copied.output[:]
        copied.input.extend(self._rows[name] for name in node.input)
        copied.output.append(f"{PREFIX}{len(self._new)}_{node.op_type}")
        self._new.append(copied)
        self._keep(out, copied.output[0], node.input[0])
        return True

    def _norm(self, x: str, scale: Values, offset: Values, epsilon: float) -> str:
        """Normalise the rows of each image."""
        d = self._add("Sub", x, self._mean(x))
        variance = self._mean(self._add("Mul", d, d))
        number = self._graph.weight(np.array(epsilon, np.float32))
        root = self._add("Sqrt", self._add("Add", variance, number))
        x = self._add("Mul", d, self._add("Div", self._graph.weight(scale), root))
        return self._add("Add", x, self._graph.weight(offset)) if offset.any() else x

    def _mean(self, x: str) -> str:
        if self._graph.opset < 18:
            return self._add("ReduceMean", x, axes=[1], keepdims=1)
        return self._add("ReduceMean", x, self._ints(1), keepdims=1)

    def _convolution(self, wide: _Wide, out: str) -> None:
        """Compute a convolution in rows."""
        outputs, inputs = wide.weights.shape[:2]
        x = self._in_rows(wide.source, inputs)
        into, back, _ = self._indices[self._size[wide.source]]
        places = WINDOW * WINDOW
        taps = np.ascontiguousarray(wide.weights.transpose(2, 3, 1, 0).reshape(9, -1))
        # The runtime transforms the weights once as it opens the graph: transformed here they would
        # have four times the size, and take half a second to write and to read.
        transform = self._graph.weight(np.kron(_WEIGHTS, _WEIGHTS).astype(np.float32))
        products = self._reshape(
            self._add("MatMul", transform, self._graph.weight(taps)), 1, places, inputs, outputs
        )
        first, last = (
            self._graph.weight(np.kron(m, m).astype(np.float32)) for m in (_INPUT, _OUTPUT)
        )
        x = self._add("Gather", x, into, axis=1)
        x = self._add("MatMul", first, self._reshape(x, 0, places, -1))
        x = self._reshape(x, 0, places, -1, inputs)
        x = self._add("MatMul", x, products)
        x = self._add("MatMul", last, self._reshape(x, 0, places, -1))
        x = self._add("Gather", self._reshape(x, 0, -1, outputs), back, axis=1)
        if wide.bias is not None:
            x = self._add("Add", x, self._graph.weight(wide.bias))
        self._keep(out, x, wide.source)

    def _indices_of(self, x: str) -> tuple[str, str, str]:
        """Append what computes, for images of the size of ``x``, which pixels go where.

        Returns the names of three vectors: the pixel of each place of each window, place by place;
        for each pixel the place of its output among the outputs of all tiles; and the shape
        ``(0, H, W, -1)``. The last tiles may exceed the image; what they compute there is left out.
        """
        add, graph = self._add, self._graph
        zero, one, tile = (graph.weight(np.array(n, np.int64)) for n in (0, 1, TILE))
        shape = add("Shape", x)
        windows, outputs, lengths, counts = [], [], [], []
        for axis in (2, 3):
            length = add("Gather", shape, graph.weight(np.array(axis, np.int64)))
            last = add("Sub", length, one)
            count = add("Div", add("Add", last, tile), tile)
            starts = add("Mul", add("Range", zero, count, one), tile)
            # Row i of window t is 4 · t + i - 1, reflected: last - |last - |row||.
            offsets = graph.weight(np.arange(-1, WINDOW - 1)[:, np.newaxis])
            row = add("Abs", add("Add", starts, offsets))
            row = add("Sub", last, add("Abs", add("Sub", last, row)))
            windows.append(add("Max", row, zero))
            pixels = add("Range", zero, length, one)
            outputs.append((add("Mod", pixels, tile), add("Div", pixels, tile)))
            lengths.append(add("Unsqueeze", length, self._ints(0)))
            counts.append(count)
        # (6, 1, rows of tiles, 1) and (6, 1, columns of tiles)
        rows = add("Unsqueeze", add("Mul", windows[0], lengths[1]), self._ints(1, 3))
        into = add("Add", rows, add("Unsqueeze", windows[1], self._ints(1)))
        (row, row_tile), (column, column_tile) = outputs
        # Place (row, column) of tile (row_tile, column_tile): the tiles of a place are neighbours.
        tiles = add("Mul", *counts)
        down = add("Mul", add("Mul", row, tile), tiles)
        down = add("Unsqueeze", add("Add", down, add("Mul", row_tile, counts[1])), self._ints(1))
        back = add("Add", down, add("Add", add("Mul", column, tiles), column_tile))
        shape = add("Concat", self._ints(0), *lengths, self._ints(-1), axis=0)
        return self._reshape(into, -1), self._reshape(back, -1), shape


def _reflects(graph: Graph, pad: onnx.NodeProto) -> bool:
    """Return whether a Pad adds one reflected pixel on each side of height and width."""
    pads = attribute_of(pad, "pads", None)
    if pads is None and len(pad.input) > 1:
        values = graph.constant(pad.input[1])
        pads = None if values is None else values.tolist()
    if len(pad.input) > 3 and pad.input[3]:
        return False
    return attribute_of(pad, "mode", b"constant") == b"reflect" and pads == [0, 0, 1, 1] * 2
