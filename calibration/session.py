"""How ONNX Runtime is opened: nothing that it optimizes may change a number beyond rounding."""

from __future__ import annotations

import onnxruntime as ort

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
