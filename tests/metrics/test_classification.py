"""Accuracies, confusion, calibration and average precision against loops and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.metrics import classification as metrics

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 6, size=80)
SCORES = RNG.normal(size=(80, 6)) + np.eye(6)[LABELS]
TIED = np.round(SCORES)


@pytest.mark.parametrize("scores", [SCORES, TIED], ids=["distinct", "ties"])
@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k(scores, k):
    def rank(s, label):  # the right class comes last among its equals
        order = sorted(range(6), key=lambda c: (-s[c], c == label))
        return order.index(label)

    expected = sum(rank(s, label) < k for s, label in zip(scores, LABELS, strict=True))
    assert metrics.top_k(scores, LABELS, k) == (expected, 80)


def test_top_k_adds_up_over_padded_batches():
    total = np.zeros(2)
    padded = np.concatenate([SCORES, np.full((10, 6), np.nan)])
    labels = np.concatenate([LABELS, np.full(10, -1)])
    for batch in range(3):
        rows = slice(30 * batch, 30 * batch + 30)
        total += metrics.top_k(padded[rows], labels[rows], 2, mask=np.arange(90)[rows] < 80)
    assert tuple(total) == metrics.top_k(SCORES, LABELS, 2)
    assert metrics.top_k(padded[80:], labels[80:], 2, mask=np.zeros(10, bool)) == (0, 0)


def test_a_collapsed_network_is_never_right():
    assert metrics.top_k(np.zeros((80, 6)), LABELS, 5) == (0, 80)


def test_confusion_and_what_follows_from_it():
    labels, predicted = np.array([0, 0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 3, 1, 0, 3])
    table = metrics.confusion_matrix(predicted, labels, 4)
    np.testing.assert_array_equal(table, [[2, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(metrics.per_class_accuracy(table), [0.5, 0.5, np.nan, 1.0])
    assert metrics.balanced_accuracy(table) == pytest.approx(2 / 3)
    parts = [metrics.confusion_matrix(predicted[s], labels[s], 4) for s in (slice(3), slice(3, 7))]
    np.testing.assert_array_equal(sum(parts), table)
    majority = metrics.confusion_matrix(np.zeros(7, int), labels, 4)
    assert metrics.balanced_accuracy(majority) == pytest.approx(1 / 3)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_against_a_loop(bins):
    p = np.exp(SCORES)
    p /= p.sum(axis=1, keepdims=True)
    p[0], p[1] = np.eye(6)[2], np.full(6, 1 / 6)  # confidences on edges: 1, and 1 / 6
    confidence, right = p.max(axis=1), p.argmax(axis=1) == LABELS
    expected = 0.0
    for m in range(bins):
        here = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if here.any():
            expected += here.mean() * abs(right[here].mean() - confidence[here].mean())
    whole = metrics.calibration(p, LABELS, bins)
    np.testing.assert_allclose(whole.error, expected, rtol=1e-12)
    added = metrics.calibration(p[:31], LABELS[:31], bins) + metrics.calibration(
        p[31:], LABELS[31:], bins
    )
    np.testing.assert_allclose(added.error, expected, rtol=1e-12)
    assert added.count.sum() == 80


def test_calibration_error_by_hand():
    # 80 % sure and 60 % right; 100 % sure and always right: half of 0.2.
    p = np.array([[0.8, 0.2]] * 5 + [[1.0, 0.0]] * 5)
    assert metrics.calibration(p, [0, 0, 0, 1, 1] + [0] * 5).error == pytest.approx(0.1)
    # 0.6 belongs to the bin that ends there, with 0.5: together 1.1 sure, one right.
    edge = metrics.calibration([[0.6, 0.4], [0.5, 0.5]], [1, 0], bins=5)
    np.testing.assert_array_equal(edge.count, [0, 0, 2, 0, 0])
    assert edge.error == pytest.approx(0.05)


def naive_average_precision(scores, positive):
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        accepted = scores >= threshold
        now = positive[accepted].sum() / positive.sum()
        total += (now - recall) * positive[accepted].mean()
        recall = now
    return total


@pytest.mark.parametrize("scores", [SCORES, TIED], ids=["distinct", "ties"])
def test_average_precision_against_a_loop(scores):
    targets = RNG.random(size=(80, 6)) < 0.3
    targets[:, 4] = False
    expected = [naive_average_precision(scores[:, c], targets[:, c]) for c in (0, 1, 2, 3, 5)]
    mean, each = metrics.mean_average_precision(scores, targets)
    np.testing.assert_allclose(each[[0, 1, 2, 3, 5]], expected, rtol=1e-12)
    assert np.isnan(each[4])
    np.testing.assert_allclose(mean, np.mean(expected), rtol=1e-12)


def test_average_precision_by_hand():
    assert metrics.average_precision([4, 3, 2, 1], [1, 0, 1, 0]) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.average_precision([1, 1, 1, 1], [1, 0, 0, 0]) == 0.25


def test_f1_against_a_loop_and_by_hand():
    answers, targets = RNG.random(size=(80, 6)) < 0.4, RNG.random(size=(80, 6)) < 0.3
    answers[:, 4] = targets[:, 4] = False

    def naive(pairs):
        pairs = list(pairs)
        tp, fp, fn = (pairs.count(kind) for kind in ((1, 1), (1, 0), (0, 1)))
        return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0

    each = [naive(zip(a, t, strict=True)) for a, t in zip(answers.T, targets.T, strict=True)]
    whole = naive(zip(answers.ravel(), targets.ravel(), strict=True))
    np.testing.assert_allclose(metrics.f1(answers, targets), (whole, np.mean(each)), rtol=1e-12)
    # Class 0: one hit, one too many: 2/3. Class 1: nothing found: 0. Together 1 of 1 + 1 + 1.
    assert metrics.f1([[1, 0], [1, 0]], [[1, 1], [0, 0]]) == (pytest.approx(1 / 2), 1 / 3)


def test_refusals():
    with pytest.raises(InputError, match="Label 6 of example 0 is not in 0 ... 5"):
        metrics.top_k(SCORES, np.full(80, 6), 1)
    with pytest.raises(InputError, match="Label -1"):
        metrics.confusion_matrix([0], [-1], 2)
    with pytest.raises(InputError, match=r"integers \[80\] are wanted"):
        metrics.top_k(SCORES, LABELS * 1.0, 1)
    with pytest.raises(InputError, match="apply a softmax"):
        metrics.calibration(SCORES, LABELS)
    with pytest.raises(InputError, match="at least one positive"):
        metrics.average_precision([1.0], [0])
    with pytest.raises(InputError, match="no examples"):
        metrics.balanced_accuracy(np.zeros((2, 2)))
