"""Pairs for verification where a data set has no official ones: folds of pairs from labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vision_lang.errors import InputError
from vision_lang.metrics.arrays import Array

FOLDS, PER_FOLD = 10, 300  # of Labeled Faces in the Wild, Huang et al. 2007: 300 of each kind


class Pairs(NamedTuple):
    """P pairs, ordered by fold; within each fold as many of the same as of different identities."""

    first: np.ndarray  # index of an example, int64 [P]
    second: np.ndarray  # int64 [P]
    same: np.ndarray  # bool [P]
    fold: np.ndarray  # int64 [P]


def derive(labels: Array, seed: int, *, folds: int = FOLDS, per_fold: int = PER_FOLD) -> Pairs:
    """Derives folds of pairs from (labels, seed) alone; no identity is in two folds.

    Identities are dealt to the folds in random order, first those with two examples or more. A
    fold takes one pair of each identity in turn, then a second one, ..., so that the identity with
    most pictures does not fill it; different pairs are of two random identities. No pair is taken
    twice, and all folds have the same number.

    Args:
      labels: the identity of each example, [N], of any type that sorts.
      seed: any integer that is not negative.
      folds: at least 2.
      per_fold: at most so many same pairs, and as many different ones, per fold.

    Raises:
      InputError: too few identities to fill every fold.
    """
    names, identity, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    rng = np.random.default_rng([seed, folds, per_fold])
    by_identity = np.split(np.argsort(identity, kind="stable"), np.cumsum(counts)[:-1])
    members = [_shuffled(rng, group) for group in by_identity]
    order = _shuffled(rng, np.arange(len(names)))
    several = [i for i in order if len(members[i]) > 1]
    single = [i for i in order if len(members[i]) == 1]
    dealt = [[members[i] for i in (several + single)[fold::folds]] for fold in range(folds)]
    if folds < 2 or len(several) < folds or min(map(len, dealt)) < 2:
        raise InputError(
            f"{len(names)} identities, {len(several)} of them with two examples or more, do not "
            f"fill {folds} folds: at least {folds} with two and two per fold are wanted."
        )
    number = min(per_fold, *(min(_same(f), max(_different(f) // 2, 1)) for f in dealt))
    chosen: list[tuple[int, int]] = []
    for groups in dealt:
        chosen += _draw_same(groups, number) + _draw_different(rng, groups, number)
    first, second = np.array(chosen, np.int64).T
    place = np.arange(len(chosen))
    return Pairs(first, second, place % (2 * number) < number, place // (2 * number))


def _shuffled(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """By sorting uniform numbers, which every version of NumPy draws alike."""
    return values[np.argsort(rng.random(len(values)), kind="stable")]


def _same(groups: list[np.ndarray]) -> int:
    """How many pairs of the same identity there are."""
    return sum(len(g) * (len(g) - 1) // 2 for g in groups)


def _different(groups: list[np.ndarray]) -> int:
    total = sum(map(len, groups))
    return total * (total - 1) // 2 - _same(groups)


def _draw_same(groups: list[np.ndarray], number: int) -> list[tuple[int, int]]:
    """Pairs of each identity in turn; members are in random order already."""
    found: list[tuple[int, int]] = []
    turns = [_pairs_of(g) for g in groups]
    while len(found) < number:
        found += [pair for pair in (next(t, None) for t in turns) if pair is not None]
    return found[:number]


def _pairs_of(group: np.ndarray) -> Iterator[tuple[int, int]]:
    """(0, 1), (2, 3), ..., then (0, 2), ...: neighbours at a growing distance, all pairs once."""
    for distance in range(1, len(group)):
        starts = range(len(group) - distance)
        for i in sorted(starts, key=lambda i: (i // distance % 2, i)):
            yield int(group[i]), int(group[i + distance])


def _draw_different(
    rng: np.random.Generator, groups: list[np.ndarray], number: int
) -> list[tuple[int, int]]:
    """Two identities, then an example of each; drawn again if it was there before.

    `number` is at most half of what there is.
    """
    found: dict[tuple[int, int], None] = {}
    while len(found) < number:
        i, j = int(rng.random() * len(groups)), int(rng.random() * (len(groups) - 1))
        j += j >= i
        a, b = (int(groups[g][int(rng.random() * len(groups[g]))]) for g in (i, j))
        found.setdefault((min(a, b), max(a, b)))
    return list(found)
