"""The dilation proof: every convolution of a graph against the PyTorch module it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    padding: tuple[int | str, ...]
    groups: int
    transposed: bool = False

    @property
    def is_pointwise(self) -> bool:
        """Whether it reads one pixel: a 1x1 convolution with stride 1 and no padding."""
        return (set(self.kernel), set(self.stride), set(self.padding)) == ({1}, {1}, {0})

    def without_dead_taps(self, source: tuple[int, ...], output: tuple[int, ...]) -> ConvGeometry:
        """What is left where only taps count that read a map of `source` (H, W), not its padding.

        `output` is the size of what the convolution gives. Asked of every tap and output in turn.
        """
        kernel, front, back = [], [], []
        for axis in (0, 1):
            stride, rate = self.stride[axis], self.dilation[axis]
            pad = int(self.padding[axis])
            live = [
                tap
                for tap in range(self.kernel[axis])
                if any(
                    0 <= o * stride + tap * rate - pad < source[axis] for o in range(output[axis])
                )
            ]
            first, last = (live[0], live[-1]) if live else (self.kernel[axis] - 1,) * 2
            first = min(first, pad // rate)  # a dead tap stays where the padding would be negative

            def end(last: int, axis: int = axis) -> int:
                reach = (output[axis] - 1) * self.stride[axis] + last * self.dilation[axis]
                return reach - int(self.padding[axis]) + 1 - source[axis]

            while end(last) <= -stride:  # or where another output would appear
                last += 1
            kernel.append(last - first + 1)
            front.append(pad - first * rate)
            back.append(max(0, end(last)))
        dilation = tuple(
            d if k > 1 or was == 1 else 1
            for d, k, was in zip(self.dilation, kernel, self.kernel, strict=True)
        )
        return replace(self, kernel=tuple(kernel), dilation=dilation, padding=(*front, *back))

    def differences(self, other: ConvGeometry) -> str:
        """Say in words where `other` departs from this geometry; empty if nowhere."""
        return ", ".join(
            f"{name} {getattr(other, name)} instead of {getattr(self, name)}"
            for name in ("kernel", "dilation", "stride", "padding", "groups", "transposed")
            if getattr(other, name) != getattr(self, name)
        )


@dataclass(frozen=True)
class ConvProof:
    """One PyTorch convolution beside what a graph made of it.

    `found` is None if there is no such node; a 1x1 convolution may have been multiplied into the
    nodes `folded_into`, which changes no pixel that is read (parity proves the numbers). `live` is
    what `expected` is at a static size without the taps that read padding alone.
    """

    module: str
    node: str | None
    expected: ConvGeometry
    found: ConvGeometry | None
    folded_into: tuple[str, ...] = ()
    live: ConvGeometry | None = None

    @property
    def holds(self) -> bool:
        """Whether the graph computes the same convolution."""
        if self.folded_into:
            return self.expected.is_pointwise
        return self.found is not None and self.found in (self.expected, self.live)

    def complaint(self) -> str:
        """One clause that names the module and what became of it."""
        if self.folded_into:
            return f"convolution {self.module} is no 1x1 convolution, yet it was folded away"
        if self.found is None:
            return f"convolution {self.module} has no node in the graph"
        return f"convolution {self.module} (node {self.node}) has " + self.expected.differences(
            self.found
        )


@dataclass(frozen=True)
class DilationProof:
    """All convolutions that a network runs, and the graph's nodes that belong to none of them."""

    convolutions: tuple[ConvProof, ...]
    strangers: tuple[str, ...]


def prove_dilations(
    network: nn.Module,
    size: tuple[int, int],
    graph: onnx.ModelProto,
    run: nn.Module | None = None,
) -> DilationProof:
    """Compare every 2-D convolution that `network` runs, plain or transposed, with `graph`'s nodes.

    A node belongs to the module that its scope names; one that was fused with BatchNorm has the
    BatchNorm's scope, and belongs to the convolution that feeds it. A node that a rewrite made says
    its module itself. A module that runs several times has as many nodes, and each must
    agree. What a rewrite folded away is traced to the nodes that took it in. A convolution that is
    called as a function, without a module, has nothing to be compared with: a stranger. `run` is
    what is called, if something wraps the network.
    """
    ran, norms = module_geometries(network, size, run)
    static = _has_static_size(graph)
    nodes: dict[str, list[tuple[str, ConvGeometry]]] = {}
    folded: dict[str, list[str]] = {}
    strangers = []
    for node in graph.graph.node:
        if node.op_type not in CONVOLUTIONS:
            continue
        geometry = node_geometry(node, graph)
        notes = {entry.key: entry.value for entry in node.metadata_props}
        if FOLDED_KEY in notes:
            for absorbed in notes[FOLDED_KEY].split(","):
                folded.setdefault(norms.get(absorbed, absorbed), []).append(node.name)
        module = notes.get(MODULE_KEY, node.input[1].removesuffix(".weight"))
        module = norms.get(module, module)
        if module in ran:
            nodes.setdefault(module, []).append((node.name, geometry))
        elif not (FOLDED_KEY in notes and geometry.is_pointwise):
            strangers.append(node.name)
    proofs = []
    for module, calls in ran.items():
        found = nodes.get(module, [])
        into = tuple(dict.fromkeys(folded.get(module, ())))
        expected = calls[0][0]
        lives = [live if static else None for _, live in calls]
        for name, geometry in found:
            # Of the calls at several scales, each explains one node that lost its dead taps.
            live = geometry if geometry in lives else next(filter(None, lives), None)
            if live == geometry:
                lives.remove(live)
            proofs.append(ConvProof(module, name, expected, geometry, live=live))
        missing = len(calls) - len(found)
        if missing > 0:
            proofs += [ConvProof(module, None, expected, None, into)] * (1 if into else missing)
    return DilationProof(tuple(proofs), tuple(strangers))


