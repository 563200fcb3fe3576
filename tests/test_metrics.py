"""The label counts against scikit-learn's, and what is undefined."""

from __future__ import annotations

import math

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from segdeploy.models.metrics import LabelCounts, defined_mean


def test_metrics_iou_and_accuracy_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    counts = LabelCounts(6, 255)
    truths, predictions = [], []
    for _ in range(3):
        truth = rng.integers(0, 6, (30, 40)).astype(np.uint8)
        truth[rng.random((30, 40)) < 0.1] = 255
        predicted = np.where(rng.random((30, 40)) < 0.6, truth % 6, rng.integers(0, 6, (30, 40)))
        counts.add(truth, predicted.astype(np.uint8))
        truths.append(truth[truth != 255])
        predictions.append(predicted[truth != 255])
    truth, predicted = np.concatenate(truths), np.concatenate(predictions)
    np.testing.assert_allclose(counts.iou(), jaccard_score(truth, predicted, average=None))
    assert math.isclose(
        defined_mean(counts.iou()), jaccard_score(truth, predicted, average="macro")
    )
    assert math.isclose(counts.pixel_accuracy(), accuracy_score(truth, predicted))


def test_metrics_an_absent_class_is_undefined_and_left_out_of_the_mean() -> None:
    counts = LabelCounts(3, 255)
    counts.add(np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 1, 1, 2]], np.uint8))
    iou = counts.iou()
    assert iou[0] == iou[1] == 0.5
    assert math.isnan(iou[2])
    assert defined_mean(counts.iou()) == 0.5


def test_metrics_a_pixel_without_a_class_is_a_miss_of_its_true_class() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, (20, 30)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.7, truth, (truth + 1) % 4).astype(np.uint8)
    predicted[rng.random(truth.shape) < 0.2] = 255  # unsure
    counts = LabelCounts(4, 255)
    counts.add(truth, predicted)
    known, found, classes = truth.ravel(), predicted.ravel(), range(4)
    expected = jaccard_score(known, found, labels=classes, average=None)
    np.testing.assert_allclose(counts.iou(), expected)
    expected = f1_score(known, found, labels=classes, average=None)
    np.testing.assert_allclose(counts.dice(), expected)
    assert math.isclose(counts.pixel_accuracy(), accuracy_score(known, found))
    assert math.isclose(counts.coverage(), np.mean(found != 255))


def test_metrics_nothing_counted_is_undefined() -> None:
    counts = LabelCounts(2, 255)
    counts.add(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert math.isnan(defined_mean(counts.iou()))
    assert math.isnan(counts.pixel_accuracy())
