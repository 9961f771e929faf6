"""Prediction types: round trips, their equivalence, refusals, preconditioning, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.exact import SHAPE, denoise, time_of
from vision_lang.diffusion import prediction as pred
from vision_lang.diffusion.samplers import initial_noise, make_sampler, sample
from vision_lang.diffusion.schedules import SCHEDULES, Level, make_schedule
from vision_lang.diffusion.spacing import levels, uniform
from vision_lang.errors import InputError

PREDICTIONS = sorted(pred.PREDICTIONS)


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("schedule_name", sorted(SCHEDULES))
def test_target_and_to_x0_are_inverse(schedule_name, name):
    schedule, prediction = make_schedule(schedule_name), pred.make_prediction(name)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x0, eps = rng.normal(size=(2, 5, 2, 2, 3))
        level = schedule.level(jnp.asarray([1e-3, 0.1, 0.5, 0.9, 0.99]))  # [B]
        x_t = pred.add_noise(x0, eps, level)
        output = prediction.target(x0, eps, level.alpha, level.sigma)
        back = prediction.to_x0(output, x_t, level.alpha, level.sigma)
        np.testing.assert_allclose(back, x0, atol=1e-9)
        np.testing.assert_allclose(pred.to_eps(x0, x_t, level.alpha, level.sigma), eps, atol=1e-9)


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("schedule_name", sorted(SCHEDULES))
def test_x0_gain_is_the_squared_derivative(schedule_name, name):
    schedule, prediction = make_schedule(schedule_name), pred.make_prediction(name)
    with jax.enable_x64(True):
        for t in jnp.asarray([1e-3, 0.3, 0.7, 0.99]):
            level = schedule.level(t)

            def x0_of(output, level=level):
                x_t = jnp.ones(())
                return prediction.to_x0(output, x_t, level.alpha, level.sigma)

            gain = jax.grad(x0_of)(jnp.float64(0.3)) ** 2
            np.testing.assert_allclose(prediction.x0_gain(schedule.log_snr(t)), gain, rtol=1e-9)


def network_of(schedule, prediction):
    """The network of this prediction type that holds the exact denoiser."""

    def network(scaled, network_time):
        t = time_of(schedule, network_time)
        x = scaled / schedule.input_scale(t)[:, None, None, None]
        level = schedule.level(t)
        x0 = denoise(x, level)
        eps = pred.to_eps(x0, x, level.alpha, level.sigma)
        return prediction.target(x0, eps, level.alpha, level.sigma)

    return network


@pytest.mark.parametrize(
    "schedule_name, sampler",
    [("cosine_clipped", "ddpm"), ("scaled_linear", "dpmpp_2m"), ("edm", "heun")],
)
def test_predictions_of_one_denoiser_give_one_trajectory(schedule_name, sampler):
    schedule = make_schedule(schedule_name)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), 4)
        lv = levels(schedule, uniform(schedule, 10), np.float64)
        x = initial_noise(keys, SHAPE, lv)

        denoisers: dict[str, pred.Denoiser] = {"exact": denoise}
        for name in PREDICTIONS:
            prediction = pred.make_prediction(name)
            network = network_of(schedule, prediction)
            denoisers[name] = pred.make_denoiser(network, schedule, prediction)
        ends = jax.jit(
            lambda x: {
                n: sample(make_sampler(sampler), d, lv, x, keys) for n, d in denoisers.items()
            }
        )(x)
        for name in PREDICTIONS:
            np.testing.assert_allclose(ends[name], ends["exact"], atol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", ["x", "v", "flow", "edm"])
@pytest.mark.parametrize("schedule_name", ["cosine", "flow"])
def test_zero_terminal_snr_samples_from_pure_noise(schedule_name, name):
    schedule, prediction = make_schedule(schedule_name), pred.make_prediction(name)
    keys = jax.random.split(jax.random.key(1), 4)
    lv = levels(schedule, uniform(schedule, 10))
    assert lv.alpha[0] == 0.0
    denoiser = pred.make_denoiser(network_of(schedule, prediction), schedule, prediction)
    x = initial_noise(keys, SHAPE, lv)
    expected = sample(make_sampler("heun"), denoise, lv, x)
    np.testing.assert_allclose(sample(make_sampler("heun"), denoiser, lv, x), expected, atol=2e-4)


def test_admissible_pairs():
    refused = set()
    for schedule_name in SCHEDULES:
        for name in PREDICTIONS:
            try:
                pred.check(make_schedule(schedule_name), pred.make_prediction(name))
            except InputError as error:
                assert "Use prediction 'v'" in str(error)
                refused.add((schedule_name, name))
    assert refused == {("cosine", "epsilon"), ("flow", "epsilon")}
    with pytest.raises(InputError, match="zero signal"):
        pred.make_denoiser(lambda x, t: x, make_schedule("flow"), pred.make_prediction("epsilon"))


def test_edm_preconditioning_is_table_1():
    sigma, sd = 3.0, 0.5
    prediction = pred.make_prediction("edm", sigma_data=sd)
    x_t, output = jnp.full((1, 1, 1, 1), 2.0), jnp.full((1, 1, 1, 1), -0.7)
    c_skip = sd**2 / (sigma**2 + sd**2)
    c_out = sigma * sd / np.sqrt(sigma**2 + sd**2)
    got = prediction.to_x0(output, x_t, jnp.float32(1.0), jnp.float32(sigma))
    np.testing.assert_allclose(got, c_skip * x_t + c_out * output, rtol=1e-6)
    schedule = make_schedule("edm", sigma_data=sd)
    t = schedule.t(np.float64(-2.0 * np.log(sigma)))
    seen = []

    def network(x, time):
        seen.append((x, time))
        return output

    pred.make_denoiser(network, schedule, prediction)(x_t, Level(t, 1.0, sigma))
    np.testing.assert_allclose(seen[0][0], x_t / np.sqrt(sigma**2 + sd**2), rtol=1e-6)
    np.testing.assert_allclose(seen[0][1], [np.log(sigma) / 4], rtol=1e-6)


def test_clipping():
    x0 = jnp.asarray([0.5, -3.0, 2.0, 1.0] * 100).reshape(1, 20, 20, 1)
    x0 = jnp.concatenate([x0, 0.1 * x0])
    level = Level(0.5, 0.5, 0.5)

    def clip(name, **kwargs):
        return pred.clipped(lambda x, level: x0, name, **kwargs)(x0, level)

    np.testing.assert_array_equal(clip("none"), x0)
    np.testing.assert_allclose(clip("static"), np.clip(x0, -1, 1))
    dynamic = clip("dynamic", percentile=70.0)
    # |x0| = 0.5, 1, 2, 3 in equal parts: the 70th percentile is 2; the second image stays below 1.
    np.testing.assert_allclose(dynamic[0], np.clip(x0[0], -2, 2) / 2, atol=1e-6)
    np.testing.assert_allclose(dynamic[1], x0[1], atol=1e-6)
