"""Inception's resizing, pools and first layers against NumPy in float64, its sizes and its rows.
tests/parity compares all of it with torch-fidelity's."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.parameters import agree, count
from vision_lang.models import inception
from vision_lang.models.inception import LAYERS, Inception, Mixed, resize

RNG = np.random.default_rng(5)
FEATURES = ["64", "192", "768", "2048", "logits_unbiased", "logits"]


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def made(network, x):
    """Random variables for `network`, whose input is `x`; signals keep their size."""

    def drawn(path, leaf):
        name = path[-1].key
        if name == "var":
            return RNG.uniform(0.5, 2, leaf.shape).astype(np.float32)
        size = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if name == "kernel" else 0.3
        return size * normal(*leaf.shape) + np.float32(name == "scale")

    expected = jax.eval_shape(network.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(drawn, expected)


@functools.cache
def narrow():
    """A dark picture and a bright one, random variables, a network, what it makes of them.

    Of several blocks of a kind it has only one, which compiles in half of the time.
    """
    left_out = {"Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_7b"}
    network, dark = Inception(width=1 / 8), RNG.integers(0, 99, (1, 40, 33, 3))
    pictures = np.concatenate([dark, 255 - dark // 2]).astype(np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "LAYERS", {k: LAYERS[k] for k in LAYERS if k not in left_out})
        variables, apply = made(network, pictures), jax.jit(network.apply)
        return pictures, variables, apply, jax.device_get(apply(variables, pictures))


@pytest.mark.parametrize("size", [(5, 7), (11, 11), (30, 1)])
def test_resizing_bytes_and_floats_is_that_of_numpy(size):
    images, side = RNG.integers(0, 256, (2, *size, 3)).astype(np.uint8), 11
    expected = np.zeros((2, side, side, 3))
    for i, j in itertools.product(range(side), range(side)):
        y, x = i * size[0] / side, j * size[1] / side
        for row, column in itertools.product(range(size[0] + 1), range(size[1] + 1)):
            share = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
            nearest = images[:, min(row, size[0] - 1), min(column, size[1] - 1)]
            expected[:, i, j] += share * nearest
    resized = resize(images, side)
    assert resized.dtype == jnp.float32
    np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-3)  # places are float32
    np.testing.assert_array_equal(resize(images.astype(np.float32), side), resized)
    np.testing.assert_array_equal(resize(jnp.asarray(images), side), resized)  # not by NumPy
    if size == (side, side):
        np.testing.assert_array_equal(resized, images)


def pooled(x, reduce, stride, padding):
    """A reduction of every window of 3x3 places, as far as they lie in the map."""
    height, width = ((side + 2 * padding - 3) // stride + 1 for side in x.shape[1:3])
    y = np.zeros((len(x), height, width, x.shape[-1]))
    for i, j in itertools.product(range(height), range(width)):
        rows, columns = (
            slice(max(0, k * stride - padding), k * stride - padding + 3) for k in (i, j)
        )
        y[:, i, j] = reduce(x[:, rows, columns], axis=(1, 2))
    return y


# name -> what it does
POOLS = {
    "average_pool": functools.partial(pooled, reduce=np.mean, stride=1, padding=1),
    "max_pool": functools.partial(pooled, reduce=np.max, stride=1, padding=1),
    "halving_pool": functools.partial(pooled, reduce=np.max, stride=2, padding=0),
}


@pytest.mark.parametrize("size", [(5, 7), (8, 6)])
@pytest.mark.parametrize("name", POOLS)
def test_pools_are_those_of_numpy(name, size):
    x = normal(2, *size, 3) - 3  # a padded zero would be the largest
    np.testing.assert_allclose(getattr(inception, name)(x), POOLS[name](x), atol=1e-6)


@pytest.mark.parametrize(
    "block, pool",
    [
        ("Mixed_5b", "average_pool"),
        ("Mixed_6a", "halving_pool"),
        ("Mixed_7b", "average_pool"),
        ("Mixed_7c", "max_pool"),
    ],
)
def test_the_pool_of_a_block(block, pool):
    """A block's last channels are a pool's, with a 1x1 convolution behind it unless it halves."""
    network, x = Mixed(LAYERS[block], width=1 / 64), normal(2, 5, 7, 3)
    variables = made(network, x)
    expected = POOLS[pool](x)
    if pool != "halving_pool":
        params, stats = (variables[kind]["branch_pool"] for kind in ("params", "batch_stats"))
        expected = normed(expected @ params["conv"]["kernel"][0, 0], params["bn"], stats["bn"])
    output = jax.jit(network.apply)(variables, x)
    agree(output[..., -expected.shape[-1] :], expected, 1e-6)


def normed(x, params, stats):
    x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-3)
    return np.maximum(x * params["scale"] + params["bias"], 0)


def test_the_first_features_are_those_of_numpy():
    pictures, variables, _, found = narrow()
    x: Any = (np.asarray(resize(pictures), np.float64) - 128) / 128
    expected = {}
    for name, stride, padding in [
        ("Conv2d_1a_3x3", 2, 0),
        ("Conv2d_2a_3x3", 1, 0),
        ("Conv2d_2b_3x3", 1, 1),
        ("64", 2, 0),
        ("Conv2d_3b_1x1", 1, 0),
        ("Conv2d_4a_3x3", 1, 0),
        ("192", 2, 0),
    ]:
        if not name.startswith("Conv"):
            x = POOLS["halving_pool"](x)
            expected[name] = x.mean(axis=(1, 2))
            continue
        params, stats = (variables[kind][name] for kind in ("params", "batch_stats"))
        kernel = params["conv"]["kernel"]
        x = np.pad(x, [(0, 0), *[(padding, padding)] * 2, (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
        x = np.tensordot(windows[:, ::stride, ::stride], kernel, ((4, 5, 3), (0, 1, 2)))
        x = normed(x, params["bn"], stats["bn"])
    agree({name: found[name] for name in expected}, expected, 1e-6)


def test_logits_with_and_without_the_bias():
    _, variables, _, found = narrow()
    fc = variables["params"]["fc"]
    products = found["2048"].astype(np.float64) @ fc["kernel"]
    agree(found["logits_unbiased"], products, 1e-6)
    agree(found["logits"], products + fc["bias"], 1e-6)


def test_rows_do_not_depend_on_the_batch():
    pictures, variables, apply, found = narrow()
    other = apply(variables, np.stack([pictures[1], pictures[1][::-1]]))
    for name in FEATURES:
        first, second = found[name]
        assert np.abs(second - first).max() > 1e-3 * np.abs(first).max(), name
        agree(other[name][0], second, 1e-5)


def test_the_published_sizes():
    """Parameters and running statistics as counted in torch-fidelity's network."""
    pictures = jax.ShapeDtypeStruct((2, 32, 40, 3), jnp.uint8)
    initialise = Inception().init_with_output
    output, variables = jax.eval_shape(initialise, jax.random.key(0), pictures)
    params = variables["params"]
    assert count(params) == 23_850_960
    assert count(variables["batch_stats"]) == 34_432
    widths = [64, 192, 768, 2048, 1008, 1008]
    expected = {k: ((2, n), jnp.float32) for k, n in zip(FEATURES, widths, strict=True)}
    assert {name: (x.shape, x.dtype) for name, x in output.items()} == expected
    assert params["Mixed_6c"]["branch7x7dbl_4"]["conv"]["kernel"].shape == (7, 1, 160, 160)
    assert params["Mixed_7b"]["branch3x3dbl_3a"]["conv"]["kernel"].shape == (1, 3, 384, 384)
    assert params["fc"]["kernel"].shape == (2048, 1008)
