"""Precision, recall, density and coverage against loops, with ties, and what they can tell."""

from __future__ import annotations

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.metrics import arrays, neighbours


def naive(real, generated, k_precision, k_density):
    """The definitions, point by point."""

    def distance(u, v):
        return float(np.sum((u - v) ** 2))

    def radii(points, k):
        return [
            sorted(distance(p, q) for j, q in enumerate(points) if j != i)[k - 1]
            for i, p in enumerate(points)
        ]

    def inside(point, centres, radius):
        return [distance(point, c) <= r for c, r in zip(centres, radius, strict=True)]

    precision = np.mean([any(inside(y, real, radii(real, k_precision))) for y in generated])
    recall = np.mean([any(inside(x, generated, radii(generated, k_precision))) for x in real])
    balls = np.array([inside(y, real, radii(real, k_density)) for y in generated])  # [M, N]
    return precision, recall, balls.sum() / (k_density * len(generated)), balls.any(axis=0).mean()


@pytest.mark.parametrize("entries", [2**24, 50], ids=["whole", "sliced"])
@pytest.mark.parametrize("kind", ["normal", "grid", "duplicates", "far away"])
def test_against_loops(monkeypatch, kind, entries):
    monkeypatch.setattr(arrays, "SLICE_ENTRIES", entries)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(23, 3)), rng.normal(size=(19, 3)) * 0.7 + 0.3
    if kind == "grid":  # distances of integers: many points lie on a rim exactly
        x, y = np.round(x), np.round(y)
    if kind == "duplicates":
        x, y = np.repeat(x[:4], 6, axis=0), np.concatenate([np.repeat(x[2:5], 5, axis=0), y[:4]])
    if kind == "far away":
        x, y = np.round(x) + 1000.0, np.round(y) + 1000.0
    for ks in ((3, 5), (1, 1), (4, 2)):
        got = neighbours.support(x, y, k_precision=ks[0], k_density=ks[1])
        np.testing.assert_allclose(got, naive(x, y, *ks), rtol=1e-12)


def test_a_set_and_itself():
    x = np.random.default_rng(0).normal(size=(50, 8))
    got = neighbours.support(x, x)
    # Each ball holds its centre and k others, the last of them on the rim.
    assert got == (1.0, 1.0, 6 / 5, 1.0)


def test_what_they_tell():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(300, 4))
    fresh = neighbours.support(real, rng.normal(size=(300, 4)))
    assert min(fresh.precision, fresh.recall, fresh.coverage) > 0.7
    assert abs(fresh.density - 1.0) < 0.15  # 1 in expectation
    away = neighbours.support(real, real + 100.0)
    assert away == (0.0, 0.0, 0.0, 0.0)
    collapsed = neighbours.support(real, real[:1] * 0.1 + 0.001 * rng.normal(size=(300, 4)))
    assert collapsed.precision == 1.0 and collapsed.recall < 0.1 and collapsed.coverage < 0.5


def test_refusals():
    x = np.random.default_rng(0).normal(size=(6, 2))
    neighbours.support(x, x)
    with pytest.raises(InputError, match="6 and 5 examples have no k-th neighbours"):
        neighbours.support(x, x[:5])
    with pytest.raises(InputError, match="no k-th neighbours"):
        neighbours.support(x, x, k_precision=0)
    with pytest.raises(InputError, match="dimensions differ"):
        neighbours.support(x, x[:, :1])


def test_the_nearest_is_the_nearest_in_slices_too(monkeypatch):
    random = np.random.default_rng(0)
    others = random.integers(0, 256, (7, 48))
    points = others[[5, 2, 2]].copy()
    points[1, 0] ^= 128  # one value differs by 128
    monkeypatch.setattr(arrays, "SLICE_ENTRIES", 14)
    places, squared = neighbours.nearest(points.astype(np.uint8), others.astype(np.uint8))
    assert places.tolist() == [5, 2, 2] and squared.tolist() == [0, 128**2, 0]
    with pytest.raises(InputError, match="dimensions differ: 48 and 47"):
        neighbours.nearest(points, others[:, 1:])
