"""What the network predicts, and how its output becomes an estimate of the clean image.

With x_t = alpha x0 + sigma eps, lambda = log-SNR and r = sqrt(alpha^2 + sigma^2):

| name    | target                     | x0 from output o                  | (d x0 / d o)^2        |
|---------|----------------------------|-----------------------------------|-----------------------|
| epsilon | eps                        | (x_t - sigma o) / alpha           | exp(-lambda)          |
| x       | x0                         | o                                 | 1                     |
| v       | (alpha eps - sigma x0) / r | (alpha x_t / r - sigma o) / r     | sigmoid(-lambda)      |
| flow    | eps - x0                   | (x_t - sigma o) / (alpha + sigma) | sigmoid(-lambda/2)^2  |
| edm     | (x0 - c_skip x_t) / c_out  | c_skip x_t + c_out o              | c_out^2               |

epsilon: Ho et al. 2020. v: Salimans & Ho 2022 (r = 1 on variance-preserving schedules; dividing by
r keeps it of unit size on the others). flow: the velocity of Liu et al. 2022 and Lipman et al.
2022.
edm: Karras et al. 2022, eq. 7 and table 1, written for any alpha (alpha = 1 there):
c_skip = alpha sd^2 / (sigma^2 + alpha^2 sd^2), c_out = sigma sd / sqrt(sigma^2 + alpha^2 sd^2).

Admissible pairs (schedule, prediction), enforced by `check`:

| schedule                                          | epsilon | x   | v   | flow | edm |
|---------------------------------------------------|---------|-----|-----|------|-----|
| zero terminal SNR: cosine, flow                   | refused | yes | yes | yes  | yes |
| every other                                       | yes     | yes | yes | yes  | yes |

At zero terminal SNR x_t is pure noise, from which epsilon is known and x0 cannot be had (alpha =
0).

Shape letters: B batch, H height, W width, C channels; alpha, sigma, t have shape [] or [B].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vision_lang.diffusion.schedules import Level, Schedule, expand
from vision_lang.errors import InputError, choose

Array = Any
# (x [B, H, W, C] on the schedule's scale, a Level of scalars or [B]) -> estimate of x0 [B, H, W, C]
Denoiser = Callable[[Array, Level], Array]
# (input_scale * x [B, H, W, C], network_time [B]) -> output [B, H, W, C]
Network = Callable[[Array, Array], Array]


class Prediction(NamedTuple):
    """A row of the table above; the functions take alpha and sigma of shape [] or [B]."""

    name: str
    target: Callable[[Array, Array, Array, Array], Array]  # (x0, eps, alpha, sigma)
    to_x0: Callable[[Array, Array, Array, Array], Array]  # (output, x_t, alpha, sigma)
    x0_gain: Callable[[Array], Array]  # (d x0 / d output)^2 as a function of log-SNR


def _ends(a: Array, sigma: Array, x: Array) -> tuple[jax.Array, jax.Array]:
    return expand(a, x), expand(sigma, x)


def epsilon() -> Prediction:
    """The noise, Ho et al. 2020."""

    def to_x0(output, x_t, alpha, sigma):
        alpha, sigma = _ends(alpha, sigma, x_t)
        return (x_t - sigma * output) / alpha

    return Prediction("epsilon", lambda x0, eps, a, s: eps, to_x0, lambda lam: jnp.exp(-lam))


def x() -> Prediction:
    """The clean image."""
    return Prediction("x", lambda x0, eps, a, s: x0, lambda o, x_t, a, s: o, jnp.ones_like)


def v() -> Prediction:
    """The velocity on the circle of angle atan(sigma / alpha), Salimans & Ho 2022."""

    def target(x0, eps, alpha, sigma):
        alpha, sigma = _ends(alpha, sigma, x0)
        return (alpha * eps - sigma * x0) / jnp.hypot(alpha, sigma)

    def to_x0(output, x_t, alpha, sigma):
        alpha, sigma = _ends(alpha, sigma, x_t)
        radius = jnp.hypot(alpha, sigma)
        return (alpha / radius * x_t - sigma * output) / radius

    return Prediction("v", target, to_x0, lambda lam: jax.nn.sigmoid(-lam))


def flow() -> Prediction:
    """The straight line from image to noise, Liu et al. 2022."""

    def to_x0(output, x_t, alpha, sigma):
        alpha, sigma = _ends(alpha, sigma, x_t)
        return (x_t - sigma * output) / (alpha + sigma)

    def gain(lam):
        return jax.nn.sigmoid(-0.5 * lam) ** 2

    return Prediction("flow", lambda x0, eps, a, s: eps - x0, to_x0, gain)


def edm(sigma_data: float = 0.5) -> Prediction:
    """The residual of a skip connection with unit-variance target, Karras et al. 2022."""

    def skip_and_out(alpha, sigma):
        variance = sigma**2 + (alpha * sigma_data) ** 2
        return alpha * sigma_data**2 / variance, sigma * sigma_data / jnp.sqrt(variance)

    def target(x0, eps, alpha, sigma):
        alpha, sigma = _ends(alpha, sigma, x0)
        # x0 - c_skip x_t = sigma (sigma x0 - alpha sd^2 eps) / variance: no division by sigma -> 0.
        variance = sigma**2 + (alpha * sigma_data) ** 2
        return (sigma * x0 - alpha * sigma_data**2 * eps) / (sigma_data * jnp.sqrt(variance))

    def to_x0(output, x_t, alpha, sigma):
        c_skip, c_out = skip_and_out(*_ends(alpha, sigma, x_t))
        return c_skip * x_t + c_out * output

    def gain(lam):
        return sigma_data**2 / (1.0 + sigma_data**2 * jnp.exp(lam))

    return Prediction("edm", target, to_x0, gain)


PREDICTIONS: dict[str, Callable[..., Prediction]] = {
    "epsilon": epsilon,
    "x": x,
    "v": v,
    "flow": flow,
    "edm": edm,
}


def make_prediction(name: str, **parameters: float) -> Prediction:
    """Returns the prediction `name` of PREDICTIONS; an unknown name raises InputError."""
    return choose(PREDICTIONS, name, "prediction type")(**parameters)


def check(schedule: Schedule, prediction: Prediction) -> None:
    """Raises InputError for a pair that the table above refuses; to call when a config is read."""
    if schedule.zero_terminal_snr and prediction.name == "epsilon":
        raise InputError(
            f"Schedule '{schedule.name}' ends at zero signal, where epsilon prediction cannot give "
            "an image (division by alpha = 0). Use prediction 'v', 'x' or 'flow', or a schedule "
            "that keeps some signal: 'cosine_clipped', 'linear', 'scaled_linear' or 'edm'."
        )


def to_eps(x0: Array, x_t: Array, alpha: Array, sigma: Array) -> jax.Array:
    """Returns the noise in x_t [B, H, W, C] if x0 is its clean image; sigma must not be 0."""
    alpha, sigma = _ends(alpha, sigma, x_t)
    return (x_t - alpha * x0) / sigma


def add_noise(x0: Array, eps: Array, level: Level) -> jax.Array:
    """Returns x_t = alpha x0 + sigma eps [B, H, W, C]; the level's fields have shape [] or [B]."""
    alpha, sigma = _ends(level.alpha, level.sigma, x0)
    return alpha * x0 + sigma * eps


