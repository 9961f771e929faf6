"""Intervals and tests against scipy, what they promise by simulation, and cases done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from vision_lang.metrics import significance

RNG = np.random.default_rng(0)


def test_spread_against_scipy():
    x = RNG.normal(3, 2, 7)
    found = significance.spread(x)
    low, high = stats.t.interval(0.95, 6, loc=x.mean(), scale=stats.sem(x))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert found.deviation == pytest.approx(np.std(x, ddof=1)) and found.n == 7


def test_one_value_has_no_spread():
    n, mean, deviation, half = significance.spread([2.0])
    assert (n, mean) == (1, 2.0) and math.isnan(deviation) and math.isnan(half)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    found = [significance.spread(x) for x in RNG.normal(0, 1, (2000, 3))]
    inside = np.mean([abs(s.mean) <= s.half for s in found])
    assert inside == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))


def test_p_value_wants_five_a_side():
    a, b = RNG.normal(0, 1, 5), RNG.normal(0.5, 3, 6)
    assert significance.p_value(a, b) == stats.ttest_ind(a, b, equal_var=False).pvalue
    assert significance.p_value(a[:4], b) is None and significance.p_value(a, b[:4]) is None
    assert significance.p_value([1.0] * 5, [1.0] * 5) is None


def test_p_values_of_equal_means_are_uniform():
    found = [significance.p_value(*x) for x in RNG.normal(0, 1, (1000, 2, 5))]
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_the_paired_bootstrap_is_about_differences():
    """What both runs find hard does not widen it: its width is that of the mean difference."""
    hard, n = RNG.normal(0, 10, 500), 500
    a, b = hard + RNG.normal(0.3, 1, n), hard + RNG.normal(0, 1, n)
    found = significance.paired_bootstrap(a, b)
    error = np.std(a - b) / math.sqrt(n)
    assert found.difference == pytest.approx((a - b).mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert significance.paired_bootstrap(a, b) == found  # the draws are of the seed
    turned = significance.paired_bootstrap(b, a)
    assert turned.difference == -found.difference


def test_the_paired_bootstrap_against_scipy():
    a, b = RNG.random(80), RNG.random(80)
    found = significance.paired_bootstrap(a, b, resamples=40_000)
    theirs = stats.bootstrap(
        (a - b,), np.mean, n_resamples=40_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=3e-3)


def test_slices_are_one_sample(monkeypatch):
    x = RNG.random(10)
    whole = significance.paired_bootstrap(x, 0 * x, resamples=100)
    monkeypatch.setattr(significance, "SLICE", 70)
    assert significance.paired_bootstrap(x, 0 * x, resamples=100) == pytest.approx(whole)
