"""What a network's features know: a linear classifier and a vote of nearest neighbours over them.

Shapes: N training examples, M queries, D dimensions, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from vision_lang.errors import InputError
from vision_lang.metrics import arrays
from vision_lang.metrics.arrays import Array

L2 = 1e-3
TOLERANCE = 1e-6  # of the largest entry of the gradient; the loss is of the order of 1
K, TEMPERATURE = 20, 0.07  # Wu et al. 2018 (k = 200); Caron et al. 2021, DINO (k = 20)


class LinearProbe(NamedTuple):
    """Logits = ((features - mean) / scale) weights + bias."""

    mean: np.ndarray  # [D]
    scale: np.ndarray  # [D]; 1 where the training features are constant
    weights: np.ndarray  # [D, C]
    bias: np.ndarray  # [C]

    def logits(self, features: Array) -> np.ndarray:
        """Logits [M, C] of features [M, D]; softmax gives probabilities."""
        x = arrays.features(features)
        if x.shape[1] != len(self.mean):
            raise InputError(f"The probe is of {len(self.mean)} dimensions, not {x.shape[1]}.")
        return (x - self.mean) / self.scale @ self.weights + self.bias


def fit_linear_probe(
    features: Array, labels: Array, classes: int, *, l2: float = L2, steps: int = 2000
) -> LinearProbe:
    """Multinomial logistic regression on standardised features, by L-BFGS over the whole set.

    Minimises the mean cross-entropy + l2 / 2 |weights|^2 (the bias is free): for l2 > 0 a convex
    problem with one solution, up to a common shift of the biases, which stays 0. It starts from 0
    and draws nothing, so the same features give the same probe. In scikit-learn's terms
    C = 1 / (l2 N).

    Args:
      features: [N, D].
      labels: int [N].
      classes: C; a class without examples is allowed.
      l2: above 0.
      steps: at most so many.

    Raises:
      InputError: shapes or labels are wrong, or the steps did not suffice.
    """
    x = arrays.features(features)
    y = arrays.labels(labels, len(x), classes)
    if not l2 > 0.0:
        raise InputError(f"l2 = {l2} leaves separable features without a solution: above 0.")
    mean, scale = x.mean(axis=0), x.std(axis=0)
    # A constant column has no spread but what rounding makes of it.
    scale = np.where(scale > 1e-12 * np.abs(x).max(axis=0), scale, 1.0)
    x = (x - mean) / scale
    one_hot = np.zeros((len(x), classes))
    one_hot[np.arange(len(x)), y] = 1.0

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = _unflatten(flat, classes)
        log_p = special.log_softmax(x @ weights + bias, axis=1)
        loss = -(log_p * one_hot).sum() / len(x) + 0.5 * l2 * np.square(weights).sum()
        error = (np.exp(log_p) - one_hot) / len(x)
        gradient = np.vstack([x.T @ error + l2 * weights, error.sum(axis=0)])
        return loss, gradient.ravel()

    start = np.zeros((x.shape[1] + 1) * classes)
    found = optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B",
        options={"maxiter": steps, "maxfun": 2 * steps, "maxcor": 20, "gtol": TOLERANCE, "ftol": 0},
    )  # fmt: skip
    largest = np.abs(found.jac).max()
    if largest > TOLERANCE:
        raise InputError(
            f"The linear probe's gradient is {largest:.1e} after {found.nit} steps, not below "
            f"{TOLERANCE:.0e}: more steps or a larger l2 than {l2:g} are wanted."
        )
    return LinearProbe(mean, scale, *_unflatten(found.x, classes))


def _unflatten(flat: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    table = flat.reshape(-1, classes)
    return table[:-1], table[-1]


def nearest_neighbours(
    features: Array, labels: Array, queries: Array, classes: int, *, k: int = K,
    temperature: float = TEMPERATURE,
) -> np.ndarray:  # fmt: skip
    """Votes of the k nearest training examples by cosine, [M, C], which sum to 1.

    Each neighbour votes for its class with the weight exp(cosine / temperature): Wu et al. 2018,
    "Unsupervised feature learning via non-parametric instance discrimination", section 3.4. Of
    equally near examples those that come first are taken.

    Args:
      features, labels: of the training set, [N, D] and int [N].
      queries: [M, D].
      classes: C.
      k: at most N.
      temperature: above 0.
    """
    x, q = arrays.features(features), arrays.features(queries, "The queries")
    y = arrays.labels(labels, len(x), classes)
    if x.shape[1] != q.shape[1]:
        raise InputError(f"The dimensions differ: {x.shape[1]} and {q.shape[1]}.")
    if not 1 <= k <= len(x) or not temperature > 0.0:
        raise InputError(
            f"k = {k} of {len(x)} examples at temperature {temperature}: a k of at most the number "
            "of examples and a temperature above 0 are wanted."
        )
    x, q = arrays.unit(x), arrays.unit(q)
    votes = np.zeros((len(q), classes))
    for rows in arrays.slices(len(q), len(x)):
        similarity = q[rows] @ x.T
        near = _first_k(similarity, k)  # [slice, k]
        s = np.take_along_axis(similarity, near, axis=1) / temperature
        weight = special.softmax(s, axis=1)
        at = np.arange(rows.start, rows.stop)[:, None]
        np.add.at(votes, (np.broadcast_to(at, near.shape), y[near]), weight)
    return votes


def _first_k(similarity: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest in each row [n, N] -> [n, k], of equals the first; no whole sort."""
    least = -np.partition(-similarity, k - 1, axis=1)[:, k - 1 : k]
    better, equal = similarity > least, similarity == least
    room = k - better.sum(axis=1, keepdims=True)
    taken = better | (equal & (np.cumsum(equal, axis=1) <= room))
    return np.nonzero(taken)[1].reshape(len(similarity), k)
