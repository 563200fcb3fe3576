"""Run a graph over the calibration frames, and collect histograms of its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from segdeploy.calibration.errors import CalibrationInputError
from segdeploy.calibration.histogram import Histogram
from segdeploy.calibration.layers import shapes_of
from segdeploy.calibration.session import open_on_cpu, outputs_of, session_options
from segdeploy.calibration.thresholds import percentile

# Bytes of watched tensors that are held at once; the graph is run again for the others.
_HELD_BYTES = 1 << 30
# ReduceMin and ReduceMax skip NaN. ReduceL1 does not, but costs as much again. The operators below
# produce NaN only from an infinity, which is detected at its own tensor, and need no ReduceL1.
_NAN_FREE = {
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "HardSigmoid",
    "HardSwish", "Identity", "MaxPool", "Mul", "Pad", "ReduceMean", "Relu", "Reshape", "Resize",
    "Sigmoid", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze",
}  # fmt: skip
# Ranges have settled when at most the share `_FEW` of them moves by more than `_MOVED`.
_FEW, _MOVED = 0.05, 0.05


def observe(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    frames: Iterable[tuple[str, NDArray[Any]]],
    *,
    extremes_only: Collection[str] = (),
    on_frame: Callable[[Mapping[str, Histogram]], None] = lambda histograms: None,
    held_bytes: int = _HELD_BYTES,
    any_size: onnx.ModelProto | None = None,
) -> dict[str, Histogram]:
    """Return histograms of float tensors over all frames; only the extremes for some.

    `frames` yields `(name, input array)` and is read once. One frame is held at a time, and at most
    `held_bytes` of the watched tensors (by the graph's static shapes). Memory therefore grows with
    neither the number of frames nor the depth of the network. `on_frame` gets the histograms after
    each frame. `any_size` is the same graph for frames of other sizes than the static one.

    Raises:
        CalibrationInputError: if there is no frame, or a tensor is not finite for a frame.
    """
    name_of_input = model.graph.input[0].name
    shapes = shapes_of(model)
    # At batch 1, extremes are reduced inside the graph, so that the tensor is not copied out.
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    reduced = {
        name: ("ReduceMin", "ReduceMax", *(() if makers[name] in _NAN_FREE else ("ReduceL1",)))
        for name in tensors
        if name in extremes_only and name in makers and shapes.get(name, (0,))[:1] == (1,)
    }
    whole = [name for name in tensors if name not in reduced and name != name_of_input]
    groups = _groups(shapes, whole, held_bytes) or [[]]
    session = _watcher(any_size or model, whole, reduced, len(groups))
    histograms = {name: Histogram(extremes_only=name in extremes_only) for name in tensors}
    extremes = [_extreme(kind, name) for name, kinds in reduced.items() for kind in kinds]
    count = 0
    for frame, array in frames:
        if name_of_input in histograms:
            _added(name_of_input, frame, histograms[name_of_input].add, array)
        for index, group in enumerate(groups):
            asked = [*group, *(extremes if index == 0 else ())] or [session.get_outputs()[0].name]
            outputs = outputs_of(session, asked, array)
            for tensor, value in zip(group, outputs, strict=False):
                _added(tensor, frame, histograms[tensor].add, value)
            found = iter(outputs[len(group) :])
            for tensor, kinds in reduced.items() if index == 0 else ():
                low, high, *total = (next(found) for _ in kinds)
                if not np.isfinite(total).all():
                    low = np.float32(np.nan)
                _added(tensor, frame, histograms[tensor].add_extremes, low[None], high[None])
        on_frame(histograms)
        count += 1
    if count == 0:
        raise CalibrationInputError("calibration: there is no frame; give at least one")
    return histograms


def _added(tensor: str, frame: str, add: Callable[..., None], *values: Any) -> None:
    try:
        add(*values)
    except ValueError as error:
        raise CalibrationInputError(
            f"calibration: tensor {tensor} holds NaN or infinity for frame {frame}; "
            "look for overflow in the network, or leave the frame out"
        ) from error


def _groups(
    shapes: Mapping[str, Sequence[int]], tensors: Sequence[str], held: int
) -> list[list[str]]:
    """Return the tensors in groups that are held together."""
    groups: list[list[str]] = []
    room = 0
    for tensor in tensors:
        size = 4 * math.prod(shapes.get(tensor, ()))
        if not groups or size > room:
            groups.append([])
            room = held
        groups[-1].append(tensor)
        room -= size
    return groups


def _extreme(kind: str, tensor: str) -> str:
    return f"{tensor}/{kind}"


def _watcher(
    model: onnx.ModelProto,
    whole: Sequence[str],
    reduced: Mapping[str, Sequence[str]],
    groups: int,
) -> ort.InferenceSession:
    """Return a session that outputs some tensors whole, and the reductions of others."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = list(whole)
    for tensor, kinds in reduced.items():
        for kind in kinds:  # over all axes, ONNX Runtime's fastest case
            node = helper.make_node(kind, [tensor], [_extreme(kind, tensor)], keepdims=0)
            watched.graph.node.append(node)
            names.append(node.output[0])
    if names:  # else the graph keeps its own output, since a session needs one
        del watched.graph.output[:]
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = session_options()
    # An arena is faster, but keeps the peak memory of all groups together.
    options.enable_cpu_mem_arena = groups < 2
    return open_on_cpu(watched.SerializeToString(), options)


def check_weights(model: onnx.ModelProto) -> None:
    """Refuse constants that are not finite, before the graph runs.

    Raises:
        CalibrationInputError: naming the first such constant.
    """
    for tensor in model.graph.initializer:
        is_float = tensor.data_type == onnx.TensorProto.FLOAT
        if is_float and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise CalibrationInputError(
                f"calibration: weight {tensor.name} holds NaN or infinity; train again, or use an "
                "earlier checkpoint"
            )


class Settling:
    """Number of frames after which the ranges settled.

    Ranges have settled when no later frame moves more than 5 % of them by more than 5 %. The range
    of a tensor is its percentile, which the largest value of one frame does not determine, or its
    largest magnitude if only the extremes are kept.
    """

    def __init__(self, tensors: Sequence[str]):
        self._tensors = tensors
        self._last: NDArray[np.float64] | None = None
        self._frames = 0
        self.settled_after = 0

    def look(self, histograms: Mapping[str, Histogram]) -> None:
        """Compare the ranges with those after the previous frame."""
        self._frames += 1
        now = np.array([_range(histograms[tensor]) for tensor in self._tensors])
        if self._last is None or _share_moved(self._last, now) > _FEW:
            self.settled_after = self._frames
        self._last = now


def _range(values: Histogram) -> float:
    return percentile(values) if values.counted and values.top else values.largest


def _share_moved(before: NDArray[np.float64], now: NDArray[np.float64]) -> float:
    return float(np.mean(np.abs(now - before) > _MOVED * before)) if len(now) else 0.0
