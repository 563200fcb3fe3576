"""When parity fails: the first layer whose output differs from PyTorch's, found by bisection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.exporter.parity import FP32_LIMIT, open_graph, random_images
from segdeploy.spec import FOLDED_KEY, MODULE_KEY

if TYPE_CHECKING:
    import onnx
    from torch import nn


@dataclass(frozen=True)
class Divergence:
    """The first layer that differs, by how much of its range, and the last one that does not."""

    module: str
    node: str
    max_rel: float
    agrees_until: str | None

    def complaint(self) -> str:
        """One clause that names the layer."""
        until = f", {self.agrees_until} before it does not" if self.agrees_until else ""
        return (
            f"the first layer that differs is {self.module} (node {self.node}), by "
            f"{self.max_rel:.2g} of its range{until}"
        )


def first_divergence(
    network: nn.Module, run: nn.Module, graph: onnx.ModelProto, shape: tuple[int, ...]
) -> Divergence | None:
    """Find it at one input shape; None if every layer that can be compared agrees.

    Compared are the modules of `network` without children that run once, and whose last node in the
    graph was not folded; a difference is taken to stay once it is there. `run` is what is called:
    the network, or what wraps it. One intermediate output is fetched at a time.
    """
    images = random_images(shape)
    names = dict(_outputs(graph))
    order = [name for name in _order(network, run, images) if name in names]
    low, high = 0, len(order)  # layers before `low` agree; the one at `high` differs
    found: Divergence | None = None
    while low < high:
        middle = (low + high) // 2
        module = order[middle]
        node, value = names[module]
        error = _difference(network, run, graph, module, value, images)
        if error <= FP32_LIMIT:
            low = middle + 1
        else:
            high = middle
            found = Divergence(module, node, error, None)
    if found is None:
        return None
    before = order[low - 1] if low else None
    return Divergence(found.module, found.node, found.max_rel, before)


def _outputs(graph: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """The last node of each module and the value that it gives; None of a folded one."""
    last: dict[str, tuple[str, str]] = {}
    folded = set()
    for node in graph.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        module = notes.get(MODULE_KEY)
        if module is not None:
            last[module] = (node.name, node.output[0])
        if FOLDED_KEY in notes:
            folded |= {module, *notes[FOLDED_KEY].split(",")}
    return {module: value for module, value in last.items() if module not in folded}


def _order(network: nn.Module, run: nn.Module, images: NDArray[np.float32]) -> list[str]:
    """Names of the modules without children that run exactly once, as they run."""
    calls: list[str] = []
    _watch(network, run, images, lambda name, output: calls.append(name))
    return [name for name in calls if calls.count(name) == 1]


def _difference(
    network: nn.Module,
    run: nn.Module,
    graph: onnx.ModelProto,
    module: str,
    value: str,
    images: NDArray[np.float32],
) -> float:
    """Largest difference of one module's output, of its range."""
    kept: list[NDArray[np.float32]] = []

    def keep(name: str, output: Any) -> None:
        if name == module:
            kept.append(output.detach().numpy().copy())  # a ReLU in place may overwrite it

    _watch(network, run, images, keep)
    session = open_graph(graph, value)
    found = session.run([value], {session.get_inputs()[0].name: images})[0]
    reference = kept[0]
    if found.shape != reference.shape or not np.isfinite(found).all():
        return float("inf")
    span = float(np.ptp(reference))
    largest = float(np.abs(found - reference).max())
    return largest / span if span else (0.0 if largest < FP32_LIMIT else float("inf"))


def _watch(network: nn.Module, run: nn.Module, images: NDArray[np.float32], note: Any) -> None:
    import torch

    hooks = [
        module.register_forward_hook(lambda _, given, output, name=name: note(name, output))
        for name, module in network.named_modules()
        if name and not list(module.children())
    ]
    try:
        with torch.inference_mode():
            run(torch.from_numpy(images))
    finally:
        for hook in hooks:
            hook.remove()
