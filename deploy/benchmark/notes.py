"""What a reader of a verdict should know beside its figures, a sentence each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segdeploy.benchmark.latency import Latency
from segdeploy.benchmark.layers import LayerReport
from segdeploy.benchmark.verdict import Row, as_fast

_WIDE = 1.2  # ninth over first decile of the rounds' medians
_FAR = 0.02  # fewer equal labels than at the size of the contract
_FEW = 10
_SURE = 0.999  # labels equal where the reference's margin is above its mean


def notes_of(reference: Row, rows: Sequence[Row]) -> list[str]:
    """Doubts about latencies, layers where errors enter, differences that are no rounding."""
    timed = [row for row in (reference, *rows) if row.latency is not None]
    notes = [
        f"{row.name}: its calls had not become steady after warming up"
        for row in timed
        if row.latency and not row.latency.stable
    ]
    wide = [(row.name, spread) for row in timed if row.latency
            and (spread := _spread(row.latency)) > _WIDE]  # fmt: skip
    if wide:
        name, most = max(wide, key=lambda one: one[1])
        notes.append(
            f"the machine ran at several speeds: {name} took {most:.2f} times as long in its slow "
            "rounds as in its fast ones; ratios may differ from run to run by more than they say"
        )
    alike = [row.name for row in as_fast(rows)]
    if len(alike) > 1:
        notes.append(
            f"{', '.join(alike)}: this run cannot tell which of them is fastest; of those the one "
            "with the most equal labels is recommended"
        )
    if reference.latency and reference.latency.fps:
        notes += [
            f"{row.name}: cannot keep {row.latency.fps:g} calls a second"
            for row in timed
            if row.latency and row.latency.fps
            and sum(row.latency.stages_ms.values()) > 1e3 / row.latency.fps
        ]  # fmt: skip
    frames = reference.judgement.accuracy.frames if reference.judgement else 0
    if frames < _FEW:
        notes.append(f"{frames} frames are few: their intervals of mIoU say little")
    said: dict[str, list[str]] = {}
    for row in rows:
        for told in _of_labels(row):
            said.setdefault(told, []).append(row.name)
    return notes + [f"{', '.join(names)}: {told}" for told, names in said.items()]


def _of_labels(row: Row) -> list[str]:
    notes = []
    if isinstance(row.layers, LayerReport) and row.layers.enters is not None:
        entry = row.layers.enters
        notes.append(
            f"the error enters at {entry.module} (node {entry.node}), which is off "
            f"by {entry.max_rel:.2g} of its range"
        )
    fidelity = row.judgement.fidelity if row.judgement else None
    for claim in row.claims:
        if fidelity and claim.agreement is not None and claim.agreement < fidelity.agreement - _FAR:
            notes.append(
                f"at {'x'.join(map(str, claim.shape))}, which it claims to take, only "
                f"{claim.agreement:.1%} of labels are equal"
            )
    sure = fidelity.by_margin[-1] if fidelity else None
    if sure is not None and sure < _SURE:
        notes.append(
            f"{1 - sure:.2%} of labels differ where the reference was sure, which "
            "is no rounding; look at its layers"
        )
    return notes


def _spread(latency: Latency) -> float:
    low, high = np.quantile(latency.round_medians_ms, [0.1, 0.9])
    return float(high / low)
