"""What is counted of a candidate, against values that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segdeploy.benchmark.agreement import MARGINS, AgreementCount, boundary
from segdeploy.benchmark.latency import ratio_of
from segdeploy.benchmark.verdict import Limits
from segdeploy.errors import InputError
from segdeploy.models.metrics import LabelCounts
from segdeploy.proof.bootstrap import confidence_intervals
from segdeploy.runtime.postprocess import margin


def counted(reference: np.ndarray, candidate: np.ndarray, frames: int = 1) -> AgreementCount:
    count = AgreementCount()
    for index in range(frames):
        labels = reference.argmax(0).astype(np.uint8)
        count.add(
            f"frame {index}", reference, labels, margin(reference),
            candidate.argmax(0).astype(np.uint8), candidate,
        )  # fmt: skip
    return count


def scores(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (5, 24, 32)).astype(np.float32)


def test_agreement_the_same_scores_are_the_same() -> None:
    found = counted(scores(0), scores(0), frames=3).result()
    assert (found.labels, found.boundary, found.max_abs, found.max_rel) == (1, 1, 0, 0)
    assert found.snr_db == math.inf
    assert found.cosine == pytest.approx(1)
    assert found.quantiles == (0, 0, 0, 0)


def test_agreement_differences_are_measured_as_defined() -> None:
    reference = scores(1)
    noise = np.random.default_rng(2).normal(0, 0.01, reference.shape).astype(np.float32)
    found = counted(reference, reference + noise).result()
    off = np.abs((reference + noise).astype(np.float64) - reference)
    assert found.max_abs == pytest.approx(off.max(), rel=1e-5)
    assert found.mean_abs == pytest.approx(off.mean(), rel=1e-5)
    assert found.max_rel == pytest.approx(off.max() / np.ptp(reference), rel=1e-5)
    power = (reference.astype(np.float64) ** 2).sum()
    assert found.snr_db == pytest.approx(10 * np.log10(power / (off**2).sum()), abs=0.01)
    for share, value in zip((0.5, 0.9, 0.99, 0.999), found.quantiles, strict=True):
        assert value == pytest.approx(np.quantile(off, share), rel=0.12)
    worst = np.unravel_index(off.max(0).argmax(), off.shape[1:])
    assert found.worst.pixel == tuple(worst)


def test_agreement_what_differs_at_a_large_margin_is_told_apart_from_rounding() -> None:
    reference = np.zeros((2, 10, 10), np.float32)
    reference[0] = 1
    reference[0, 0] = 1e-4  # a near tie in the first row
    candidate = reference.copy()
    candidate[1, 0] = 1  # and there alone another label
    found = counted(reference, candidate).result()
    assert found.labels == 0.9
    assert found.by_margin[0] == 0
    assert found.by_margin[-1] == 1
    candidate = reference.copy()
    candidate[1, 5] = 2  # where the reference was sure
    found = counted(reference, candidate).result()
    assert found.by_margin[0] == 1
    assert found.by_margin[-1] == pytest.approx(80 / 90)
    assert len(found.by_margin) == len(MARGINS)


def test_agreement_boundaries_are_two_pixels_wide() -> None:
    labels = np.zeros((9, 9), np.uint8)
    labels[:, 5:] = 1
    edge = boundary(labels)
    assert edge[0].tolist() == [False] * 3 + [True] * 4 + [False] * 2
    assert not boundary(np.zeros((4, 4), np.uint8)).any()
    assert boundary(np.array([[0], [1]], np.uint8)).all()


def counts_of(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    counts = LabelCounts(3, 255)
    counts.add(truth, found)
    return counts.counts


def test_agreement_intervals_hold_the_figure_and_narrow_with_frames() -> None:
    rng = np.random.default_rng(0)

    def frames(count: int) -> list[np.ndarray]:
        made = []
        for _ in range(count):
            truth = rng.integers(0, 3, (20, 20)).astype(np.uint8)
            wrong = rng.random((20, 20)) < rng.uniform(0, 0.4)
            made.append(counts_of(truth, np.where(wrong, (truth + 1) % 3, truth).astype(np.uint8)))
        return made

    few, many = frames(5), frames(200)
    narrow, wide = confidence_intervals(many).miou, confidence_intervals(few).miou
    assert narrow.high - narrow.low < wide.high - wide.low
    whole = sum(many)
    hits, true, given = whole[:-1].T
    iou = hits / (true + given - hits)
    assert narrow.low < iou.mean() < narrow.high
    same = confidence_intervals(many, many)
    assert (same.drop.low, same.drop.high) == (0, 0)  # drawn together, no noise is left
    assert confidence_intervals(many) == confidence_intervals(many)


def test_agreement_a_class_that_hardly_a_frame_holds_has_no_interval() -> None:
    truth = np.zeros((4, 4), np.uint8)
    found = confidence_intervals([counts_of(truth, truth)] * 3)
    assert found.iou[0].low == 1
    assert found.iou[1] is None
    assert found.miou.low == 1


def test_agreement_a_ratio_is_clear_only_where_its_interval_leaves_one() -> None:
    rng = np.random.default_rng(0)
    reference = 10 + rng.normal(0, 0.3, 9)
    assert not ratio_of(reference, 10 + rng.normal(0, 0.3, 9)).is_clear
    fast = ratio_of(reference, reference / 2)
    assert fast.is_clear
    assert fast.speedup == pytest.approx(2)


def test_agreement_limits_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="--min-agreement 1.5: must be a share"):
        Limits(min_agreement=1.5).check()
    with pytest.raises(InputError, match="--max-latency-ms -1: must be 0 or more"):
        Limits(max_latency_ms=-1).check()
