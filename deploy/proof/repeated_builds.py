"""How much several builds of one graph differ: TensorRT chooses kernels by timing them."""

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

from segdeploy.device import current_gpu
from segdeploy.engine.manifest import Manifest, manifest_path
from segdeploy.files import write_atomically
from segdeploy.proof.accuracy import share_equal
from segdeploy.runtime.predictor import Predictor
from segdeploy.runtime.tensorrt_session import TensorRtSession

_RUNS = 50


@dataclass(frozen=True)
class Variation:
    """Plans that differ in bytes, and what they compute where a GPU that runs them is at hand.

    `least_agreement` is the smallest share of labels that any build has in common with the first,
    0..1; `latency_ms` is each build's median.
    """

    builds: int
    distinct: int
    bytes: tuple[int, ...]
    least_agreement: float | None = None
    latency_ms: tuple[float, ...] = ()


def vary(
    plans: Sequence[bytes],
    manifest: Manifest,
    pictures: Sequence[NDArray[np.uint8]],
) -> tuple[int, Variation]:
    """Compare builds, and choose one: the fastest, or the first where none can be run here."""
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
        found, latency = _run(plan, manifest, pictures)
        labels.append(found)
        latencies.append(latency)
    agreements = [share_equal(labels[0], other) for other in labels]
    best = min(range(len(plans)), key=latencies.__getitem__)
    return best, replace(variation, least_agreement=min(agreements), latency_ms=tuple(latencies))


def _run(
    plan: bytes, manifest: Manifest, pictures: Sequence[NDArray[np.uint8]]
) -> tuple[list[NDArray[np.uint8]], float]:
    """One build's labels, and its median latency in ms, transfers included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, manifest.engine)
        write_atomically(path, plan)
        own = replace(manifest, sha256=sha256(plan).hexdigest(), bytes=len(plan))
        write_atomically(manifest_path(path), own.to_json().encode())
        with Predictor(TensorRtSession(path)) as predictor:
            labels = [predictor.predict(picture) for picture in pictures]
            times = []
            for _ in range(_RUNS):
                started = time.perf_counter()
                predictor.warm_up(1)
                times.append(1000 * (time.perf_counter() - started))
    return labels, statistics.median(times)
