"""Kernel distance of two sets of features, Binkowski et al. 2018, "Demystifying MMD GANs".

The squared maximum mean discrepancy under the kernel k(x, y) = (x.y / D + 1)^3, estimated without
bias (so that it can be negative), over random subsets. On Inception features it is called KID; on
any other network's it is a number of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vision_lang.errors import InputError
from vision_lang.metrics import arrays
from vision_lang.metrics.arrays import Array

SUBSETS, SUBSET_SIZE = 100, 1000  # of torch-fidelity


class KernelDistance(NamedTuple):
    """Over the subsets; the deviation is that of one subset, not of the mean."""

    mean: float
    std: float


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x.y / D + 1)^3 of x [N, D] and y [M, D], as [N, M]."""
    k = x @ y.T
    k /= x.shape[1]
    k += 1.0
    return k * k * k


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate from x [N, D] and y [M, D]: means over pairs of different examples.

    Gretton et al. 2012, eq. 3; N and M are at least 2.
    """
    n, m = len(x), len(y)
    within_x, within_y = kernel(x, x), kernel(y, y)
    return float(
        (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
        + (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
        - 2.0 * kernel(x, y).mean()
    )


def draw(count: int, size: int, *key: int) -> np.ndarray:
    """`size` different indices below `count`, a function of the integers `key` alone.

    The first of a sort of uniform numbers: these are the same in every version of NumPy, which
    its own methods for drawing without repetition do not promise to be.
    """
    order = np.argsort(np.random.default_rng(key).random(count), kind="stable")
    return order[:size]


def kernel_distance(
    a: Array, b: Array, *, subsets: int = SUBSETS, subset_size: int | None = None, seed: int = 0
) -> KernelDistance:
    """The kernel distance of features a [N, D] and b [M, D].

    Args:
      a, b: features, of any type of numbers.
      subsets: how many pairs of subsets are drawn, each without repetition.
      subset_size: examples per subset; None is 1,000, as published numbers have it.
      seed: subset i of each side is a function of (seed, i).

    Raises:
      InputError: dimensions differ, or a set is smaller than a subset. A smaller subset has to be
        asked for, because the deviation depends on its size.
    """
    a, b = np.asarray(a), np.asarray(b)
    size = SUBSET_SIZE if subset_size is None else subset_size
    if subsets < 1 or size < 2:
        raise InputError("A kernel distance wants at least 1 subset of at least 2 examples.")
    smaller = min(len(a), len(b))
    if smaller < size:
        raise InputError(
            f"A set of {smaller} examples is smaller than a subset of {size}: set the subset size "
            f"(subset_size) to at most {smaller}."
        )
    if a.shape[1:] != b.shape[1:]:
        raise InputError(f"The dimensions differ: {list(a.shape[1:])} and {list(b.shape[1:])}.")
    values = []
    for i in range(subsets):
        x = arrays.features(a[draw(len(a), size, seed, i, 0)])
        y = arrays.features(b[draw(len(b), size, seed, i, 1)])
        values.append(squared_mmd(x, y))
    return KernelDistance(float(np.mean(values)), float(np.std(values)))
