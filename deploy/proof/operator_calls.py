"""Calls of operators, as PyTorch executes them and as a graph holds them."""

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
    """One convolution that ran: what it read, with which weight, and where it stood.

    `module` is the path of the module that made the call, and `label` the same with a number from
    the second call on.
    `geometry` holds the zeros that a constant pad put around the input, as the operator's own
    padding. `sources` are the labels of the convolutions whose values reach this one without
    another in between. `source` and `output` are the (H, W) of what it read, before any padding,
    and of what it gave.
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
        """The geometry without the taps that read padding alone at this size, if another."""
        if self.geometry.transposed or len(self.geometry.kernel) != 2:
            return None
        live = self.geometry.without_dead_taps(self.source, self.output)
        return None if live == self.geometry else live


@dataclass(frozen=True)
class ResizeCall:
    """One resize of a map that ran, the module that made the call, and what reaches it."""

    label: str
    geometry: ResizeGeometry
    sources: frozenset[str]


@dataclass
class Recording:
    """The calls of one forward pass, in the order in which they ran.

    `joins` says for each concatenation which convolutions reach each of its parts. It is None, and
    `sources` say nothing, where a value was written into a part of another one: memory is then
    shared by values of different origin. `reached` are the sources of the output.
    """

    convolutions: list[ConvCall] = field(default_factory=list)
    resizes: list[ResizeCall] = field(default_factory=list)
    joins: list[Sources] | None = field(default_factory=list)
    reached: frozenset[str] = frozenset()

    @property
    def live(self) -> list[ConvCall]:
        """The convolutions whose values reach the output, through others or at once."""
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
    """A convolution of a graph: its geometry with the zeros of a Pad in front of it as padding.

    `sources` are the names of the convolutions whose values reach it without another in between.
    `in_branch` says that it stands inside If, Loop or Scan.
    """

    node: onnx.NodeProto
    geometry: ConvGeometry
    weight: NDArray[np.float32] | None
    sources: frozenset[str]
    in_branch: bool

    @property
    def name(self) -> str:
        """The node's name, which is its own."""
        return self.node.name


@dataclass(frozen=True)
class GraphCalls:
    """Convolutions, concatenations of their values, and resizes, in the order of the nodes.

    `joins` is None where a branch hides what reaches what.
    """

    convolutions: list[NodeCall]
    joins: list[tuple[str, Sources]] | None
    resizes: list[tuple[str, ResizeGeometry, frozenset[str]]]
