"""Agreement of a candidate with the reference, counted frame by frame.

A label that differs where the reference's margin is large is a bug. A label that differs where the
reference's two best classes were nearly equal is rounding. Agreement is therefore also reported by
the reference's margin, and near its class boundaries, where errors hide.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.calibration.difference import over_range, snr_db, value_range

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]

BOUNDARY = 2  # pixels
# Upper bounds of bins of the reference's margin (best minus second-best score), relative to the
# mean margin of the frame.
MARGINS = (0.01, 0.05, 0.25, 1.0, math.inf)
QUANTILES = (0.5, 0.9, 0.99, 0.999)
_BINS, _LEAST, _MOST = 400, -12.0, 4.0  # histogram of log10(|score difference|)


@dataclass(frozen=True)
class Worst:
    """The frame with the lowest agreement, and its pixel (row, column) with the largest error.

    `pixel` is in the frame's own coordinates. It is None if the graph returns labels.
    """

    frame: str
    agreement: float
    pixel: tuple[int, int] | None


@dataclass(frozen=True)
class Agreement:
    """Agreement with the reference over all frames; shares are in 0..1.

    `labels` is the share of equal labels at the frames' own size, ignored pixels included.
    `boundary` is this share within two pixels of the reference's class boundaries. `by_margin` is
    this share in each bin of `MARGINS`, None in a bin without pixels. `max_rel` is the largest
    score difference, relative to the range of the reference's scores in the same frame. `quantiles`
    are the `QUANTILES` of the absolute score differences. For a graph that returns labels,
    `quantiles` is empty and the other score metrics are None.
    """

    labels: float
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
class AgreementCount:
    """Running sums of one candidate over the frames."""

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
        reference: Floats | None,
        reference_labels: Labels,
        margin: Floats | None,
        labels: Labels,
        scores: Floats | None,
    ) -> None:
        """Add one frame: scores `(C, h, w)`, labels and the reference's margin `(H, W)`.

        Scores and margin are None for a graph that gives labels.
        """
        same = labels == reference_labels
        self.pixels += same.size
        self.equal += int(same.sum())
        edge = boundary(reference_labels)
        self.boundary[0] += int(same[edge].sum())
        self.boundary[1] += int(edge.sum())
        if margin is not None:
            buckets = np.digitize(margin / (float(margin.mean()) or 1.0), MARGINS[:-1])
            for hit in (0, 1):
                chosen = buckets if hit else buckets[same]
                self.margins[:, hit] += np.bincount(chosen.ravel(), minlength=len(MARGINS))
        pixel = None
        if scores is None or reference is None:
            self.scored = False
        else:
            row, column = self._add_scores(reference, scores)
            height, width = scores.shape[1:]
            pixel = (
                int((row + 0.5) * same.shape[0] / height),
                int((column + 0.5) * same.shape[1] / width),
            )
        self._note(Worst(frame, float(same.mean()), pixel))

    def merge(self, other: AgreementCount) -> None:
        """Add the counts of other frames."""
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
        """Return all counts as JSON types."""
        arrays = {name: getattr(self, name).tolist() for name in ("margins", "sums", "bins")}
        worst = astuple(self.worst) if self.worst else None
        return {**vars(self), **arrays, "worst": worst}

    @staticmethod
    def of_plain(values: dict[str, Any]) -> AgreementCount:
        """Restore the counts from the result of `to_plain`."""
        arrays = {name: np.array(values[name]) for name in ("margins", "sums", "bins")}
        worst = values["worst"]
        if worst is not None:
            frame, agreement, pixel = worst
            worst = Worst(frame, agreement, None if pixel is None else (pixel[0], pixel[1]))
        return AgreementCount(**{**values, **arrays, "worst": worst})

    def _add_scores(self, reference: Floats, scores: Floats) -> tuple[int, int]:
        difference = np.abs(scores - reference)
        largest = float(difference.max())
        relative = over_range(largest, value_range(reference))
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

    def result(self) -> Agreement:
        """Compute the metrics from the sums."""
        shares = [float(a / b) if b else None for a, b in self.margins]
        total, count, noise, signal, power, product = self.sums
        if not self.scored:
            return Agreement(
                self.equal / self.pixels, _share(self.boundary), tuple(shares),
                None, None, None, None, None, (), self.worst,
            )  # fmt: skip
        return Agreement(
            labels=self.equal / self.pixels,
            boundary=_share(self.boundary),
            by_margin=tuple(shares),
            max_abs=self.max_abs,
            mean_abs=float(total / count),
            max_rel=self.max_rel,
            snr_db=snr_db(signal, noise),
            cosine=float(product / math.sqrt(signal * power)) if signal and power else None,
            quantiles=self._quantiles(),
            worst=self.worst,
        )

    def _quantiles(self) -> tuple[float, ...]:
        """Return the upper bound of each quantile's histogram bin: 0, or a power of ten.

        The exponents are multiples of 0.04.
        """
        reached = np.cumsum(self.bins)
        found = np.searchsorted(reached, np.asarray(QUANTILES) * reached[-1])
        step = (_MOST - _LEAST) / _BINS
        return tuple(0.0 if b == 0 else float(10 ** (_LEAST + b * step)) for b in found)


def boundary(labels: Labels) -> NDArray[np.bool_]:
    """Return the mask `(H, W)` of pixels near a class boundary.

    A pixel with another label lies at most `BOUNDARY` pixels away in the same row or column.
    """
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


def _share(pair: list[int]) -> float | None:
    return pair[0] / pair[1] if pair[1] else None
