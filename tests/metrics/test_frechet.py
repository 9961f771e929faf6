"""The Frechet distance: closed forms, merging, singular covariances, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from vision_lang.errors import InputError
from vision_lang.metrics import arrays
from vision_lang.metrics.frechet import Statistics, frechet_distance, merged, statistics


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def gaussian(mean, covariance, count=1000):
    """The statistics of a set that has exactly these moments."""
    return Statistics(count, np.asarray(mean), np.asarray(covariance) * (count - 1))


def test_diagonal_covariances_have_a_closed_form():
    # sum of (m_a - m_b)^2 + (s_a - s_b)^2, s the standard deviations
    rng = np.random.default_rng(0)
    m_a, m_b, s_a, s_b = rng.uniform(0.1, 3.0, size=(4, 7))
    expected = np.square(m_a - m_b).sum() + np.square(s_a - s_b).sum()
    a, b = gaussian(m_a, np.diag(s_a**2)), gaussian(m_b, np.diag(s_b**2))
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-12)
    q, _ = np.linalg.qr(rng.normal(size=(7, 7)))  # a rotation of both changes nothing
    a, b = (gaussian(q @ s.mean, q @ s.covariance @ q.T) for s in (a, b))
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-12)


def test_covariances_that_do_not_commute_against_a_matrix_square_root():
    a, b = normal(300, 6) @ normal(6, 6, seed=1), normal(400, 6, seed=2) @ normal(6, 6, seed=3) + 1
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a @ cov_b)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2.0 * root.real)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-10)
    np.testing.assert_allclose(frechet_distance(b, a), expected, rtol=1e-10)


@pytest.mark.parametrize(
    "spread", [np.ones(50), np.logspace(0, -12, 50), np.arange(50) < 3, np.zeros(50)],
    ids=["round", "near-singular", "rank 3", "constant"],
)  # fmt: skip
def test_a_set_and_itself_are_at_distance_0(spread):
    x = (30.0 * normal(200, 50) * spread) @ np.linalg.qr(normal(50, 50, seed=1))[0] + 100.0
    assert 0.0 <= frechet_distance(x, x) < 1e-6
    assert 0.0 <= frechet_distance(x, x[::-1]) < 1e-6  # other slices, other rounding
    few = x[:20]
    assert 0.0 <= frechet_distance(few, few, allow_few=True) < 1e-6


def test_singular_covariances_in_orthogonal_planes():
    """With no common direction the last trace is 0: what is left are the means and variances."""
    x = np.zeros((100, 40))
    y = x.copy()
    x[:, :5], y[:, 20:25] = normal(100, 5), normal(100, 5, seed=1)
    q = np.linalg.qr(normal(40, 40, seed=2))[0]
    expected = (
        np.square(x.mean(0) - y.mean(0)).sum() + x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum()
    )
    np.testing.assert_allclose(frechet_distance(x @ q, y @ q), expected, rtol=1e-7)


def test_statistics_are_numpys():
    x = normal(100, 5) + 3.0
    s = statistics(x.astype(np.float32))
    assert s.count == 100 and s.scatter.dtype == s.mean.dtype == np.float64
    np.testing.assert_allclose(s.mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(s.covariance, np.cov(x.T), rtol=1e-5, atol=1e-6)


def test_merging_any_split_equals_the_whole(monkeypatch):
    x = normal(257, 9) * np.logspace(-3, 3, 9) + 50.0
    whole = statistics(x)
    rng = np.random.default_rng(1)
    for _ in range(5):
        cuts = np.sort(rng.choice(np.arange(1, 257), size=rng.integers(1, 40), replace=False))
        parts = [statistics(part) for part in np.split(x, cuts)]
        for order in (parts, parts[::-1]):
            total = merged(order)
            assert total.count == 257
            np.testing.assert_allclose(total.mean, whole.mean, rtol=1e-13)
            np.testing.assert_allclose(total.scatter, whole.scatter, rtol=1e-10, atol=1e-8)
            assert frechet_distance(total, whole) < 1e-6
    monkeypatch.setattr(arrays, "SLICE_ENTRIES", 20)  # two rows at a time
    np.testing.assert_allclose(statistics(x).scatter, whole.scatter, rtol=1e-10, atol=1e-8)


def test_a_large_mean_does_not_drown_the_covariance():
    x = normal(500, 3) * 1e-4
    np.testing.assert_allclose(statistics(x + 1e4).covariance, np.cov(x.T), rtol=1e-4, atol=1e-12)


def test_too_few_are_refused_unless_allowed():
    with pytest.raises(InputError, match="8 examples are too few .* 8 dimensions: at least 9 are"):
        frechet_distance(normal(8, 8), normal(9, 8))
    assert frechet_distance(normal(9, 8), normal(9, 8, seed=1)) > 0.0
    assert frechet_distance(normal(8, 8), normal(9, 8, seed=1), allow_few=True) > 0.0
    with pytest.raises(InputError, match="at least 2"):
        frechet_distance(normal(1, 8), normal(9, 8), allow_few=True)


@pytest.mark.parametrize(
    "bad, sentence",
    [
        (normal(9, 3), "dimensions differ: 3 and 2"),
        (normal(9, 2, 2), "pool spatial features"),
        (np.zeros((0, 2)), "pool spatial"),
        (np.full((9, 2), np.nan), "NaN or infinity"),
        (np.full((9, 2), "a"), "real numbers are wanted"),
    ],
)
def test_wrong_features(bad, sentence):
    with pytest.raises(InputError, match=sentence):
        frechet_distance(bad, normal(9, 2))
