"""Samplers against diffusers' schedulers on the schedulers' own levels, with an exact denoiser.

The data are normal, so the best x0 is known in closed form, and so is where the probability flow
ends. Both sides get the same levels, whatever the spacing, the same first noise and the same noise
of each step; final samples agree to 1e-5 of the largest entry. What changes the result is named.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_lang.diffusion import prediction as predictions
from vision_lang.diffusion import samplers
from vision_lang.diffusion.schedules import Level

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

SHAPE = (2, 6, 5, 3)
MEAN = np.random.default_rng(0).normal(size=SHAPE[1:]).astype(np.float32)
DEVIATION = 0.5
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAMES = {"epsilon": "epsilon", "v": "v_prediction", "x": "sample"}
STEPS = [1, 2, 5, 7, 13, 20, 30, 50, 250]
SPACINGS = ["leading", "linspace", "trailing"]


def best_x0(x, alpha, sigma):
    """E[x0 | x] for x0 normal with MEAN and DEVIATION."""
    mean = MEAN if isinstance(x, jax.Array) else torch.tensor(MEAN)
    share = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
    return mean + share * (x - alpha * mean)


def flow_end(x, alpha, sigma):
    """Where the probability flow takes x at a level: the data's quantile of x."""
    scale = np.sqrt(alpha**2 * DEVIATION**2 + sigma**2)
    return MEAN + DEVIATION * (x - alpha * MEAN) / scale


def keys():
    return jax.random.split(jax.random.key(4), SHAPE[0])


def noise(purpose: int) -> np.ndarray:
    """The noise that our samplers draw: 0 is the input, i + 1 step i."""
    return np.array(samplers._noise(keys(), purpose, jax.ShapeDtypeStruct(SHAPE, jnp.float32)))


def output(kind: str, x, alpha, sigma):
    """What a perfect network says, whose prediction is `kind`."""
    x0 = best_x0(x, alpha, sigma)
    eps = (x - alpha * x0) / sigma
    return {"epsilon": eps, "x": x0, "v": alpha * eps - sigma * x0}[kind]


def ours(sampler, alpha, sigma, x, kind="epsilon", clip="none"):
    prediction = predictions.make_prediction(kind)

    def denoise(x, level):
        found = output(kind, x, level.alpha, level.sigma)
        return prediction.to_x0(found, x, level.alpha, level.sigma)

    levels = Level(*(jnp.asarray(a, jnp.float32) for a in (np.zeros(len(alpha)), alpha, sigma)))
    denoiser = predictions.clipped(denoise, clip)
    return np.asarray(samplers.sample(sampler, denoiser, levels, jnp.asarray(x), keys()))


def theirs(scheduler, levels, x, kind, scaled=False, **step_arguments):
    """levels: (alpha, sigma) of each call of the network; scaled: x is divided by alpha there."""
    x = torch.tensor(x)
    for i, t in enumerate(scheduler.timesteps):
        alpha, sigma = levels[i]
        seen = scheduler.scale_model_input(x, t) if scaled else x
        found = output(kind, seen, alpha, sigma)
        arguments = {name: value(i) for name, value in step_arguments.items()}
        x = scheduler.step(found, t, x, **arguments).prev_sample
    return x.numpy()


def agree(a, b):
    np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-5 * np.abs(b).max())


def of_table(scheduler, timesteps, last):
    """alpha and sigma, float64, at the timesteps and then at `last`, an alpha-bar."""
    bar = np.append(scheduler.alphas_cumprod.double().numpy()[np.asarray(timesteps)], last)
    return np.sqrt(bar), np.sqrt(1 - bar)


