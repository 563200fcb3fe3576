"""Numeric parity: the same input through PyTorch and through ONNX Runtime."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.external_data import is_too_large, save_with_external_data

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from segdeploy.exporter.tracing import Bounds

# Two float32 libraries sum in different orders; on these networks they differ by about 1e-6 of the
# range. A wrong operator differs by 1e-2 and more.
FP32_LIMIT = 1e-4
# Where PyTorch's own rounding is larger, four times that is the limit, up to this one.
_LARGEST_LIMIT = 1e-2
_PROBED_PIXELS = 1 << 20
# A label may differ where the reference's two best classes are this near, of their mean distance.
NEAR_TIE = 1e-2


@dataclass(frozen=True)
class Parity:
    """Difference from what is named by `against`; `max_rel` is `max_abs` over its range.

    `wrong_labels` counts the pixels whose best class differs although the reference is sure of it:
    one class that is far below all others makes the range large, and would hide them.
    """

    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    agreement: float
    wrong_labels: int
    limit: float = FP32_LIMIT
    snr_db: float = float("inf")
    against: str = "PyTorch"

    @property
    def holds(self) -> bool:
        """Whether the difference is rounding."""
        return self.max_rel <= self.limit and self.wrong_labels == 0

    def complaint(self) -> str:
        """One clause with the numbers."""
        shape = "x".join(map(str, self.shape))
        by = ""
        if self.max_rel > self.limit:  # labels have no range
            by = f" by {self.max_rel:.2g} of its range (limit {self.limit:.0e})"
        return (
            f"at input {shape} the output differs from {self.against}{by}: "
            f"{self.wrong_labels} labels are wrong and {self.agreement:.2%} equal"
        )


def compare(
    shape: tuple[int, ...],
    reference: NDArray[np.float32],
    output: NDArray[np.float32],
    against: str = "PyTorch",
) -> Parity:
    """Compare logits `(N, C, H, W)`; an output that is not finite or of another shape is infinite.

    The range is the reference's largest minus its smallest value.
    """
    if output.shape != reference.shape or not np.isfinite(output).all():
        return _incomparable(shape, reference, against)
    max_abs = float(np.abs(output - reference).max())
    span = float(reference.max() - reference.min())
    max_rel = max_abs / span if span else (float("inf") if max_abs else 0.0)
    different = output.argmax(1) != reference.argmax(1)
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(output - reference, dtype=np.float64).sum())
    snr = 10 * math.log10(signal / noise) if signal and noise else float("inf")
    return Parity(
        shape,
        max_abs,
        max_rel,
        float(1 - different.mean()),
        int(_sure(reference)[different].sum()),
        snr_db=snr,
        against=against,
    )


def compare_labels(
    shape: tuple[int, ...],
    logits: NDArray[np.float32],
    labels: NDArray[np.integer],
    against: str,
) -> Parity:
    """Compare labels `(N, H, W)` with the best class of reference logits `(N, C, H, W)`."""
    if labels.shape != logits[:, 0].shape:
        return _incomparable(shape, logits, against)
    different = labels != logits.argmax(1)
    wrong = int(_sure(logits)[different].sum())
    return Parity(shape, 0.0, 0.0, float(1 - different.mean()), wrong, against=against)


def _incomparable(shape: tuple[int, ...], reference: NDArray[np.float32], against: str) -> Parity:
    """As far apart as can be: another shape, or values that are not finite."""
    worst = float("inf")
    return Parity(shape, worst, worst, 0.0, reference[:, 0].size, snr_db=-worst, against=against)


def _sure(reference: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels `(N, H, W)` whose best class is clearly ahead of the second."""
    if reference.shape[1] < 2:
        return np.zeros(reference[:, 0].shape, bool)
    best = np.partition(reference, -2, axis=1)[:, -2:]
    margin = best[:, 1] - best[:, 0]
    sure: NDArray[np.bool_] = margin > NEAR_TIE * margin.mean()
    return sure


Shape = tuple[int, int, int, int]


