"""Samplers, spacings and prediction types against diffusers' schedulers, step by step to the image.

A fixed nonlinear network stands for the U-Net; noise is shared. Where the libraries mean different
things by default, the test names the setting: no clipping, integer timesteps (numbers of steps that
divide 1000), the clean image as last level.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_lang.diffusion import prediction as predictions
from vision_lang.diffusion import samplers, spacing
from vision_lang.diffusion.schedules import discrete, make_schedule

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

SHAPE = (4, 4, 3)
RNG = np.random.default_rng(0)
IN, OUT = RNG.normal(size=(3, 16)), RNG.normal(size=(16, 3)) / 4.0
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STABLE_DIFFUSION = make_schedule("scaled_linear")
NAMES = {"epsilon": "epsilon", "v": "v_prediction", "x": "sample"}


def network(x, time):
    """[B, H, W, C] and [B] -> [B, H, W, C]."""
    phase = jnp.asarray(time, jnp.float32)[:, None, None, None] / 300.0
    return jnp.tanh(x @ IN.astype(np.float32) + jnp.sin(phase)) @ OUT.astype(np.float32)


def torch_network(x, time):
    phase = torch.as_tensor(float(time)) / 300.0
    hidden = torch.tanh(x.float() @ torch.tensor(IN).float() + torch.sin(phase))
    return hidden @ torch.tensor(OUT).float()


def our_keys():
    return jax.random.split(jax.random.key(4), 2)


def shared_noise(purpose):
    """The noise that our samplers draw: purpose 0 is the input, i + 1 step i."""
    like = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32)
    return np.array(samplers._noise(our_keys(), purpose, like))


def ours(
    sampler, t, schedule=STABLE_DIFFUSION, prediction="epsilon", in_exploding=False, final="zero"
):
    """Our image from the shared noise over the times t."""
    levels = spacing.levels(schedule, t, final_sigma=final)
    denoiser = predictions.make_denoiser(network, schedule, predictions.make_prediction(prediction))
    x = samplers.initial_noise(our_keys(), SHAPE, levels)
    if in_exploding:
        x = x / levels.alpha[0]
        denoiser, levels = samplers.exploding(denoiser, levels)
    return np.asarray(samplers.sample(sampler, denoiser, levels, x, our_keys()))


def theirs(scheduler, start, **step_arguments):
    """The scheduler's image; step_arguments are functions of the step."""
    x = torch.tensor(start)
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = torch_network(scaled, t)
        x = scheduler.step(output, t, x, **{k: f(i) for k, f in step_arguments.items()}).prev_sample
    return x.numpy()


def agree(a, b):
    np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-5 * np.abs(b).max())


def test_tables():
    for name in ("linear", "scaled_linear"):
        start, end = (1e-4, 0.02) if name == "linear" else (0.00085, 0.012)
        scheduler = diffusers.DDPMScheduler(beta_start=start, beta_end=end, beta_schedule=name)
        table = discrete(make_schedule(name), 1000)
        np.testing.assert_allclose(table.alpha_bar, scheduler.alphas_cumprod, atol=1e-6)
        np.testing.assert_allclose(table.betas, scheduler.betas, atol=1e-7)
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    table = discrete(make_schedule("cosine"), 1000)
    # diffusers caps the last beta at 0.999.
    np.testing.assert_allclose(table.alpha_bar[:-1], scheduler.alphas_cumprod[:-1], atol=1e-6)


@pytest.mark.parametrize("n", [1, 5, 20])
@pytest.mark.parametrize("prediction", sorted(NAMES))
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim(eta, prediction, n):
    scheduler = diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, prediction_type=NAMES[prediction], timestep_spacing="trailing"
    )
    scheduler.set_timesteps(n)
    t = spacing.trailing()(STABLE_DIFFUSION, n)
    np.testing.assert_allclose(STABLE_DIFFUSION.network_time(t)[:-1], scheduler.timesteps)
    start = float(STABLE_DIFFUSION.sigma(1.0)) * shared_noise(0)
    noise = {"variance_noise": lambda i: torch.tensor(shared_noise(i + 1))} if eta else {}
    expected = theirs(scheduler, start, eta=lambda i: eta, **noise)
    agree(ours(samplers.ddim(eta), t, prediction=prediction), expected)


