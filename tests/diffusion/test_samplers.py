"""Samplers: order of accuracy, distribution, last step, chunks, independence of the batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from tests.diffusion.exact import SHAPE, denoise, mixture_covariance, mixture_mean
from vision_lang.diffusion import samplers
from vision_lang.diffusion.schedules import Level, discrete, make_schedule
from vision_lang.diffusion.spacing import levels, uniform
from vision_lang.errors import InputError

ALL = sorted(samplers.SAMPLERS)
# schedule: the times between which the order is measured, signal and noise both present throughout
RANGES = {"cosine": (0.85, 0.25), "flow": (0.85, 0.25), "edm": (0.75, 0.5), "linear": (0.7, 0.2)}


def solution(schedule, x, start, stop):
    """The probability-flow ODE dx/dt = D dalpha/dt + e dsigma/dt by an independent integrator."""
    shape = x.shape
    d_alpha, d_sigma = jax.grad(schedule.alpha), jax.grad(schedule.sigma)

    @jax.jit
    def slope(t, flat):
        level = schedule.level(t)
        x = flat.reshape(shape)
        x0 = denoise(x, level)
        eps = (x - level.alpha * x0) / level.sigma
        return (x0 * d_alpha(t) + eps * d_sigma(t)).ravel()

    def rhs(t, y):
        return np.asarray(slope(jnp.float64(t), jnp.asarray(y)))

    result = solve_ivp(rhs, (start, stop), np.ravel(x), method="DOP853", rtol=1e-11, atol=1e-12)
    return result.y[:, -1].reshape(shape)


def padded_levels(schedule, start, stop, n, longest=512):
    """The levels of n steps, filled up to one length: every n runs in one compiled program."""
    lv = levels(schedule, np.linspace(start, stop, n + 1), np.float64)
    return Level(*(jnp.pad(a, (0, longest - n), "edge") for a in lv))


@pytest.mark.parametrize("schedule_name", sorted(RANGES))
def test_order_of_accuracy(schedule_name):
    schedule = make_schedule(schedule_name)
    start, stop = RANGES[schedule_name]
    steps = [32, 64, 128, 256, 512]
    with jax.enable_x64(True):
        x = schedule.sigma(start) * jax.random.normal(jax.random.key(5), (16, *SHAPE), jnp.float64)
        expected = solution(schedule, x, start, stop)

        def check(name, denoiser, order, in_exploding=False):
            sampler = samplers.make_sampler(name)
            advance: Any = jax.jit(lambda *args: samplers.run(sampler, denoiser, *args))
            errors = []
            for n in steps:
                lv = padded_levels(schedule, start, stop, n)
                scale = (lv.alpha[0], lv.alpha[-1]) if in_exploding else (1.0, 1.0)
                if in_exploding:
                    lv = samplers.exploding(denoise, lv)[1]
                y = scale[1] * advance(lv, sampler.init(x / scale[0], None), 0, n).x
                errors.append(np.sqrt(np.mean((y - expected) ** 2)))
            slopes = -np.diff(np.log2(errors))
            assert np.all(np.abs(slopes - order) < 0.15), (name, slopes, errors)

        for name, order in {"euler": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2}.items():
            check(name, denoise, order)
        if schedule_name in ("cosine", "linear"):
            wrapped, _ = samplers.exploding(denoise, padded_levels(schedule, start, stop, 32))
            check("heun", wrapped, 2, in_exploding=True)


def run_jitted(name, denoiser, lv, x, keys=None):
    sampler = samplers.make_sampler(name)
    return jax.jit(lambda lv, x: samplers.sample(sampler, denoiser, lv, x, keys))(lv, x)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("schedule_name", ["cosine", "scaled_linear", "flow", "edm"])
def test_the_last_step_returns_the_denoisers_x0(schedule_name, name):
    schedule = make_schedule(schedule_name)
    keys = jax.random.split(jax.random.key(2), 8)
    one = levels(schedule, uniform(schedule, 1))
    x = samplers.initial_noise(keys, SHAPE, one)
    np.testing.assert_array_equal(
        run_jitted(name, denoise, one, x, keys), jax.jit(denoise)(x, Level(*(a[0] for a in one)))
    )
    many = levels(schedule, uniform(schedule, 10))
    sampler = samplers.make_sampler(name)
    before = samplers.run(sampler, denoise, many, sampler.init(x, keys), 0, 9)
    state = samplers.run(sampler, denoise, many, before, 9, 10)
    x0 = denoise(before.x, Level(*(a[9] for a in many)))
    np.testing.assert_allclose(sampler.finish(state), x0, atol=1e-6)


@pytest.mark.parametrize("schedule_name", ["cosine", "flow"])
def test_ddpm_matches_mean_and_covariance(schedule_name):
    schedule = make_schedule(schedule_name)
    count = 5000
    keys = jax.random.split(jax.random.key(7), count)
    lv = levels(schedule, uniform(schedule, 400))
    x = samplers.initial_noise(keys, SHAPE, lv)
    y = np.asarray(run_jitted("ddpm", denoise, lv, x, keys), np.float64).reshape(count, 2)
    # Standard errors: 0.013 and 0.016; the steps leave a bias of the same size (next test).
    np.testing.assert_allclose(y.mean(0), mixture_mean(), atol=0.05)
    np.testing.assert_allclose(np.cov(y.T), mixture_covariance(), atol=0.05)


@pytest.mark.parametrize("eta", [1.0, 1.5])
@pytest.mark.parametrize("schedule_name", ["cosine", "linear", "flow", "edm"])
def test_moments_converge_without_chance(schedule_name, eta):
    # For a Gaussian target a step is x -> a x + b + c z: its moments follow from a, b and c.
    schedule, mean, deviation = make_schedule(schedule_name), 0.7, 0.6
    sampler, keys = samplers.ddim(eta), jnp.stack([jax.random.key(0)] * 2)

    def gaussian(x, level):
        gain = level.alpha * deviation**2 / ((level.alpha * deviation) ** 2 + level.sigma**2)
        return mean + gain * (x - level.alpha * mean)

    @jax.jit
    def moments(lv, n):
        def body(i, carry):
            m, variance = carry
            state = sampler.init(jnp.asarray([0.0, 1.0]).reshape(2, 1, 1, 1), keys)
            at_0, at_1 = sampler.step(gaussian, lv, i, state).x.ravel()
            z = samplers._noise(keys, i + 1, state.x).ravel()[0]
            now, after = (Level(*(a[j] for a in lv)) for j in (i, i + 1))
            # Ho et al. 2020, eq. 7: the posterior variance of x_s given x_t and x0.
            ratio = now.alpha / after.alpha
            c = jnp.sqrt(now.sigma**2 - (ratio * after.sigma) ** 2) * after.sigma / now.sigma
            c = jnp.minimum(eta * c, after.sigma)
            a, b = at_1 - at_0, at_0 - c * z
            return a * m + b, a**2 * variance + c**2

        return jax.lax.fori_loop(0, n, body, (jnp.zeros(()), lv.sigma[0] ** 2))

    with jax.enable_x64(True):
        errors = []
        for n in (128, 256, 512):
            lv = levels(schedule, uniform(schedule, n), np.float64)
            m, variance = moments(Level(*(jnp.pad(a, (0, 512 - n)) for a in lv)), n)
            errors.append(abs(variance - deviation**2))
            assert abs(m - mean) < 0.01
        assert errors[-1] < 0.01 * eta**2
        assert np.all(np.abs(-np.diff(np.log2(errors)) - 1.0) < 0.15), errors


def test_ddpm_step_is_the_posterior():
    # Ho et al. 2020, eqs. 6-7, with the discrete betas of the schedule.
    schedule = make_schedule("scaled_linear")
    table = discrete(schedule, 50)
    i = 30  # from step i of the table to step i - 1
    beta, bar, before = table.betas[i], table.alpha_bar[i], table.alpha_bar[i - 1]
    key = jax.random.key(0)
    x = jax.random.normal(key, (1, 4, 4, 3))
    lv = levels(schedule, table.t[[i, i - 1]])
    sampler = samplers.ddpm()
    got = sampler.step(lambda x, level: jnp.tanh(x), lv, 0, sampler.init(x, key[None])).x
    mean = np.sqrt(before) * beta / (1 - bar) * np.tanh(x)
    mean = mean + np.sqrt(1 - beta) * (1 - before) / (1 - bar) * x
    noise = jax.random.normal(jax.random.fold_in(key, 1), x.shape[1:])
    deviation = np.sqrt(beta * (1 - before) / (1 - bar))
    np.testing.assert_allclose(got, mean + deviation * noise, atol=1e-5)
    # However large eta is, no more than all of the noise is new.
    renoised = samplers.ddim(9.0).step(
        lambda x, level: jnp.tanh(x), lv, 0, sampler.init(x, key[None])
    )
    np.testing.assert_allclose(
        renoised.x, np.sqrt(before) * np.tanh(x) + np.sqrt(1 - before) * noise, atol=1e-5
    )


def test_heun_with_alpha_1_is_algorithm_1_of_edm():
    schedule = make_schedule("edm")
    with jax.enable_x64(True):
        lv = levels(schedule, uniform(schedule, 6), np.float64)
        x = 80.0 * jax.random.normal(jax.random.key(1), (3, *SHAPE), jnp.float64)
        expected = x
        for i in range(6):
            now, after = (Level(*(a[j] for a in lv)) for j in (i, i + 1))
            d = (expected - denoise(expected, now)) / now.sigma
            guess = expected + (after.sigma - now.sigma) * d
            if after.sigma > 0:
                d = 0.5 * (d + (guess - denoise(guess, after)) / after.sigma)
            expected = expected + (after.sigma - now.sigma) * d
        np.testing.assert_allclose(run_jitted("heun", denoise, lv, x), expected, atol=1e-10)


def test_dpmpp_2m_is_the_published_update():
    # Lu et al. 2022b, algorithm 2, in its own variables.
    schedule = make_schedule("scaled_linear")
    with jax.enable_x64(True):
        lv = levels(schedule, np.linspace(1.0, 0.1, 6), np.float64)
        x = jax.random.normal(jax.random.key(1), (3, *SHAPE), jnp.float64)
        expected, before, h_before = x, None, None
        half_log_snr = np.log(lv.alpha / lv.sigma)
        for i in range(5):
            x0 = denoise(expected, Level(*(a[i] for a in lv)))
            h = half_log_snr[i + 1] - half_log_snr[i]
            d = x0
            if before is not None:
                r = h_before / h
                d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
            expected = lv.sigma[i + 1] / lv.sigma[i] * expected - lv.alpha[i + 1] * np.expm1(-h) * d
            before, h_before = x0, h
        np.testing.assert_allclose(run_jitted("dpmpp_2m", denoise, lv, x), expected, atol=1e-12)


def network_like(weights):
    """A denoiser with matrix products, so that the loop's body is worth fusing."""

    def call(x, level):
        hidden = jnp.tanh(jnp.einsum("bhwc,cd->bhwd", x, weights) + level.t)
        return jnp.einsum("bhwd,cd->bhwc", jax.nn.softmax(hidden), weights) - level.sigma * x

    return call


