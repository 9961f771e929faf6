"""An exact denoiser: the posterior mean of x0 under a mixture of Gaussians, in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vision_lang.diffusion.schedules import Level, Schedule, expand

MEANS = np.array([[1.0, 0.3], [-0.8, 0.9], [0.1, -1.1]])  # [K, 2]
WEIGHTS = np.array([0.5, 0.3, 0.2])
SPREAD = 0.4  # standard deviation of each component
SHAPE = (1, 1, 2)  # H, W, C


def mixture_mean() -> np.ndarray:
    return WEIGHTS @ MEANS


def mixture_covariance() -> np.ndarray:
    centred = MEANS - mixture_mean()
    return (WEIGHTS[:, None] * centred).T @ centred + SPREAD**2 * np.eye(2)


def denoise(x: jax.Array, level: Level) -> jax.Array:
    """E[x0 | x_t = x] for x [B, 1, 1, 2]; the level's fields have shape [] or [B]."""
    flat = x.reshape(x.shape[0], 2)
    alpha, sigma = expand(level.alpha, flat), expand(level.sigma, flat)
    variance = (alpha * SPREAD) ** 2 + sigma**2
    means = jnp.asarray(MEANS, x.dtype)
    offset = flat[:, None, :] - alpha[..., None] * means  # [B, K, 2]
    variance_k = variance[..., None] if jnp.ndim(variance) else variance
    logits = jnp.log(jnp.asarray(WEIGHTS, x.dtype)) - 0.5 * jnp.sum(offset**2 / variance_k, -1)
    share = jax.nn.softmax(logits, axis=-1)  # [B, K]
    gain = alpha * SPREAD**2 / variance
    gain_k = gain[..., None] if jnp.ndim(gain) else gain
    return jnp.sum(share[..., None] * (means + gain_k * offset), axis=1).reshape(x.shape)


def time_of(schedule: Schedule, network_time: jax.Array) -> jax.Array:
    """Inverts network_time, which is affine in t for every schedule."""
    low, high = float(schedule.network_time(0.0)), float(schedule.network_time(1.0))
    return (network_time - low) / (high - low)
