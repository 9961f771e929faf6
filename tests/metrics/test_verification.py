"""ROC, AUC, rates and the LFW protocol against counting pairs."""

from __future__ import annotations

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.metrics import verification


@pytest.fixture(params=["distinct", "ties"])
def pairs(request):
    """Scores [P] and truth [P] of 120 pairs."""
    rng = np.random.default_rng(0)
    same = rng.random(120) < 0.4
    scores = rng.normal(size=120) + same
    return (np.round(scores, 0) if request.param == "ties" else scores), same


def rates(scores, same, threshold):
    accepted = scores >= threshold
    return np.mean(accepted[~same]), np.mean(accepted[same])


def test_cosine():
    a, b = (
        np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]]),
        np.array([[2.0, 0.0], [0.0, -5.0], [1, 1]]),
    )
    np.testing.assert_allclose(verification.cosine(a, b), [1.0, -np.sqrt(0.5), 0.0], atol=1e-15)


def test_roc_has_the_rates_of_every_threshold(pairs):
    scores, same = pairs
    curve = verification.roc(scores, same)
    assert len(curve.threshold) == len(set(scores)) + 1
    assert np.all(np.diff(curve.threshold) < 0)
    for threshold, *point in zip(*curve, strict=True):
        assert point == pytest.approx(rates(scores, same, threshold), abs=1e-15)
    assert (curve.false_accept[-1], curve.true_accept[-1]) == (1.0, 1.0)


def test_auc_counts_pairs_of_pairs(pairs):
    scores, same = pairs
    wins = [(p > q) + 0.5 * (p == q) for p in scores[same] for q in scores[~same]]
    np.testing.assert_allclose(verification.auc(scores, same), np.mean(wins), rtol=1e-13)
    np.testing.assert_allclose(verification.auc(-scores, same), 1.0 - np.mean(wins), rtol=1e-13)
    assert verification.auc(np.zeros(120), same) == 0.5


def test_true_accept_rate_is_the_best_of_the_thresholds_that_are_strict_enough(pairs):
    scores, same = pairs
    different = int((~same).sum())
    wanted = [0.0, 0.5 / different, 1.0 / different, 0.1, 0.37, 1.0]
    expected = [
        max(t for f, t in (rates(scores, same, s) for s in [*scores, np.inf]) if f <= rate)
        for rate in wanted
    ]
    np.testing.assert_allclose(verification.true_accept_rate(scores, same, wanted), expected)


def test_equal_error_rate():
    same = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    # At the threshold 3 one of four is wrong on either side.
    assert verification.equal_error_rate([5, 4, 3, 1, 3.0 - 1e-9, 2, 0, 3.5], same) == 0.25
    assert verification.equal_error_rate(same * 1.0, same) == 0.0
    assert verification.equal_error_rate(~same * 1.0, same) == 1.0
    assert verification.equal_error_rate(np.ones(8), same) == 0.5  # halfway along the one step


def test_equal_error_rate_lies_on_the_curve(pairs):
    rate = verification.equal_error_rate(*pairs)
    curve = verification.roc(*pairs)
    false, true = curve.false_accept, curve.true_accept
    i = np.flatnonzero((false <= rate) & (true <= 1.0 - rate))[-1]  # the last point before
    assert false[i + 1] >= rate and true[i + 1] >= 1.0 - rate
    along = (false[i + 1] - false[i]) * (1.0 - rate - true[i])
    np.testing.assert_allclose(along, (true[i + 1] - true[i]) * (rate - false[i]), atol=1e-15)


def naive_protocol(scores, same, fold):
    accuracies, thresholds = [], []
    for k in sorted(set(fold)):
        train = [(s, t) for s, t, f in zip(scores, same, fold, strict=True) if f != k]
        test = [(s, t) for s, t, f in zip(scores, same, fold, strict=True) if f == k]
        values = sorted({s for s, _ in train})
        candidates = [-np.inf, *(a + (b - a) / 2 for a, b in zip(values, values[1:], strict=False))]
        candidates.append(np.inf)
        right = [sum((s >= c) == t for s, t in train) for c in candidates]
        best = [c for c, r in zip(candidates, right, strict=True) if r == max(right)]
        thresholds.append(best[(len(best) - 1) // 2])
        accuracies.append(np.mean([(s >= thresholds[-1]) == t for s, t in test]))
    n = len(accuracies)
    spread = np.sqrt(sum((a - np.mean(accuracies)) ** 2 for a in accuracies) / (n - 1))
    return np.mean(accuracies), spread / np.sqrt(n), accuracies, thresholds


def test_the_protocol_of_lfw(pairs):
    scores, same = pairs
    fold = np.random.default_rng(1).permutation(np.arange(120) % 10)
    got = verification.cross_validated_accuracy(scores, same, fold)
    mean, error, accuracy, threshold = naive_protocol(scores, same, fold)
    np.testing.assert_allclose([got.mean, got.standard_error], [mean, error], rtol=1e-13)
    np.testing.assert_allclose(got.accuracy, accuracy, rtol=1e-13)
    np.testing.assert_array_equal(got.threshold, threshold)
    assert 0.5 < got.mean < 1.0 and len(got.accuracy) == 10


def test_a_threshold_is_not_chosen_on_its_own_fold():
    # Fold 1 would want the threshold 0.5, but all others say 10.5.
    scores = np.array([0.0, 1.0] + [10.0, 11.0] * 4)
    got = verification.cross_validated_accuracy(
        scores, np.arange(10) % 2 == 1, np.repeat(np.arange(5), 2)
    )
    assert got.threshold[0] == 10.5 and got.accuracy[0] == 0.5
    np.testing.assert_array_equal(got.accuracy[1:], 1.0)


def test_refusals():
    same = np.arange(4) < 2
    with pytest.raises(InputError, match="Both pairs"):
        verification.roc(np.arange(4), np.ones(4, bool))
    with pytest.raises(InputError, match="NaN"):
        verification.auc([0, 1, np.nan, 3], same)
    with pytest.raises(InputError, match="are wanted"):
        verification.auc(np.arange(3), same)
    with pytest.raises(InputError, match=r"in 0 ... 1"):
        verification.true_accept_rate(np.arange(4), same, [1.5])
    with pytest.raises(InputError, match="at least 2 folds"):
        verification.cross_validated_accuracy(np.arange(4), same, np.zeros(4))
