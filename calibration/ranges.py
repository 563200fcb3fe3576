"""Running a graph over the calibration frames, and counting what its tensors hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from segdeploy.calibration.errors import CalibrationInputError
from segdeploy.calibration.histogram import Histogram
from segdeploy.calibration.layers import shapes_of
from segdeploy.calibration.thresholds import percentile

# Of the tensors that are watched, so many bytes are held at once; the rest is run for again.
_HELD_BYTES = 1 << 30
# Ranges have settled when no more than this share of them moves by more than that.
_FEW, _MOVED = 0.05, 0.05


def observe(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    frames: Iterable[tuple[str, NDArray[Any]]],
    *,
    extremes_only: Collection[str] = (),
    on_frame: Callable[[Mapping[str, Histogram]], None] = lambda histograms: None,
    held_bytes: int = _HELD_BYTES,
) -> dict[str, Histogram]:
    """Histograms of float tensors over all frames, in one pass; of some the extremes alone.

    `frames` yields `(name, input array)`. One frame is held at a time, and of the watched tensors
    at most `held_bytes` (by the graph's static shapes), so that memory grows with neither the
    number of frames nor the network's depth. `on_frame` sees the histograms behind each.

    Raises:
        CalibrationInputError: if there is no frame, or a tensor is not finite for a frame.
    """
    name_of_input = model.graph.input[0].name
    groups = _groups(model, tensors, held_bytes)
    session = _watcher(model, groups)
    histograms = {name: Histogram(extremes_only=name in extremes_only) for name in tensors}
    count = 0
    for frame, array in frames:
        if name_of_input in histograms:
            _add(histograms, name_of_input, array, frame)
        for group in groups:
            outputs = session.run(group, {name_of_input: array})
            for tensor, value in zip(group, outputs, strict=True):
                _add(histograms, tensor, value, frame)
        on_frame(histograms)
        count += 1
    if count == 0:
        raise CalibrationInputError("calibration: there is no frame to take ranges from")
    return histograms


def _add(histograms: dict[str, Histogram], tensor: str, value: Any, frame: str) -> None:
    try:
        histograms[tensor].add(value)
    except ValueError as error:
        raise CalibrationInputError(
            f"calibration: tensor {tensor} holds NaN or infinity for frame {frame}; "
            "look for overflow in the network, or leave the frame out"
        ) from error


def _groups(model: onnx.ModelProto, tensors: Sequence[str], held: int) -> list[list[str]]:
    """The tensors but the input, in groups that are held together."""
    shapes = shapes_of(model)
    groups: list[list[str]] = []
    room = 0
    for tensor in tensors:
        if tensor == model.graph.input[0].name:
            continue
        size = 4 * math.prod(shapes.get(tensor, ()))
        if not groups or size > room:
            groups.append([])
            room = held
        groups[-1].append(tensor)
        room -= size
    return groups


def _watcher(model: onnx.ModelProto, groups: list[list[str]]) -> ort.InferenceSession:
    """A session that gives the tensors of any of the groups."""
    tensors = [name for group in groups for name in group]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    # With nothing to watch but the input, the graph's own output keeps the session sound.
    names = tensors or [model.graph.output[0].name]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # An arena is quicker, and keeps the peak of all groups together.
    options.enable_cpu_mem_arena = len(groups) < 2
    return ort.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def check_weights(model: onnx.ModelProto) -> None:
    """Refuse constants that are not finite, before anything is run.

    Raises:
        CalibrationInputError: with the constant's name.
    """
    for tensor in model.graph.initializer:
        is_float = tensor.data_type == onnx.TensorProto.FLOAT
        if is_float and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise CalibrationInputError(
                f"calibration: weight {tensor.name} holds NaN or infinity; train again, or take an "
                "earlier checkpoint"
            )


class Settling:
    """After how many frames ranges stopped moving: no later one moved 5 % of them by 5 %.

    The range is the percentile's, which one frame's largest value does not decide.
    """

    def __init__(self, tensors: Sequence[str]):
        self._tensors = tensors
        self._last: NDArray[np.float64] | None = None
        self._frames = 0
        self.settled_after = 0

    def look(self, histograms: Mapping[str, Histogram]) -> None:
        """Compare with the frame before."""
        self._frames += 1
        now = np.array(
            [percentile(histograms[t]) if histograms[t].top else 0.0 for t in self._tensors]
        )
        if self._last is None or _share_moved(self._last, now) > _FEW:
            self.settled_after = self._frames
        self._last = now


def _share_moved(before: NDArray[np.float64], now: NDArray[np.float64]) -> float:
    return float(np.mean(np.abs(now - before) > _MOVED * before)) if len(now) else 0.0