def probe_shapes(size: tuple[int, int], bounds: Bounds | None = None) -> list[Shape]:
    """Input shapes to compare at: the traced one and, within `bounds`, others it never saw.

    They are half of it with batch 2, an odd size, batch 3, the largest batch at the smallest size,
    and, so that code which branches on a large size shows, four times its sides or what of that is
    within the largest size and a million pixels.
    """
    height, width = size
    if bounds is None:
        return [(1, 3, height, width)]
    (low, narrow), (high, wide) = bounds.smallest, bounds.largest
    shapes = [
        (1, 3, height, width),
        (min(2, bounds.batch), 3, max(height // 2, low), max(width // 2, narrow)),
        (1, 3, min(height + 13, high), min(width + 7, wide)),
        (min(3, bounds.batch), 3, height, width),
        (bounds.batch, 3, low, narrow),
    ]
    factor = min(4.0, math.sqrt(_PROBED_PIXELS / (height * width)))
    if factor > 1:
        shapes.append((1, 3, min(high, int(height * factor)), min(wide, int(width * factor))))
    return shapes


def random_images(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Normal noise, another for each image of the batch, so that one that is mixed up shows."""
    images: NDArray[np.float32] = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    return images


def compare_on(
    network: nn.Module, graph: onnx.ModelProto, images: NDArray[np.float32], against: str
) -> Parity:
    """Compare both on images `(N, 3, H, W)` that are given."""
    import torch

    session = open_graph(graph)
    with torch.inference_mode():
        reference = network(torch.from_numpy(images)).numpy()
    output = session.run(None, {session.get_inputs()[0].name: images})[0]
    return compare(images.shape, reference, output, against)


def check_parity(
    network: nn.Module, graph: onnx.ModelProto, shapes: Iterable[Shape]
) -> list[Parity]:
    """Run random images of each shape through both, and compare.

    Logits that are not of the input's size fail, whatever PyTorch gives. Of a batch, images are
    also run alone and in another order, and must give what they gave in their place: builders have
    been right for one image, and wrong for two (NVIDIA/TensorRT issue 4853).
    """
    import torch

    session = open_graph(graph)
    name = session.get_inputs()[0].name
    results = []
    for shape in shapes:
        images = random_images(shape)
        with torch.inference_mode():
            reference = network(torch.from_numpy(images)).numpy()
        output = session.run(None, {name: images})[0]
        if output.shape[2:] != shape[2:]:
            output = output[:, :, :0]
        result = compare(shape, reference, output)
        if FP32_LIMIT < result.max_rel < _LARGEST_LIMIT:
            rounding = _own_rounding(network, images, reference)
            result = replace(result, limit=min(max(FP32_LIMIT, 4 * rounding), _LARGEST_LIMIT))
        results.append(result)
        if shape[0] > 1 and results[-1].holds:
            results += _check_rows(lambda x: session.run(None, {name: x})[0], images, output)
    return results


def _own_rounding(
    network: nn.Module, images: NDArray[np.float32], reference: NDArray[np.float32]
) -> float:
    """How far PyTorch's float32 is from its float64, of the range.

    A deep network that was not trained amplifies rounding, in PyTorch as in any other library.
    """
    import torch

    with torch.inference_mode():
        exact = copy.deepcopy(network).double()(torch.from_numpy(images).double()).numpy()
    return compare(images.shape, exact.astype(np.float32), reference).max_rel


def _check_rows(
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    images: NDArray[np.float32],
    output: NDArray[np.float32],
) -> list[Parity]:
    rows = sorted({0, len(images) // 2, len(images) - 1})
    alone = np.concatenate([run(images[row : row + 1]) for row in rows])
    order = np.roll(np.arange(len(images)), 1)
    return [
        compare(images.shape, alone, output[rows], "the same image alone"),
        compare(images.shape, output[order], run(images[order]), "its place in another order"),
    ]


Outputs = list[NDArray[Any]]


def compare_outputs(
    references: Mapping[tuple[int, ...], Outputs], graph: onnx.ModelProto
) -> list[Parity]:
    """Run random inputs of each shape through a graph, and compare every output with what is given.

    The graph takes one input. An output is compared as `(N, C, ...)`, whatever it means.
    """
    return [
        compare(shape, _as_map(one), _as_map(other), "the graph as given")
        for shape, outputs in run_graph(graph, references).items()
        for one, other in zip(references[shape], outputs, strict=True)
    ]


def run_graph(
    graph: onnx.ModelProto, shapes: Iterable[tuple[int, ...]]
) -> dict[tuple[int, ...], Outputs]:
    """All outputs of a graph for a random input a shape: noise, or bytes where it takes them."""
    session = open_graph(graph)
    source = session.get_inputs()[0]
    random = random_bytes if source.type == "tensor(uint8)" else random_images
    return {shape: session.run(None, {source.name: random(shape)}) for shape in shapes}


def _as_map(output: NDArray[Any]) -> NDArray[np.float32]:
    rank = output.ndim
    return output.astype(np.float32).reshape(output.shape + (1,) * max(0, 4 - rank))


def random_bytes(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Bytes of pictures, each another."""
    values: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return values


def open_graph(graph: onnx.ModelProto, values: Iterable[str] = ()) -> Any:
    """An ONNX Runtime session on a graph in memory; `values` become outputs, too."""
    import onnx
    import onnxruntime as ort

    there = {output.name for output in graph.graph.output}
    if wanted := [onnx.ValueInfoProto(name=value) for value in values if value not in there]:
        copied = onnx.ModelProto()
        copied.CopyFrom(graph)
        copied.graph.output.extend(wanted)
        graph = copied
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it says is in the exception, too
    providers = ["CPUExecutionProvider"]
    if not is_too_large(graph):
        return ort.InferenceSession(graph.SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        save_with_external_data(graph, path)
        return ort.InferenceSession(path, options, providers=providers)
