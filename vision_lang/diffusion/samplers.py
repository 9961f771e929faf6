"""Samplers: from noise to images through a denoiser and an array of noise levels, nothing else.

x lives on the schedule's own scale, x = alpha x0 + sigma eps. With D the denoiser's x0 and
e = (x - alpha D) / sigma its noise, the probability-flow ODE is dx = D d(alpha) + e d(sigma), on
every schedule. A sampler is (init, step, finish), pure functions:

    state = init(x [B, ...], keys [B] or None)
    state = step(denoiser, levels [N + 1], i, state)    from level i to level i + 1, 0 <= i < N
    x     = finish(state)

`run` takes any number of steps in one while loop; `sample` takes them all. Everything that a step
needs of earlier ones is in the state, so a caller may run in chunks. Chunks equal the whole bit
for bit where both are one compiled program: jit `run` once, with `start` and `stop` traced, and
call it with (0, N) for all steps. A separate jit of `sample` gives the same bits on the CPU as
long as `levels` is a constant in both (measured); as an argument in one of them, the compiler
folds constants differently and the last bit may differ. Noise is drawn per image from
fold_in(key, step), so image k does not depend on the batch.

Shape letters: B batch, H height, W width, C channels, N sampling steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vision_lang.diffusion.prediction import Denoiser, to_eps
from vision_lang.diffusion.schedules import Level
from vision_lang.errors import InputError, choose

Array = Any


class State(NamedTuple):
    """What is carried from step to step."""

    x: Array  # [B, H, W, C]
    keys: Array | None  # [B]; None for samplers that add no noise
    x0: Array | None = None  # the last estimate [B, H, W, C], for samplers that look back


class Sampler(NamedTuple):
    """See the module's docstring."""

    init: Callable[[Array, Array | None], State]
    step: Callable[[Denoiser, Level, Array, State], State]
    finish: Callable[[State], Array]


# No state carries what its step does not read: dead parts of a loop's state are dropped or kept
# depending on what the caller returns, and then the loop is another program with other rounding.
def _init(x: Array, keys: Array | None = None) -> State:
    return State(x, None)


def _init_with_keys(x: Array, keys: Array | None = None) -> State:
    if keys is None:
        raise InputError("This sampler adds noise: give it one random key per image.")
    return State(x, keys)


def _init_with_history(x: Array, keys: Array | None = None) -> State:
    return State(x, None, jnp.zeros_like(x))


def _finish(state: State) -> Array:
    return state.x


def _pair(levels: Level, i: Array) -> tuple[Level, Level]:
    """Levels i and i + 1, as scalars."""
    return jax.tree.map(lambda a: a[i], levels), jax.tree.map(lambda a: a[i + 1], levels)


def _noise(keys: Array, purpose: Array | int, x: Array) -> jax.Array:
    def one(key):
        return jax.random.normal(jax.random.fold_in(key, purpose), x.shape[1:], x.dtype)

    return jax.vmap(one)(keys)


def initial_noise(keys: Array, shape: tuple[int, ...], levels: Level) -> jax.Array:
    """Returns x [B, *shape] at the first level: sigma times normal noise, one key [B] per image."""
    like = jax.ShapeDtypeStruct((keys.shape[0], *shape), levels.sigma.dtype)
    return levels.sigma[0] * _noise(keys, 0, like)


def ddim(eta: float = 0.0) -> Sampler:
    """Song et al. 2021, "DDIM", eqs. 12 and 16, for any alpha and sigma.

    With r = alpha sigma' / (alpha' sigma) the noise added is eta sigma' sqrt(1 - r^2), which for
    eta = 1 is the posterior deviation of eq. 16, and sigma' at most: then all noise is new. No
    division by alpha: starts from alpha = 0 too.

    In many small steps every eta draws from the same distribution: what is added beyond eta = 1 is
    a Langevin step at each level (Song et al. 2021, "Score-based", section 4.2). It forgets what
    the denoiser got wrong before; in few steps it favours the likelier images.
    """

    def step(denoiser, levels, i, state):
        now, after = _pair(levels, i)
        x0 = denoiser(state.x, now)
        eps = to_eps(x0, state.x, now.alpha, now.sigma)
        if eta == 0.0:
            return State(after.alpha * x0 + after.sigma * eps, state.keys)
        ratio = now.alpha * after.sigma / (after.alpha * now.sigma)
        variance = eta**2 * (1.0 - ratio) * (1.0 + ratio)
        fresh = jnp.minimum(variance, 1.0)  # share of the noise's variance that is new
        noise = _noise(state.keys, i + 1, state.x)
        mixed = jnp.sqrt(1.0 - fresh) * eps + jnp.sqrt(fresh) * noise
        return State(after.alpha * x0 + after.sigma * mixed, state.keys)

    return Sampler(_init if eta == 0.0 else _init_with_keys, step, _finish)


def ddpm() -> Sampler:
    """Ancestral sampling, Ho et al. 2020, with the exact posterior variance: DDIM with eta = 1."""
    return ddim(1.0)


