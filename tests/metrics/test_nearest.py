"""The nearest by cosine, against a loop over all of them."""

from __future__ import annotations

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.metrics import arrays
from vision_lang.metrics.nearest import nearest


@pytest.mark.parametrize("entries", [7, 2**24])
def test_the_nearest_by_a_loop(monkeypatch, entries):
    monkeypatch.setattr(arrays, "SLICE_ENTRIES", entries)  # a row or all of a part at a time
    rng = np.random.default_rng(0)
    queries, features = rng.normal(size=(3, 4)), rng.normal(size=(12, 4)).astype(np.float32)
    names = np.array([f"n{i}" for i in range(12)])
    parts = [(features[a:b], names[a:b]) for a, b in ((0, 5), (5, 6), (6, 12))]
    for k in (1, 4, 12, 99):
        for query, found in zip(queries, nearest(queries, iter(parts), k), strict=True):
            cosine = {
                name: float(query @ row) / np.linalg.norm(query) / np.linalg.norm(row)
                for name, row in zip(names, features.astype(float), strict=True)
            }
            order = sorted(cosine, key=lambda name: -cosine[name])[:k]
            assert [name for _, name in found] == order
            np.testing.assert_allclose([s for s, _ in found], [cosine[n] for n in order])


def test_length_does_not_matter_equals_keep_their_order_and_nothing_points_nowhere():
    features = np.array([[0, 0], [1, 0], [5, 0], [0, 3]])
    names = np.array(["zero", "short", "long", "across"])
    parts = [(features[:2], names[:2]), (features[2:], names[2:])]
    (found,) = nearest([[2.0, 0.0]], parts, 4)
    assert found == [(1, "short"), (1, "long"), (0, "zero"), (0, "across")]


def test_other_dimensions_are_refused():
    with pytest.raises(InputError, match="3 dimensions, the queries 2"):
        nearest(np.ones((1, 2)), [(np.ones((4, 3)), np.array(list("abcd")))], 1)
