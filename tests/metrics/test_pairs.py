"""Derived pairs: balanced folds that share no identity, a function of labels and seed."""

from __future__ import annotations

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.metrics import pairs

RNG = np.random.default_rng(0)
# Two styles of each of 1,417 things; faces, few with many pictures and many with one.
TWO_EACH = RNG.permutation(np.repeat(np.arange(1417), 2))
FACES = RNG.permutation(np.repeat(np.arange(400), np.minimum(RNG.geometric(0.4, 400) ** 2, 120)))
FEW = np.array(["a", "a", "b", "b", "c", "c", "d", "d", "d", "e"])


@pytest.mark.parametrize(
    "labels, folds, per_fold, expected",
    [
        (TWO_EACH, 10, 300, 141),  # 1,417 = 10 x 141 + 7
        (TWO_EACH, 10, 20, 20),
        (FACES, 10, 100, 100),
        (FEW, 2, 300, 2),
    ],
)
def test_folds(labels, folds, per_fold, expected):
    got = pairs.derive(labels, 0, folds=folds, per_fold=per_fold)
    first, second = labels[got.first], labels[got.second]
    np.testing.assert_array_equal(first == second, got.same)
    assert np.all(got.first != got.second)
    couples = {frozenset(couple) for couple in zip(got.first, got.second, strict=True)}
    assert len(couples) == len(got.first)  # none twice
    people = []
    for fold in range(folds):
        here = got.fold == fold
        assert (here & got.same).sum() == (here & ~got.same).sum() == expected
        people.append(set(first[here]) | set(second[here]))
    assert sum(map(len, people)) == len(set().union(*people))  # no identity in two folds
    assert len(got.fold) == 2 * folds * expected


def test_the_draw_is_a_function_of_labels_and_seed():
    a, b, c = (pairs.derive(FACES, seed, per_fold=50) for seed in (0, 0, 1))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(a.first, c.first)
    # What the identities are called does not matter, as long as they sort alike.
    named = pairs.derive(np.array([f"{i:03d}" for i in FACES]), 0, per_fold=50)
    np.testing.assert_array_equal(named.first, a.first)
    # A published protocol must not change from one version to the next.
    fixed = pairs.derive(FEW, 0, folds=2)
    np.testing.assert_array_equal(fixed.first, [2, 0, 3, 1, 4, 7, 5, 4])
    np.testing.assert_array_equal(fixed.second, [3, 1, 9, 3, 5, 6, 8, 8])


def test_an_identity_with_many_pictures_does_not_fill_its_fold():
    labels = np.concatenate([np.zeros(200, int), np.repeat(np.arange(1, 60), 2)])
    got = pairs.derive(labels, 0, folds=2, per_fold=30)
    same = labels[got.first[got.same]]
    assert np.sum(same == 0) == 1  # thirty identities or so in each fold: one pair of each


def test_all_pairs_of_an_identity_are_there():
    got = list(pairs._pairs_of(np.arange(7)))
    assert sorted(got) == [(i, j) for i in range(7) for j in range(i + 1, 7)]
    assert got[:3] == [(0, 1), (2, 3), (4, 5)]  # first pairs that share no picture


def test_too_few_identities():
    with pytest.raises(InputError, match="5 identities, 4 of them with two examples or more"):
        pairs.derive(FEW, 0)
    with pytest.raises(InputError, match="do not fill 2 folds"):
        pairs.derive(np.array([0, 0, 1, 1, 2])[:4], 0, folds=2)
