"""Reference Q/DQ execution: the graph executed node by node, as TensorRT computes.

ONNX Runtime's own optimizations turn Q/DQ pairs into integer kernels, which saturate on CPUs
without VNNI. With all optimizations off, Q/DQ nodes are float operations. ONNX Runtime also has no
FP16 or BF16 kernels on CPUs and omits the rounding. The rounding is therefore written into the
graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from segdeploy.calibration.difference import power, snr_db
from segdeploy.calibration.half_precision import is_half, rounded
from segdeploy.calibration.session import open_on_cpu, outputs_of, session_options


def open_reference_execution(
    model: onnx.ModelProto, tensor: str | None = None
) -> ort.InferenceSession:
    """Open a session without graph optimizations; `tensor`, if given, is its only output."""
    if tensor is not None:
        cut = onnx.ModelProto()
        cut.CopyFrom(model)
        del cut.graph.output[:]
        cut.graph.output.add(name=tensor)
        model = cut
    if is_half(model):
        model = rounded(model)
    return open_on_cpu(model.SerializeToString(), session_options(reference_execution=True))


def scores_of(model: onnx.ModelProto) -> str:
    """Return the name of the class scores: the output before the nodes that turn it into labels.

    These are a final Softmax, ArgMax or Cast, or the comparison with a threshold, which a Squeeze
    precedes in a binary network, and which the sum of bit planes follows in a multilabel network.
    """
    producers = {name: node for node in model.graph.node for name in node.output}

    def behind(name: str, *operators: str) -> str | None:
        """Return the first input of a chain of operators that ends in `name`, or None."""
        for operator in operators:
            node = producers.get(name)
            if node is None or node.op_type != operator:
                return None
            name = node.input[0]
        return name

    name: str = model.graph.output[0].name
    while name in producers and producers[name].op_type in ("Cast", "ArgMax", "Softmax"):
        name = producers[name].input[0]
    compared = behind(name, "ReduceSum", "Mul", "Cast", "Greater") or behind(name, "Greater")
    if compared is None:
        return name
    return behind(compared, "Squeeze") or compared


class Reference:
    """Class scores of the FP32 graph for a few images, the reference for other graphs."""

    def __init__(self, model: onnx.ModelProto, images: Sequence[NDArray[Any]]):
        self._tensor = scores_of(model)
        self._images = images
        session = open_reference_execution(model, self._tensor)
        self._outputs = [_run(session, image) for image in images]

    def snr_db(self, model: onnx.ModelProto) -> float:
        """Return the signal-to-noise ratio of another graph's class scores, in dB.

        The signal is the reference. The noise is the difference of the other graph from the
        reference, under reference execution. Both graphs have the same name for the class scores.
        """
        session = open_reference_execution(model, self._tensor)
        signal = noise = 0.0
        for image, expected in zip(self._images, self._outputs, strict=True):
            signal += power(expected)
            noise += power(_run(session, image) - expected)
        return snr_db(signal, noise)


def _run(session: ort.InferenceSession, image: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(outputs_of(session, None, image)[0], np.float32)