def pairs(alpha, sigma):
    return list(zip(map(float, alpha), map(float, sigma), strict=True))


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("one", [True, False], ids=["to the clean image", "set_alpha_to_one=False"])
def test_ddim(one, spacing, kind):
    """Where its timesteps are 1000 // n apart; see the next test for the others."""
    compared = 0
    for n in STEPS:
        for eta in (0.0, 0.7):
            scheduler = diffusers.DDIMScheduler(
                **BETAS, clip_sample=False, set_alpha_to_one=one, timestep_spacing=spacing,
                steps_offset=int(not one), prediction_type=NAMES[kind],
            )  # fmt: skip
            scheduler.set_timesteps(n)
            steps = scheduler.timesteps.numpy()
            if spacing == "trailing" and 1000 % n:
                continue
            bar = scheduler.alphas_cumprod
            last = float(scheduler.final_alpha_cumprod)
            if steps[-1] - 1000 // n >= 0:
                last = float(bar[steps[-1] - 1000 // n])
            alpha, sigma = of_table(scheduler, steps, last)
            if np.any(np.diff(sigma) >= 0):
                continue  # a single step of `leading` begins at t = 0, where nothing is to be done
            arguments: dict = {"eta": lambda i, eta=eta: eta}
            if eta:
                arguments["variance_noise"] = lambda i: torch.tensor(noise(i + 1))
            x = float(sigma[0]) * noise(0)
            expected = theirs(scheduler, pairs(alpha, sigma), x, kind, **arguments)
            agree(ours(samplers.ddim(eta), alpha, sigma, x, kind), expected)
            compared += 1
    assert compared >= 12


@pytest.mark.parametrize("spacing, n", [("linspace", 600), ("trailing", 600), ("trailing", 300)])
def test_ddim_where_diffusers_misses_its_own_levels(spacing, n):
    """diffusers steps to t - 1000 // n, which is not the next timestep of these lists: it takes the
    sample at one level for one at another. The closed form says who is right."""
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    alpha, sigma = of_table(scheduler, scheduler.timesteps.numpy(), 1.0)
    x = float(sigma[0]) * noise(0)
    end = flow_end(x, alpha[0], sigma[0])
    missed = [
        np.abs(found - end).max()
        for found in (
            ours(samplers.ddim(), alpha, sigma, x),
            theirs(scheduler, pairs(alpha, sigma), x, "epsilon"),
        )
    ]
    assert missed[0] < 0.7 * missed[1], missed


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_with_its_small_variance(spacing, kind, monkeypatch):
    """variance_type="fixed_small" is the posterior's, which ours is; the others are not built."""
    compared = 0
    for n in STEPS:
        scheduler = diffusers.DDPMScheduler(
            **BETAS, clip_sample=False, timestep_spacing=spacing, prediction_type=NAMES[kind],
            variance_type="fixed_small",
        )  # fmt: skip
        scheduler.set_timesteps(n)
        calls = iter(range(1, n + 1))
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor",
            lambda *args, calls=calls, **kwargs: torch.tensor(noise(next(calls))),
        )
        steps = scheduler.timesteps.numpy()
        before = scheduler.previous_timestep(scheduler.timesteps[-1])
        last = float(scheduler.alphas_cumprod[before]) if before >= 0 else 1.0
        alpha, sigma = of_table(scheduler, steps, last)
        if np.any(np.diff(sigma) >= 0):
            continue  # see test_ddim
        x = float(sigma[0]) * noise(0)
        expected = theirs(scheduler, pairs(alpha, sigma), x, kind)
        agree(ours(samplers.ddpm(), alpha, sigma, x, kind), expected)
        compared += 1
    assert compared >= 6


@pytest.mark.parametrize("clip", ["static", "dynamic"])
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_clipping(name, clip, monkeypatch):
    """clip_sample is our static, thresholding (with a bound that does not bind) our dynamic.

    DDIM wants use_clipped_model_output=True: without, its noise is that of the x0 before clipping.
    """
    options: dict = {"clip_sample": clip == "static"}
    if clip == "dynamic":
        options |= {"thresholding": True, "sample_max_value": 100.0}
    kind = {"ddim": diffusers.DDIMScheduler, "ddpm": diffusers.DDPMScheduler}[name]
    scheduler = kind(**BETAS, **options, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    calls = iter(range(1, 21))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor",
        lambda *args, **kwargs: torch.tensor(noise(next(calls))),
    )
    alpha, sigma = of_table(scheduler, scheduler.timesteps.numpy(), 1.0)
    arguments = {"use_clipped_model_output": lambda i: True} if name == "ddim" else {}
    x = float(sigma[0]) * noise(0)
    expected = theirs(scheduler, pairs(alpha, sigma), x, "epsilon", **arguments)
    assert np.abs(expected).max() <= 1.0 + 1e-6 < np.abs(MEAN).max()
    agree(ours(samplers.make_sampler(name), alpha, sigma, x, clip=clip), expected)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_euler_and_heun(name, spacing, kind):
    """In x / alpha, as there; levels between timesteps are theirs too."""
    table = {"euler": diffusers.EulerDiscreteScheduler, "heun": diffusers.HeunDiscreteScheduler}
    compared = 0
    for n in STEPS:
        scheduler = table[name](**BETAS, timestep_spacing=spacing, prediction_type=NAMES[kind])
        scheduler.set_timesteps(n)
        sigmas = scheduler.sigmas.double().numpy()
        if name == "heun":  # lists every level but the first and the last twice
            sigmas = np.concatenate([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
        if np.any(np.diff(sigmas) >= 0):
            continue
        seen = scheduler.sigmas.double().numpy()
        calls = pairs(1 / np.hypot(seen, 1), seen / np.hypot(seen, 1))
        x = float(sigmas[0]) * noise(0)
        expected = theirs(scheduler, calls, x, kind, scaled=True)
        alpha, sigma = 1 / np.hypot(sigmas, 1), sigmas / np.hypot(sigmas, 1)
        levels = Level(*(jnp.asarray(a) for a in (np.zeros(len(alpha)), alpha, sigma)))
        prediction = predictions.make_prediction(kind)

        def denoise(x, level, prediction=prediction):
            found = output(kind, x, level.alpha, level.sigma)
            return prediction.to_x0(found, x, level.alpha, level.sigma)

        denoiser, levels = samplers.exploding(denoise, levels)
        agree(
            samplers.sample(samplers.make_sampler(name), denoiser, levels, jnp.asarray(x)), expected
        )
        compared += 1
    assert compared >= 8


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_dpmpp_2m(final, spacing, kind):
    """Second order to the end, but for the step to sigma 0: with final_sigmas_type="sigma_min"
    that is lower_order_final=False, which else makes the last of few steps first order."""
    compared = 0
    for n in STEPS:
        scheduler = diffusers.DPMSolverMultistepScheduler(
            **BETAS, timestep_spacing=spacing, prediction_type=NAMES[kind],
            final_sigmas_type=final, lower_order_final=final == "zero",
        )  # fmt: skip
        scheduler.set_timesteps(n)
        sigmas = scheduler.sigmas.double().numpy()
        if np.any(np.diff(sigmas) >= 0):
            continue
        alpha, sigma = 1 / np.hypot(sigmas, 1), sigmas / np.hypot(sigmas, 1)
        x = float(sigma[0]) * noise(0)
        expected = theirs(scheduler, pairs(alpha, sigma), x, kind)
        agree(ours(samplers.dpmpp_2m(), alpha, sigma, x, kind), expected)
        compared += 1
    assert compared >= 8


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift):
    """diffusers predicts the velocity eps - x0 on x = (1 - t) x0 + t eps."""
    compared = 0
    for n in STEPS:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(n)
        sigma = scheduler.sigmas.double().numpy()
        if np.any(np.diff(sigma) >= 0):
            continue
        x, at = torch.tensor(noise(0)), list(map(float, sigma))
        for i, t in enumerate(scheduler.timesteps):
            x0 = best_x0(x, 1 - at[i], at[i])
            x = scheduler.step((x - x0) / at[i], t, x).prev_sample
        found = ours(samplers.euler(), 1 - sigma, sigma, noise(0), "x")
        agree(found, x.numpy())
        compared += 1
    assert compared >= 7


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpmpp_2m"])
def test_where_the_flow_ends_decides(name):
    """With many steps all of them come to the closed form."""
    scheduler = diffusers.DDIMScheduler(**BETAS)
    alpha, sigma = of_table(scheduler, np.arange(999, -1, -1), 1.0)
    x = float(sigma[0]) * noise(0)
    expected = flow_end(x, alpha[0], sigma[0])
    found = ours(samplers.make_sampler(name), alpha, sigma, x)
    np.testing.assert_allclose(found, expected, atol=5e-3 * np.abs(expected).max())
