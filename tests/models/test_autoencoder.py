"""The autoencoder: sizes, what reaches what, precision. tests/parity knows its twin."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.parameters import agree, count, random_parameters, shapes
from vision_lang.errors import InputError
from vision_lang.models.autoencoder import (
    AUTOENCODERS,
    Autoencoder,
    AutoencoderSpec,
    Level,
    check,
)

# Two channels in a group of the norms, where a convolution's bias counts; one layer and two levels,
# the least that has all kinds of layers.
SPEC = AutoencoderSpec((4, 8), layers=1, groups=2, latent_channels=3)
NETWORK = Autoencoder(SPEC)
RNG = np.random.default_rng(3)
IMAGES = RNG.uniform(-1, 1, (3, 16, 20, 3)).astype(np.float32)
NOISE = RNG.normal(size=(3, 8, 10, 3)).astype(np.float32)
WEIGHTS = RNG.normal(size=IMAGES.shape) / 10  # of what is decoded, in a loss
PARAMS = random_parameters(NETWORK, IMAGES)
APPLY = jax.jit(NETWORK.apply)


def reconstruct(images=IMAGES, noise=NOISE):
    return jax.tree.map(np.asarray, APPLY({"params": PARAMS}, images, noise))


def test_latents_are_drawn_from_what_is_encoded_and_are_what_is_decoded():
    out = reconstruct()
    expected = out["mean"] + np.exp(out["logvar"] / 2) * NOISE
    np.testing.assert_allclose(out["latents"], expected, rtol=1e-5, atol=1e-5)

    @jax.jit
    def halves(variables):
        encoded: Any = NETWORK.apply(variables, IMAGES, method="encode")
        return encoded | {"sample": NETWORK.apply(variables, out["latents"], method="decode")}

    for name, value in halves({"params": PARAMS}).items():
        agree(value, out[name], 1e-5)


def test_without_noise_it_is_the_mode():
    out, mode = reconstruct(), reconstruct(noise=None)
    np.testing.assert_array_equal(mode["latents"], mode["mean"])
    agree(mode["sample"], reconstruct(noise=np.zeros_like(NOISE))["sample"], 1e-5)
    assert np.abs(mode["sample"] - out["sample"]).max() > 0.01


@pytest.mark.parametrize("changed", ["images", "noise"])
def test_an_input_changes_its_own_row_and_no_other(changed):
    expected = reconstruct()
    value = {"images": IMAGES, "noise": NOISE}[changed].copy()
    value[1] = -value[1]
    out = reconstruct(**{changed: value})
    for name in out:
        np.testing.assert_array_equal(out[name][[0, 2]], expected[name][[0, 2]])
    assert np.abs(out["sample"][1] - expected["sample"][1]).max() > 0.01


def test_the_log_variance_is_clamped():
    params = jax.tree.map(np.copy, PARAMS)
    params["quant_conv"]["bias"][3:] = [100.0, -100.0, 1.0]
    logvar = np.asarray(APPLY({"params": params}, IMAGES, NOISE)["logvar"])
    assert (logvar[..., 0] == 20).all() and (logvar[..., 1] == -30).all()
    assert np.ptp(logvar[..., 2]) > 0.1


def test_every_parameter_learns_and_the_gradient_with_remat_is_the_slope_without():
    loss = lambda out: (out["sample"] * WEIGHTS).sum() + (out["logvar"] ** 2).mean()  # noqa: E731
    remat = Autoencoder(SPEC, remat=True)
    gradient_of = jax.jit(jax.grad(lambda p: loss(remat.apply({"params": p}, IMAGES, NOISE))))
    gradient = gradient_of(PARAMS)
    for name, part in flax.traverse_util.flatten_dict(gradient, sep="/").items():
        # What all keys have in common is nothing to a softmax.
        if not name.endswith("to_k/bias"):
            assert np.abs(part).reshape(-1, part.shape[-1]).max(axis=0).min() > 1e-5, name

    norm = np.sqrt(sum((part**2).sum() for part in jax.tree.leaves(gradient)))

    def moved(distance):
        params = jax.tree.map(lambda p, g: p + distance * g / norm, PARAMS, gradient)
        return loss(APPLY({"params": params}, IMAGES, NOISE))

    np.testing.assert_allclose((moved(1e-2) - moved(-1e-2)) / 2e-2, norm, rtol=0.01)


def test_bfloat16_is_close_to_float32():
    exact = reconstruct()
    out = jax.jit(Autoencoder(SPEC, dtype=jnp.bfloat16).apply)({"params": PARAMS}, IMAGES, NOISE)
    assert {value.dtype for value in jax.tree.leaves(out)} == {jnp.dtype(jnp.float32)}
    for name, value in out.items():
        agree(value, exact[name], 0.05)
        assert np.abs(value - exact[name]).max() > 1e-4  # it did compute in bfloat16


def step(x, kernel, **way):
    """The step of a level without residual blocks, with a kernel [3, 3, 1, 1] and no bias."""
    level = Level(SPEC, x.shape[-1], layers=0, dtype=jnp.float32, **way)
    (name,) = shapes(level, x)
    params = {name: {"kernel": np.float32(kernel), "bias": np.zeros(1, np.float32)}}
    output: Any = level.apply({"params": params}, x)
    return output[0, ..., 0]


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_steps_between_levels(size):
    """Down: every second place, nothing to the left and above, zeros to the right and below.
    Up: every place twice, and a convolution in the midst of what it sees."""
    x = RNG.normal(size=(1, *size, 1)).astype(np.float32)
    rows, columns = (side // 2 * 2 for side in size)
    taps = np.eye(9).reshape(9, 3, 3, 1, 1)
    padded = np.pad(x[0, ..., 0], ((0, 1), (0, 1)))
    for tap, (i, j) in zip(taps, np.ndindex(3, 3), strict=True):
        expected = padded[i : i + rows : 2, j : j + columns : 2]
        np.testing.assert_array_equal(step(x, tap, downsample=True), expected)
    doubled = np.kron(x[0, ..., 0], np.ones((2, 2)))
    np.testing.assert_array_equal(step(x, taps[4], upsample=True), doubled)


@pytest.mark.parametrize("levels, size, places", [(1, (1, 3), (1, 3)), (3, (9, 15), (2, 3))])
def test_sizes_are_rounded_down_from_level_to_level(levels, size, places):
    network = Autoencoder(AutoencoderSpec((4,) * levels, layers=1, groups=2), channels=1)
    image = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)
    out, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
    factor = network.spec.factor
    assert out["mean"].shape == out["logvar"].shape == out["latents"].shape == (2, *places, 4)
    assert out["sample"].shape == (2, places[0] * factor, places[1] * factor, 1)


def test_a_picture_of_which_nothing_is_left_is_refused():
    with pytest.raises(InputError, match=r"of 1x4 pixels.* 2 at least"):
        shapes(NETWORK, IMAGES[:, :4, :1])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"widths": ()}, "at least one"),
        ({"layers": 0}, "at least one"),
        ({"latent_channels": 0}, "at least one"),
        ({"widths": (4, 7)}, "width 7 is no multiple of its groups=2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        check(dataclasses.replace(SPEC, **change))


def test_the_table():
    for name in AUTOENCODERS.keys() - {"none"}:
        check(AUTOENCODERS[name], side=32)
    with pytest.raises(InputError, match="data.resolution=34 is no multiple of 4"):
        check(AUTOENCODERS["small"], side=34)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    tree = shapes(Autoencoder(AUTOENCODERS["sd"]), image)
    assert count(tree) == 83_653_863