CONVOLUTIONS = ("Conv", "ConvTranspose")


def _has_static_size(graph: onnx.ModelProto) -> bool:
    dims = [d for value in graph.graph.input for d in value.type.tensor_type.shape.dim[1:]]
    return all(d.HasField("dim_value") for d in dims)


def module_geometries(
    network: nn.Module, size: tuple[int, int], run: nn.Module | None = None
) -> tuple[dict[str, list[tuple[ConvGeometry, ConvGeometry | None]]], dict[str, str]]:
    """Geometry of every 2-D convolution that a forward pass at `size` (H, W) runs, once a call.

    Beside it stands the geometry without dead taps at that size, where that is another one. The
    second mapping says which convolution feeds each BatchNorm.
    """
    import torch
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    ran: dict[str, list[tuple[ConvGeometry, ConvGeometry | None]]] = {}
    norms: dict[str, str] = {}
    made: dict[int, tuple[str, Any]] = {}  # values are held, so that no id is given twice
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):

            def note(conv: nn.Module, given: Any, output: Any, name: str = name) -> None:
                assert isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d))
                geometry = module_geometry(conv)
                live = None
                if not conv.transposed and conv.padding_mode == "zeros":
                    sizes = tuple(given[0].shape[2:]), tuple(output.shape[2:])
                    live = geometry.without_dead_taps(*sizes)
                ran.setdefault(name, []).append((geometry, None if live == geometry else live))
                made[id(output)] = (name, output)

            hooks.append(module.register_forward_hook(note))
        elif isinstance(module, _BatchNorm):

            def trace_back(norm: nn.Module, given: Any, *, name: str = name) -> None:
                if id(given[0]) in made:
                    norms[name] = made[id(given[0])][0]

            hooks.append(module.register_forward_pre_hook(trace_back))
    try:
        with torch.inference_mode():
            (run or network)(torch.zeros(1, 3, *size))
    finally:
        for hook in hooks:
            hook.remove()
    return ran, norms


def module_geometry(conv: nn.Conv2d | nn.ConvTranspose2d) -> ConvGeometry:
    """What a PyTorch module reads, in ONNX's terms."""
    if conv.transposed:
        top, left = (int(side) for side in conv.padding)
        padding: tuple[int | str, ...] = (top, left, top, left)
    elif conv.padding_mode != "zeros":
        padding = (0, 0, 0, 0)  # a Pad node before the convolution does it
    else:
        # PyTorch's own order is (left, right, top, bottom), and holds "same" padding resolved.
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        padding = (top, left, bottom, right)
    return ConvGeometry(
        kernel=tuple(conv.kernel_size),
        dilation=tuple(conv.dilation),
        stride=tuple(conv.stride),
        padding=padding,
        groups=conv.groups,
        transposed=conv.transposed,
    )


def node_geometry(node: onnx.NodeProto, graph: onnx.ModelProto) -> ConvGeometry:
    """Read the geometry of a Conv or ConvTranspose node, with the operator's defaults filled in.

    Where the node leaves the padding to the runtime, its `auto_pad` stands in its place.
    """
    import onnx

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kernel = attributes.get("kernel_shape")
    if kernel is None:
        kernel = _kernel_of_weight(node.input[1], graph)
    rank = len(kernel)
    padding = tuple(attributes.get("pads", (0,) * 2 * rank))
    automatic = attributes.get("auto_pad", b"NOTSET").decode(errors="replace")
    if automatic not in ("NOTSET", "VALID"):
        padding = (automatic,)
    return ConvGeometry(
        kernel=tuple(kernel),
        dilation=tuple(attributes.get("dilations", (1,) * rank)),
        stride=tuple(attributes.get("strides", (1,) * rank)),
        padding=padding,
        groups=attributes.get("group", 1),
        transposed=node.op_type == "ConvTranspose",
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
