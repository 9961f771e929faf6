"""Schedules against closed forms, published discrete tables, and their own inverses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_lang.diffusion.schedules import (
    SCHEDULES,
    discrete,
    from_betas,
    linear,
    make_schedule,
    scaled_linear,
)
from vision_lang.errors import InputError

NAMES = sorted(SCHEDULES)
VARIANCE_PRESERVING = ["cosine", "cosine_clipped", "linear", "scaled_linear"]


def test_stable_diffusion_table():
    # As published: square roots of the betas equally spaced, multiplied up one by one.
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar, product = [], 1.0
    for beta in betas:
        product *= 1.0 - beta
        alpha_bar.append(product)
    for schedule in (scaled_linear(), from_betas(betas)):
        table = discrete(schedule, 1000)
        np.testing.assert_allclose(table.alpha_bar, alpha_bar, rtol=1e-11)
        np.testing.assert_allclose(table.betas, betas, rtol=1e-9)
        np.testing.assert_allclose(schedule.network_time(table.t), np.arange(1000), atol=1e-9)


def test_ddpm_table():
    betas = np.linspace(1e-4, 0.02, 1000)
    table = discrete(linear(), 1000)
    np.testing.assert_allclose(table.alpha_bar, np.cumprod(1.0 - betas), rtol=1e-11)
    np.testing.assert_allclose(table.betas, betas, rtol=1e-9)
    # The continuous limit, exp(-integral of beta) (Song et al. 2021), is close but not the same.
    t = table.t
    limit = np.exp(-1000.0 * (1e-4 * t + 0.5 * (0.02 - 1e-4) * t**2))
    assert 1e-4 < np.abs(table.alpha_bar - limit).max() < 5e-3


def test_improved_ddpm_cosine_table():
    # Nichol & Dhariwal 2021: betas 1 - f((i + 1) / T) / f(i / T), f the squared cosine.
    def f(u):
        return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

    steps = 100
    expected = [1.0 - f((i + 1) / steps) / f(i / steps) for i in range(steps)]
    np.testing.assert_allclose(discrete(make_schedule("cosine"), steps).betas, expected, atol=1e-12)


def test_flow_and_edm_closed_forms():
    t = np.linspace(0.0, 1.0, 11)
    flow, edm = make_schedule("flow"), make_schedule("edm")
    np.testing.assert_allclose(flow.alpha(t), 1.0 - t)
    np.testing.assert_allclose(flow.sigma(t), t)
    np.testing.assert_allclose(edm.sigma(t), 0.002 * 40000.0**t, rtol=1e-12)
    np.testing.assert_allclose(edm.alpha(t), 1.0)
    np.testing.assert_allclose(edm.network_time(t), np.log(edm.sigma(t)) / 4, rtol=1e-12)
    np.testing.assert_allclose(edm.input_scale(t), 1 / np.hypot(edm.sigma(t), 0.5), rtol=1e-12)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_variance_preserving(name):
    schedule = make_schedule(name)
    t = np.linspace(0.0, 1.0, 101)
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1.0, atol=1e-14)
    assert schedule.alpha(0.0) == pytest.approx(1.0, abs=1e-15) and schedule.sigma(0.0) == 0.0


@pytest.mark.parametrize("steps", [10, 100, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_tables_are_samples_with_strictly_falling_log_snr(name, steps):
    schedule = make_schedule(name)
    table = discrete(schedule, steps)
    assert table.alpha_bar.dtype == table.betas.dtype == np.float64
    np.testing.assert_allclose(np.cumprod(1.0 - table.betas), table.alpha_bar, rtol=1e-9, atol=0)
    assert np.all(table.betas > 0.0) and np.all(table.betas <= 1.0)
    inner = schedule.log_snr(table.t[:-1])  # the open interval
    assert np.all(np.isfinite(inner)) and np.all(np.diff(inner) < 0.0)
    bar = table.alpha_bar[:-1]
    np.testing.assert_allclose(inner, np.log(bar / (1 - bar)), rtol=1e-6)
    # The end is as the table of schedules states.
    assert (table.alpha_bar[-1] == 0.0) == schedule.zero_terminal_snr
    assert np.isfinite(schedule.log_snr(np.float64(1.0))) != schedule.zero_terminal_snr


@pytest.mark.parametrize("name", NAMES)
def test_log_snr_inverse_and_definition(name):
    schedule = make_schedule(name)
    t = np.linspace(schedule.t_min, 0.999 * schedule.t_max, 200)
    lam = schedule.log_snr(t)
    np.testing.assert_allclose(lam, 2 * np.log(schedule.alpha(t) / schedule.sigma(t)), rtol=1e-7)
    np.testing.assert_allclose(schedule.t(lam), t, atol=1e-12)
    assert lam.max() < 14.0


@pytest.mark.parametrize("name", NAMES)
def test_float32_in_jax_agrees_with_float64_in_numpy(name):
    schedule = make_schedule(name)
    t = np.linspace(schedule.t_min, 0.99, 200).astype(np.float32)
    exact = t.astype(np.float64)
    for function in (schedule.alpha, schedule.sigma, schedule.network_time, schedule.input_scale):
        traced = jax.jit(function)(jnp.asarray(t))
        assert traced.dtype == jnp.float32
        np.testing.assert_allclose(traced, function(exact), rtol=2e-5, atol=1e-6)
    lam = schedule.log_snr(exact)
    np.testing.assert_allclose(jax.jit(schedule.log_snr)(jnp.asarray(t)), lam, atol=1e-4)
    np.testing.assert_allclose(jax.jit(schedule.t)(jnp.asarray(lam, jnp.float32)), t, atol=1e-5)


def test_bad_tables_are_refused():
    with pytest.raises(InputError, match="between 0 and 1"):
        from_betas([0.1, 1.0])  # zero terminal SNR by rescaling
    with pytest.raises(InputError, match="beta_start"):
        linear(0.02, 1e-4)
    with pytest.raises(InputError, match="Did you mean 'cosine'"):
        make_schedule("cosin")
