"""Coordinates of points, bars and curves in the plots of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from segdeploy.benchmark.layers import LayerReport
from segdeploy.benchmark.verdict import Verdict

_LEAST_ERROR = 1e-8  # lower end of the logarithmic axis


def pareto_points(verdict: Verdict) -> list[dict[str, Any]]:
    """Return the points of accuracy (y) against latency (x), both scaled to 0..1."""
    points = []
    for row in verdict.rows:
        if row.latency is None or row.evaluation is None:
            continue
        agreement = row.evaluation.agreement
        accuracy = row.evaluation.accuracy.miou
        if accuracy is None:
            accuracy = agreement.labels if agreement else 1.0
        points.append((row.name, row.latency.median_ms, accuracy))
    times, shares = [point[1] for point in points], [point[2] for point in points]

    def place(value: float, values: Sequence[float]) -> float:
        low, high = min(values), max(values)
        return (value - low) / (high - low) if high > low else 0.5

    return [
        {
            "name": name,
            "ms": time,
            "share": share,
            "x": place(time, times),
            "y": place(share, shares),
            "on_pareto_front": name in verdict.pareto_front,
        }
        for name, time, share in points
    ]


def latency_bars(verdict: Verdict) -> list[dict[str, Any]]:
    """Return median, p90, p99 and the rounds' medians on one logarithmic axis, scaled to 0..1."""
    timed = [(row, row.latency) for row in verdict.rows if row.latency is not None]
    low = min(min(one.round_medians_ms) for _, one in timed) * 0.8
    high = max(one.p99_ms for _, one in timed) * 1.2

    def place(ms: float) -> float:
        return math.log(ms / low) / math.log(high / low)

    return [
        {
            "row": row,
            "median": place(one.median_ms),
            "p90": place(one.p90_ms),
            "p99": place(one.p99_ms),
            "rounds": [place(ms) for ms in one.round_medians_ms],
        }
        for row, one in timed
    ]


def layer_curves(verdict: Verdict) -> list[dict[str, Any]]:
    """Return the SVG curve of each candidate with compared layers.

    The error of a layer is relative to the layer's range, on a logarithmic axis.
    """
    curves = []
    for row in verdict.rows:
        if not isinstance(row.layers, LayerReport) or not row.layers.layers:
            continue
        errors = [min(1.0, max(_LEAST_ERROR, one.max_rel)) for one in row.layers.layers]
        heights = [1 - math.log10(error) / math.log10(_LEAST_ERROR) for error in errors]
        step = 1 / max(1, len(heights) - 1)
        points = " ".join(f"{60 + 560 * i * step:.1f},{190 - 170 * y:.1f}"
                          for i, y in enumerate(heights))  # fmt: skip
        curves.append({"row": row, "points": points, "enters": row.layers.enters})
    return curves
