"""ONNX nodes that fit images of one size to the network's input, equal to the bit to the kernels.

The libraries resize bytes with weights of up to 22 bits and round after each pass. float32 holds
whole numbers of 24 bits. Each weight is therefore split into a high part and a low part of 11 bits.
Both sums of products are exact in float32, and also in TF32, whose factors have 11 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.errors import InputError
from segdeploy.preprocessing.fit import Placement
from segdeploy.resize_kernels import opencv, pillow, torch_kernels
from segdeploy.resize_kernels.kernels import resize
from segdeploy.resize_kernels.taps import Taps, antialiased, half_away_from_zero

if TYPE_CHECKING:
    import onnx

_LOW_BITS = 11
_EXACT = 1 << 24  # float32 holds every whole number up to here
_FILTERS = {
    **{f"pillow-{name}": one for name, one in pillow.FILTERS.items()},
    **{f"pillow-pre13-{name}": one for name, one in pillow.FILTERS.items()},
    "torchvision-uint8-bilinear": pillow.BILINEAR,
    "torchvision-uint8-bicubic": pillow.BICUBIC,
}
_NEAREST = ("pillow-nearest", "opencv-nearest", "torch-nearest", "torch-nearest-exact")
_ALIGNMENTS = {"torch-bilinear": "half_pixel", "torch-bilinear-align-corners": "align_corners"}
KERNELS = (*_FILTERS, "opencv-linear", *_NEAREST, *_ALIGNMENTS)
"""The kernels that a graph can compute."""


@dataclass
class Steps:
    """Nodes and constants that are appended one after another, and the last tensor's name."""

    last: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)

    def add(
        self,
        operator: str,
        *others: NDArray[Any] | str,
        first: str | None = None,
        **attributes: Any,
    ) -> str:
        """Append a node that reads the last tensor (or `first`) and `others`; return its output."""
        from onnx import helper

        place = len(self.nodes)
        names = [first or self.last]
        for index, other in enumerate(others):
            if isinstance(other, str):
                names.append(other)
                continue
            names.append(f"image_{operator.lower()}_{place}_{index}")
            self.constants[names[-1]] = other
        self.last = f"image_{operator.lower()}_{place}"
        self.nodes.append(helper.make_node(operator, names, [self.last], self.last, **attributes))
        return self.last


def add_fit(steps: Steps, source: tuple[int, int], place: Placement, contract: Contract) -> None:
    """Append the resize and the crop of images `(N, C, H, W)` of float32 bytes of size `source`.

    Raises:
        InputError: for a kernel that a graph cannot compute.
    """
    if source != place.resized:
        _add_resize(steps, source, place.resized, contract.resize)
    if place.is_cropped:
        spans = (place.rows.visible, place.columns.visible)
        steps.add(
            "Slice",
            np.array([span.start for span in spans], np.int64),
            np.array([span.stop for span in spans], np.int64),
            np.array([2, 3], np.int64),
        )


def add_padding(steps: Steps, place: Placement, values: tuple[float, ...]) -> None:
    """Append the padding of images `(N, C, h, w)` to the network's input, with a value a channel.

    The value is selected and not added, so that a fraction is not rounded.
    """
    covered = np.zeros((1, 1, *place.size), bool)
    rows, columns = place.rows.covered, place.columns.covered
    covered[:, :, rows, columns] = True
    after = place.size[0] - rows.stop, place.size[1] - columns.stop
    edges = (0, 0, rows.start, columns.start, 0, 0, *after)
    padded = steps.add("Pad", np.array(edges, np.int64))
    pad = np.array(values, np.float32).reshape(1, -1, 1, 1)
    steps.constants |= {"image_covered": covered, "image_pad": pad}
    steps.add("Where", padded, "image_pad", first="image_covered")


def _add_resize(steps: Steps, source: tuple[int, int], size: tuple[int, int], kernel: str) -> None:
    if kernel in _FILTERS:
        for axis in _passes(source, size, kernel):
            taps = antialiased(source[axis], size[axis], _FILTERS[kernel])
            bits = pillow.BITS
            if kernel.startswith("torchvision"):
                bits = torch_kernels.bits_of(float(taps.weight.max()))
            _add_pass(steps, taps, source[axis], axis, bits)
    elif kernel == "opencv-linear":
        _add_opencv_linear(steps, source, size)
    elif kernel in _NEAREST:
        for axis, (side, target) in enumerate(zip(source, size, strict=True)):
            if side != target:
                ids = np.arange(side, dtype=np.float32)[:, None]
                places = resize(ids, (target, 1), kernel)[:, 0].astype(np.int64)
                _gather(steps, places, axis)
    elif kernel in _ALIGNMENTS:
        steps.add(
            "Resize",
            *("", "", np.array(size, np.int64)),
            axes=[2, 3],
            mode="linear",
            coordinate_transformation_mode=_ALIGNMENTS[kernel],
        )
    else:
        raise InputError(
            f"--source-size: a graph does not compute the kernel {kernel}; it computes "
            f"{', '.join(KERNELS)}"
        )


