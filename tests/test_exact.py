"""The exact denoiser of captions: grammar, drawing, sampler and oracle agree with each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.exact import possible_pictures, posterior_mean
from vision_lang import keys as random_keys
from vision_lang.diffusion import samplers, schedules, spacing
from vision_lang.shapes import grammar, oracle, splits
from vision_lang.shapes.draw import draw

SIDE = 32


def test_the_posterior_mean_by_hand():
    """Two pictures of one pixel, 1 and -1, prior 3 : 1, x = 0.5 x0 + 0.5 eps at 0.25."""
    pictures = np.array([1.0, -1.0, 7.0]).reshape(1, 3, 1, 1, 1)  # the third is not possible
    log_prior = np.log([[0.75, 0.25, 1e-45]]) + np.array([0, 0, -np.inf])
    likely = 0.75 * np.exp(-0.5 * 0.5**2), 0.25 * np.exp(-0.5 * 1.5**2)  # (x -+ 0.5) / 0.5
    wanted = (likely[0] - likely[1]) / sum(likely)
    found = posterior_mean(np.full((1, 1, 1, 1), 0.25), 0.5, 0.5, pictures, log_prior)
    np.testing.assert_allclose(np.asarray(found).item(), wanted, rtol=1e-5)


def test_what_the_exact_denoiser_draws_is_right():
    """Thirty ancestral steps from noise alone: every caption comes true, and pixel by pixel."""
    index = [i for i in range(24) if i % 3 < 2]  # of one and of two objects
    scenes = [splits.sample(0, "test", i) for i in index]
    texts = [
        grammar.caption(scene, splits.generator(0, "test", i, 1))
        for i, scene in zip(index, scenes, strict=True)
    ]
    pictures, log_prior = possible_pictures(texts, SIDE)
    schedule = schedules.make_schedule("flow")
    levels = spacing.levels(schedule, spacing.make_spacing("uniform", 3.0)(schedule, 30))

    @jax.jit
    def sample(keys):
        x = samplers.initial_noise(keys, (SIDE, SIDE, 3), levels)
        denoise = lambda x, level: posterior_mean(  # noqa: E731
            x, level.alpha, level.sigma, pictures, log_prior
        )
        return samplers.sample(samplers.ddpm(), denoise, levels, x, keys)

    keys = random_keys.per_example(random_keys.make(0, "exact"), jnp.asarray(index))
    drawn = np.rint((np.asarray(sample(keys)) + 1) * 127.5).astype(np.uint8)
    for picture, text in zip(drawn, texts, strict=True):
        assert oracle.grade(picture, text)["all_right"], text
        possible, _ = splits.possible(grammar.parse(text))
        assert any((picture == draw(scene, SIDE)).all() for scene in possible), text
