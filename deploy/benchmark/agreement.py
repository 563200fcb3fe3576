"""How near a candidate is to the reference, counted frame by frame.

A label that differs where the reference was sure is a bug; where its two best classes were nearly
equal, it is rounding. So agreement is told by the reference's margin, too, and near the boundaries
of its classes, where errors hide.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]

BOUNDARY = 2  # pixels
# Upper ends of the reference's margin (best minus second class), as a share of its mean margin.
MARGINS = (0.01, 0.05, 0.25, 1.0, math.inf)
QUANTILES = (0.5, 0.9, 0.99, 0.999)
_BINS, _LEAST, _MOST = 400, -12.0, 4.0  # of |difference|, by its decimal logarithm


@dataclass(frozen=True)
class Worst:
    """The frame with the fewest equal labels, and its pixel (row, column) with the largest error.

    `pixel` is None where the graph gives labels.
    """

    frame: str
    agreement: float
    pixel: tuple[int, int] | None


@dataclass(frozen=True)
class Fidelity:
    """Over all frames; shares in 0..1. What needs scores is None for a graph that gives labels.

    `agreement` is the share of equal labels at the frames' own size, ignored pixels counted too;
    `boundary` that within two pixels of a boundary of the reference's classes; `by_margin` that for
    each of `MARGINS`, None where no pixel has such a margin. `max_rel` is the largest difference of
    a score over the range of the reference's scores in its frame. `quantiles` are of the
    differences' magnitudes, at `QUANTILES`.
    """

    agreement: float
    boundary: float | None
    by_margin: tuple[float | None, ...]
    max_abs: float | None
    mean_abs: float | None
    max_rel: float | None
    snr_db: float | None
    cosine: float | None
    quantiles: tuple[float, ...]
    worst: Worst | None


@dataclass
class FidelityCount:
    """Running sums of one candidate; one frame is held at a time."""

    pixels: int = 0
    equal: int = 0
    boundary: list[int] = field(default_factory=lambda: [0, 0])
    margins: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((len(MARGINS), 2), np.int64)
    )
    max_abs: float = 0.0
    max_rel: float = 0.0
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(6))
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS + 2, np.int64))
    worst: Worst | None = None
    scored: bool = True

    def add(
        self,
        frame: str,
        reference: Floats,
        reference_labels: Labels,
        margin: Floats,
        labels: Labels,
        scores: Floats | None,
    ) -> None:
        """Count one frame: scores `(C, h, w)`, labels and the reference's margin `(H, W)`."""
        same = labels == reference_labels
        self.pixels += same.size
        self.equal += int(same.sum())
        edge = boundary(reference_labels)
        self.boundary[0] += int(same[edge].sum())
        self.boundary[1] += int(edge.sum())
        buckets = np.digitize(margin / (float(margin.mean()) or 1.0), MARGINS[:-1])
        for hit in (0, 1):
            chosen = buckets if hit else buckets[same]
            self.margins[:, hit] += np.bincount(chosen.ravel(), minlength=len(MARGINS))
        pixel = None
        if scores is None:
            self.scored = False
        else:
            row, column = self._add_scores(reference, scores)
            height, width = scores.shape[1:]
            pixel = (
                int((row + 0.5) * same.shape[0] / height),
                int((column + 0.5) * same.shape[1] / width),
            )
        self._note(Worst(frame, float(same.mean()), pixel))

    def merge(self, other: FidelityCount) -> None:
        """Add what was counted of other frames."""
        self.pixels += other.pixels
        self.equal += other.equal
        self.boundary = [a + b for a, b in zip(self.boundary, other.boundary, strict=True)]
        self.max_abs = max(self.max_abs, other.max_abs)
        self.max_rel = max(self.max_rel, other.max_rel)
        self.margins += other.margins
        self.sums += other.sums
        self.bins += other.bins
        self.scored = self.scored and other.scored
        if other.worst is not None:
            self._note(other.worst)

    def _note(self, frame: Worst) -> None:
        if self.worst is None or frame.agreement < self.worst.agreement:
            self.worst = frame

    def to_plain(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        arrays = {name: getattr(self, name).tolist() for name in ("margins", "sums", "bins")}
        worst = astuple(self.worst) if self.worst else None
        return {**vars(self), **arrays, "worst": worst}

    @staticmethod
    def of_plain(values: dict[str, Any]) -> FidelityCount:
        """Read what `to_plain` gave."""
        arrays = {name: np.array(values[name]) for name in ("margins", "sums", "bins")}
        worst = values["worst"]
        if worst is not None:
            frame, agreement, pixel = worst
            worst = Worst(frame, agreement, None if pixel is None else (pixel[0], pixel[1]))
        return FidelityCount(**{**values, **arrays, "worst": worst})

    def _add_scores(self, reference: Floats, scores: Floats) -> tuple[int, int]:
        difference = np.abs(scores - reference)
        largest = float(difference.max())
        span = float(reference.max() - reference.min())
        relative = largest / span if span else (math.inf if largest else 0.0)
        self.max_abs, self.max_rel = max(self.max_abs, largest), max(self.max_rel, relative)
        wide, ours = (np.asarray(one, np.float64).ravel() for one in (reference, scores))
        off = wide - ours
        pairs = ((off, off), (wide, wide), (ours, ours), (wide, ours))
        self.sums += [np.abs(off).sum(), off.size, *(float(a @ b) for a, b in pairs)]
        with np.errstate(divide="ignore"):
            places = (np.log10(difference) - _LEAST) / (_MOST - _LEAST) * _BINS
        self.bins += np.bincount(
            np.clip(np.nan_to_num(places, neginf=-1) + 1, 0, _BINS + 1).astype(np.int64).ravel(),
            minlength=_BINS + 2,
        )
        place = np.unravel_index(int(difference.max(0).argmax()), difference.shape[1:])
        return int(place[0]), int(place[1])

    def result(self) -> Fidelity:
        """Turn the sums into figures."""
        shares = [float(a / b) if b else None for a, b in self.margins]
        total, count, noise, signal, power, product = self.sums
        if not self.scored:
            return Fidelity(
                self.equal / self.pixels, _share(self.boundary), tuple(shares),
                None, None, None, None, None, (), self.worst,
            )  # fmt: skip
        return Fidelity(
            agreement=self.equal / self.pixels,
            boundary=_share(self.boundary),
            by_margin=tuple(shares),
            max_abs=self.max_abs,
            mean_abs=float(total / count),
            max_rel=self.max_rel,
            snr_db=float(10 * np.log10(signal / noise)) if noise and signal else math.inf,
            cosine=float(product / math.sqrt(signal * power)) if signal and power else None,
            quantiles=self._quantiles(),
            worst=self.worst,
        )

    def _quantiles(self) -> tuple[float, ...]:
        """Upper ends of the bins that the quantiles lie in: 0, or a power of ten by hundredths."""
        reached = np.cumsum(self.bins)
        found = np.searchsorted(reached, np.asarray(QUANTILES) * reached[-1])
        step = (_MOST - _LEAST) / _BINS
        return tuple(0.0 if b == 0 else float(10 ** (_LEAST + b * step)) for b in found)


def boundary(labels: Labels) -> NDArray[np.bool_]:
    """Pixels `(H, W)` within `BOUNDARY` of one with another label, in either direction."""
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        for step in range(1, BOUNDARY + 1):
            if labels.shape[axis] <= step:
                continue
            near, far = (
                np.take(labels, range(*ends), axis)
                for ends in ((labels.shape[axis] - step,), (step, labels.shape[axis]))
            )
            other = near != far
            for start in (0, step):
                place: list[slice] = [slice(None), slice(None)]
                place[axis] = slice(start, start + labels.shape[axis] - step)
                edge[tuple(place)] |= other
    return edge


def margin(scores: Floats) -> Floats:
    """Best minus second class of each pixel: `(H, W)` of `(C, H, W)`."""
    if scores.shape[0] < 2:
        return np.zeros(scores.shape[1:], np.float32)
    best = np.partition(scores, -2, axis=0)[-2:]
    found: Floats = best[1] - best[0]
    return found


def _share(pair: list[int]) -> float | None:
    return pair[0] / pair[1] if pair[1] else None
