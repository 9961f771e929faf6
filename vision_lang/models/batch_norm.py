"""Batch normalisation (Ioffe & Szegedy 2015) over the rows of all devices.

Linen's own is told an axis name, which only training/parallel.py may know, takes its variance as
the difference of two means, which loses it beside a large mean, and counts padding rows.

Shapes: B rows of this device, D devices, C channels.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Normalises every channel, [B, ..., C] -> the same shape, in float32.

    The batch's statistics are those of the rows of weight 1 on all devices, equal to one device's
    with the whole batch to rounding. The running ones (collection `batch_stats`, `mean` and `var`)
    are torch's: the running variance is the unbiased one, n / (n - 1) times the batch's.

    Attributes:
      momentum: share of the running statistics that a step keeps; 1 - torch's `momentum`.
      epsilon: added to the variance.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: jax.Array,  # [B, ..., C]
        *,
        train: bool,
        weight: jax.Array | None = None,  # [B]; 0 keeps a row out of the statistics
        across: Any = None,  # of which `gather` is used; None: these rows are the whole batch
    ) -> jax.Array:
        """With `train` the batch is normalised by its own statistics, and `batch_stats` must be
        mutable; otherwise by the running ones."""
        channels = x.shape[-1]
        x = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if train:
            count, mean, var = _moments(x, weight, across)
            if not self.is_initializing():
                move = jnp.where(count > 0, 1 - self.momentum, 0.0)  # of no rows nothing is learned
                unbiased = var * count / jnp.maximum(count - 1, 1)
                running_mean.value += move * (mean - running_mean.value)
                running_var.value += move * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        return (x - mean) * (scale / jnp.sqrt(var + self.epsilon)) + bias


def _moments(x: jax.Array, weight: jax.Array | None, across: Any) -> tuple[jax.Array, ...]:
    """Returns the number of values per channel [], their mean [C] and biased variance [C].

    Two passes on each device; then devices are put together as Chan et al. (1979) do: every term
    of the variance is a square, so that none cancels another. One collective, of [D, 1 + 2 C].
    """
    shares = jnp.ones(x.shape[:1]) if weight is None else weight.astype(jnp.float32)
    shares = shares.reshape(-1, *[1] * (x.ndim - 1))
    axes = tuple(range(x.ndim - 1))
    count = shares.sum() * math.prod(x.shape[1:-1])
    mean = (shares * x).sum(axes) / _at_least_one_row(count)
    squares = (shares * (x - mean) ** 2).sum(axes)
    if across is None:
        return count, mean, squares / _at_least_one_row(count)
    own = jnp.concatenate([count[None], mean, squares])
    counts, means, squares = jnp.split(across.gather(own[None]), (1, 1 + x.shape[-1]), axis=1)
    total = counts.sum()
    safe = _at_least_one_row(total)
    mean = (counts * means).sum(0) / safe
    squares = (squares + counts * (means - mean) ** 2).sum(0)
    return total, mean, squares / safe


def _at_least_one_row(count: jax.Array) -> jax.Array:
    """A divisor for sums that are zero where `count` is."""
    return jnp.where(count > 0, count, 1.0)
