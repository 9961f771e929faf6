"""Averages of the parameters along the training, and others made of those that were stored.

config.ema.NAME = {"decay": d} forgets at one pace: decay_n = min(d, (1 + n) / (10 + n)) at the n-th
update (as in TensorFlow's moving average), so that the start is forgotten early on.

config.ema.NAME = {"std": s} is a power-function average (Karras et al. 2024, arXiv:2312.02696,
section 3): after t updates the parameters of update k = 1 ... t weigh as much as the power
tau^gamma does from k - 1 to k; s is the deviation of that profile in parts of t. Of two such
averages, stored now and then, the average of any other s is a sum (section 3.2): that sum of their
profiles which is nearest to its own. Weights spec: 'RUN[@step]:std=0.12'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_lang.errors import InputError

WIDEST = 12**-0.5  # the deviation of the plain mean over the training
BLOCK = 2**14  # updates whose weights are looked at at once

Move = Callable[[jax.Array], jax.Array]  # updates so far -> how far the next one moves the average


def move(name: str, spec: Mapping[str, Any]) -> Move:
    """Returns how an average is updated, of its entry in config.ema.

    Raises:
      InputError: it is neither {"decay": ...} nor {"std": ...}, or a std is not in (0, 0.288).
    """
    if spec.keys() == {"decay"}:
        decay = spec["decay"]
        return lambda n: 1 - jnp.minimum(decay, (1 + n) / (10 + n))
    if spec.keys() == {"std"}:
        power = exponent(spec["std"]) + 1
        # 1 - (1 - 1/t)^power; the first update takes the parameters as they are
        return lambda n: -jnp.expm1(power * jnp.log1p(-1 / (n + 1)))
    raise InputError(
        f"config.ema.{name} has the fields {', '.join(spec) or 'none'}, where decay alone, or std "
        "alone, is wanted."
    )


def exponent(std: float) -> float:
    """Returns the gamma whose profile tau^gamma on [0, 1] has this deviation.

    std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), a cubic of which the largest root is wanted.

    Raises:
      InputError: there is none.
    """
    if not 0 < std < WIDEST:
        raise InputError(f"A std of {std}: a number between 0 and {WIDEST:.3f} is wanted.")
    t = std**-2
    roots = np.roots([1.0, 7.0, 16.0 - t, 12.0 - t])
    return float(roots[np.isreal(roots)].real.max())


def profile(updates: int, std: float, first: int = 0, last: int | None = None) -> np.ndarray:
    """The weights of the parameters of updates first + 1 ... last in an average after `updates`,
    float64; 0 for those that had not been."""
    k = np.minimum(np.arange(first, (updates if last is None else last) + 1) / updates, 1.0)
    return np.diff(k ** (exponent(std) + 1))


class Stored(NamedTuple):
    """A power-function average as it was after so many updates."""

    updates: int
    std: float


def mixture(stored: Sequence[Stored], wanted: Stored) -> tuple[np.ndarray, float]:
    """Returns the factors of stored averages whose sum comes nearest to another one, float64 [N],
    and how far from it, relative to it, the sum of their profiles is (root mean squares)."""
    last = max(one.updates for one in (*stored, wanted))
    triangle: Any = np.zeros((0, len(stored) + 1))  # of a QR factorisation, block by block
    for first in range(0, last, BLOCK):
        ends = first, min(first + BLOCK, last)
        block = np.stack([profile(*one, *ends) for one in (*stored, wanted)], axis=1)
        triangle = np.linalg.qr(np.vstack([triangle, block]), mode="r")
    matrix, target = triangle[:, :-1], triangle[:, -1]
    factors = np.linalg.lstsq(matrix, target)[0]
    return factors, float(np.linalg.norm(matrix @ factors - target) / np.linalg.norm(target))
