"""The layers that networks share, against NumPy twins in float64 and by what they promise."""

from __future__ import annotations

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_lang.models import layers

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("width", [8, 64, 320])
def test_the_timestep_embedding_is_right_to_1e_6(width):
    t = np.concatenate([np.arange(1000), RNG.uniform(-2, 1000, 500)]).astype(np.float32)
    frequencies = 10_000.0 ** -(np.arange(width // 2) / (width // 2))
    angles = t[:, None].astype(np.float64) * frequencies
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    embed = jax.jit(layers.timestep_embedding, static_argnums=1)
    np.testing.assert_allclose(embed(jnp.asarray(t), width), expected, rtol=0, atol=1e-6)


def test_position_features_are_waves_down_and_across():
    features = np.asarray(layers.position_features(4, 6, octaves=2))
    assert features.shape == (4, 6, 8)
    for row, column in itertools.product(range(4), range(6)):
        down, right = math.pi * (row + 0.5) / 4, math.pi * (column + 0.5) / 6
        waves = [[f(a), f(2 * a)] for a in (down, right) for f in (math.sin, math.cos)]
        np.testing.assert_allclose(features[row, column], np.ravel(waves), atol=1e-6)


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_space_to_depth_moves_each_patch_into_its_own_cell(patch):
    x = normal(2, 2 * patch, 3 * patch, 3)
    cells = np.asarray(layers.space_to_depth(jnp.asarray(x), patch))
    assert cells.shape == (2, 2, 3, 3 * patch**2)
    for row, column in itertools.product(range(2), range(3)):
        block = x[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        np.testing.assert_array_equal(cells[:, row, column], block.reshape(2, -1))
    np.testing.assert_array_equal(layers.depth_to_space(jnp.asarray(cells), patch), x)


class TwoDropouts(nn.Module):
    """x dropped by two layers, of names and of depth that differ."""

    @nn.compact
    def __call__(self, x, keys):
        first = layers.Dropout(0.25, name="first")(x, keys)
        return first, layers.Dropout(0.25, name="second")(x, keys)


def test_dropout_is_a_function_of_the_examples_key_and_the_layers_path():
    keys, ones = jax.random.split(jax.random.key(3), 6), jnp.ones((6, 40, 50))
    drop = jax.jit(TwoDropouts().apply)
    first, second = (np.asarray(x) for x in drop({}, ones, keys))
    np.testing.assert_allclose(np.unique(first), [0.0, 1 / 0.75], rtol=1e-6)
    # 2,000 draws per row: four standard deviations of the kept share are 0.04.
    np.testing.assert_allclose((first > 0).mean(axis=(1, 2)), 0.75, atol=0.04)
    for a, b in [*itertools.combinations(first, 2), *zip(first, second, strict=True)]:
        np.testing.assert_allclose((a == b).mean(), 0.75**2 + 0.25**2, atol=0.05)  # independent
    order = np.array([4, 0, 5, 2])  # another place in a batch of another size
    for whole, part in zip((first, second), drop({}, ones[:4], keys[order]), strict=True):
        np.testing.assert_array_equal(part, whole[order])
    for output in drop({}, ones, None):
        np.testing.assert_array_equal(output, ones)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_one_hot_look_up_is_a_take_and_its_gradient_a_scatter_add(dtype):
    ids = np.array([[3, 7, 3], [0, 3, 39]])
    table, weights = normal(40, 8), normal(2, 3, 8)
    embed = layers.Embed(40, 8, dtype=dtype)

    def value(table):
        return embed.apply({"params": {"embedding": table}}, ids)

    output = jax.jit(value)(table)
    assert output.dtype == dtype
    np.testing.assert_array_equal(output, jnp.asarray(table, dtype)[ids])
    gradient = jax.grad(lambda table: (value(table) * jnp.asarray(weights, dtype)).sum())(table)
    expected = np.zeros_like(table)
    np.add.at(expected, ids, np.asarray(jnp.asarray(weights, dtype), np.float32))
    # The sum over repeated ids is rounded once to the compute type.
    np.testing.assert_allclose(gradient, expected, rtol=float(jnp.finfo(dtype).eps))
    assert "scatter" not in str(jax.make_jaxpr(jax.grad(lambda x: value(x).sum()))(table))


def test_a_large_vocabulary_is_taken():
    embed = layers.Embed(layers.ONE_HOT_LIMIT + 1, 4)
    table, ids = normal(layers.ONE_HOT_LIMIT + 1, 4), np.array([0, 17, layers.ONE_HOT_LIMIT])
    np.testing.assert_array_equal(embed.apply({"params": {"embedding": table}}, ids), table[ids])


def attend_in_numpy(query, key, value, heads, allowed):
    """One head after the other in float64; allowed [B, N, M]."""
    out = np.zeros(query.shape)
    for part in np.split(np.arange(query.shape[-1]), heads):
        q, k, v = (x[..., part].astype(np.float64) for x in (query, key, value))
        scores = q @ k.swapaxes(1, 2) / math.sqrt(len(part))
        weights = np.exp(scores) * allowed
        out[..., part] = weights / weights.sum(axis=-1, keepdims=True) @ v
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_numpy(masked, causal):
    query, key, value = normal(2, 5, 12), normal(2, 5, 12), normal(2, 5, 12)
    mask = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], bool) if masked else None
    allowed = np.tri(5) if causal else np.ones((5, 5))
    allowed = allowed * (mask[:, None] if masked else np.ones((2, 1, 1)))  # type: ignore[index]
    out = layers.attend(query, key, value, 3, mask=mask, causal=causal)
    np.testing.assert_allclose(out, attend_in_numpy(query, key, value, 3, allowed), atol=1e-6)


def test_cross_attention_takes_another_length_and_ignores_what_is_masked():
    query, key, value = normal(2, 3, 8), normal(2, 6, 8), normal(2, 6, 8)
    mask = np.arange(6) < np.array([[4], [6]])
    out = layers.attend(query, key, value, 2, mask=mask)
    expected = attend_in_numpy(query, key, value, 2, mask[:, None] * np.ones((2, 3, 6)))
    np.testing.assert_allclose(out, expected, atol=1e-6)
    hidden = ~mask[..., None] * np.float32(1e6)
    other = layers.attend(query, key + hidden, value - hidden, 2, mask=mask)
    np.testing.assert_array_equal(other, out)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms_are_right_beside_a_large_mean(dtype):
    x = jnp.asarray(normal(2, 3, 4, 32) + 300.0, dtype)
    exact = np.asarray(x, np.float64)

    def normalised(x, axis, epsilon):
        centred = x - x.mean(axis, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis, keepdims=True) + epsilon)

    for norm, expected in (
        (layers.layer_norm(1e-5, "norm"), normalised(exact, -1, 1e-5)),
        (
            layers.group_norm(4, 1e-6, "norm"),
            normalised(exact.reshape(2, 12, 4, 8), (1, 3), 1e-6).reshape(x.shape),
        ),
    ):
        # init_with_output: scale one, bias zero.
        output, _ = norm.init_with_output(jax.random.key(0), x)
        assert output.dtype == jnp.float32
        np.testing.assert_allclose(output, expected, atol=3e-4)
