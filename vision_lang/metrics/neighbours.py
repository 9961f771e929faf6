"""Precision, recall, density and coverage: are generated examples real, and all that is real?

The support of a set is guessed as the union of balls, one around each example, that reach to its
k-th nearest neighbour within the set. With real x_1 ... x_N and generated y_1 ... y_M:

| name      | value                                                    | k | source              |
|-----------|----------------------------------------------------------|---|---------------------|
| precision | share of the y in any ball of the x                      | 3 | Kynkaanniemi et al. |
| recall    | share of the x in any ball of the y                      | 3 | 2019, eq. 2         |
| density   | number of (x, y) with y in the ball of x, divided by k M | 5 | Naeem et al. 2020,  |
| coverage  | share of the x whose ball holds any y                    | 5 | section 3           |

A ball is closed: what lies on its rim is inside, also where rounding would put it outside, so that
duplicates count alike on every machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vision_lang.errors import InputError
from vision_lang.metrics import arrays
from vision_lang.metrics.arrays import Array

K_PRECISION, K_DENSITY = 3, 5
RIM = 1e-12  # of the squared norms; their products are rounded to about 1e-14


class Support(NamedTuple):
    """All in 0 ... 1 but the density, which is 1 in expectation for equal distributions."""

    precision: float
    recall: float
    density: float
    coverage: float


def squared_radii(points: np.ndarray, ks: tuple[int, ...]) -> list[np.ndarray]:
    """Squared distance of each point [N, D] to its k-th nearest other one, [N] for each of ks."""
    squares = np.square(points).sum(axis=1)
    radii = [np.empty(len(points)) for _ in ks]
    for rows in arrays.slices(len(points), len(points)):
        d = _squared_distances(points[rows], points, squares[rows], squares)
        d[np.arange(len(d)), np.arange(rows.start, rows.stop)] = np.inf  # not its own neighbour
        d.partition(sorted(k - 1 for k in ks), axis=1)
        for radius, k in zip(radii, ks, strict=True):
            radius[rows] = d[:, k - 1]
    return radii


def support(
    real: Array, generated: Array, *, k_precision: int = K_PRECISION, k_density: int = K_DENSITY
) -> Support:
    """Compares the supports of real [N, D] and generated [M, D] features, N x M in slices.

    Raises:
      InputError: the dimensions differ, or a set has not more than k examples.
    """
    x, y = arrays.features(real, "The real features"), arrays.features(generated)
    if x.shape[1] != y.shape[1]:
        raise InputError(f"The dimensions differ: {x.shape[1]} and {y.shape[1]}.")
    ks = (k_precision, k_density)
    if min(ks) < 1 or min(len(x), len(y)) <= max(ks):
        raise InputError(
            f"Sets of {len(x)} and {len(y)} examples have no k-th neighbours for k = "
            f"{k_precision}, {k_density}: more examples or a smaller k (at least 1) are wanted."
        )
    centre = x.mean(axis=0)  # a common shift changes no distance, but how exactly it is computed
    x, y = x - centre, y - centre
    x_squares, y_squares = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
    x_precision, x_density = squared_radii(x, ks)
    (y_precision,) = squared_radii(y, (k_precision,))

    precise = np.zeros(len(y), bool)  # y in a ball of any x
    recalled, covered, inside = 0, 0, 0
    for rows in arrays.slices(len(x), len(y)):
        d = _squared_distances(x[rows], y, x_squares[rows], y_squares)
        d -= RIM * (x_squares[rows, None] + y_squares)
        precise |= (d <= x_precision[rows, None]).any(axis=0)
        recalled += int((d <= y_precision).any(axis=1).sum())
        in_ball = (d <= x_density[rows, None]).sum(axis=1)
        inside += int(in_ball.sum())
        covered += int((in_ball > 0).sum())
    return Support(
        precision=float(precise.mean()),
        recall=recalled / len(x),
        density=inside / (k_density * len(y)),
        coverage=covered / len(x),
    )


def nearest(points: Array, others: Array) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `others` [M, D] to each of `points` [N, D], the first where several are.

    Returns:
      Its index, int64 [N], and the squared distance, [N]. Of whole numbers, as pixels are,
      distances are exact.

    Raises:
      InputError: the dimensions differ.
    """
    x, y = arrays.features(points), arrays.features(others)
    if x.shape[1] != y.shape[1]:
        raise InputError(f"The dimensions differ: {x.shape[1]} and {y.shape[1]}.")
    x_squares, y_squares = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
    places, distances = np.empty(len(x), np.int64), np.empty(len(x))
    for rows in arrays.slices(len(x), len(y)):
        d = _squared_distances(x[rows], y, x_squares[rows], y_squares)
        places[rows] = d.argmin(axis=1)
        distances[rows] = np.maximum(d.min(axis=1), 0.0)
    return places, distances


def _squared_distances(
    x: np.ndarray, y: np.ndarray, x_squares: np.ndarray, y_squares: np.ndarray
) -> np.ndarray:
    """|x - y|^2 = |x|^2 - 2 x.y + |y|^2, [N, M]; a little below 0 by rounding."""
    d = x @ y.T
    d *= -2.0
    d += x_squares[:, None]
    d += y_squares
    return d
