"""The confusion matrix against scikit-learn's, and what is undefined."""

from __future__ import annotations

import math

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from segdeploy.models.metrics import ConfusionMatrix, defined_mean


def test_metrics_iou_and_accuracy_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    matrix = ConfusionMatrix(6, 255)
    truths, predictions = [], []
    for _ in range(3):
        truth = rng.integers(0, 6, (30, 40)).astype(np.uint8)
        truth[rng.random((30, 40)) < 0.1] = 255
        predicted = np.where(rng.random((30, 40)) < 0.6, truth % 6, rng.integers(0, 6, (30, 40)))
        matrix.add(truth, predicted.astype(np.uint8))
        truths.append(truth[truth != 255])
        predictions.append(predicted[truth != 255])
    truth, predicted = np.concatenate(truths), np.concatenate(predictions)
    np.testing.assert_allclose(matrix.iou(), jaccard_score(truth, predicted, average=None))
    assert math.isclose(
        defined_mean(matrix.iou()), jaccard_score(truth, predicted, average="macro")
    )
    assert math.isclose(matrix.pixel_accuracy(), accuracy_score(truth, predicted))


def test_metrics_an_absent_class_is_undefined_and_left_out_of_the_mean() -> None:
    matrix = ConfusionMatrix(3, 255)
    matrix.add(np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 1, 1, 2]], np.uint8))
    iou = matrix.iou()
    assert iou[0] == iou[1] == 0.5
    assert math.isnan(iou[2])
    assert defined_mean(matrix.iou()) == 0.5


def test_metrics_a_pixel_without_a_class_is_a_miss_of_its_true_class() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, (20, 30)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.7, truth, (truth + 1) % 4).astype(np.uint8)
    predicted[rng.random(truth.shape) < 0.2] = 255  # unsure
    matrix = ConfusionMatrix(4, 255)
    matrix.add(truth, predicted)
    known, found, classes = truth.ravel(), predicted.ravel(), range(4)
    expected = jaccard_score(known, found, labels=classes, average=None)
    np.testing.assert_allclose(matrix.iou(), expected)
    expected = f1_score(known, found, labels=classes, average=None)
    np.testing.assert_allclose(matrix.dice(), expected)
    assert math.isclose(matrix.pixel_accuracy(), accuracy_score(known, found))
    assert math.isclose(matrix.coverage(), np.mean(found != 255))


def test_metrics_nothing_counted_is_undefined() -> None:
    matrix = ConfusionMatrix(2, 255)
    matrix.add(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert math.isnan(defined_mean(matrix.iou()))
    assert math.isnan(matrix.pixel_accuracy())
