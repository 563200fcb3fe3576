"""Activation ranges: the largest magnitude that each tensor takes over the calibration frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from segdeploy.calibration.errors import CalibrationInputError


def conv_inputs(model: onnx.ModelProto) -> list[str]:
    """Names of the tensors that Conv nodes read as data, each once, in graph order."""
    return list(dict.fromkeys(n.input[0] for n in model.graph.node if n.op_type == "Conv"))


def observe_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    frames: Iterable[tuple[str, NDArray[np.float32]]],
) -> Mapping[str, float]:
    """Largest absolute value of each tensor over all frames (min-max, symmetric).

    `frames` yields `(name, input array (N, 3, H, W) float32)`. One frame is held at a time, so
    memory does not grow with their number; every frame counts, in any order.

    Raises:
        CalibrationInputError: if there is no frame, or a tensor is not finite for a frame.
    """
    run, input_name, observed = _observer(model, tensors)
    largest = dict.fromkeys(tensors, 0.0)
    count = 0
    for name, array in frames:
        values = dict(zip(observed, run(array), strict=True))
        if input_name in largest:
            values[input_name] = array
        for tensor, value in values.items():
            peak = float(np.abs(value).max())
            if not np.isfinite(peak):
                raise CalibrationInputError(
                    f"calibration: tensor {tensor} holds NaN or infinity for frame {name}; "
                    "look for overflow in the network, or leave the frame out"
                )
            largest[tensor] = max(largest[tensor], peak)
        count += 1
    if count == 0:
        raise CalibrationInputError("calibration: there is no frame to take ranges from")
    return largest


def _observer(
    model: onnx.ModelProto, tensors: Sequence[str]
) -> tuple[Callable[[NDArray[np.float32]], list[Any]], str, list[str]]:
    """A function that runs the graph up to `tensors`, its input's name, and the tensors' names."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    input_name = watched.graph.input[0].name
    observed = [name for name in tensors if name != input_name]
    if not observed:
        return lambda array: [], input_name, observed
    del watched.graph.output[:]
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in observed
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda array: session.run(observed, {input_name: array}), input_name, observed
