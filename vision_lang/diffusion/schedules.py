"""Noise schedules as functions of continuous t in [0, 1]: x_t = alpha(t) x0 + sigma(t) eps.

t = 0 is the clean image, t = 1 the noisiest. log-SNR is lambda(t) = 2 log(alpha / sigma), strictly
decreasing in t (Kingma et al. 2021, "Variational diffusion models"). All functions take and return
jax arrays, or NumPy float64 when given NumPy arrays or Python floats: tables and sampling levels
are made on the host in float64, training evaluates the same functions in float32.

How the ends are clipped:

| name           | x_t           | noisy end t = 1                   | clean end                |
|----------------|---------------|-----------------------------------|--------------------------|
| cosine         | VP            | unclipped: alpha = 0, no signal   | sigma = 0; t_min = 1e-3  |
| cosine_clipped | VP            | cosine up to 0.999 of its length  | sigma = 0; t_min = 1e-3  |
| linear         | VP            | unclipped: alpha^2 = 4.0e-5       | sigma = 0; t_min = 1e-3  |
| scaled_linear  | VP            | unclipped: alpha^2 = 4.7e-3       | sigma = 0; t_min = 1e-3  |
| from_betas     | VP            | as the table says                 | sigma = 0; t_min = 1 / T |
| flow           | interpolation | unclipped: alpha = 0, no signal   | sigma = 0; t_min = 1e-3  |
| edm            | exploding     | sigma_max                         | sigma_min; t_min = 0     |

Training draws t from [t_min, t_max], where log-SNR is at most about 14; sampling starts at t_max
and ends at the clean image (alpha 1, sigma 0), see `spacing.levels`. VP: alpha^2 + sigma^2 = 1.

Shape letters: B batch, N sampling steps, T discrete diffusion steps; t has shape [] or [B].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import Polynomial

from vision_lang.errors import InputError, choose

Array = Any  # a jax.Array or a numpy.ndarray (see above)
TimeFunction = Callable[[Array], Array]


class Level(NamedTuple):
    """One noise level, or an array of them. Each field has shape [], [B] or [N + 1]."""

    t: Array
    alpha: Array
    sigma: Array


class Schedule(NamedTuple):
    """A noise schedule: functions of t, element by element, and how its ends are clipped."""

    name: str
    alpha: TimeFunction
    sigma: TimeFunction
    log_snr: TimeFunction  # 2 log(alpha / sigma); infinite where alpha or sigma is 0
    t: TimeFunction  # the inverse of log_snr
    network_time: TimeFunction  # what the network's time embedding is given
    input_scale: TimeFunction  # c_in: what x_t is multiplied by before the network sees it
    t_min: float  # training draws t from [t_min, t_max]
    t_max: float  # sampling starts here
    zero_terminal_snr: bool  # alpha(t_max) == 0: the noisiest x_t says nothing about x0

    def level(self, t: Array) -> Level:
        """Returns the level at t; t, alpha, sigma have t's shape."""
        return Level(t, self.alpha(t), self.sigma(t))


def expand(a: Array, x: Array) -> jax.Array:
    """Returns a, of shape [] or [B], with trailing axes of size 1 to broadcast over x [B, ...]."""
    a = jnp.asarray(a)
    return a.reshape(a.shape + (1,) * (x.ndim - a.ndim)) if a.ndim else a


def _numpy_of(a: Array) -> Any:
    """Returns jax.numpy for jax arrays (traced ones too), else numpy, which keeps float64."""
    return jnp if isinstance(a, jax.Array) else np


def _one(t: Array) -> Array:
    return _numpy_of(t).ones_like(t, dtype=None if isinstance(t, jax.Array) else np.float64)


def _sigmoid(x: Array) -> Array:
    # 1 / (1 + exp(-x)) without overflow at either end.
    return 0.5 * (1.0 + _numpy_of(x).tanh(0.5 * x))


