"""Roofline model: a candidate's work, and its share of the machine's peak performance.

Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model" (2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from segdeploy.artifact import Artifact, EngineFile
from segdeploy.benchmark.peak_performance import Peak
from segdeploy.calibration.multiply_accumulates import (
    BYTES,
    multiply_accumulates,
    multiply_accumulates_without_padding,
)
from segdeploy.contract import Contract
from segdeploy.onnx_graph.convolutions import ConvGeometry, module_geometry
from segdeploy.onnx_graph.layers import convolutions
from segdeploy.runtime.torch_session import TorchSession

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Work:
    """Minimum work for one image, counted over the convolutions.

    `macs` counts multiply-accumulates by precision. `bytes` counts inputs, weights and outputs,
    each moved once; None if unknown. Taps of a dilated convolution that read padding are excluded,
    because good kernels skip them.
    """

    macs: dict[str, int]
    bytes: int | None


@dataclass(frozen=True)
class Roofline:
    """A candidate's position relative to the roofline.

    `share` is the minimum time of the roofline over the measured median, and `bound` is the limit
    that applies: `compute` or `memory`.
    """

    macs: int
    bytes: int | None
    gmacs_per_second: float
    share: float
    bound: str


def roofline(work: Work | None, median_ms: float, peak: Peak | None) -> Roofline | None:
    """Compare a median latency with the roofline; return None if work or peak is unknown."""
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


def work_of(file: Artifact) -> Work | None:
    """Return the work of a graph or an engine; None if unknown.

    The manifest of an engine lists multiply-accumulates with all taps, and no bytes.
    """
    if isinstance(file, EngineFile):
        macs: dict[str, int] = {}
        for layer in file.manifest.convolutions:
            if layer.macs is None:
                return None
            macs[layer.precision] = macs.get(layer.precision, 0) + layer.macs
        return Work(macs, None)
    work = _of_graph(file.graph, file.contract)
    file.release()
    return work


def work_of_network(session: TorchSession, size: tuple[int, int]) -> Work:
    """Return the work of a PyTorch network's convolutions, recorded by hooks during one run."""
    import torch
    from torch import nn

    macs, moved = 0, 0

    def watch(module: Any, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal macs, moved
        shapes = [tuple(one.shape) for one in (given[0], module.weight, out)]
        macs += _macs(module_geometry(module), *shapes)
        moved += BYTES["fp32"] * sum(map(prod, shapes))

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    watched = [one for one in session.network.modules() if isinstance(one, kinds)]
    hooks = [one.register_forward_hook(watch) for one in watched]
    try:
        session.run(np.zeros((1, *session.contract.shape_at(size)), np.float32))
    finally:
        for hook in hooks:
            hook.remove()
    return Work({"fp32": macs}, moved)


def _of_graph(graph: onnx.ModelProto, contract: Contract) -> Work | None:
    from segdeploy.calibration.layers import fix_shape

    macs: dict[str, int] = {}
    moved = 0
    for one in convolutions(fix_shape(graph, (1, *contract.image_shape))):
        shapes = (one.read, one.weight, one.given)
        if not all(shapes) or one.precision not in BYTES:
            return None
        macs[one.precision] = macs.get(one.precision, 0) + _macs(one.geometry, *shapes)
        moved += BYTES[one.precision] * sum(map(prod, shapes))
    return Work(macs, moved)


def _macs(
    geometry: ConvGeometry,
    read: tuple[int, ...],
    weight: tuple[int, ...],
    given: tuple[int, ...],
) -> int:
    """Count without padding where the graph states the padding."""
    before = [one for one in geometry.padding[:2] if isinstance(one, int)]
    if geometry.transposed or len(before) < 2:
        return multiply_accumulates(read, weight, given, transposed=geometry.transposed) or 0
    return multiply_accumulates_without_padding(
        *(read, weight, given),
        stride=geometry.stride,
        padding=before,
        dilation=geometry.dilation,
    )
