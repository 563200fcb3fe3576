"""ONNX Runtime sessions whose optimizations change numbers by no more than rounding."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from segdeploy.calibration.errors import CalibrationInputError

# `WeightBiasQuantization` turns a float bias after Q/DQ into int32, and dequantizes it in the type
# of the graph. In FP16 a bias that is large against its scale is lost. `DoubleQDQPairsRemover`
# merges two Q/DQ pairs into one, with a new scale.
CHANGING_OPTIMIZERS = ("WeightBiasQuantization", "DoubleQDQPairsRemover")
_OFF = "optimization.disable_specified_optimizers"


def session_options(
    *, reference_execution: bool = False, threads: int | None = None
) -> ort.SessionOptions:
    """Return the options of every session that segdeploy opens.

    With `reference_execution` the graph is executed as written, with all optimizers off. `threads`
    limits the threads inside an operator; None means all cores.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # the exception holds the messages, too
    options.add_session_config_entry(_OFF, ";".join(CHANGING_OPTIMIZERS))
    if reference_execution:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def open_on_cpu(content: bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """Open a session of a serialized graph on the CPU.

    Raises:
        CalibrationInputError: if ONNX Runtime refuses the graph.
    """
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding's classes share no base below Exception
        raise CalibrationInputError(
            f"ONNX Runtime cannot load the graph ({_one_line(error)})"
        ) from error


def outputs_of(session: ort.InferenceSession, names: list[str] | None, image: Any) -> list[Any]:
    """Run a session of one input, and return the named outputs, or all if None.

    Raises:
        CalibrationInputError: if ONNX Runtime cannot run the graph.
    """
    try:
        found: list[Any] = session.run(names, {session.get_inputs()[0].name: image})
    except Exception as error:  # as above
        raise CalibrationInputError(
            f"ONNX Runtime cannot run the graph on {image.shape} ({_one_line(error)})"
        ) from error
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