@pytest.mark.parametrize(
    "schedule_name, name",
    [*(("flow", name) for name in ALL if name != "ddim"), ("scaled_linear", "dpmpp_2m")],
)
def test_chunks_equal_the_whole_bit_for_bit(schedule_name, name):
    schedule = make_schedule(schedule_name)
    lv = levels(schedule, uniform(schedule, 10))
    keys = jax.random.split(jax.random.key(2), 5)
    denoiser = network_like(jax.random.normal(jax.random.key(0), (3, 16)))
    sampler = samplers.make_sampler(name)
    x = samplers.initial_noise(keys, (8, 8, 3), lv)

    @jax.jit
    def advance(state, start, stop):
        return samplers.run(sampler, denoiser, lv, state, start, stop)

    whole = advance(sampler.init(x, keys), 0, 10)
    for chunk in (1, 3):
        state = sampler.init(x, keys)
        for start in range(0, 10, chunk):
            state = advance(state, start, min(start + chunk, 10))
        np.testing.assert_array_equal(state.x, whole.x)
    assert advance._cache_size() == 1  # type: ignore[attr-defined]
    at_once = jax.jit(lambda x: samplers.sample(sampler, denoiser, lv, x, keys))(x)
    np.testing.assert_array_equal(at_once, whole.x)
    assert np.all(np.isfinite(whole.x)) and np.std(whole.x) > 0.01