def test_ddim_as_stable_diffusion_1_sets_it():
    # "leading" with offset 1, and a last level at index 0 in place of the clean image.
    scheduler = diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.set_timesteps(20)
    t = spacing.leading(offset=1)(STABLE_DIFFUSION, 20)
    np.testing.assert_allclose(STABLE_DIFFUSION.network_time(t)[:-1], scheduler.timesteps)
    start = float(STABLE_DIFFUSION.sigma(t[0])) * shared_noise(0)
    agree(ours(samplers.ddim(), t, final="sigma_min"), theirs(scheduler, start))


@pytest.mark.parametrize("prediction", sorted(NAMES))
def test_ddpm(prediction, monkeypatch):
    scheduler = diffusers.DDPMScheduler(
        **BETAS, clip_sample=False, prediction_type=NAMES[prediction], timestep_spacing="trailing"
    )
    scheduler.set_timesteps(20)
    calls = iter(range(1, 21))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor",
        lambda *args, **kwargs: torch.tensor(shared_noise(next(calls))),
    )
    t = spacing.trailing()(STABLE_DIFFUSION, 20)
    start = float(STABLE_DIFFUSION.sigma(1.0)) * shared_noise(0)
    agree(ours(samplers.ddpm(), t, prediction=prediction), theirs(scheduler, start))


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_euler_and_heun(name, prediction):
    table = {"euler": diffusers.EulerDiscreteScheduler, "heun": diffusers.HeunDiscreteScheduler}
    scheduler = table[name](**BETAS, prediction_type=NAMES[prediction], timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    t = spacing.trailing()(STABLE_DIFFUSION, 20)
    start = float(STABLE_DIFFUSION.sigma(1.0) / STABLE_DIFFUSION.alpha(1.0)) * shared_noise(0)
    expected = theirs(scheduler, start)
    sampler = samplers.make_sampler(name)
    agree(ours(sampler, t, prediction=prediction, in_exploding=True), expected)
    if name == "euler":  # which is the same in either variable
        agree(ours(sampler, t, prediction=prediction), expected)


@pytest.mark.parametrize("n", [1, 2, 10, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_dpmpp_2m(prediction, n):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, prediction_type=NAMES[prediction], timestep_spacing="trailing"
    )
    scheduler.set_timesteps(n)
    t = spacing.trailing()(STABLE_DIFFUSION, n)
    start = float(STABLE_DIFFUSION.sigma(1.0)) * shared_noise(0)
    expected = theirs(scheduler, start)
    agree(ours(samplers.dpmpp_2m(), t, prediction=prediction), expected)
    agree(ours(samplers.dpmpp_2m(), t, prediction=prediction, in_exploding=True), expected)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    # Given outright, as its own spacing ends at t = 1 / 1000 and shifts that twice.
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.1, 10).tolist())
    flow = make_schedule("flow")
    t = spacing.make_spacing("uniform", shift)(flow, 10)
    np.testing.assert_allclose(flow.network_time(t)[:-1], scheduler.timesteps, rtol=1e-5)
    agree(ours(samplers.euler(), t, flow, "flow"), theirs(scheduler, shared_noise(0)))


def test_edm_preconditioning_and_spacing():
    scheduler = diffusers.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0
    )
    scheduler.set_timesteps(12)
    edm = make_schedule("edm")
    t = spacing.karras()(edm, 12)
    np.testing.assert_allclose(edm.sigma(t)[:-1], scheduler.sigmas[:-1], rtol=1e-4)
    np.testing.assert_allclose(edm.network_time(t)[:-1], scheduler.timesteps, atol=1e-4)
    agree(ours(samplers.euler(), t, edm, "edm"), theirs(scheduler, 80.0 * shared_noise(0)))
