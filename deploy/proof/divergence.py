"""Search for the first layer whose output differs from PyTorch's, after a failed parity check."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.calibration.difference import max_abs, value_range
from segdeploy.contract import FOLDED_KEY
from segdeploy.onnx_graph.model_file import module_of
from segdeploy.proof.graph_session import open_graph
from segdeploy.proof.parity import FP32_LIMIT, rounding_of

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

_AT_ONCE = 16
Call = tuple[str, int]  # a module's name, and the index of the call


@dataclass(frozen=True)
class Divergence:
    """The first layer that differs, its error as a fraction of its range, and the layer before."""

    module: str
    node: str
    max_rel: float
    agrees_until: str | None

    def failure(self) -> str:
        """Return one clause that names the layer."""
        until = f", {self.agrees_until} before it agrees" if self.agrees_until else ""
        return (
            f"the first layer that differs is {self.module} (node {self.node}), by "
            f"{self.max_rel:.2g} of its range{until}"
        )


@dataclass(frozen=True)
class LayerError:
    """Largest difference of one layer's output from PyTorch's, as a fraction of the output's range.

    `of` is the number of layers that can be compared. `is_moved` marks a layer that a rewrite
    moved: the tensor has another shape, and the error is infinite.
    """

    module: str
    node: str
    max_rel: float
    of: int
    is_moved: bool = False


def layer_errors(
    network: nn.Module, run: nn.Module, graph: onnx.ModelProto, images: NDArray[np.float32]
) -> Iterator[LayerError]:
    """Yield the error of each layer in execution order; see `first_divergence`."""
    calls = _calls(network, run, images)
    nodes = _nodes(graph, Counter(name for name, _ in calls))
    order = [call for call in calls if call in nodes]
    for start in range(0, len(order), _AT_ONCE):
        chosen = {call: nodes[call][1] for call in order[start : start + _AT_ONCE]}
        for call, error in _differences(network, run, graph, chosen, images).items():
            moved = math.isnan(error)
            largest = math.inf if moved else error
            yield LayerError(call[0], nodes[call][0], largest, len(order), moved)


def first_divergence(
    network: nn.Module,
    run: nn.Module,
    graph: onnx.ModelProto,
    images: NDArray[np.float32],
    limit: float = FP32_LIMIT,
) -> tuple[Divergence | None, int]:
    """Return the first divergence on images `(N, C, H, W)`, or None, and the number of layers.

    The calls of the leaf modules of `network` are compared in execution order. `graph` is the
    traced graph, since rewrites change the values that nodes compute. Bisection would be faster but
    wrong: after an error in one of several parallel branches, the layers of the next branch agree
    again. `run` is the module that is called: the network or its wrapper. At most `_AT_ONCE`
    outputs are held at a time.
    """
    before: str | None = None
    count = 0
    for layer in layer_errors(network, run, graph, images):
        count = layer.of
        if layer.max_rel > limit:
            return Divergence(layer.module, layer.node, layer.max_rel, before), count
        before = layer.module
    return None, count


def _nodes(graph: onnx.ModelProto, calls: Mapping[str, int]) -> dict[Call, tuple[str, str]]:
    """Return the name of the last node of each module call, and the name of the node's output.

    The nodes of a module that is called several times form one group per call, equal in size and
    in call order.
    """
    made: dict[str, list[tuple[str, str]]] = {}
    for node in graph.graph.node:
        module = module_of(node)
        folded = any(entry.key == FOLDED_KEY for entry in node.metadata_props)
        if module is not None and not folded:  # a node with a folded layer gives another tensor
            made.setdefault(module, []).append((node.name, node.output[0]))
    found = {}
    for module, nodes in made.items():
        count = calls.get(module, 0)
        if count and len(nodes) % count == 0:
            each = len(nodes) // count
            for number in range(count):
                found[module, number] = nodes[(number + 1) * each - 1]
    return found


def _calls(network: nn.Module, run: nn.Module, images: NDArray[np.float32]) -> list[Call]:
    """Return the calls of leaf modules in execution order."""
    calls: list[Call] = []
    _watch(network, run, images, lambda call, output: calls.append(call))
    return calls


def _differences(
    network: nn.Module,
    run: nn.Module,
    graph: onnx.ModelProto,
    values: Mapping[Call, str],
    images: NDArray[np.float32],
) -> dict[Call, float]:
    """Return the largest difference of each call's output, as a fraction of the output's range.

    `values` holds the name of the graph's tensor for each call. The result is in execution order.
    """
    session = open_graph(graph, values.values())
    outputs = session.run(list(values.values()), {session.get_inputs()[0].name: images})
    found = dict(zip(values, outputs, strict=True))
    errors: dict[Call, float] = {}

    def compare(call: Call, output: Tensor) -> None:
        if call in found:  # compared now, since an in-place ReLU may overwrite the output
            errors[call] = _difference(output.numpy(), found[call])

    _watch(network, run, images, compare)
    return errors


def _difference(reference: NDArray[np.float32], found: NDArray[Any]) -> float:
    found = found.astype(np.float32)  # the graph may be FP16
    if found.shape != reference.shape:
        return math.nan
    if not np.isfinite(found).all():
        return math.inf
    span = value_range(reference)
    # Rounding grows with the magnitude of values, which may be large compared with their range.
    largest = max(0.0, max_abs(found, reference) - rounding_of(reference))
    return largest / span if span else (0.0 if largest < FP32_LIMIT else float("inf"))


def _watch(
    network: nn.Module,
    run: nn.Module,
    images: NDArray[np.float32],
    note: Callable[[Call, Tensor], None],
) -> None:
    """Run the network; pass each leaf-module call that returns one float tensor to `note`."""
    import torch

    counts: Counter[str] = Counter()

    def hook(name: str, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            note((name, counts[name]), output)
            counts[name] += 1

    hooks = [
        module.register_forward_hook(lambda _, given, output, name=name: hook(name, output))
        for name, module in network.named_modules()
        if name and not list(module.children())
    ]
    try:
        with torch.inference_mode():
            run(torch.from_numpy(images.copy()))
    finally:
        for one in hooks:
            one.remove()
