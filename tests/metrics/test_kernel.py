"""The kernel distance against sums over pairs, and its subsets."""

from __future__ import annotations

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.metrics import kernel


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def naive(x, y):
    def k(u, v):
        return (sum(p * q for p, q in zip(u, v, strict=True)) / len(u) + 1.0) ** 3

    def pairs(s):
        return [k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]

    return np.mean(pairs(x)) + np.mean(pairs(y)) - 2.0 * np.mean([k(u, v) for u in x for v in y])


def test_squared_mmd_is_a_mean_over_pairs():
    x, y = normal(7, 3), normal(9, 3, seed=1) + 0.5
    np.testing.assert_allclose(kernel.squared_mmd(x, y), naive(x, y), rtol=1e-12)


def test_it_is_unbiased():
    """Of equal distributions its mean is 0; of different ones that of a much larger sample."""
    x, y = normal(2000, 2), normal(2000, 2, seed=1) + 0.5
    size, number = 5, 400
    same = [kernel.squared_mmd(*np.split(x[10 * i : 10 * i + 10], 2)) for i in range(200)]
    assert abs(np.mean(same)) < 3.0 * np.std(same) / np.sqrt(len(same))
    assert min(same) < 0.0
    apart = [
        kernel.squared_mmd(x[size * i : size * i + size], y[size * i : size * i + size])
        for i in range(number)
    ]
    whole = kernel.squared_mmd(x, y)  # a biased one of 5 would be far larger
    assert whole > 0.3
    assert abs(np.mean(apart) - whole) < 3.0 * np.std(apart) / np.sqrt(number)


def test_mean_and_deviation_are_over_subsets_drawn_from_the_seed():
    x, y = normal(40, 3), normal(30, 3, seed=1) + 0.5
    values = []
    for i in range(6):
        first, second = kernel.draw(40, 10, 5, i, 0), kernel.draw(30, 10, 5, i, 1)
        assert len(set(first.tolist())) == len(set(second.tolist())) == 10
        values.append(naive(x[first], y[second]))
    got = kernel.kernel_distance(x.astype(np.float32), y, subsets=6, subset_size=10, seed=5)
    np.testing.assert_allclose(got, [np.mean(values), np.std(values)], rtol=1e-5)
    assert got == kernel.kernel_distance(x.astype(np.float32), y, subsets=6, subset_size=10, seed=5)
    assert got != kernel.kernel_distance(x.astype(np.float32), y, subsets=6, subset_size=10, seed=6)


def test_every_example_is_drawn_as_often_as_another():
    counts = np.bincount(np.concatenate([kernel.draw(20, 5, 0, i, 0) for i in range(2000)]))
    assert len(counts) == 20  # 500 each, with a standard deviation of 19
    assert abs(counts - 500).max() < 80


def test_the_subsets_of_the_whole_sets_are_all_equal():
    x, y = normal(12, 3), normal(12, 3, seed=1)
    got = kernel.kernel_distance(x, y, subsets=3, subset_size=12)
    np.testing.assert_allclose(got.mean, naive(x, y), rtol=1e-10)
    assert got.std < 1e-12


def test_defaults_and_refusals():
    x = normal(1001, 2)
    with pytest.raises(InputError, match="999 examples is smaller than a subset of 1000: set the"):
        kernel.kernel_distance(x, x[:999])
    with pytest.raises(InputError, match="smaller than a subset of 31"):
        kernel.kernel_distance(x[:30], x, subset_size=31)
    with pytest.raises(InputError, match="at least 1 subset"):
        kernel.kernel_distance(x, x, subset_size=1)
    with pytest.raises(InputError, match="dimensions differ"):
        kernel.kernel_distance(x, x[:, :1])
    with pytest.raises(InputError, match="NaN"):
        kernel.kernel_distance(x, np.full_like(x, np.nan), subsets=1)
