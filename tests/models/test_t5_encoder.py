"""T5's encoder against NumPy in float64, its buckets, padding, dropout, precision and sizes.
tests/parity compares it with transformers'."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.parameters import agree, count, random_parameters, shapes
from vision_lang.errors import InputError
from vision_lang.models.t5_encoder import (
    T5_ENCODERS,
    T5Encoder,
    T5Spec,
    check,
    relative_buckets,
)

SPEC = T5Spec(16, layers=2, heads=2, hidden=20, key_size=5, buckets=8, max_distance=7)
VOCABULARY, LENGTH = 20, 10
ENCODER = T5Encoder(SPEC, VOCABULARY)
RNG = np.random.default_rng(1)
TOKENS = RNG.integers(VOCABULARY, size=(4, LENGTH)).astype(np.int32)
MASK = np.arange(LENGTH) < np.array([[3], [6], [1], [5]])  # the rest is padding


@functools.cache
def parameters(encoder):
    return random_parameters(encoder, jax.ShapeDtypeStruct((1, LENGTH), jnp.int32))


@functools.cache
def compiled(encoder):
    return jax.jit(encoder.apply)


def encode(tokens, mask=None, keys=None, encoder=ENCODER):
    """The states and all hidden states, as NumPy arrays."""
    variables = {"params": parameters(ENCODER if encoder.spec.dropout else encoder)}
    return jax.tree.map(np.asarray, compiled(encoder)(variables, tokens, mask, keys))


def bucket(offset, buckets, max_distance):
    """By the definition in whole numbers: as many bounds single (max / single)^(k / rest) as the
    distance has reached, k = 0, 1, ..., where single and rest share the buckets of a direction."""
    single = buckets // 4
    rest = buckets // 2 - single
    n = abs(offset)
    if n >= single:
        reached = (n**rest * single**k >= single**rest * max_distance**k for k in range(rest))
        n = single - 1 + sum(reached)
    return n + (buckets // 2 if offset > 0 else 0)


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (12, 50), (8, 7), (4, 2)])
def test_buckets_are_those_of_the_definition(buckets, max_distance):
    length = 200
    found = np.asarray(relative_buckets(length, buckets, max_distance))
    by_offset = {n: bucket(n, buckets, max_distance) for n in range(1 - length, length)}
    expected = [[by_offset[key - query] for key in range(length)] for query in range(length)]
    np.testing.assert_array_equal(found, expected)
    behind = set(range(buckets)) - {buckets // 2}  # no key behind the query is 0 away
    assert set(by_offset.values()) == behind


def in_numpy(spec, params, tokens, mask):
    """States and hidden states in float64."""
    norm = lambda x, p: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]  # noqa: E731
    split = lambda x: x.reshape(*x.shape[:2], spec.heads, spec.key_size)  # noqa: E731
    kernels = lambda p: {name: np.float64(x["kernel"]) for name, x in p.items()}  # noqa: E731
    table = params["block_0"]["layer_0"]["SelfAttention"].pop("relative_attention_bias")
    at = range(tokens.shape[1])
    places = [[bucket(m - n, spec.buckets, spec.max_distance) for m in at] for n in at]
    x = np.asarray(params["shared"]["embedding"], np.float64)[tokens]
    hidden = {"hidden_0": x}
    for i in range(spec.layers):
        first, second = params[f"block_{i}"]["layer_0"], params[f"block_{i}"]["layer_1"]
        kernel, h = kernels(first["SelfAttention"]), norm(x, first["layer_norm"])
        q, k, v = (split(h @ kernel[name]) for name in ("q", "k", "v"))
        weights = np.einsum("bnhk,bmhk->bnmh", q, k) + table["embedding"][places]
        weights = np.exp(weights) * mask[:, None, :, None]
        weights /= weights.sum(2, keepdims=True)
        x = x + np.einsum("bnmh,bmhk->bnhk", weights, v).reshape(*x.shape[:2], -1) @ kernel["o"]
        kernel, h = kernels(second["DenseReluDense"]), norm(x, second["layer_norm"])
        if spec.feed_forward == "relu":
            h = np.maximum(h @ kernel["wi"], 0)
        else:
            a = h @ kernel["wi_0"]
            gelu = 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
            h = gelu * (h @ kernel["wi_1"])
        x = hidden[f"hidden_{i + 1}"] = x + h @ kernel["wo"]
    return norm(x, params["final_layer_norm"]), hidden


@pytest.mark.parametrize("feed_forward", ["gated-gelu", "relu"])
def test_every_layer_is_that_of_numpy(feed_forward):
    spec = dataclasses.replace(SPEC, feed_forward=feed_forward)
    encoder = T5Encoder(spec, VOCABULARY)
    params = jax.tree.map(np.copy, parameters(encoder))
    expected = in_numpy(spec, params, TOKENS, MASK)
    agree(encode(TOKENS, MASK, encoder=encoder), expected, 1e-6)


def test_padding_never_reaches_the_text_wherever_it_stands():
    states, _ = encode(TOKENS, MASK)
    other, _ = encode(np.where(MASK, TOKENS, 7), MASK)
    np.testing.assert_array_equal(states[MASK], other[MASK])
    shifted, _ = encode(np.roll(TOKENS, 4, axis=1), np.roll(MASK, 4, axis=1))
    agree(np.roll(shifted, -4, axis=1)[MASK], states[MASK], 1e-6)
    cut, _ = encode(TOKENS[:, :6], MASK[:, :6])
    agree(cut[MASK[:, :6]], states[MASK], 1e-6)


def test_a_text_without_tokens_is_no_nan():
    states, _ = encode(TOKENS, np.zeros_like(MASK))
    assert np.isfinite(states).all()


def test_rows_do_not_know_each_other():
    keys = jax.random.split(jax.random.key(0), 4)
    dropping = ENCODER.clone(spec=dataclasses.replace(SPEC, dropout=0.3))
    order = np.array([2, 0])
    for encoder in (ENCODER, dropping):
        whole, _ = encode(TOKENS, MASK, keys, encoder)
        part, _ = encode(TOKENS[order], MASK[order], keys[order], encoder)
        np.testing.assert_allclose(part, whole[order], atol=1e-5)
    plain, _ = encode(TOKENS, MASK)
    assert (np.abs(whole - plain).max(axis=(1, 2)) > 0.1).all()
    np.testing.assert_array_equal(encode(TOKENS, MASK, None, dropping)[0], plain)


def test_bfloat16_is_close_to_float32():
    exact, _ = encode(TOKENS, MASK)
    states, hidden = encode(TOKENS, MASK, encoder=ENCODER.clone(dtype=jnp.bfloat16))
    assert states.dtype == hidden["hidden_1"].dtype == jnp.bfloat16
    agree(np.asarray(states, np.float32), exact, 0.03)


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("t5_v1_1_small", 35_332_800),
        ("t5_v1_1_base", 109_628_544),
        ("t5_v1_1_large", 341_231_104),
        ("t5_v1_1_xl", 1_223_527_424),
        ("t5_v1_1_xxl", 4_762_310_656),
    ],
)
def test_the_published_number_of_parameters(name, parameters):
    """Layers behind the first are alike: two tell of all."""
    spec, tokens = T5_ENCODERS[name], jax.ShapeDtypeStruct((1, 8), jnp.int32)
    one, two = (
        count(shapes(T5Encoder(dataclasses.replace(spec, layers=n), 32128), tokens)) for n in (1, 2)
    )
    assert one + (spec.layers - 1) * (two - one) == parameters


def test_logits_start_of_size_1_without_a_division():
    """As after 1 / sqrt(key size), which the initialisation of `q` stands for."""
    spec = T5Spec(128, layers=1, heads=4, hidden=8)
    params = jax.jit(T5Encoder(spec, VOCABULARY).init)(jax.random.key(0), TOKENS)["params"]
    attention = params["block_0"]["layer_0"]["SelfAttention"]
    x = RNG.standard_normal((100, 128))
    q, k = ((x @ attention[name]["kernel"]).reshape(100, 4, 64) for name in ("q", "k"))
    assert np.einsum("nhk,mhk->hnm", q, k).std() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"buckets": 7}, "buckets=7 must be even, and at least 4"),
        ({"buckets": 2}, "buckets=2 must be even, and at least 4"),
        ({"buckets": 28}, "max_distance=7 must be more than a quarter of its buckets=28"),
        ({"feed_forward": "gated_gelu"}, "'gated_gelu'.*mean 'gated-gelu'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, sentence):
    for spec in (SPEC, *T5_ENCODERS.values()):
        check(spec)
    with pytest.raises(InputError, match=sentence):
        check(dataclasses.replace(SPEC, **change))
