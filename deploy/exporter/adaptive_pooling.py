"""Adaptive average pooling as ONNX: what PyTorch's own exporter writes holds for one size alone.

Bin `i` of `k` along `n` pixels is the mean of the pixels from `floor(i n / k)` to
`ceil((i + 1) n / k)` (`aten::_adaptive_avg_pool2d`). So pooling is a product with one matrix for
the rows and another for the columns, whose entries are computed from the size: exact at any size,
and constants in a static graph. PyTorch's exporter gathers the pixels of each bin instead, by
indices of the size that it traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators that are translated here, for `torch.onnx.export`."""
    return {torch.ops.aten._adaptive_avg_pool2d.default: _pooled}


def _pooled(self: Any, output_size: Sequence[int]) -> Any:
    """`(N, C, H, W)` to `(N, C, *output_size)`.

    The parameters have the operator's own names, by which the exporter passes them.
    """
    from onnxscript import opset18 as op

    size = [side if isinstance(side, int) else 0 for side in self.shape[-2:]]
    if all(size) and not any(side % bins for side, bins in zip(size, output_size, strict=True)):
        window = [side // bins for side, bins in zip(size, output_size, strict=True)]
        return op.AveragePool(self, kernel_shape=window, strides=window)
    rank = len(self.shape)
    rows = _means(op, op.Shape(self, start=rank - 2, end=rank - 1), output_size[0])
    columns = _means(op, op.Shape(self, start=rank - 1, end=rank), output_size[1])
    return op.MatMul(op.MatMul(rows, self), op.Transpose(columns, perm=[1, 0]))


def _means(op: Any, length: Any, bins: int) -> Any:
    """The matrix `(bins, length)` whose rows take the mean of one bin each."""
    index = op.Constant(value_ints=list(range(bins)))
    count, one = op.Constant(value_ints=[bins]), op.Constant(value_ints=[1])
    start = op.Div(op.Mul(index, length), count)
    end = op.Div(op.Sub(op.Add(op.Mul(op.Add(index, one), length), count), one), count)
    start, end = op.Unsqueeze(start, one), op.Unsqueeze(end, one)
    first, step = op.Constant(value_int=0), op.Constant(value_int=1)
    place = op.Range(first, op.Squeeze(length), step)
    inside = op.And(op.GreaterOrEqual(place, start), op.Less(place, end))
    return op.Div(op.Cast(inside, to=1), op.Cast(op.Sub(end, start), to=1))
