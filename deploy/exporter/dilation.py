"""The dilation proof: every convolution of a graph against the PyTorch module it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segdeploy.spec import FOLDED_KEY, MODULE_KEY

if TYPE_CHECKING:
    import onnx
    from torch import nn


@dataclass(frozen=True)
class ConvGeometry:
    """What decides which pixels a 2-D convolution reads; pairs are (vertical, horizontal).

    `padding` is ONNX's order: top, left, bottom, right.
    """

    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int

    @property
    def is_pointwise(self) -> bool:
        """Whether it reads one pixel: a 1x1 convolution with stride 1 and no padding."""
        return (set(self.kernel), set(self.stride), set(self.padding)) == ({1}, {1}, {0})

    def differences(self, other: ConvGeometry) -> str:
        """Say in words where `other` departs from this geometry; empty if nowhere."""
        return ", ".join(
            f"{name} {getattr(other, name)} instead of {getattr(self, name)}"
            for name in ("kernel", "dilation", "stride", "padding", "groups")
            if getattr(other, name) != getattr(self, name)
        )


@dataclass(frozen=True)
class ConvProof:
    """One PyTorch convolution beside what a graph made of it.

    `found` is None if there is no such node; a 1x1 convolution may have been multiplied into the
    nodes `folded_into`, which changes no pixel that is read (parity proves the numbers).
    """

    module: str
    node: str | None
    expected: ConvGeometry
    found: ConvGeometry | None
    folded_into: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the graph computes the same convolution."""
        if self.folded_into:
            return self.expected.is_pointwise
        return self.expected == self.found

    def complaint(self) -> str:
        """One clause that names the module and what became of it."""
        if self.folded_into:
            return f"convolution {self.module} is no 1x1 convolution, yet it was folded away"
        if self.found is None:
            return f"convolution {self.module} has no node in the graph"
        return f"convolution {self.module} (node {self.node}) has " + self.expected.differences(
            self.found
        )


def prove_dilations(
    network: nn.Module, size: tuple[int, int], graph: onnx.ModelProto
) -> list[ConvProof]:
    """Compare every 2-D convolution that `network` runs with the Conv nodes of `graph`.

    A node belongs to the module whose weight it reads: a node fused with BatchNorm keeps that name,
    while its scope names the BatchNorm. A node that a rewrite made says its module itself. A module
    that is run several times has several nodes, and each must agree. What a rewrite folded away
    is traced to the nodes that took it in.
    """
    nodes: dict[str, list[tuple[str, ConvGeometry]]] = {}
    folded: dict[str, list[str]] = {}
    for node in graph.graph.node:
        if node.op_type == "Conv":
            notes = {entry.key: entry.value for entry in node.metadata_props}
            module = node.input[1].removesuffix(".weight")
            if FOLDED_KEY in notes:
                module = notes[MODULE_KEY]
                for absorbed in notes[FOLDED_KEY].split(","):
                    folded.setdefault(absorbed, []).append(node.name)
            nodes.setdefault(module, []).append((node.name, node_geometry(node, graph)))
    proofs = []
    for module, expected in module_geometries(network, size).items():
        if module in nodes:
            proofs += [ConvProof(module, name, expected, geo) for name, geo in nodes[module]]
        else:
            into = tuple(folded.get(module, ()))
            proofs.append(ConvProof(module, None, expected, None, into))
    return proofs


def module_geometries(network: nn.Module, size: tuple[int, int]) -> dict[str, ConvGeometry]:
    """Geometry of every `nn.Conv2d` that a forward pass at `size` (H, W) really runs, by name."""
    import torch
    from torch import nn

    ran: dict[str, ConvGeometry] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def note(conv: nn.Module, *_: Any, name: str = name) -> None:
                assert isinstance(conv, nn.Conv2d)
                ran[name] = _module_geometry(conv)

            hooks.append(module.register_forward_hook(note))
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, *size))
    finally:
        for hook in hooks:
            hook.remove()
    return ran


def _module_geometry(conv: nn.Conv2d) -> ConvGeometry:
    # PyTorch's own order is (left, right, top, bottom), and holds "same" padding resolved.
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    padding = (top, left, bottom, right)
    if conv.padding_mode != "zeros":
        padding = (0, 0, 0, 0)  # a Pad node before the convolution does it
    return ConvGeometry(
        tuple(conv.kernel_size), tuple(conv.dilation), tuple(conv.stride), padding, conv.groups
    )


def node_geometry(node: onnx.NodeProto, graph: onnx.ModelProto) -> ConvGeometry:
    """Read the geometry of an ONNX Conv node, with the operator's defaults filled in."""
    import onnx

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kernel = attributes.get("kernel_shape")
    if kernel is None:
        kernel = _kernel_of_weight(node.input[1], graph)
    rank = len(kernel)
    return ConvGeometry(
        kernel=tuple(kernel),
        dilation=tuple(attributes.get("dilations", (1,) * rank)),
        stride=tuple(attributes.get("strides", (1,) * rank)),
        padding=tuple(attributes.get("pads", (0,) * 2 * rank)),
        groups=attributes.get("group", 1),
    )


def _kernel_of_weight(weight: str, graph: onnx.ModelProto) -> tuple[int, ...]:
    # A quantised weight stands behind a DequantizeLinear.
    sources = {
        node.output[0]: node.input[0]
        for node in graph.graph.node
        if node.op_type == "DequantizeLinear"
    }
    name = sources.get(weight, weight)
    return next((tuple(t.dims[2:]) for t in graph.graph.initializer if t.name == name), ())
