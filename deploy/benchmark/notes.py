"""Notes of the verdict: warnings about latencies, and findings in layers and labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segdeploy.benchmark.latency import Latency
from segdeploy.benchmark.layers import LayerReport
from segdeploy.benchmark.verdict import Row, as_fast

_WIDE = 1.2  # 90th over 10th percentile of the rounds' medians
_FAR = 0.02  # loss of agreement, compared with the size of the contract
_FEW = 10  # frames
_SURE = 0.999  # agreement where the reference's margin is above its mean


def notes_of(reference: Row, rows: Sequence[Row]) -> list[str]:
    """Return notes on unreliable figures, layers where errors enter, and suspicious differences."""
    timed = [row for row in (reference, *rows) if row.latency is not None]
    notes = [
        f"{row.name}: the latency was not stable after the warm-up"
        for row in timed
        if row.latency and not row.latency.stable
    ]
    wide = [(row.name, spread) for row in timed if row.latency
            and (spread := _spread(row.latency)) > _WIDE]  # fmt: skip
    if wide:
        name, most = max(wide, key=lambda one: one[1])
        notes.append(
            f"the machine's speed varied: {name} took {most:.2f} times as long in slow rounds as "
            "in fast rounds; ratios may vary between runs by more than their intervals show"
        )
    alike = [row.name for row in as_fast(rows)]
    if len(alike) > 1:
        notes.append(
            f"{', '.join(alike)}: this run does not show which is the fastest; the candidate with "
            "the most equal labels is recommended"
        )
    if reference.latency and reference.latency.fps:
        notes += [
            f"{row.name}: does not reach {row.latency.fps:g} calls per second"
            for row in timed
            if row.latency and row.latency.fps
            and sum(row.latency.stages_ms.values()) > 1e3 / row.latency.fps
        ]  # fmt: skip
    frames = reference.evaluation.accuracy.frames if reference.evaluation else 0
    if frames < _FEW:
        notes.append(f"{frames} frames are few: the confidence intervals of mIoU are not reliable")
    text: dict[str, list[str]] = {}
    for row in rows:
        for message in _of_labels(row):
            text.setdefault(message, []).append(row.name)
    return notes + [f"{', '.join(names)}: {message}" for message, names in text.items()]


def _of_labels(row: Row) -> list[str]:
    notes = []
    if isinstance(row.layers, LayerReport) and row.layers.enters is not None:
        entry = row.layers.enters
        notes.append(
            f"the error enters at {entry.module} (node {entry.node}), whose output differs "
            f"by {entry.max_rel:.2g} of its range"
        )
    agreement = row.evaluation.agreement if row.evaluation else None
    for checked in row.supported_shapes:
        if (
            agreement
            and checked.agreement is not None
            and checked.agreement < agreement.labels - _FAR
        ):
            notes.append(
                f"at the declared input {'x'.join(map(str, checked.shape))} only "
                f"{checked.agreement:.1%} of labels are equal"
            )
    sure = agreement.by_margin[-1] if agreement else None
    if sure is not None and sure < _SURE:
        notes.append(
            f"{1 - sure:.2%} of labels differ where the reference's margin is large, which is not "
            "rounding; compare the layers with --layers"
        )
    return notes


def _spread(latency: Latency) -> float:
    low, high = np.quantile(latency.round_medians_ms, [0.1, 0.9])
    return float(high / low)
