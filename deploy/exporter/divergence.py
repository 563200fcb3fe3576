"""When parity fails: the first layer whose output differs from PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.exporter.parity import FP32_LIMIT, open_graph, random_images
from segdeploy.spec import FOLDED_KEY, MODULE_KEY

if TYPE_CHECKING:
    import onnx
    from torch import nn

_AT_ONCE = 16


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
    network: nn.Module,
    run: nn.Module,
    graph: onnx.ModelProto,
    shape: tuple[int, ...],
    limit: float = FP32_LIMIT,
) -> Divergence | None:
    """Find it at one input shape; None if every layer that can be compared agrees within `limit`.

    Compared are the modules of `network` without children that run once, and whose last node in the
    graph was not folded, from the first to run to the last. Bisection would be quicker and wrong:
    behind one of several parallel branches, the others agree again. `run` is what is called: the
    network, or what wraps it. `_AT_ONCE` intermediate outputs are held at a time.
    """
    images = random_images(shape)
    names = dict(_outputs(graph))
    order = [name for name in _order(network, run, images) if name in names]
    before: str | None = None
    for start in range(0, len(order), _AT_ONCE):
        chosen = {name: names[name][1] for name in order[start : start + _AT_ONCE]}
        for module, error in _differences(network, run, graph, chosen, images).items():
            if error > limit:
                return Divergence(module, names[module][0], error, before)
            before = module
    return None


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


def _differences(
    network: nn.Module,
    run: nn.Module,
    graph: onnx.ModelProto,
    values: Mapping[str, str],
    images: NDArray[np.float32],
) -> dict[str, float]:
    """Largest difference of each module's output, of its range, in the order in which they run.

    `values` are the graph's, by module.
    """
    session = open_graph(graph, values.values())
    outputs = session.run(list(values.values()), {session.get_inputs()[0].name: images})
    found = dict(zip(values, outputs, strict=True))
    errors: dict[str, float] = {}

    def compare(name: str, output: Any) -> None:
        if name in found:  # at once: a ReLU in place may overwrite it
            errors[name] = _difference(output.detach().numpy(), found.pop(name))

    _watch(network, run, images, compare)
    return errors


def _difference(reference: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    if found.shape != reference.shape or not np.isfinite(found).all():
        return float("inf")
    span = float(np.ptp(reference))
    # Where values are large beside their range, that range is no measure of their rounding.
    rounding = 16 * float(np.finfo(np.float32).eps) * float(np.abs(reference).max())
    largest = max(0.0, float(np.abs(found - reference).max()) - rounding)
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
