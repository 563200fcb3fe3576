"""Differences between repeated builds of one graph; TensorRT selects kernels by timing them."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy.artifact import EngineFile
from segdeploy.calibration.difference import mean_label_agreement
from segdeploy.device import current_gpu
from segdeploy.engine.manifest import Manifest, manifest_path
from segdeploy.files import write_atomically
from segdeploy.runtime.predictor import Predictor
from segdeploy.runtime.tensorrt_session import TensorRtSession

_RUNS = 50


@dataclass(frozen=True)
class Variation:
    """Differences between several builds of one graph.

    `builds` is the number of plans, `distinct` the number of different plans, and `bytes` the size
    of each plan. `least_agreement` is the lowest label agreement of any build with the first one,
    in 0..1. `latency_ms` is the median latency of each build. The last two are measured only if
    this host's GPU can run the plans.
    """

    builds: int
    distinct: int
    bytes: tuple[int, ...]
    least_agreement: float | None = None
    latency_ms: tuple[float, ...] = ()


def vary(
    plans: Sequence[bytes],
    manifest: Manifest,
    images: Sequence[NDArray[np.uint8]],
) -> tuple[int, Variation]:
    """Compare builds; return the index of the chosen plan, and the variation.

    The fastest plan is chosen, or the first one if this host cannot run the plans.
    """
    variation = Variation(
        builds=len(plans),
        distinct=len({sha256(plan).digest() for plan in plans}),
        bytes=tuple(len(plan) for plan in plans),
    )
    gpu = current_gpu()
    if gpu is None or gpu.compute_capability not in manifest.compute_capabilities:
        return 0, variation
    labels, latencies = [], []
    for plan in plans:
        found, latency = _run(plan, manifest, images)
        labels.append(found)
        latencies.append(latency)
    agreements = [mean_label_agreement(labels[0], other) for other in labels]
    best = min(range(len(plans)), key=latencies.__getitem__)
    return best, replace(variation, least_agreement=min(agreements), latency_ms=tuple(latencies))


def _run(
    plan: bytes, manifest: Manifest, images: Sequence[NDArray[np.uint8]]
) -> tuple[list[NDArray[np.uint8]], float]:
    """Return one build's labels and its median latency in ms, including host-device transfers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, manifest.engine)
        write_atomically(path, plan)
        own = replace(manifest, sha256=sha256(plan).hexdigest(), bytes=len(plan))
        write_atomically(manifest_path(path), own.to_json().encode())
        with Predictor(TensorRtSession(EngineFile(path))) as predictor:
            labels = [predictor.predict(image) for image in images]
            times = []
            for _ in range(_RUNS):
                started = time.perf_counter()
                predictor.warm_up(1)
                times.append(1000 * (time.perf_counter() - started))
    return labels, statistics.median(times)