def euler() -> Sampler:
    """Euler's method on dx = D d(alpha) + e d(sigma).

    x + (alpha' - alpha) D + (sigma' - sigma) e = alpha' D + sigma' e: the same as DDIM (eta = 0),
    as Euler on rectified flow's dx = (eps - x0) dt, and as k-diffusion's Euler where alpha = 1.
    """
    return ddim(0.0)


def heun() -> Sampler:
    """Heun's method (trapezoid rule) on dx = D d(alpha) + e d(sigma); two denoiser calls a step.

    Where alpha = 1 it is algorithm 1 of Karras et al. 2022. The step to sigma = 0 is Euler's.
    """

    def step(denoiser, levels, i, state):
        now, after = _pair(levels, i)
        x0 = denoiser(state.x, now)
        eps = to_eps(x0, state.x, now.alpha, now.sigma)
        guess = after.alpha * x0 + after.sigma * eps

        def correct():
            x0_after = denoiser(guess, after)
            eps_after = to_eps(x0_after, guess, after.alpha, after.sigma)
            along_x0 = 0.5 * (after.alpha - now.alpha) * (x0 + x0_after)
            return state.x + along_x0 + 0.5 * (after.sigma - now.sigma) * (eps + eps_after)

        x = lax.cond(after.sigma > 0.0, correct, lambda: guess)
        return State(x, state.keys)

    return Sampler(_init, step, _finish)


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2: Euler with x0 extrapolated from the last two.

    Their update (sigma' / sigma) x - alpha' (exp(-h) - 1) D has exp(-h) = alpha sigma' / (alpha'
    sigma), so it is alpha' D + sigma' (x - alpha D) / sigma without division by alpha. First order
    where there is no step before, or where a step of log(alpha / sigma) is infinite (to sigma = 0,
    after alpha = 0).
    """

    def step(denoiser, levels, i, state):
        now, after = _pair(levels, i)
        x0 = denoiser(state.x, now)
        log_noise = jnp.log(levels.sigma) - jnp.log(levels.alpha)  # may be infinite at the ends
        h = log_noise[i] - log_noise[i + 1]
        h_before = log_noise[jnp.maximum(i - 1, 0)] - log_noise[i]
        second = (i > 0) & jnp.isfinite(h) & jnp.isfinite(h_before)
        weight = jnp.where(second, 0.5 * h / jnp.where(second, h_before, 1.0), 0.0)
        extrapolated = x0 + weight * (x0 - state.x0)
        eps = to_eps(extrapolated, state.x, now.alpha, now.sigma)
        return State(after.alpha * extrapolated + after.sigma * eps, state.keys, x0)

    return Sampler(_init_with_history, step, _finish)


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}


def make_sampler(name: str, **parameters: float) -> Sampler:
    """Returns the sampler `name` of SAMPLERS; an unknown name raises InputError."""
    return choose(SAMPLERS, name, "sampler")(**parameters)


def run(
    sampler: Sampler,
    denoiser: Denoiser,
    levels: Level,
    state: State,
    start: Array | int,
    stop: Array | int,
) -> State:
    """Takes the steps start .. stop - 1; both may be traced, and should be (module's docstring)."""
    # A while loop, not a scan: a scan of another length may compile to another program.
    bound = jnp.asarray(stop, jnp.int32)

    def body(carry):
        i, state = carry
        return i + 1, sampler.step(denoiser, levels, i, state)

    return lax.while_loop(lambda c: c[0] < bound, body, (jnp.asarray(start, jnp.int32), state))[1]


def sample(
    sampler: Sampler, denoiser: Denoiser, levels: Level, x: Array, keys: Array | None = None
) -> jax.Array:
    """Returns the images [B, H, W, C] after all steps from x at level 0."""
    stop = len(levels.t) - 1
    return sampler.finish(run(sampler, denoiser, levels, sampler.init(x, keys), 0, stop))


def exploding(denoiser: Denoiser, levels: Level) -> tuple[Denoiser, Level]:
    """Changes variables to x / alpha and sigma / alpha, for variance-preserving models.

    Heun then discretises as k-diffusion and diffusers do; the other samplers give the same path.
    Divide the input by the old levels.alpha[0]; where the last level is clean, the output needs no
    change. The levels must be concrete arrays, not arguments of a jitted function.

    Raises:
      InputError: the first level has alpha = 0, or the levels are not variance preserving.
    """
    alpha, sigma = np.asarray(levels.alpha, np.float64), np.asarray(levels.sigma, np.float64)
    if alpha[0] <= 0.0 or np.any(np.abs(np.hypot(alpha, sigma) - 1.0) > 1e-4):
        raise InputError(
            "Sampling in x / alpha needs a variance-preserving schedule that keeps some signal "
            "at its noisy end: 'linear', 'scaled_linear' or 'cosine_clipped'."
        )

    def denoise(x, level):
        alpha = lax.rsqrt(1.0 + level.sigma**2)
        return denoiser(alpha * x, Level(level.t, alpha, level.sigma * alpha))

    return denoise, Level(levels.t, jnp.ones_like(levels.alpha), levels.sigma / levels.alpha)
