"""The normalization that a graph applies to its input before the first layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.onnx_graph.model_file import input_values

if TYPE_CHECKING:
    import onnx

_UNCHANGED = frozenset(("Identity", "Cast", "Dropout"))
_ARITHMETIC = frozenset(("Add", "Sub", "Mul", "Div"))
# A deviation of images of 0 to 1 is at most 0.5. The constants of images of 0 to 255 have a mean or
# a deviation of dozens. What lies between is that of images that were normalized before.
_LARGEST_DEVIATION = 0.6
_LEAST_OF_BYTES = 20.0


@dataclass(frozen=True)
class InputNormalization:
    """Mean and standard deviation, one for each channel or one for all, in units of the input.

    `operator` is `BatchNormalization`, whose constants are those of the training's images, or
    `arithmetic`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    operator: str

    @property
    def largest_value(self) -> float | None:
        """The largest value of the images that the constants are of: 255, 1, or None if untold."""
        if min(self.mean) < 0:
            return None
        if max(self.mean) <= 1 and max(self.std) <= _LARGEST_DEVIATION:
            return 1.0
        is_of_bytes = max(*self.mean, *self.std) >= _LEAST_OF_BYTES and max(self.mean) <= 255
        return 255.0 if is_of_bytes else None


def input_normalization(graph: onnx.ModelProto) -> InputNormalization | None:
    """Return the normalization at the start of a graph with one input; None without one.

    Additions, subtractions, products and quotients with one constant, or one for each channel, are
    taken together. A batch normalization ends the search.
    """
    from onnx import numpy_helper

    constants = {one.name: numpy_helper.to_array(one) for one in graph.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        for name in node.input:
            readers.setdefault(name, []).append(node)
    name = input_values(graph)[0].name
    factor, offset = np.ones(1), np.zeros(1)
    while len(found := readers.get(name, [])) == 1 and name != graph.graph.output[0].name:
        node = found[0]
        if node.op_type == "BatchNormalization":
            return _of_batch_normalization(node, constants, factor, offset)
        if node.op_type in _ARITHMETIC:
            other = next((constants[one] for one in node.input if one in constants), None)
            values = None if other is None else _of_channels(other)
            if values is None:
                break
            is_first = node.input[0] == name
            factor, offset = _applied(node.op_type, factor, offset, values, is_first=is_first)
        elif node.op_type not in _UNCHANGED and not _moves_channels(node):
            break
        name = node.output[0]
    if (factor == 1).all() and (offset == 0).all():
        return None
    if not (np.isfinite(factor).all() and (factor > 0).all()):
        return None
    mean, std = np.broadcast_arrays((0 - offset) / factor, 1 / factor)
    return InputNormalization(tuple(mean.tolist()), tuple(std.tolist()), "arithmetic")


def _of_batch_normalization(
    node: onnx.NodeProto,
    constants: dict[str, NDArray[Any]],
    factor: NDArray[np.float64],
    offset: NDArray[np.float64],
) -> InputNormalization | None:
    """Return the mean and deviation of a batch normalization, before `factor` and `offset`."""
    mean, variance = (constants.get(one) for one in node.input[3:5])
    if mean is None or variance is None or not (factor > 0).all() or not (variance > 0).all():
        return None
    values, deviations = mean.astype(float), np.sqrt(variance.astype(float))
    return InputNormalization(
        tuple(((values - offset) / factor).tolist()),
        tuple((deviations / factor).tolist()),
        "BatchNormalization",
    )


def _applied(
    operator: str,
    factor: NDArray[np.float64],
    offset: NDArray[np.float64],
    values: NDArray[np.float64],
    *,
    is_first: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return factor and offset after an operator; `is_first`: the constant is the second input."""
    match operator:
        case "Add":
            return factor, offset + values
        case "Sub":
            return (factor, offset - values) if is_first else (-factor, values - offset)
        case "Mul":
            return factor * values, offset * values
    with np.errstate(divide="ignore", invalid="ignore"):
        # A constant divided by the input is no normalization: 0 lets the caller refuse it.
        return (factor / values, offset / values) if is_first else (factor * 0, offset)


def _of_channels(constant: NDArray[Any]) -> NDArray[np.float64] | None:
    """Return one number, or one for each channel; None for a constant of another shape."""
    if constant.dtype.kind not in "fiu" or sum(side > 1 for side in constant.shape) > 1:
        return None
    return constant.ravel().astype(np.float64) if constant.size <= 16 else None


def _moves_channels(node: onnx.NodeProto) -> bool:
    """Return whether a node is a Transpose between `(N, H, W, C)` and `(N, C, H, W)`."""
    orders = [list(one.ints) for one in node.attribute if one.name == "perm"]
    return node.op_type == "Transpose" and orders in ([[0, 3, 1, 2]], [[0, 2, 3, 1]])