def cosine(s: float = 0.008, end: float = 1.0, name: str = "cosine") -> Schedule:
    """Nichol & Dhariwal 2021, eq. 17: alpha-bar = cos^2(theta(t)) / cos^2(theta(0)).

    theta(t) = (end t + s) / (1 + s) pi / 2. sigma^2 = sin(theta - theta0) sin(theta + theta0) /
    cos^2(theta0) is 1 - alpha-bar without cancellation. `end` < 1 stops short of zero SNR: t is
    stretched, not cut off, so log-SNR stays strictly decreasing up to t = 1.
    """
    quarter = np.pi / 2.0 / (1.0 + s)
    theta0 = quarter * s
    cos0, sin0 = float(np.cos(theta0)), float(np.sin(theta0))

    def alpha(t):
        # cos(theta) = sin(pi / 2 - theta), which is exactly 0 at end t = 1.
        return _numpy_of(t).sin(quarter * (1.0 - end * t)) / cos0

    def sigma(t):
        xp, angle = _numpy_of(t), quarter * end * t
        return xp.sqrt(xp.sin(angle) * xp.sin(angle + 2.0 * theta0)) / cos0

    def log_snr(t):
        xp = _numpy_of(t)
        with np.errstate(divide="ignore"):
            return 2.0 * (xp.log(alpha(t)) - xp.log(sigma(t)))

    def inverse(lam):
        xp = _numpy_of(lam)
        sine = xp.sqrt(sin0**2 + _sigmoid(-lam) * cos0**2)
        return (xp.arctan2(sine, xp.sqrt(_sigmoid(lam)) * cos0) / quarter - s) / end

    return Schedule(
        name, alpha, sigma, log_snr, inverse, lambda t: 1000.0 * t, _one, 1e-3, 1.0, end == 1.0
    )


def cosine_clipped(s: float = 0.008, end: float = 0.999) -> Schedule:
    """Cosine with alpha(1) = 1.6e-3 in place of 0; stands for Nichol & Dhariwal's beta <= 0.999."""
    return cosine(s, end, "cosine_clipped")


def _variance_preserving(
    name: str, log_alpha_bar: TimeFunction, inverse: TimeFunction, steps: int
) -> Schedule:
    """A VP schedule from log alpha-bar(t) and its inverse; network time is the index 0..steps-1."""

    def sigma(t):
        return _numpy_of(t).sqrt(-_numpy_of(t).expm1(log_alpha_bar(t)))

    def log_snr(t):
        log_alpha2 = log_alpha_bar(t)
        with np.errstate(divide="ignore"):
            return log_alpha2 - _numpy_of(t).log(-_numpy_of(t).expm1(log_alpha2))

    def time(lam):
        return inverse(-_numpy_of(lam).logaddexp(0.0, -lam))  # alpha-bar = sigmoid(lambda)

    return Schedule(
        name, lambda t: _numpy_of(t).exp(0.5 * log_alpha_bar(t)), sigma, log_snr, time,
        lambda t: steps * t - 1.0,  # t = (i + 1) / steps is step i of the table
        _one, 1.0 / steps, 1.0, False,
    )  # fmt: skip


def _from_beta_polynomial(name: str, beta: Polynomial, steps: int) -> Schedule:
    """The schedule through the table of `steps` increasing betas beta(0), ..., beta(steps - 1).

    g = log(1 - beta) is a polynomial in the step up to beta^16 (beta < 0.1 leaves under 1e-17). Its
    sum over steps 0..n-1 is, by the Euler-Maclaurin formula, the polynomial integral(g) -
    (g(n) - g(0)) / 2 + (g'(n) - g'(0)) / 12, exact to under 1e-12 as g''' is below 1e-9. So
    log alpha-bar(t) at n = steps t is a polynomial in t, whose samples are the discrete table.
    """
    if not 0.0 < beta(0.0) < beta(steps - 1.0) < 0.1:
        raise InputError(f"Schedule '{name}' needs 0 < beta_start < beta_end < 0.1.")
    log1m = sum((-(beta**k) / k for k in range(2, 17)), -beta)
    total = log1m.integ() - 0.5 * (log1m - log1m(0.0)) + (log1m.deriv() - log1m.deriv()(0.0)) / 12
    coefficients = [float(c) * float(steps) ** k for k, c in enumerate(total.coef)]
    coefficients[0] = 0.0
    while abs(coefficients[-1]) < 1e-18:
        coefficients.pop()

    def log_alpha_bar(t):
        result = 0.0 * t
        for c in reversed(coefficients):
            result = result * t + c
        return result

    def inverse(log_alpha2):
        # Bisection: log alpha-bar falls from 0 at t = 0.
        xp = _numpy_of(log_alpha2)
        low, high = xp.zeros_like(log_alpha2), xp.ones_like(log_alpha2)
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = log_alpha_bar(middle) > log_alpha2
            low, high = xp.where(above, middle, low), xp.where(above, high, middle)
        return 0.5 * (low + high)

    return _variance_preserving(name, log_alpha_bar, inverse, steps)


