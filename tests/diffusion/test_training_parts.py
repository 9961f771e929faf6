"""Time sampling, loss weights and guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vision_lang.diffusion import weighting
from vision_lang.diffusion.guidance import guide, guided
from vision_lang.diffusion.prediction import PREDICTIONS, add_noise, check, make_prediction
from vision_lang.diffusion.schedules import SCHEDULES, Level, make_schedule
from vision_lang.diffusion.time_sampling import TIME_SAMPLINGS, make_time_sampling
from vision_lang.errors import InputError

KEYS = jax.random.split(jax.random.key(3), 4096)
INDEX = jnp.arange(4096)


@pytest.mark.parametrize("schedule_name", sorted(SCHEDULES))
@pytest.mark.parametrize("name", sorted(TIME_SAMPLINGS))
def test_times_stay_in_range_and_belong_to_their_example(name, schedule_name):
    schedule, draw = make_schedule(schedule_name), make_time_sampling(name)
    t = draw(schedule, KEYS, INDEX, 4096)
    assert t.dtype == jnp.float32 and np.unique(t).size > 2000
    assert t.min() >= np.float32(schedule.t_min) and t.max() <= np.float32(schedule.t_max)
    # A device that holds every eighth example draws the same times for them.
    np.testing.assert_array_equal(draw(schedule, KEYS[3::8], INDEX[3::8], 4096), t[3::8])


def test_time_distributions():
    flow, edm = make_schedule("flow"), make_schedule("edm")
    t = make_time_sampling("uniform")(flow, KEYS, INDEX, 4096)
    assert stats.kstest(t, "uniform").pvalue > 0.01
    t = make_time_sampling("stratified")(flow, KEYS, INDEX, 4096)
    slices = (np.asarray(t) - flow.t_min) / (1 - flow.t_min) * 4096 - np.arange(4096)
    assert slices.min() > -0.01 and slices.max() < 1.01
    t = make_time_sampling("logit_normal", course=((0.0, 1.3, 0.7),))(flow, KEYS, INDEX, 4096)
    normal = (np.log(t / (1 - t)) - 1.3) / 0.7
    assert stats.kstest(normal, "norm").pvalue > 0.01
    moving = make_time_sampling("logit_normal", course=((0, 2, 0.7), (1, 0.4, 1.5)))
    t = moving(flow, KEYS, INDEX, 4096, np.full(4096, 0.5))
    assert stats.kstest((np.log(t / (1 - t)) - 1.2) / 1.1, "norm").pvalue > 0.01
    np.testing.assert_array_equal(t, moving(flow, KEYS, INDEX, 4096, 0.5))
    for name, logit in (
        ("logit_normal", lambda t: np.log(t / (1 - t))),
        ("log_normal", lambda t: np.log(flow.sigma(t) / flow.alpha(t))),
    ):
        sliced = make_time_sampling(name, course=((0.0, 0.4, 0.7),), stratified=True)
        rank = stats.norm.cdf(
            (logit(np.asarray(sliced(flow, KEYS[:64], INDEX[:64], 64))) - 0.4) / 0.7
        )
        assert np.abs(rank * 64 - np.arange(64) - 0.5).max() < 0.501  # each in its own slice
        assert np.ptp(rank * 64 - np.arange(64)) > 0.9  # anywhere in it
    t = make_time_sampling("log_normal", course=((0.0, -1.2, 1.2),))(edm, KEYS, INDEX, 4096)
    assert stats.kstest((np.log(edm.sigma(t)) + 1.2) / 1.2, "norm").pvalue > 0.01


def test_weights_are_the_published_ones():
    lam = jnp.linspace(-8.0, 8.0, 33)
    snr = np.exp(lam)
    epsilon, v, edm = (make_prediction(n) for n in ("epsilon", "v", "edm"))

    def weight(name, prediction, **kwargs):
        return weighting.make_weighting(name, **kwargs)(prediction, lam)

    np.testing.assert_allclose(weight("uniform", epsilon), 1.0)
    clipped = np.minimum(snr, 5.0)
    np.testing.assert_allclose(weight("min_snr", epsilon), clipped / snr, rtol=1e-5)
    np.testing.assert_allclose(weight("min_snr", v), clipped / (snr + 1), rtol=1e-5)
    np.testing.assert_allclose(weight("min_snr", make_prediction("x")), clipped, rtol=1e-5)
    plain = weight("snr_plus_one", v, gamma=np.inf)
    np.testing.assert_allclose(plain, 1.0, rtol=1e-5)
    limited = weight("snr_plus_one", make_prediction("x"), gamma=4.0)
    np.testing.assert_allclose(limited, np.minimum(snr + 1, 4.0), rtol=1e-5)
    np.testing.assert_allclose(weight("flow", make_prediction("flow")), 1.0, rtol=1e-5)
    t = 1 / (1 + np.sqrt(snr))  # of alpha = 1 - t, sigma = t
    limited = weight("flow", make_prediction("x"), gamma=9.0)
    np.testing.assert_allclose(limited, np.minimum(t**-2, 9.0), rtol=1e-5)
    sigmoid = 1 / (1 + np.exp(np.asarray(lam) - 2.0))
    np.testing.assert_allclose(weight("sigmoid", epsilon, bias=2.0), sigmoid, rtol=1e-5)
    sigma = 1 / np.sqrt(snr)  # at alpha = 1
    karras = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    np.testing.assert_allclose(weight("edm", make_prediction("x")), karras, rtol=1e-5)
    np.testing.assert_allclose(weight("edm", edm), 1.0, rtol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (1, 0), (3, 5), (32, 32), (0, 16)])
def test_a_wave_counts_by_its_frequency(rows, columns):
    """On 64 x 64 pixels; a border has no neighbour beyond it, which is 1 of 64 differences."""
    y, x = np.mgrid[:64, :64] / 64
    wave = np.cos(2 * np.pi * (rows * y + columns * x) + 0.3)[None, :, :, None]
    plain = float(weighting.squared_error(wave)[0])
    np.testing.assert_allclose(plain, np.mean(wave**2), rtol=1e-5)
    whole = float(weighting.squared_error(wave, gradient=2.0)[0])
    factor = 1 + 2.0 * sum(4 * np.sin(np.pi * f / 64) ** 2 for f in (rows, columns))
    np.testing.assert_allclose(whole / plain, factor, rtol=0.02)
    # A wave has no mean, unless it is one: its own weight is the mean's.
    lighter = float(weighting.squared_error(wave, mean=0.3)[0])
    np.testing.assert_allclose(lighter / plain, 1.0 if rows or columns else 0.3, rtol=1e-5)


def test_the_best_prediction_is_the_mean_whatever_gradient_and_mean_count():
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(5, 8, 8, 3)).astype(np.float32)
    for gradient, mean in ((0.0, 1.0), (6.0, 1.0), (6.0, 0.05)):
        loss = lambda guess: weighting.squared_error(guess - pictures, gradient, mean).mean()  # noqa: E731, B023
        slope = jax.grad(loss)(jnp.asarray(pictures.mean(0)))
        np.testing.assert_allclose(slope, 0, atol=1e-6)


@pytest.mark.parametrize("name", ["min_snr", "snr_plus_one", "flow", "sigmoid", "edm"])
@pytest.mark.parametrize("schedule_name", ["scaled_linear", "flow", "edm"])
def test_a_weighting_is_one_loss_for_every_prediction(schedule_name, name):
    schedule = make_schedule(schedule_name)
    weights = weighting.make_weighting(name)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x0, eps, guess = rng.normal(size=(3, 6, 2, 2, 3))
        t = jnp.linspace(0.02, 0.95, 6)
        level = schedule.level(t)
        x_t = add_noise(x0, eps, level)
        losses = []
        for prediction in map(make_prediction, PREDICTIONS):
            # The output whose x0 is `guess`; its noise follows from x_t.
            guess_eps = (x_t - level.alpha[:, None, None, None] * guess) / level.sigma[
                :, None, None, None
            ]
            output = prediction.target(guess, guess_eps, level.alpha, level.sigma)
            target = prediction.target(x0, eps, level.alpha, level.sigma)
            error = jnp.sum((output - target) ** 2, axis=(1, 2, 3))
            losses.append(weights(prediction, schedule.log_snr(t)) * error)
        for loss in losses[1:]:
            np.testing.assert_allclose(loss, losses[0], rtol=1e-8)


@pytest.mark.parametrize("name", sorted(weighting.WEIGHTINGS))
def test_weights_are_finite_at_the_ends(name):
    weights = weighting.make_weighting(name)
    for schedule in map(make_schedule, SCHEDULES):
        for prediction in map(make_prediction, PREDICTIONS):
            try:
                check(schedule, prediction)
            except InputError:
                continue
            ends = jnp.asarray([0.0, schedule.t_min, 0.5, schedule.t_max])
            w = weights(prediction, schedule.log_snr(ends))
            assert w.shape == (4,) and np.all(np.isfinite(w)) and np.all(w >= 0.0)


LEVEL = Level(jnp.float32(0.5), jnp.float32(0.5), jnp.float32(0.5))


def two_images():
    return jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 3))


def test_guidance_ends_are_exact():
    conditional, null = two_images()
    for scale in (1.0, jnp.float32(1.0)):
        np.testing.assert_array_equal(jax.jit(guide)(conditional, null, scale, LEVEL), conditional)
    np.testing.assert_array_equal(jax.jit(guide)(conditional, null, 0.0, LEVEL), null)
    got = guide(conditional, null, 3.0, LEVEL)
    np.testing.assert_allclose(got, null + 3.0 * (conditional - null), atol=1e-5)


def test_guiding_x0_is_guiding_epsilon():
    epsilon = make_prediction("epsilon")
    conditional, null = two_images()  # as outputs of an epsilon network
    x_t = jnp.ones_like(null)

    def to_x0(output):
        return epsilon.to_x0(output, x_t, LEVEL.alpha, LEVEL.sigma)

    expected = to_x0(null + 4.0 * (conditional - null))
    np.testing.assert_allclose(
        guide(to_x0(conditional), to_x0(null), 4.0, LEVEL), expected, atol=2e-5
    )


def test_interval_and_rescale():
    conditional, null = two_images()
    inside = guide(conditional, null, 3.0, LEVEL)
    np.testing.assert_array_equal(guide(conditional, null, 3.0, LEVEL, (0.4, 0.6)), inside)
    outside = guide(conditional, null, 3.0, LEVEL, (0.6, 0.9), rescale=0.7)
    np.testing.assert_array_equal(outside, conditional)
    axes = (1, 2, 3)
    full = guide(conditional, null, 3.0, LEVEL, rescale=1.0)
    np.testing.assert_allclose(full.std(axes), conditional.std(axes), rtol=1e-5)
    np.testing.assert_allclose(
        guide(conditional, null, 3.0, LEVEL, rescale=0.7), 0.7 * full + 0.3 * inside, atol=1e-5
    )


def test_guided_denoiser_calls_the_network_once():
    conditional, null = two_images()
    batches = []

    def denoise(x, level, condition):
        batches.append(x.shape[0])
        return condition["shift"] + x * level.alpha

    x = jnp.ones((3, 4, 4, 3))
    args = {"shift": conditional}, {"shift": null}

    def at(scale, **kwargs):
        return guided(denoise, *args, scale, **kwargs)(x, LEVEL)

    np.testing.assert_array_equal(at(1.0), conditional + 0.5)
    np.testing.assert_array_equal(at(0.0), null + 0.5)
    assert batches == [3, 3]  # the other half is not computed
    both = null + 3.0 * (conditional - null) + 0.5
    np.testing.assert_allclose(at(3.0), both, atol=1e-5)
    np.testing.assert_allclose(at(jnp.float32(3.0)), both, atol=1e-5)
    np.testing.assert_array_equal(at(0.0, interval=(0.6, 1.0)), conditional + 0.5)
    assert batches[2:] == [6, 6, 6]