def _passes(source: tuple[int, int], size: tuple[int, int], kernel: str) -> list[int]:
    axes = [1, 0]
    if kernel.startswith("pillow-") and pillow.begins_with_rows(source, size):
        axes.reverse()
    if "pre13" in kernel:
        axes = [1, 0]
    return [axis for axis in axes if source[axis] != size[axis]]


def _add_pass(steps: Steps, taps: Taps, side: int, axis: int, bits: int) -> None:
    """Append one pass: the weighted sum, rounded to bytes as `taps.pass_of_bytes` does."""
    weights = _dense(taps.index, half_away_from_zero(taps.weight * (1 << bits)), side)
    low = min(_LOW_BITS, bits - 1)
    while ((weights & ((1 << low) - 1)).sum(1) * 255).max() >= _EXACT:
        low -= 1  # very many taps
    first = steps.last
    fine = _product(steps, weights & ((1 << low) - 1), axis, first)
    steps.add("Mul", np.float32(2.0**-low), first=fine)
    carry = steps.add("Floor")
    coarse = _product(steps, weights >> low, axis, first)
    steps.add("Add", carry, first=coarse)
    steps.add("Add", np.float32(1 << (bits - 1 - low)))  # a half
    _floor(steps, 2.0 ** (low - bits))
    steps.add("Clip", np.float32(0), np.float32(255))


def _dense(index: NDArray[np.intp], weights: NDArray[Any], side: int) -> NDArray[np.int64]:
    dense = np.zeros((len(index), side), np.int64)
    np.add.at(dense, (np.arange(len(index))[:, None], index), weights.astype(np.int64))
    return dense


def _product(steps: Steps, weights: NDArray[np.int64], axis: int, first: str) -> str:
    """Append the product of `(target, side)` weights and the rows or the columns of the images."""
    matrix = weights.astype(np.float32)
    if axis == 1:
        return steps.add("MatMul", np.ascontiguousarray(matrix.T), first=first)
    name = f"image_rows_{len(steps.nodes)}"
    steps.constants[name] = matrix
    return steps.add("MatMul", first, first=name)


def _floor(steps: Steps, factor: float) -> str:
    steps.add("Mul", np.float32(factor))
    return steps.add("Floor")


def _gather(steps: Steps, places: NDArray[np.int64], axis: int, first: str | None = None) -> str:
    return steps.add("Gather", places, first=first, axis=axis + 2)


def _add_opencv_linear(steps: Steps, source: tuple[int, int], size: tuple[int, int]) -> None:
    if source == (2 * size[0], 2 * size[1]):  # OpenCV halves an image with the mean of four pixels
        for axis in (1, 0):
            target = np.arange(size[axis])[:, None]
            ones = np.ones((size[axis], 2))
            weights = _dense(2 * target + np.arange(2), ones, source[axis])
            _product(steps, weights, axis, steps.last)
        steps.add("Add", np.float32(2))
        _floor(steps, 0.25)
        return
    rows, columns = opencv.linear_taps(source, size)
    _product(steps, _dense(columns.index, opencv.fixed(columns).weight, source[1]), 1, steps.last)
    wide = _floor(steps, 2.0**-4)
    weights = opencv.fixed(rows).weight.astype(np.int64)
    totals = []
    for tap in (0, 1):
        lines = _gather(steps, rows.index[:, tap].astype(np.int64), 0, wide)
        low, high = weights[:, tap] & 63, weights[:, tap] >> 6
        steps.add("Mul", low.astype(np.float32)[:, None], first=lines)
        carry = _floor(steps, 2.0**-6)
        steps.add("Mul", high.astype(np.float32)[:, None], first=lines)
        steps.add("Add", carry)
        totals.append(_floor(steps, 2.0**-10))
    steps.add("Add", totals[0], first=totals[1])
    steps.add("Add", np.float32(2))
    _floor(steps, 0.25)
