"""Mixed precision: the cheapest assignment of layers to INT8 within a budget of accuracy.

The noise of quantized layers roughly adds up at the output. Layers therefore return to FP16 in
descending order of their noise per multiply-accumulate that INT8 saves. Only the number of returned
layers is searched, by bisection: a few evaluations instead of one for every subset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from segdeploy.calibration.layers import Layer


@dataclass(frozen=True)
class Score:
    """Score of a graph: mIoU, its drop, and agreement with FP32, in 0..1.

    `loss` is what the budget limits: the drop, or the share of other labels.
    """

    miou: float
    miou_drop: float
    agreement: float
    loss: float


@dataclass(frozen=True)
class Point:
    """A point of the Pareto front: the layers in INT8, their relative cost, and the score."""

    int8: tuple[str, ...]
    cost: float
    score: Score


def order_of_return(layers: Sequence[Layer], snr_db: Mapping[str, float]) -> list[Layer]:
    """Return the layers in order of return to FP16: most noise per multiply-accumulate first."""

    def noise_per_mac(layer: Layer) -> float:
        # 0 for an infinite SNR; very large for -inf, which means outputs that are not finite.
        return 10 ** (min(-snr_db[layer.name], 1000.0) / 10) / max(1, layer.macs)

    return sorted(layers, key=noise_per_mac, reverse=True)


def most_evaluations(layers: int) -> int:
    """Return the largest number of graphs that `cheapest_within` evaluates."""
    return math.ceil(math.log2(layers + 1)) + 1 + _SPREAD


_SPREAD = 3  # evaluated points in addition to those of the bisection


def cheapest_within(
    budget: float,
    layers: Sequence[Layer],
    order: Sequence[Layer],
    evaluate: Callable[[frozenset[str]], Score],
    cost: Callable[[frozenset[str]], float],
) -> tuple[Point | None, list[Point]]:
    """Return the cheapest assignment found with a loss of at most `budget`, and the front.

    `order` is the order in which layers return to FP16. `evaluate` and `cost` take the names of the
    INT8 layers. The Pareto front holds every evaluated assignment that no other assignment
    beats in both cost and loss, the most expensive first. The assignment is None if even the graph
    without INT8 exceeds the budget.
    """
    seen: dict[int, Point] = {}

    def at(returned: int) -> Point:
        if returned not in seen:
            int8 = frozenset(layer.name for layer in order[returned:])
            names = tuple(layer.name for layer in layers if layer.name in int8)
            seen[returned] = Point(names, cost(int8), evaluate(int8))
        return seen[returned]

    low, high = 0, len(order)
    if at(high).score.loss > budget:
        return None, list(seen.values())
    while low < high:
        middle = (low + high) // 2
        if at(middle).score.loss <= budget:
            high = middle
        else:
            low = middle + 1
    for share in range(_SPREAD):
        at(share * len(order) // (_SPREAD + 1))
    # mIoU over few frames is not monotone, so a point of the spread may be cheaper than the result
    # of the bisection.
    within = [point for point in seen.values() if point.score.loss <= budget]
    return min(within, key=lambda point: point.cost), _front(list(seen.values()))


def _front(points: Sequence[Point]) -> list[Point]:
    best = math.inf
    pareto_front = []
    for point in sorted(points, key=lambda p: (p.cost, p.score.loss)):
        if point.score.loss < best:
            pareto_front.append(point)
            best = point.score.loss
    return pareto_front[::-1]