@pytest.mark.parametrize("name", ["ddpm", "heun", "dpmpp_2m"])
def test_an_image_does_not_depend_on_its_batch(name):
    schedule = make_schedule("flow")
    lv = levels(schedule, uniform(schedule, 5))
    keys = jax.random.split(jax.random.key(2), 6)
    x = samplers.initial_noise(keys, SHAPE, lv)
    assert len(np.unique(x)) == x.size
    np.testing.assert_array_equal(samplers.initial_noise(keys[2:4], SHAPE, lv), x[2:4])
    together = run_jitted(name, denoise, lv, x, keys)
    apart = run_jitted(name, denoise, lv, x[2:4], keys[2:4])
    np.testing.assert_allclose(apart, together[2:4], atol=1e-6)
    swapped = run_jitted(name, denoise, lv, x[::-1], keys[::-1])
    np.testing.assert_allclose(swapped, together[::-1], atol=1e-6)


def test_noise_differs_between_steps_and_from_the_input():
    keys = jax.random.split(jax.random.key(0), 2)
    schedule = make_schedule("flow")
    lv = levels(schedule, uniform(schedule, 4))
    x = samplers.initial_noise(keys, SHAPE, lv)
    sampler = samplers.ddpm()
    state, seen = sampler.init(x, keys), [np.ravel(x)]
    for i in range(3):
        moved = sampler.step(lambda x, level: jnp.zeros_like(x), lv, i, state)
        still = samplers.euler().step(lambda x, level: jnp.zeros_like(x), lv, i, state)
        seen.append(np.ravel(moved.x - still.x))
        state = moved
    directions = np.stack([s / np.linalg.norm(s) for s in seen])
    assert np.abs(directions @ directions.T - np.eye(4)).max() < 0.999


def test_mistakes_are_refused():
    with pytest.raises(InputError, match="one random key per image"):
        samplers.ddpm().init(jnp.zeros((1, *SHAPE)), None)
    with pytest.raises(InputError, match="Did you mean 'heun'"):
        samplers.make_sampler("huen")
    schedule = make_schedule("flow")
    with pytest.raises(InputError, match="variance-preserving"):
        samplers.exploding(denoise, levels(schedule, uniform(schedule, 4)))
