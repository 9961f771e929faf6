"""Whether one way is better than another: over seeds, and over the examples of one test set.

Between runs, seeds are the sample: mean, deviation, Student's t interval, Welch's t-test. Within
runs, examples are: a paired bootstrap of the difference (Efron & Tibshirani 1993, chapter 13.3, the
percentile interval; for test sets Koehn 2004). The first says what another seed would give, the
second what other examples would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
FEWEST = 5  # runs a side, for a p-value
RESAMPLES = 10_000
SLICE = 2**22  # numbers that are drawn at once


class Spread(NamedTuple):
    """Of n values: mean, deviation (n - 1 in the denominator) and half of the mean's t interval;
    the last two are NaN where n is 1."""

    n: int
    mean: float
    deviation: float
    half: float


class Interval(NamedTuple):
    """A difference and the interval that it lies in."""

    difference: float
    low: float
    high: float


def spread(values: Sequence[float], level: float = LEVEL) -> Spread:
    """Returns the spread of one value or more."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return Spread(len(x), float(x.mean()), math.nan, math.nan)
    deviation = float(x.std(ddof=1))
    quantile = float(stats.t.ppf((1 + level) / 2, len(x) - 1))
    return Spread(len(x), float(x.mean()), deviation, quantile * deviation / math.sqrt(len(x)))


def p_value(a: Sequence[float], b: Sequence[float], fewest: int = FEWEST) -> float | None:
    """Returns Welch's two-sided p of equal means; None where a side has fewer than `fewest` values,
    or where no value differs from another of its side, of which a t-test knows nothing."""
    if min(len(a), len(b)) < fewest or (np.ptp(a) == 0 and np.ptp(b) == 0):
        return None
    return float(stats.ttest_ind(a, b, equal_var=False).pvalue)


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """The mean of a - b over examples, and its bootstrap interval.

    Args:
      a, b: what each example contributed, [N], in the same order.
      resamples: how often N examples are drawn, with replacement.
      level: of the interval.
      seed: of the draws.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    n = len(difference)
    rng, means = np.random.default_rng(seed), []
    rows = max(1, SLICE // n)
    for start in range(0, resamples, rows):
        drawn = rng.integers(n, size=(min(rows, resamples - start), n))
        means.append(difference[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference.mean()), float(low), float(high))
