"""Numeric parity: the same input through PyTorch and through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

    from segdeploy.models.network import Network

# Two float32 libraries sum in different orders; on these networks they differ by about 1e-6 of the
# range. A wrong operator differs by 1e-2 and more.
FP32_LIMIT = 1e-4
# A label may differ where the reference's two best classes are this near, of their mean distance.
NEAR_TIE = 1e-2
# The smallest height and width of a dynamic graph, unless it was traced with smaller ones.
SMALLEST_SIDE = 32


@dataclass(frozen=True)
class Parity:
    """Difference between two outputs; `max_rel` is `max_abs` over the reference's range.

    `wrong_labels` counts the pixels whose best class differs although the reference is sure of it:
    one class that is far below all others makes the range large, and would hide them.
    """

    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    agreement: float
    wrong_labels: int
    limit: float = FP32_LIMIT

    @property
    def holds(self) -> bool:
        """Whether the difference is rounding."""
        return self.max_rel <= self.limit and self.wrong_labels == 0

    def complaint(self) -> str:
        """One clause with the numbers."""
        shape = "x".join(map(str, self.shape))
        return (
            f"at input {shape} the output differs by {self.max_rel:.2g} of its range "
            f"(limit {self.limit:.0e}), {self.wrong_labels} labels are wrong and "
            f"{self.agreement:.2%} equal"
        )


def compare(
    shape: tuple[int, ...], reference: NDArray[np.float32], output: NDArray[np.float32]
) -> Parity:
    """Compare logits `(N, C, H, W)`; an output that is not finite or of another shape is infinite.

    The range is the reference's largest minus its smallest value.
    """
    if output.shape != reference.shape or not np.isfinite(output).all():
        return Parity(shape, float("inf"), float("inf"), 0.0, reference[:, 0].size)
    max_abs = float(np.abs(output - reference).max())
    span = float(reference.max() - reference.min())
    max_rel = max_abs / span if span else (float("inf") if max_abs else 0.0)
    different = output.argmax(1) != reference.argmax(1)
    return Parity(
        shape, max_abs, max_rel, float(1 - different.mean()), int(_sure(reference)[different].sum())
    )


def _sure(reference: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels `(N, H, W)` whose best class is clearly ahead of the second."""
    if reference.shape[1] < 2:
        return np.zeros(reference[:, 0].shape, bool)
    best = np.partition(reference, -2, axis=1)[:, -2:]
    margin = best[:, 1] - best[:, 0]
    sure: NDArray[np.bool_] = margin > NEAR_TIE * margin.mean()
    return sure


def probe_shapes(size: tuple[int, int], *, dynamic: bool) -> list[tuple[int, int, int, int]]:
    """Input shapes to compare at: the traced one and, for a dynamic graph, three it never saw."""
    height, width = size
    if not dynamic:
        return [(1, 3, height, width)]
    low, narrow = (max(side // 2, min(SMALLEST_SIDE, side)) for side in size)
    return [
        (1, 3, height, width),
        (2, 3, low, narrow),
        (1, 3, height + 13, width + 7),
        (3, 3, height, width),
    ]


def check_parity(
    network: Network, graph: onnx.ModelProto, shapes: Iterable[tuple[int, int, int, int]]
) -> list[Parity]:
    """Run random images of each shape through both, and compare.

    Every image of a batch is different, so that one that is mixed up with another shows. Logits
    that are not of the input's size fail, whatever PyTorch gives.
    """
    import torch

    session = _session(graph)
    rng = np.random.default_rng(0)
    results = []
    for shape in shapes:
        images = rng.normal(0, 1, shape).astype(np.float32)
        with torch.inference_mode():
            reference = network(torch.from_numpy(images)).numpy()
        output = session.run(None, {session.get_inputs()[0].name: images})[0]
        if output.shape[2:] != shape[2:]:
            output = output[:, :, :0]
        results.append(compare(shape, reference, output))
    return results


def compare_graphs(
    before: onnx.ModelProto, after: onnx.ModelProto, shapes: Iterable[tuple[int, ...]]
) -> list[Parity]:
    """Run random inputs of each shape through two graphs, and compare every output.

    Both take one input. An output is compared as `(N, C, ...)`, whatever it means.
    """
    sessions: list[Any] = []
    rng = np.random.default_rng(0)
    results = []
    for shape in shapes:
        sessions = sessions or [_session(before), _session(after)]
        source = sessions[0].get_inputs()[0]
        if source.type == "tensor(uint8)":
            array: NDArray[Any] = rng.integers(0, 256, shape).astype(np.uint8)
        else:
            array = rng.normal(0, 1, shape).astype(np.float32)
        outputs = [session.run(None, {source.name: array}) for session in sessions]
        for one, other in zip(*outputs, strict=True):
            results.append(compare(shape, _as_map(one), _as_map(other)))
    return results


def _as_map(output: NDArray[Any]) -> NDArray[np.float32]:
    rank = output.ndim
    return output.astype(np.float32).reshape(output.shape + (1,) * max(0, 4 - rank))


def _session(graph: onnx.ModelProto) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
