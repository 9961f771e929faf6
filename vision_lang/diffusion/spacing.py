"""Where the sampling levels lie: (schedule, n, start) -> t [n + 1], decreasing, NumPy float64.

The first t is `start` (default t_max, so it matches pure noise), the last is 0, which stands for
the clean image (`levels` gives it alpha 1 and sigma 0). `leading` alone starts below
t_max: it is there to agree with other libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from vision_lang.diffusion.schedules import Level, Schedule
from vision_lang.errors import InputError, choose

Spacing = Callable[..., np.ndarray]  # (schedule, n, start=None) -> t [n + 1]
LOWEST_LOG_SNR = -13.8  # log-SNR of rectified flow at t = 0.999; stands in for minus infinity


def _start(schedule: Schedule, n: int, start: float | None) -> float:
    if n < 1:
        raise InputError(f"Sampling needs at least 1 step, got {n}.")
    if start is None:
        return schedule.t_max
    if not schedule.t_min < start <= schedule.t_max:
        raise InputError(
            f"Sampling on schedule '{schedule.name}' must start at a t in "
            f"({schedule.t_min}, {schedule.t_max}], got {start}."
        )
    return float(start)


def uniform(schedule: Schedule, n: int, start: float | None = None) -> np.ndarray:
    """n equal steps of t; the default."""
    return np.linspace(_start(schedule, n, start), 0.0, n + 1)


def _through(schedule: Schedule, start: float, log_snr: np.ndarray) -> np.ndarray:
    """start, the times of log_snr[1:], 0."""
    return np.concatenate([[start], schedule.t(log_snr[1:]), [0.0]])


def _log_snr_ends(schedule: Schedule, start: float) -> tuple[float, float]:
    # At zero SNR the first level stays at `start`; the others as if it lay at LOWEST_LOG_SNR.
    low = max(float(schedule.log_snr(np.float64(start))), LOWEST_LOG_SNR)
    return low, float(schedule.log_snr(np.float64(schedule.t_min)))


def log_snr(schedule: Schedule, n: int, start: float | None = None) -> np.ndarray:
    """Equal steps of log-SNR from start to t_min, then the clean image (Lu et al. 2022)."""
    start = _start(schedule, n, start)
    return _through(schedule, start, np.linspace(*_log_snr_ends(schedule, start), n))


def karras(rho: float = 7.0) -> Spacing:
    """Karras et al. 2022, eq. 5: equal steps of (sigma / alpha)^(1 / rho) to t_min, then clean."""

    def space(schedule: Schedule, n: int, start: float | None = None) -> np.ndarray:
        start = _start(schedule, n, start)
        high, low = (np.exp(-0.5 * lam / rho) for lam in _log_snr_ends(schedule, start))
        return _through(schedule, start, -2.0 * rho * np.log(np.linspace(high, low, n)))

    return space


def trailing(steps: int = 1000) -> Spacing:
    """The last of each of n equal slices of `steps` discrete steps (Lin et al. 2024, table 2)."""

    def space(schedule: Schedule, n: int, start: float | None = None) -> np.ndarray:
        top = _start(schedule, n, start)
        index = np.round(np.arange(n, 0, -1) * (top * steps / n))  # i + 1
        return np.append(index, 0.0) / steps

    return space


def leading(steps: int = 1000, offset: int = 0) -> Spacing:
    """The first of each of n equal slices of `steps` discrete steps, plus an offset (for parity).

    Its first level lies below t_max: with pure noise as input that is a mismatch.
    """

    def space(schedule: Schedule, n: int, start: float | None = None) -> np.ndarray:
        if start is not None:
            raise InputError("Spacing 'leading' fixes its own start; use another spacing.")
        _start(schedule, n, None)
        index = np.arange(n)[::-1] * (steps // n) + offset + 1  # i + 1
        return np.append(index, 0) / steps

    return space


def shifted(spacing: Spacing, shift: float) -> Spacing:
    """Applies t -> s t / (1 + (s - 1) t) to a spacing (Esser et al. 2024, eq. 23).

    s > 1 puts more steps at high noise.
    """

    def move(t, s):
        return s * t / (1.0 + (s - 1.0) * t)

    def space(schedule: Schedule, n: int, start: float | None = None) -> np.ndarray:
        # start is where sampling begins after the shift.
        before = None if start is None else move(start, 1.0 / shift)
        return move(spacing(schedule, n, before), shift)

    return space


SPACINGS: dict[str, Callable[..., Spacing]] = {
    "uniform": lambda: uniform,
    "log_snr": lambda: log_snr,
    "karras": karras,
    "trailing": trailing,
    "leading": leading,
    "leading_1": lambda: leading(offset=1),  # as Stable Diffusion 1's schedulers are set
}


def make_spacing(name: str = "uniform", shift: float = 1.0, **parameters: float) -> Spacing:
    """Returns the spacing `name` of SPACINGS, shifted; an unknown name raises InputError."""
    spacing = choose(SPACINGS, name, "spacing")(**parameters)
    return spacing if shift == 1.0 else shifted(spacing, shift)


# Where the last step ends, as diffusers' `final_sigmas_type`: at the clean image, or at the least
# noise of training, which stays in (DDIM's `set_alpha_to_one=False`, as in Stable Diffusion 1).
FINAL_SIGMAS = {"zero": lambda schedule: 0.0, "sigma_min": lambda schedule: schedule.t_min}


def levels(
    schedule: Schedule, t: np.ndarray, dtype: Any = np.float32, final_sigma: str = "zero"
) -> Level:
    """Returns the sampling levels [N + 1] at the decreasing times t [N + 1] of a spacing.

    A last t of 0 means the clean image: alpha 1 and sigma 0 exactly, also where the schedule itself
    stops at sigma_min; or what `final_sigma`, a row of `FINAL_SIGMAS`, says. Computed on the host
    in float64, then cast.

    Raises:
      InputError: the noise does not fall from each level to the next (too many steps, or a repeat,
        as of a spacing that ends at the least noise with final_sigma="sigma_min").
    """
    t = np.array(t, np.float64)
    if t[-1] == 0.0:
        t[-1] = choose(FINAL_SIGMAS, final_sigma, "final_sigma")(schedule)
    alpha = np.array(schedule.alpha(t), np.float64)
    sigma = np.array(schedule.sigma(t), np.float64)
    if t[-1] == 0.0 and final_sigma == "zero":
        alpha[-1], sigma[-1] = 1.0, 0.0
    alpha, sigma = alpha.astype(dtype), sigma.astype(dtype)
    # Compared as angles atan(sigma / alpha), as alpha may be 0, and after the cast.
    fall = np.diff(-np.arctan2(sigma.astype(np.float64), alpha.astype(np.float64)))
    if len(t) < 2 or not np.all(fall > 0.0):
        raise InputError(
            f"{len(t) - 1} sampling steps on schedule '{schedule.name}': the noise must fall from "
            "each level to the next. Use fewer steps or another spacing."
        )
    return Level(jnp.asarray(t.astype(dtype)), jnp.asarray(alpha), jnp.asarray(sigma))
