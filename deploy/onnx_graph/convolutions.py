"""What decides which pixels an operator reads: of a graph's node, or of a PyTorch module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    from torch import nn

CONVOLUTIONS = ("Conv", "ConvTranspose")
# The source of what no convolution made.
IMAGE = "the image"
# Which convolutions reach each part of a concatenation.
Sources = tuple[frozenset[str], ...]
_COMPARED = (
    "kernel",
    "dilation",
    "stride",
    "padding",
    "groups",
    "transposed",
    "output_padding",
)


@dataclass(frozen=True)
class ConvGeometry:
    """What decides which pixels a convolution reads; pairs are (vertical, horizontal).

    `padding` is in ONNX's order: top, left, bottom, right. `output_padding` is that of a transposed
    convolution.
    """

    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int | str, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = (0, 0)

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

    @property
    def effective(self) -> ConvGeometry:
        """The same pixels in one way of saying: a kernel of one tap has no dilation."""
        pairs = zip(self.kernel, self.dilation, strict=True)
        return replace(self, dilation=tuple(d if k > 1 else 1 for k, d in pairs))

    def differences(self, other: ConvGeometry) -> str:
        """Say in words where `other` departs from this geometry; empty if nowhere."""
        return _differences(self, other, _COMPARED)


@dataclass(frozen=True)
class ResizeGeometry:
    """How a resize places the pixels of its output; `mode` is ONNX's."""

    mode: str
    align_corners: bool
    antialias: bool = False

    def differences(self, other: ResizeGeometry) -> str:
        """Say in words where `other` departs from this geometry; empty if nowhere."""
        return _differences(self, other, ("mode", "align_corners", "antialias"))


def _differences(one: object, other: object, names: tuple[str, ...]) -> str:
    return ", ".join(
        f"{name} {getattr(other, name)} instead of {getattr(one, name)}"
        for name in names
        if getattr(other, name) != getattr(one, name)
    )


def module_geometry(conv: nn.Conv2d | nn.ConvTranspose2d) -> ConvGeometry:
    """What a PyTorch module reads by its own attributes, in ONNX's terms."""
    if conv.transposed:
        top, left = (int(side) for side in conv.padding)
        padding: tuple[int | str, ...] = (top, left, top, left)
    elif conv.padding_mode != "zeros" or conv.padding == "valid":
        padding = (0, 0, 0, 0)  # a Pad node before the convolution does it
    elif conv.padding == "same":
        around = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        padding = (*(side // 2 for side in around), *(side - side // 2 for side in around))
    else:
        padding = tuple(int(side) for side in conv.padding) * 2
    return ConvGeometry(
        kernel=tuple(conv.kernel_size),
        dilation=tuple(conv.dilation),
        stride=tuple(conv.stride),
        padding=padding,
        groups=conv.groups,
        transposed=conv.transposed,
        output_padding=tuple(conv.output_padding),
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
        output_padding=tuple(attributes.get("output_padding", (0,) * rank)),
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


def resize_geometry(node: onnx.NodeProto) -> ResizeGeometry:
    """Read the geometry of a Resize node, with the operator's defaults filled in."""
    import onnx

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    mode = attributes.get("mode", b"nearest").decode(errors="replace")
    corners = attributes.get("coordinate_transformation_mode", b"half_pixel") == b"align_corners"
    return ResizeGeometry(mode, corners, bool(attributes.get("antialias", 0)))


@dataclass(frozen=True)
class ConvProof:
    """One convolution that PyTorch executed, beside what a graph made of it.

    `module` is the call's label. `found` is None if there is no such node; a 1x1 convolution may
    have been multiplied into the nodes `folded_into`, which changes no pixel that is read (parity
    proves the numbers). `live` is what `expected` is at a static size without the taps that read
    padding alone. `problem` says what else is not PyTorch's.
    """

    module: str
    node: str | None
    expected: ConvGeometry
    found: ConvGeometry | None
    folded_into: tuple[str, ...] = ()
    live: ConvGeometry | None = None
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether the graph computes the same convolution."""
        if self.problem:
            return False
        if self.folded_into:
            return self.expected.is_pointwise
        if self.found is None:
            return False
        allowed = [one.effective for one in (self.expected, self.live) if one is not None]
        return self.found.effective in allowed

    def complaint(self) -> str:
        """One clause that names the module and what became of it."""
        if self.folded_into and not self.problem:
            return f"convolution {self.module} is no 1x1 convolution, yet it was folded away"
        if self.found is None:
            return f"convolution {self.module} has no node in the graph"
        differences = self.expected.differences(self.found)
        if differences:
            return f"convolution {self.module} (node {self.node}) has {differences}"
        return f"convolution {self.module} (node {self.node}) {self.problem}"
