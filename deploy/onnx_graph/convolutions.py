"""Geometry of convolutions and resizes, read from a graph's nodes or a PyTorch module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    from torch import nn

CONVOLUTIONS = ("Conv", "ConvTranspose")
# The source of a value that no convolution produced.
IMAGE = "the image"
# The convolutions that reach each input of a concatenation.
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
    """Attributes that determine which pixels a convolution reads, as (vertical, horizontal) pairs.

    `padding` is in ONNX's order: top, left, bottom, right. `output_padding` applies to a transposed
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
        """Whether this is a 1x1 convolution with stride 1 and no padding."""
        return (set(self.kernel), set(self.stride), set(self.padding)) == ({1}, {1}, {0})

    def without_dead_taps(self, source: tuple[int, ...], output: tuple[int, ...]) -> ConvGeometry:
        """Return the geometry without the taps that read only padding of an input `source` (H, W).

        `output` is the (H, W) of the convolution's output. Every tap is tested at every output.
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
            first = min(first, pad // rate)  # a dead tap stays if padding would become negative

            def end(last: int, axis: int = axis) -> int:
                reach = (output[axis] - 1) * self.stride[axis] + last * self.dilation[axis]
                return reach - int(self.padding[axis]) + 1 - source[axis]

            while end(last) <= -stride:  # a dead tap also stays if the output would grow
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
        """The canonical geometry that reads the same pixels: a kernel of one tap has dilation 1."""
        pairs = zip(self.kernel, self.dilation, strict=True)
        return replace(self, dilation=tuple(d if k > 1 else 1 for k, d in pairs))

    def differences(self, other: ConvGeometry) -> str:
        """Describe how `other` differs from this geometry; empty if it does not."""
        return _differences(self, other, _COMPARED)


@dataclass(frozen=True)
class ResizeGeometry:
    """How a resize places the pixels of its output; `mode` is a mode of ONNX's Resize."""

    mode: str
    align_corners: bool
    antialias: bool = False

    def differences(self, other: ResizeGeometry) -> str:
        """Describe how `other` differs from this geometry; empty if it does not."""
        return _differences(self, other, ("mode", "align_corners", "antialias"))


def _differences(one: object, other: object, names: tuple[str, ...]) -> str:
    return ", ".join(
        f"{name} {getattr(other, name)} instead of {getattr(one, name)}"
        for name in names
        if getattr(other, name) != getattr(one, name)
    )


def module_geometry(conv: nn.Conv2d | nn.ConvTranspose2d) -> ConvGeometry:
    """Return the geometry that a PyTorch module's attributes give, in ONNX's conventions."""
    if conv.transposed:
        top, left = (int(side) for side in conv.padding)
        padding: tuple[int | str, ...] = (top, left, top, left)
    elif conv.padding_mode != "zeros" or conv.padding == "valid":
        padding = (0, 0, 0, 0)  # a Pad node before the convolution pads
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

    If the node leaves the padding to the runtime, `padding` holds the `auto_pad` mode instead.
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
    # A quantized weight reaches the convolution through a DequantizeLinear.
    sources = {
        node.output[0]: node.input[0]
        for node in graph.graph.node
        if node.op_type == "DequantizeLinear"
    }
    name = sources.get(weight, weight)
    return next((tuple(t.dims[2:]) for t in graph.graph.initializer if t.name == name), ())


def resize_geometry(node: onnx.NodeProto) -> ResizeGeometry:
    """Read the geometry of a Resize node; defaults of the operator are filled in."""
    import onnx

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    mode = attributes.get("mode", b"nearest").decode(errors="replace")
    corners = attributes.get("coordinate_transformation_mode", b"half_pixel") == b"align_corners"
    return ResizeGeometry(mode, corners, bool(attributes.get("antialias", 0)))


@dataclass(frozen=True)
class ConvProof:
    """Comparison of one convolution that PyTorch executed with its node in a graph.

    `module` is the call's label. `found` is the geometry of the node, or None if the graph has no
    such node. A 1x1 convolution may have been folded into the nodes `folded_into`, which does not
    change the pixels that are read (parity proves the values). `live` is `expected` without the
    taps that read only padding at a static size. `problem` describes any other difference from
    PyTorch.
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

    def failure(self) -> str:
        """Return one clause that names the module and the difference."""
        if self.folded_into and not self.problem:
            return f"convolution {self.module} was folded away, but is not a 1x1 convolution"
        if self.found is None:
            return f"convolution {self.module} has no node in the graph"
        differences = self.expected.differences(self.found)
        if differences:
            return f"convolution {self.module} (node {self.node}) has {differences}"
        return f"convolution {self.module} (node {self.node}) {self.problem}"
