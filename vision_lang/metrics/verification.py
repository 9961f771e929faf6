"""Verification: do two pictures show the same face or thing? Scores of pairs against the truth.

A pair is accepted if its score is at least the threshold. Shapes: P pairs, N examples,
D dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vision_lang.errors import InputError
from vision_lang.metrics import arrays
from vision_lang.metrics.arrays import Array


def cosine(a: Array, b: Array) -> np.ndarray:
    """Cosine of each row of a with the same row of b, both [P, D], as [P]; 0 for a zero row."""
    x, y = arrays.features(a), arrays.features(b)
    if x.shape != y.shape:
        raise InputError(f"Pairs are wanted, not {list(x.shape)} and {list(y.shape)}.")
    return (arrays.unit(x) * arrays.unit(y)).sum(axis=1)


class Roc(NamedTuple):
    """One point for each distinct score, from the strictest threshold, infinity, to the laxest."""

    threshold: np.ndarray
    false_accept: np.ndarray  # share of the different pairs that are accepted
    true_accept: np.ndarray  # share of the same pairs that are accepted


def roc(scores: Array, same: Array) -> Roc:
    """The receiver operating characteristic of scores [P] against truth, bool [P].

    Raises:
      InputError: shapes differ, a score is NaN, or all pairs are the same or all different.
    """
    s, truth = _checked(scores, same)
    if truth.all() or not truth.any():
        raise InputError("Both pairs of the same and of different identities are wanted.")
    values, index = np.unique(-s, return_inverse=True)
    true = np.cumsum(np.bincount(index, truth, len(values)))
    false = np.cumsum(np.bincount(index, ~truth, len(values)))
    return Roc(
        np.concatenate([[np.inf], -values]),
        np.concatenate([[0.0], false / false[-1]]),
        np.concatenate([[0.0], true / true[-1]]),
    )


def auc(scores: Array, same: Array) -> float:
    """The area under the ROC: P(score of a same pair > of a different one) + P(equal) / 2.

    The trapezoids over groups of equal scores make this the Mann-Whitney statistic exactly.
    """
    curve = roc(scores, same)
    return float(np.trapezoid(curve.true_accept, curve.false_accept))


def true_accept_rate(scores: Array, same: Array, false_accept: Array) -> np.ndarray:
    """The largest share of same pairs accepted where at most this share of different ones is.

    Args:
      scores, same: [P].
      false_accept: rates [F]. A rate below 1 / (number of different pairs) allows none at all.

    Returns:
      [F]; thresholds are scores that occur, nothing is interpolated.
    """
    curve = roc(scores, same)
    rates = np.atleast_1d(np.asarray(false_accept, np.float64))
    if not ((rates >= 0.0) & (rates <= 1.0)).all():
        raise InputError(f"False-accept rates are in 0 ... 1, not {rates.tolist()}.")
    return curve.true_accept[np.searchsorted(curve.false_accept, rates, side="right") - 1]


def equal_error_rate(scores: Array, same: Array) -> float:
    """Where as many different pairs are accepted as same ones refused, linear between points."""
    curve = roc(scores, same)  # both rates never fall, and one rises at each point
    return float(np.interp(1.0, curve.false_accept + curve.true_accept, curve.false_accept))


class CrossValidation(NamedTuple):
    """Accuracy with a threshold chosen on the other folds, for each of K folds."""

    mean: float
    standard_error: float  # of the mean: the folds' standard deviation (K - 1) / sqrt(K)
    accuracy: np.ndarray  # [K]
    threshold: np.ndarray  # [K]


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The threshold of the highest accuracy on scores and truth, both [P].

    Candidates stand in the middle between neighbouring distinct scores, and outside of all (-inf,
    inf); of equally good ones the middle one is taken.
    """
    values, index = np.unique(scores, return_inverse=True)
    same_below = np.cumsum(np.bincount(index, same, len(values)))
    different_below = np.cumsum(np.bincount(index, ~same, len(values)))
    gain = np.concatenate([[0.0], different_below - same_below])  # right ones, but for a constant
    best = np.flatnonzero(gain == gain.max())
    middle = best[(len(best) - 1) // 2]
    edges = np.concatenate([[-np.inf], values[:-1] + np.diff(values) / 2.0, [np.inf]])
    return float(edges[middle])


def cross_validated_accuracy(scores: Array, same: Array, fold: Array) -> CrossValidation:
    """The protocol of Labeled Faces in the Wild, Huang et al. 2007, section 4.

    Args:
      scores, same: [P].
      fold: the fold of each pair, int [P]; any number of folds, at least 2.
    """
    s, truth = _checked(scores, same)
    folds, index = np.unique(np.asarray(fold), return_inverse=True)
    if index.shape != s.shape or len(folds) < 2:
        raise InputError("A fold for each pair, and at least 2 folds, are wanted.")
    accuracy, threshold = np.empty(len(folds)), np.empty(len(folds))
    for k in range(len(folds)):
        test = index == k
        threshold[k] = best_threshold(s[~test], truth[~test])
        accuracy[k] = np.mean((s[test] >= threshold[k]) == truth[test])
    error = accuracy.std(ddof=1) / np.sqrt(len(folds))
    return CrossValidation(float(accuracy.mean()), float(error), accuracy, threshold)


def _checked(scores: Array, same: Array) -> tuple[np.ndarray, np.ndarray]:
    s, truth = arrays.finite(scores, "The scores"), np.asarray(same)
    if s.ndim != 1 or truth.shape != s.shape or not len(s):
        raise InputError(f"Scores {list(s.shape)} and truth {list(truth.shape)}: [P] are wanted.")
    return s, truth.astype(bool)
