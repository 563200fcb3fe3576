"""Operator calls: as executed by PyTorch, and as contained in a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segdeploy.onnx_graph.convolutions import ConvGeometry, ResizeGeometry, Sources

if TYPE_CHECKING:
    import onnx
    from torch import Tensor


@dataclass(frozen=True)
class ConvCall:
    """One executed convolution: its module, geometry, weight, sources and spatial sizes.

    `module` is the path of the module that made the call. `label` is the same path, with a number
    from the second call on. `geometry` counts the zeros of a preceding constant pad as the
    operator's own padding. `sources` are the labels of the convolutions whose values reach this one
    with no other convolution in between. `source` is the (H, W) of the input before any padding,
    and `output` the (H, W) of the output.
    """

    label: str
    module: str
    geometry: ConvGeometry
    weight: Tensor
    sources: frozenset[str]
    source: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def live(self) -> ConvGeometry | None:
        """The geometry without the taps that read only padding at this size; None if unchanged."""
        if self.geometry.transposed or len(self.geometry.kernel) != 2:
            return None
        live = self.geometry.without_dead_taps(self.source, self.output)
        return None if live == self.geometry else live


@dataclass(frozen=True)
class ResizeCall:
    """One executed resize: the module that made the call, its geometry and its sources."""

    label: str
    geometry: ResizeGeometry
    sources: frozenset[str]


@dataclass
class Recording:
    """The operator calls of one forward pass, in execution order.

    `joins` lists, for each concatenation, the convolutions that reach each of its inputs. `joins`
    is None and `sources` are not reliable if a value was written into a part of another tensor: the
    storage then holds values of different origin. `reached` are the sources of the output.
    """

    convolutions: list[ConvCall] = field(default_factory=list)
    resizes: list[ResizeCall] = field(default_factory=list)
    joins: list[Sources] | None = field(default_factory=list)
    reached: frozenset[str] = frozenset()

    @property
    def live(self) -> list[ConvCall]:
        """The convolutions that reach the output, directly or through other convolutions."""
        calls = {call.label: call for call in self.convolutions}
        found: set[str] = set()
        waiting = set(self.reached)
        while waiting:
            label = waiting.pop()
            if label in calls and label not in found:
                found.add(label)
                waiting |= calls[label].sources
        return [call for call in self.convolutions if call.label in found]


@dataclass(frozen=True)
class NodeCall:
    """A convolution of a graph; its geometry counts the zeros of a preceding Pad as padding.

    `sources` are the names of the convolutions whose values reach this one with no other
    convolution in between. `in_branch` is true for a node inside If, Loop or Scan.
    """

    node: onnx.NodeProto
    geometry: ConvGeometry
    weight: NDArray[np.float32] | None
    sources: frozenset[str]
    in_branch: bool

    @property
    def name(self) -> str:
        """The node's unique name."""
        return self.node.name


@dataclass(frozen=True)
class GraphCalls:
    """The convolutions, concatenations and resizes of a graph, in node order.

    `joins` is None if the graph has a branch (If, Loop, Scan), which hides the sources of values.
    """

    convolutions: list[NodeCall]
    joins: list[tuple[str, Sources]] | None
    resizes: list[tuple[str, ResizeGeometry, frozenset[str]]]
