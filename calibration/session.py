"""How ONNX Runtime is opened: nothing that it optimizes may change a number beyond rounding."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from segdeploy.calibration.errors import CalibrationInputError

# `WeightBiasQuantization` makes an int32 of a float bias behind Q/DQ, and dequantizes it in the
# type of the graph: in FP16 a bias that is large against its scale is lost. `DoubleQDQPairsRemover`
# makes one pair of two, with a scale of its own.
CHANGING_OPTIMIZERS = ("WeightBiasQuantization", "DoubleQDQPairsRemover")
_OFF = "optimization.disable_specified_optimizers"


def session_options(*, literal: bool = False, threads: int | None = None) -> ort.SessionOptions:
    """Options of every session that we open.

    With `literal` a graph is run as it is written: no optimizer is on at all. `threads` bounds the
    threads inside an operator; all cores if None.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it says is in the exception, too
    options.add_session_config_entry(_OFF, ";".join(CHANGING_OPTIMIZERS))
    if literal:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def open_on_cpu(content: bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session of a graph in memory on the CPU.

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
    """The named outputs, or all, of a session of one input.

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
