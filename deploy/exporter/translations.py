"""ONNX translations of operators that PyTorch's exporter ties to one size, or that TensorRT lacks.

1. Adaptive average pooling. Bin `i` of `k` along `n` pixels is the mean of the pixels from
   `floor(i n / k)` to `ceil((i + 1) n / k)` (`aten::_adaptive_avg_pool2d`). Pooling is therefore a
   product with one matrix for the rows and one matrix for the columns. The entries of the matrices
   are computed from the size: exact at any size, and constants in a static graph. PyTorch's
   exporter instead gathers the pixels of each bin by indices of the traced size.
2. Folding of patches that do not overlap (`aten::col2im`, with a stride equal to the kernel size
   and no padding). Each value goes to one place. Folding is therefore a reshape, a transposition
   and another reshape, with zeros where the last patch ends before the feature map. TensorRT has
   no Col2Im.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the custom translation table for `torch.onnx.export`."""
    return {
        torch.ops.aten._adaptive_avg_pool2d.default: _pooled,
        torch.ops.aten.col2im.default: _folded,
    }


def _pooled(self: Any, output_size: Sequence[int]) -> Any:
    """Translate adaptive average pooling: `(N, C, H, W)` to `(N, C, *output_size)`.

    The parameters have the operator's own names, by which the exporter passes them.
    """
    from onnxscript import opset18

    op: Any = opset18

    size = [side if isinstance(side, int) else 0 for side in self.shape[-2:]]
    if all(size) and not any(side % bins for side, bins in zip(size, output_size, strict=True)):
        window = [side // bins for side, bins in zip(size, output_size, strict=True)]
        return op.AveragePool(self, kernel_shape=window, strides=window)
    rank = len(self.shape)
    rows = _means(op, op.Shape(self, start=rank - 2, end=rank - 1), output_size[0])
    columns = _means(op, op.Shape(self, start=rank - 1, end=rank), output_size[1])
    return op.MatMul(op.MatMul(rows, self), op.Transpose(columns, perm=[1, 0]))


def _means(op: Any, length: Any, bins: int) -> Any:
    """Return the matrix `(bins, length)` whose rows average one bin each."""
    index = op.Constant(value_ints=list(range(bins)))
    count, one = op.Constant(value_ints=[bins]), op.Constant(value_ints=[1])
    start = op.Div(op.Mul(index, length), count)
    end = op.Div(op.Sub(op.Add(op.Mul(op.Add(index, one), length), count), one), count)
    start, end = op.Unsqueeze(start, one), op.Unsqueeze(end, one)
    first, step = op.Constant(value_int=0), op.Constant(value_int=1)
    place = op.Range(first, op.Squeeze(length), step)
    inside = op.And(op.GreaterOrEqual(place, start), op.Less(place, end))
    return op.Div(op.Cast(inside, to=1), op.Cast(op.Sub(end, start), to=1))


def _folded(
    self: Any,
    output_size: Sequence[Any],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Any:
    """Translate folding of patches: `(N, C kH kW, L)` to `(N, C, *output_size)`.

    The parameters have the operator's own names, by which the exporter passes them.
    """
    from onnxscript import opset18

    op: Any = opset18

    window = op.Constant(value_ints=list(kernel_size))
    rest = op.Constant(value_ints=[-1])
    sides = [  # a side that depends on the input is a value of the graph
        op.Constant(value_ints=[side]) if isinstance(side, int) else op.Reshape(side, rest)
        for side in output_size
    ]
    size = op.Concat(*sides, axis=0)
    overlaps = list(stride) != list(kernel_size)
    if overlaps or any(padding) or set(dilation) != {1}:
        pads = [*padding, *padding]
        return op.Col2Im(
            self, size, window, dilations=list(dilation), pads=pads, strides=list(stride)
        )
    same = op.Constant(value_ints=[0])
    patches = op.Div(size, window)
    apart = op.Concat(same, rest, window, patches, axis=0)
    placed = op.Transpose(op.Reshape(self, apart), perm=[0, 1, 4, 2, 5, 3])
    covered = op.Mul(patches, window)
    joined = op.Reshape(placed, op.Concat(same, rest, covered, axis=0))
    # Concatenated zeros instead of a Pad: unseen by the proof, a Pad would become the padding of
    # the next convolution.
    missing = op.Sub(size, covered)
    for axis, (side, step) in enumerate(zip(output_size, kernel_size, strict=True), start=2):
        if isinstance(side, int) and side % step == 0:
            continue
        shape = [op.Shape(joined, start=0, end=axis), op.Shape(joined, start=axis + 1, end=4)]
        here = op.Gather(missing, op.Constant(value_ints=[axis - 2]))
        zeros = op.Expand(op.Constant(value_float=0.0), op.Concat(shape[0], here, shape[1], axis=0))
        joined = op.Concat(joined, zeros, axis=axis)
    return joined
