"""Frechet distance of two sets of features, from statistics that add up.

`python -m vision_lang.metrics.frechet` compares two files of features in every way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from vision_lang.errors import InputError
from vision_lang.metrics import arrays
from vision_lang.metrics.arrays import Array

INCEPTION = "inception_fid"  # the one network whose distances are called FID and KID


def distance_names(network: str) -> tuple[str, str]:
    """What the Frechet and the kernel distance of a network's features are called."""
    return ("fid", "kid") if network == INCEPTION else (f"fd_{network}", f"kd_{network}")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Count, mean and scatter of features: what a Gaussian is fitted from, and what adds up.

    The scatter is taken around the mean. A sum of plain outer products would lose the digits that
    the squared mean takes.
    """

    count: int
    mean: np.ndarray  # [D]
    scatter: np.ndarray  # [D, D], sum over examples of (x - mean) (x - mean)^T

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased estimate, [D, D]; of a single example, zero."""
        return self.scatter / max(self.count - 1, 1)


def statistics(features: Array) -> Statistics:
    """Statistics of features [N, D] of any type of numbers, in float64 slices."""
    rows = np.asarray(features)
    if rows.ndim != 2 or 0 in rows.shape:
        arrays.features(rows)  # which says what is wrong
    return merged(_of_slice(rows[part]) for part in arrays.slices(len(rows), rows.shape[1]))


def _of_slice(features: np.ndarray) -> Statistics:
    x = arrays.features(features)
    mean = x.mean(axis=0)
    x = x - mean
    return Statistics(len(x), mean, x.T @ x)


def merged(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all examples of the parts, Chan et al. 1983; exact but for rounding."""
    total: Statistics | None = None
    for part in parts:
        if total is None:
            total = part
            continue
        if total.mean.shape != part.mean.shape:
            raise InputError(f"The dimensions differ: {len(total.mean)} and {len(part.mean)}.")
        count = total.count + part.count
        apart = part.mean - total.mean
        between = np.outer(apart, apart) * (total.count * part.count / count)
        mean = total.mean + apart * (part.count / count)
        total = Statistics(count, mean, total.scatter + part.scatter + between)
    if total is None:
        raise InputError("There are no features.")
    return total


def frechet_distance(
    a: Statistics | Array, b: Statistics | Array, *, allow_few: bool = False
) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians fitted to two sets of features.

    |m_a - m_b|^2 + tr(A) + tr(B) - 2 tr((A^1/2 B A^1/2)^1/2), Dowson & Landau 1982, eq. 4.

    The last trace is the sum of the singular values of A^1/2 B^1/2. Their rounding errors are in
    proportion to the largest one, whereas square roots of the eigenvalues of a product magnify
    those of the small ones; nothing can become complex. Of a set with itself the distance is 0.

    Args:
      a, b: statistics, or features [N, D].
      allow_few: accept fewer than D + 1 examples (at least 2), whose covariance is singular: the
        distance is then biased upwards by much.

    Raises:
      InputError: the dimensions differ, or there are too few examples.
    """
    a, b = (s if isinstance(s, Statistics) else statistics(s) for s in (a, b))
    if a.mean.shape != b.mean.shape:
        raise InputError(f"The dimensions differ: {len(a.mean)} and {len(b.mean)}.")
    check_count(min(a.count, b.count), len(a.mean), allow_few)
    roots, traces = [], 0.0
    for s in (a, b):
        values, vectors = np.linalg.eigh(s.covariance)
        values = np.maximum(values, 0.0)  # below 0 by rounding alone
        roots.append(vectors * np.sqrt(values))  # R with covariance = R R^T
        traces += values.sum()
    cross = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    distance = np.square(a.mean - b.mean).sum() + traces - 2.0 * cross
    return max(float(distance), 0.0)


def check_count(count: int, dimension: int, allow_few: bool = False) -> None:
    """Raises InputError if so few examples have no covariance of full rank."""
    if count < 2:
        raise InputError(f"{count} example has no covariance: at least 2 are wanted.")
    if count <= dimension and not allow_few:
        raise InputError(
            f"{count} examples are too few for a Frechet distance in {dimension} dimensions: at "
            f"least {dimension + 1} are wanted (or allow_few, for a number that is biased upwards)."
        )
