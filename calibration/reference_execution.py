"""Running a graph as it is written, which is what TensorRT computes.

ONNX Runtime's own optimisations turn Q/DQ pairs into integer kernels, which saturate on CPUs
without VNNI; with all of them off, Q/DQ are float operations. It has no half kernels either, and
rounds nothing: so that is written into the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from segdeploy.calibration.half_precision import is_half, rounded
from segdeploy.calibration.session import open_on_cpu, outputs_of, session_options


def open_literal(model: onnx.ModelProto, tensor: str | None = None) -> ort.InferenceSession:
    """A session without any graph optimisation; it gives `tensor` alone, if one is named."""
    if tensor is not None:
        cut = onnx.ModelProto()
        cut.CopyFrom(model)
        del cut.graph.output[:]
        cut.graph.output.add(name=tensor)
        model = cut
    if is_half(model):
        model = rounded(model)
    return open_on_cpu(model.SerializeToString(), session_options(literal=True))


def scores_of(model: onnx.ModelProto) -> str:
    """The output, or what the best class is taken of where the graph ends in labels."""
    producers = {name: node for node in model.graph.node for name in node.output}
    name: str = model.graph.output[0].name
    while name in producers and producers[name].op_type in ("Cast", "ArgMax", "Softmax"):
        name = producers[name].input[0]
    return name


class Reference:
    """Class scores of the FP32 graph for a few images, to set every other graph beside them."""

    def __init__(self, model: onnx.ModelProto, images: Sequence[NDArray[Any]]):
        self._tensor = scores_of(model)
        self._images = images
        session = open_literal(model, self._tensor)
        self._outputs = [_run(session, image) for image in images]

    def snr_db(self, model: onnx.ModelProto) -> float:
        """Power of the reference over that of another graph's difference, in dB, run literally.

        The other graph has the same name for its class scores.
        """
        session = open_literal(model, self._tensor)
        signal = noise = 0.0
        for image, expected in zip(self._images, self._outputs, strict=True):
            difference = _run(session, image) - expected
            signal += float(np.square(expected, dtype=np.float64).sum())
            noise += float(np.square(difference, dtype=np.float64).sum())
        if not noise:
            return float("inf")
        return float(10 * np.log10(signal / noise)) if signal and np.isfinite(noise) else -np.inf


def _run(session: ort.InferenceSession, image: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(outputs_of(session, None, image)[0], np.float32)
