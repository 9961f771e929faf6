"""The text encoder: padding, causality, precision, sizes. tests/parity compares it with CLIP's."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.parameters import agree, count, random_parameters, shapes
from vision_lang.models.text_encoder import TEXT_ENCODERS, SelfAttention, TextEncoder, TextSpec

SPEC = TextSpec(width=16, layers=2, heads=2)
VOCABULARY, LENGTH = 20, 10
ENCODER = TextEncoder(SPEC, VOCABULARY, LENGTH)
BOTH_WAYS = TextEncoder(dataclasses.replace(SPEC, causal=False), VOCABULARY, LENGTH)
PARAMS = random_parameters(ENCODER, jax.ShapeDtypeStruct((1, LENGTH), jnp.int32))
RNG = np.random.default_rng(1)
TOKENS = RNG.integers(VOCABULARY, size=(4, LENGTH)).astype(np.int32)
USED = np.array([[3], [6], [1], [5]])  # tokens of each text; the rest is padding
MASK = np.arange(LENGTH) < USED


@functools.cache
def compiled(encoder):
    return jax.jit(encoder.apply)


def encode(tokens, mask=None, keys=None, encoder=ENCODER):
    """The last and all hidden states, as NumPy arrays."""
    return jax.tree.map(np.asarray, compiled(encoder)({"params": PARAMS}, tokens, mask, keys))


def test_a_token_is_seen_by_itself_and_those_behind_it():
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % VOCABULARY
    (a, hidden_a), (b, hidden_b) = encode(TOKENS), encode(changed)
    for x, y in [(a, b), *((hidden_a[name], hidden_b[name]) for name in hidden_a)]:
        np.testing.assert_array_equal(x[:, :4], y[:, :4])
        assert np.abs(x[:, 4] - y[:, 4]).max() > 1e-3
    assert (np.abs(a[:, 5:] - b[:, 5:]).max(axis=(0, 2)) > 1e-3).all()


def test_without_causality_a_token_is_seen_by_all():
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % VOCABULARY
    a, b = (encode(tokens, encoder=BOTH_WAYS)[0] for tokens in (TOKENS, changed))
    assert (np.abs(a - b).max(axis=(0, 2)) > 1e-3).all()


@pytest.mark.parametrize(
    "slopes, seen_from",
    [
        (((40.0, 40.0), (40.0, 40.0)), [4]),
        (((0.0, 40.0), (40.0, 40.0)), [4, 5, 6, 7, 8, 9]),  # behind it: it stands before them
        (((40.0, 40.0), (40.0, 0.0)), [0, 1, 2, 3, 4]),
        (((40.0, 0.0), (0.0, 40.0)), range(LENGTH)),
    ],
)
def test_distance_hides_a_token_as_each_head_says(slopes, seen_from):
    spec = dataclasses.replace(SPEC, layers=1, causal=False, distance_slopes=slopes)
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % VOCABULARY
    encoder = TextEncoder(spec, VOCABULARY, LENGTH)
    a, b = (encode(tokens, encoder=encoder)[0] for tokens in (TOKENS, changed))
    seen = np.abs(a - b).max(axis=(0, 2)) > 1e-5
    np.testing.assert_array_equal(np.flatnonzero(seen), list(seen_from))


def test_a_distance_counts_its_tokens():
    """The weights of a head are softmax(logits - slope distance), against a twin in NumPy."""
    spec = dataclasses.replace(SPEC, heads=1, layers=1, causal=False, distance_slopes=((0.7, 0.2),))
    layer = SelfAttention(spec, jnp.float32)
    x = RNG.normal(size=(1, 5, spec.width)).astype(np.float32)
    params = random_parameters(layer, x, None)
    q, k, v = (
        x[0] @ params[n]["kernel"] + params[n]["bias"] for n in ("q_proj", "k_proj", "v_proj")
    )
    logits = q @ k.T / math.sqrt(spec.width)
    for i, j in itertools.product(range(5), repeat=2):
        logits[i, j] -= 0.7 * (i - j) if j < i else 0.2 * (j - i)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    out = params["out_proj"]
    expected = weights @ v @ out["kernel"] + out["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, x, None)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "mask, encoder",
    [(MASK, ENCODER), (None, ENCODER), (MASK, BOTH_WAYS)],
    ids=["masked", "none", "masked, not causal"],
)
def test_padding_never_reaches_the_text(mask, encoder):
    output, _ = encode(TOKENS, mask, encoder=encoder)
    # Another padding token: the same bits.
    other, _ = encode(np.where(MASK, TOKENS, 7), mask, encoder=encoder)
    np.testing.assert_array_equal(output[MASK], other[MASK])
    short = slice(None, 6)  # no padding behind the longest text
    cut = None if mask is None else mask[:, short]
    shorter, _ = encode(TOKENS[:, short], cut, encoder=encoder)
    a, b = output[:, short][MASK[:, short]], shorter[MASK[:, short]]
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_masked_padding_is_not_attended_even_by_padding():
    changed = np.where(np.arange(LENGTH) == 7, (TOKENS + 1) % VOCABULARY, TOKENS)
    a, b = (encode(tokens, MASK)[0] for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(a[:, 8:], b[:, 8:])
    a, b = (encode(tokens, None)[0] for tokens in (TOKENS, changed))
    assert (np.abs(a[:, 8:] - b[:, 8:]).max(axis=(0, 2)) > 1e-3).all()


def test_rows_do_not_know_each_other():
    keys = jax.random.split(jax.random.key(0), 4)
    dropping = TextEncoder(dataclasses.replace(SPEC, dropout=0.3), VOCABULARY, LENGTH)
    for encoder in (ENCODER, dropping):
        whole, _ = encode(TOKENS, MASK, keys, encoder)
        order = np.array([2, 0])
        part, _ = encode(TOKENS[order], MASK[order], keys[order], encoder)
        np.testing.assert_allclose(part, whole[order], atol=1e-5)
    assert np.abs(whole - encode(TOKENS, MASK)[0]).max() > 0.1
    np.testing.assert_array_equal(encode(TOKENS, MASK, None, dropping)[0], encode(TOKENS, MASK)[0])


def test_remat_changes_neither_values_nor_gradients():
    keys = jax.random.split(jax.random.key(0), 4)
    weights = RNG.normal(size=(4, LENGTH, SPEC.width)).astype(np.float32)

    def value_and_gradient(remat):
        spec = dataclasses.replace(SPEC, dropout=0.3)
        encoder = TextEncoder(spec, VOCABULARY, LENGTH, remat=remat)
        loss = lambda p: (encoder.apply({"params": p}, TOKENS, MASK, keys)[0] * weights).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(PARAMS)

    agree(value_and_gradient(True), value_and_gradient(False), 1e-6)


def test_bfloat16_is_close_to_float32():
    reduced = TextEncoder(SPEC, VOCABULARY, LENGTH, dtype=jnp.bfloat16)
    exact, _ = encode(TOKENS, MASK)
    output, hidden = encode(TOKENS, MASK, encoder=reduced)
    assert output.dtype == hidden["hidden_1"].dtype == jnp.bfloat16
    agree(np.asarray(output, np.float32), exact, 0.03)


def test_a_text_that_is_too_long_is_refused():
    tokens = np.zeros((1, LENGTH + 1), np.int32)
    with pytest.raises(ValueError, match="11 tokens, but the encoder has 10"):
        ENCODER.apply({"params": PARAMS}, tokens)


@pytest.mark.parametrize(
    "name, parameters", [("clip_l14", 123_060_480), ("openclip_h14", 340_387_840)]
)
def test_the_published_number_of_parameters(name, parameters):
    encoder = TextEncoder(TEXT_ENCODERS[name], 49408, 77)
    assert count(shapes(encoder, jax.ShapeDtypeStruct((1, 77), jnp.int32))) == parameters


def test_the_tables_start_as_the_spec_says():
    encoder = TextEncoder(TEXT_ENCODERS["small"], 1000, 16)
    variables = jax.jit(encoder.init)(jax.random.key(0), TOKENS)["params"]
    for name, deviation in (("token_embedding", 0.5), ("position_embedding", 0.01)):
        np.testing.assert_allclose(variables[name]["embedding"].std(), deviation, rtol=0.05)