def make_denoiser(network: Network, schedule: Schedule, prediction: Prediction) -> Denoiser:
    """Returns the denoiser (x, level) -> x0 around network(input_scale x, network_time [B]).

    Clipping comes after guidance: wrap the guided denoiser in `clipped`.

    Raises:
      InputError: the pair (schedule, prediction) is not admissible.
    """
    check(schedule, prediction)

    def denoise(x_t, level):
        t = jnp.broadcast_to(level.t, (x_t.shape[0],))
        output = network(expand(schedule.input_scale(t), x_t) * x_t, schedule.network_time(t))
        return prediction.to_x0(output.astype(x_t.dtype), x_t, level.alpha, level.sigma)

    return denoise


def static_threshold(x0: Array, limit: float, percentile: float) -> jax.Array:
    """Clips x0 to [-limit, limit]."""
    return jnp.clip(x0, -limit, limit)


def dynamic_threshold(x0: Array, limit: float, percentile: float) -> jax.Array:
    """Saharia et al. 2022 (Imagen), section 2.3: clips each image to its own percentile of |x0|.

    The percentile (in percent) is at least `limit`; the clipped image is scaled back to [-limit,
    limit].
    """
    flat = jnp.abs(x0).reshape(x0.shape[0], -1)
    top = jnp.maximum(jnp.percentile(flat, percentile, axis=1), limit)
    top = expand(top, x0)
    return jnp.clip(x0, -top, top) / top * limit


CLIPS: dict[str, Callable[[Array, float, float], Array]] = {
    "none": lambda x0, limit, percentile: x0,
    "static": static_threshold,
    "dynamic": dynamic_threshold,
}


def clipped(
    denoiser: Denoiser, clip: str = "static", limit: float = 1.0, percentile: float = 99.5
) -> Denoiser:
    """Returns the denoiser with its x0 clipped; `clip` names a row of CLIPS."""
    function = choose(CLIPS, clip, "clipping of x0")
    return lambda x_t, level: function(denoiser(x_t, level), limit, percentile)
