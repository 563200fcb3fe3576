"""Mixed precision: what each layer loses in INT8, and the cheapest assignment within a budget.

The noise of quantised layers adds up, roughly, at the output. So layers go back to FP16 in the
order of the noise that they make for each multiply-accumulate that INT8 saves, and only how many of
them must is searched, by bisection: a few evaluations instead of one for every subset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from segdeploy.calibration.layers import Layer


@dataclass(frozen=True)
class Score:
    """What a graph reaches on labelled frames; mIoU in percent, agreement with FP32 in 0..1."""

    miou: float
    miou_drop: float
    agreement: float


@dataclass(frozen=True)
class Point:
    """One assignment of the front: the layers in INT8, their relative cost, and its score."""

    int8: tuple[str, ...]
    cost: float
    score: Score


def order_of_return(layers: Sequence[Layer], snr_db: Mapping[str, float]) -> list[Layer]:
    """The layers in the order in which they go back to FP16: most noise for its work first."""

    def noise_per_mac(layer: Layer) -> float:
        # 0 of an infinite ratio; infinite of -inf, which stands for outputs that are not finite.
        return 10 ** (min(-snr_db[layer.name], 1000.0) / 10) / max(1, layer.macs)

    return sorted(layers, key=noise_per_mac, reverse=True)


def most_evaluations(layers: int) -> int:
    """How often `cheapest_within` evaluates a graph at most."""
    return math.ceil(math.log2(layers + 1)) + 1 + _SPREAD


_SPREAD = 3  # points of the front besides those that the bisection needs


def cheapest_within(
    budget: float,
    layers: Sequence[Layer],
    order: Sequence[Layer],
    evaluate: Callable[[frozenset[str]], Score],
    cost: Callable[[frozenset[str]], float],
) -> tuple[Point | None, list[Point]]:
    """The cheapest assignment found whose mIoU drop is at most `budget`.

    `order` says which go back first; `evaluate` and `cost` take the names of those in INT8. Also
    returned is the front: every evaluated assignment that no other beats in both cost and drop, the
    dearest first. None if not even the graph without INT8 keeps the budget.
    """
    seen: dict[int, Point] = {}

    def at(returned: int) -> Point:
        if returned not in seen:
            int8 = frozenset(layer.name for layer in order[returned:])
            names = tuple(layer.name for layer in layers if layer.name in int8)
            seen[returned] = Point(names, cost(int8), evaluate(int8))
        return seen[returned]

    low, high = 0, len(order)
    if at(high).score.miou_drop > budget:
        return None, list(seen.values())
    while low < high:
        middle = (low + high) // 2
        if at(middle).score.miou_drop <= budget:
            high = middle
        else:
            low = middle + 1
    for share in range(_SPREAD):
        at(share * len(order) // (_SPREAD + 1))
    # mIoU of few frames is no monotone thing: a point of the spread may be cheaper than what the
    # bisection came to.
    within = [point for point in seen.values() if point.score.miou_drop <= budget]
    return min(within, key=lambda point: point.cost), _front(list(seen.values()))


def _front(points: Sequence[Point]) -> list[Point]:
    best = math.inf
    front = []
    for point in sorted(points, key=lambda p: (p.cost, p.score.miou_drop)):
        if point.score.miou_drop < best:
            front.append(point)
            best = point.score.miou_drop
    return front[::-1]