def linear(beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> Schedule:
    """Betas linear in the step (Ho et al. 2020): a continuous alpha-bar(t) through their table."""
    beta = Polynomial([beta_start, (beta_end - beta_start) / (steps - 1)])
    return _from_beta_polynomial("linear", beta, steps)


def scaled_linear(
    beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000
) -> Schedule:
    """Square roots of betas linear in the step (Rombach et al. 2022): Stable Diffusion's table."""
    low, high = beta_start**0.5, beta_end**0.5
    root = Polynomial([low, (high - low) / (steps - 1)])
    return _from_beta_polynomial("scaled_linear", root**2, steps)


def from_betas(betas: Array, name: str = "from_betas") -> Schedule:
    """The schedule through any table of betas [T]: cumprod(1 - betas) is alpha-bar((i + 1) / T).

    Between the steps log alpha-bar is linear in t. Network time is the index i.

    Raises:
      InputError: a beta outside (0, 1); a table rescaled to zero terminal SNR ends in beta = 1.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not np.all((betas > 0.0) & (betas < 1.0)):
        raise InputError("A table of betas must be a list of numbers between 0 and 1 (exclusive).")
    log_alpha2 = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])  # [T + 1]
    times = np.linspace(0.0, 1.0, len(log_alpha2))

    def log_alpha_bar(t):
        return _numpy_of(t).interp(t, times, log_alpha2)

    def inverse(log_alpha_bar_value):
        xp = _numpy_of(log_alpha_bar_value)
        return xp.interp(log_alpha_bar_value, log_alpha2[::-1], times[::-1])

    return _variance_preserving(name, log_alpha_bar, inverse, len(betas))


def flow() -> Schedule:
    """Rectified flow: x_t = (1 - t) x0 + t eps (Liu et al. 2022; Lipman et al. 2022)."""

    def log_snr(t):
        xp = _numpy_of(t)
        with np.errstate(divide="ignore"):
            return 2.0 * (xp.log1p(-t) - xp.log(t))

    return Schedule(
        "flow", lambda t: 1.0 - t, lambda t: t * _one(t), log_snr, lambda lam: _sigmoid(-0.5 * lam),
        lambda t: 1000.0 * t, _one, 1e-3, 1.0, True,
    )  # fmt: skip


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5) -> Schedule:
    """Karras et al. 2022: x_t = x0 + sigma eps, log sigma linear in t from sigma_min to sigma_max.

    input_scale is c_in = 1 / sqrt(sigma^2 + sigma_data^2) and network_time c_noise = log(sigma) / 4
    (table 1), for every prediction type.
    """
    if not 0.0 < sigma_min < sigma_max:
        raise InputError(f"EDM needs 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}.")
    low, span = float(np.log(sigma_min)), float(np.log(sigma_max / sigma_min))

    def log_sigma(t):
        return low + span * t

    def sigma(t):
        return _numpy_of(t).exp(log_sigma(t))

    return Schedule(
        "edm", _one, sigma, lambda t: -2.0 * log_sigma(t), lambda lam: (-0.5 * lam - low) / span,
        lambda t: 0.25 * log_sigma(t), lambda t: (sigma(t) ** 2 + sigma_data**2) ** -0.5,
        0.0, 1.0, False,
    )  # fmt: skip


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": cosine,
    "cosine_clipped": cosine_clipped,
    "linear": linear,
    "scaled_linear": scaled_linear,
    "flow": flow,
    "edm": edm,
}


def make_schedule(name: str, **parameters: float) -> Schedule:
    """Returns the schedule `name` of SCHEDULES; an unknown name raises InputError."""
    return choose(SCHEDULES, name, "noise schedule")(**parameters)


class Table(NamedTuple):
    """T discrete steps, step 0 the cleanest; float64 [T] each."""

    t: np.ndarray
    alpha_bar: np.ndarray
    betas: np.ndarray


def discrete(schedule: Schedule, steps: int) -> Table:
    """Samples the continuous alpha-bar at t = (i + 1) / steps, and derives the betas from it.

    alpha-bar is alpha^2 / (alpha^2 + sigma^2), that is alpha^2 for variance-preserving schedules
    and the alpha-bar of equal SNR for the others. beta_i = 1 - alpha-bar_i / alpha-bar_{i-1}, with
    1 before the first step.
    """
    t = np.arange(1, steps + 1, dtype=np.float64) / steps
    alpha2, sigma2 = schedule.alpha(t) ** 2, schedule.sigma(t) ** 2
    alpha_bar = alpha2 / (alpha2 + sigma2)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    return Table(t, alpha_bar, (before - alpha_bar) / before)
