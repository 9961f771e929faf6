"""Loss weights per noise level, as functions of log-SNR lambda, and per spatial frequency.

Definition: a weighting is a function W(lambda), the weight of the squared error of x0. The loss is
taken on the network's own output o, with the weight

    w(lambda) = W(lambda) (d x0 / d o)^2,    so that    w |o - target|^2 = W |x0_hat - x0|^2

for every prediction type: the same weighting is the same loss, whatever the network predicts. Only
"uniform" is defined on the output itself (w = 1), as in the papers of each prediction type.

| name         | W(lambda)                                                  | source               |
|--------------|------------------------------------------------------------|----------------------|
| uniform      | 1 / (d x0 / d o)^2, that is w = 1                          | Ho 2020, eq. 14      |
| min_snr      | min(SNR, gamma): w = min(SNR, gamma) / SNR for epsilon,    | Hang 2023, sec. 3.4  |
|              | min(SNR, gamma) / (SNR + 1) for v                          |                      |
| snr_plus_one | min(SNR + 1, gamma); w = 1 for v where gamma is infinite   | Salimans & Ho 2022   |
| flow         | min((1 + sqrt(SNR))^2, gamma): w = 1 for flow where gamma  | Li & He 2025         |
|              | is infinite, 1 / t^2 where alpha = 1 - t, sigma = t        |                      |
| sigmoid      | SNR sigmoid(bias - lambda): w = sigmoid(bias - lambda) for | Kingma & Gao 2023    |
|              | epsilon, at the times drawn (their integral over lambda    |                      |
|              | differs by the density of lambda under the time sampling)  |                      |
| edm          | SNR + 1 / sd^2, (sigma^2 + sd^2) / (sigma sd)^2 if alpha=1 | Karras 2022, table 1 |

lambda is clipped to [-20, 20] first, so every weight is finite also where alpha or sigma is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vision_lang.diffusion.prediction import Prediction
from vision_lang.errors import choose

Array = Any
Weighting = Callable[[Prediction, Array], Array]  # (prediction, log-SNR [B]) -> w [B]
LOG_SNR_LIMIT = 20.0


def _clip(log_snr: Array) -> jax.Array:
    return jnp.clip(log_snr, -LOG_SNR_LIMIT, LOG_SNR_LIMIT)


def _of_x0_error(weight: Callable[[Array], Array]) -> Weighting:
    """Turns W(lambda) into the weight of the network's own squared error."""

    def own(prediction, log_snr):
        lam = _clip(log_snr)
        return weight(lam) * prediction.x0_gain(lam)

    return own


def uniform() -> Weighting:
    """1 on the squared error of the network's output."""
    return lambda prediction, log_snr: jnp.ones_like(_clip(log_snr))


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on the squared error of x0, Hang et al. 2023."""
    return _of_x0_error(lambda lam: jnp.minimum(jnp.exp(lam), gamma))


def snr_plus_one(gamma: float = 5.0) -> Weighting:
    """min(SNR + 1, gamma) on the squared error of x0: Salimans & Ho 2022, limited as min_snr is."""
    return _of_x0_error(lambda lam: jnp.minimum(jnp.exp(lam) + 1.0, gamma))


def flow(gamma: float = jnp.inf) -> Weighting:
    """The squared error of the velocity eps - x0, limited; with x prediction: Li & He 2025, JiT."""
    return _of_x0_error(lambda lam: jnp.minimum((1.0 + jnp.exp(0.5 * lam)) ** 2, gamma))


def sigmoid(bias: float = 2.0) -> Weighting:
    """sigmoid(bias - lambda) on the squared error of epsilon, Kingma & Gao 2023."""
    return _of_x0_error(lambda lam: jnp.exp(lam) * jax.nn.sigmoid(bias - lam))


def edm(sigma_data: float = 0.5) -> Weighting:
    """1 / c_out^2 on the squared error of x0, Karras et al. 2022 (1 on the edm prediction)."""
    return _of_x0_error(lambda lam: jnp.exp(lam) + 1.0 / sigma_data**2)


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "uniform": uniform,
    "min_snr": min_snr,
    "snr_plus_one": snr_plus_one,
    "flow": flow,
    "sigmoid": sigmoid,
    "edm": edm,
}


def squared_error(
    residual: Array, gradient: Array | float = 0.0, mean: Array | float = 1.0
) -> jax.Array:
    """Mean square of a residual [B, H, W, C], plus `gradient` ([B] or one) times its gradient's.

    That gradient is the difference between neighbouring pixels, its square the sum over both axes
    (Mathieu et al. 2016, section 3.2, compare gradients by their absolute values). Up to borders, a
    wave of (u, v) cycles per pixel counts 1 + 4 gradient (sin(pi u)^2 + sin(pi v)^2) times, and the
    square of the residual's mean over the picture, (0, 0), counts `mean` ([B] or one) times.

    Pictures have a spectrum of 1/f^2 (Field 1987): in the plain error what is uncertain in colours
    and layout drowns what there is to learn about shapes. The best prediction is the conditional
    mean whatever the weights, so what is learned stays the same model. Returns [B].
    """
    error = jnp.square(residual).mean(axis=(1, 2, 3))
    error -= (1.0 - mean) * jnp.square(residual.mean(axis=(1, 2))).mean(axis=-1)
    for axis in (1, 2):
        step = jnp.diff(residual, axis=axis)
        error += gradient * jnp.square(step).mean(axis=(1, 2, 3))
    return error


def make_weighting(name: str, **parameters: float) -> Weighting:
    """Returns the weighting `name` of WEIGHTINGS; an unknown name raises InputError."""
    return choose(WEIGHTINGS, name, "loss weighting")(**parameters)
