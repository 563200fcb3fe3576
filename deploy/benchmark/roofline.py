"""How near a candidate comes to what the machine can do: its work, and the roof over it.

Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model" (2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdeploy.benchmark.peak_performance import Peak
from segdeploy.engine.manifest import read_manifest
from segdeploy.onnx_graph.convolutions import ConvGeometry, module_geometry
from segdeploy.onnx_graph.layers import convolutions
from segdeploy.onnx_graph.model_file import contract_of, load_onnx
from segdeploy.runtime.session import ENGINE_SUFFIXES
from segdeploy.runtime.torch_session import TorchSession

if TYPE_CHECKING:
    import onnx

_WIDTHS = {"int8": 1, "fp16": 2, "bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Work:
    """What one picture costs at the least: multiply-accumulates of the convolutions, by precision,
    and the bytes of their inputs, weights and outputs, each moved once; None where unknown.

    A tap of a dilated convolution that reads padding is not counted: good kernels leave it out.
    """

    macs: dict[str, int]
    bytes: int | None


@dataclass(frozen=True)
class Roofline:
    """A candidate under the roof; `share` is what it reaches of it, `bound` what holds it down."""

    macs: int
    bytes: int | None
    gmacs_per_second: float
    share: float
    bound: str


def roofline(work: Work | None, median_ms: float, peak: Peak | None) -> Roofline | None:
    """Set a median latency under the roof; None where the work or the peak is not known."""
    if work is None or peak is None or not work.macs or set(work.macs) - set(peak.gmacs):
        return None
    computing = sum(macs / peak.gmacs[name] for name, macs in work.macs.items()) / 1e6
    moving = work.bytes / peak.gbytes / 1e6 if work.bytes else 0.0
    total = sum(work.macs.values())
    return Roofline(
        macs=total,
        bytes=work.bytes,
        gmacs_per_second=total / median_ms / 1e6,
        share=max(computing, moving) / median_ms,
        bound="memory" if moving > computing else "compute",
    )


def work_of(path: Path) -> Work | None:
    """The work of a graph; of an engine its manifest knows no bytes, and counts every tap."""
    if path.suffix in ENGINE_SUFFIXES:
        macs: dict[str, int] = {}
        for layer in read_manifest(path).convolutions:
            if layer.macs is None:
                return None
            macs[layer.precision] = macs.get(layer.precision, 0) + layer.macs
        return Work(macs, None)
    return _of_graph(load_onnx(path), path)


def work_of_network(session: TorchSession, size: tuple[int, int]) -> Work:
    """The work of a PyTorch network's convolutions, watched while it runs once."""
    import torch
    from torch import nn

    macs, moved = 0, 0

    def watch(module: Any, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal macs, moved
        shapes = [tuple(one.shape) for one in (given[0], module.weight, out)]
        macs += _macs(module_geometry(module), *shapes)
        moved += _WIDTHS["fp32"] * sum(map(prod, shapes))

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    watched = [one for one in session.network.modules() if isinstance(one, kinds)]
    hooks = [one.register_forward_hook(watch) for one in watched]
    try:
        session.run(np.zeros((1, 3, *size), np.float32))
    finally:
        for hook in hooks:
            hook.remove()
    return Work({"fp32": macs}, moved)


def _of_graph(graph: onnx.ModelProto, path: Path) -> Work | None:
    from segdeploy.calibration.layers import fix_shape

    macs: dict[str, int] = {}
    moved = 0
    for one in convolutions(fix_shape(graph, (1, *contract_of(graph, path).picture_shape))):
        shapes = (one.read, one.weight, one.given)
        if not all(shapes) or one.precision not in _WIDTHS:
            return None
        macs[one.precision] = macs.get(one.precision, 0) + _macs(one.geometry, *shapes)
        moved += _WIDTHS[one.precision] * sum(map(prod, shapes))
    return Work(macs, moved)


def _macs(
    geometry: ConvGeometry,
    read: tuple[int, ...],
    weight: tuple[int, ...],
    given: tuple[int, ...],
) -> int:
    """Multiply-accumulates on pixels of `read` (N, C, H, W), not on its padding."""
    if geometry.transposed:
        return prod(read) * prod(weight[1:])
    taps = 1
    for axis in (0, 1):
        padding = geometry.padding[axis]
        if isinstance(padding, str):  # the runtime pads: so little that it hardly counts
            taps *= given[2 + axis] * geometry.kernel[axis]
            continue
        places = np.arange(given[2 + axis])[:, None] * geometry.stride[axis] - padding
        places = places + np.arange(geometry.kernel[axis]) * geometry.dilation[axis]
        taps *= int(((places >= 0) & (places < read[2 + axis])).sum())
    return given[0] * given[1] * weight[1] * taps
