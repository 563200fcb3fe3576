"""Multiply-accumulates of a convolution: the one count that every command reports.

Biases are not counted. `models.summary` counts a PyTorch network by the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

# Size of one operand by precision.
BYTES = {"int8": 1, "fp16": 2, "bf16": 2, "fp32": 4}


def multiply_accumulates(
    read: Sequence[int], weight: Sequence[int], given: Sequence[int], *, transposed: bool = False
) -> int | None:
    """Count Conv (or ConvTranspose if `transposed`) with its zero padding.

    `read` and `given` are the shapes `(N, C, H, W)` of input and output. `weight` is the shape
    `(O, C / groups, kH, kW)`, for ConvTranspose `(C, O / groups, kH, kW)`. None where a shape is
    unknown.
    """
    # Each input value of a transposed convolution meets the kernel once, each output value of an
    # ordinary one.
    values = read if transposed else given
    if not values or not weight or not all(isinstance(s, int) and s > 0 for s in values):
        return None
    return int(prod(values) * prod(weight[1:]))


def multiply_accumulates_without_padding(
    read: Sequence[int],
    weight: Sequence[int],
    given: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> int:
    """Count Conv without the taps that read zero padding; kernels may skip these taps.

    Shapes are as in `multiply_accumulates`; `padding` is that before rows and columns.
    """
    taps = 1
    for axis in (0, 1):
        places = np.arange(given[2 + axis])[:, None] * stride[axis] - padding[axis]
        places = places + np.arange(weight[2 + axis]) * dilation[axis]
        taps *= int(((places >= 0) & (places < read[2 + axis])).sum())
    return int(given[0] * given[1] * weight[1] * taps)
