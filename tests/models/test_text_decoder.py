"""The text decoder: cache, causality, padding, context. tests/parity compares it with GPT-2's."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.parameters import agree, count, random_parameters, shapes
from vision_lang.models.text_decoder import (
    TEXT_DECODERS,
    DecoderSpec,
    TextDecoder,
    empty_cache,
)

SPEC = DecoderSpec(width=16, layers=2, heads=2)
VOCABULARY, LENGTH, ROWS, PLACES = 20, 10, 4, 5
DECODER = TextDecoder(SPEC, VOCABULARY, LENGTH, crossing=True)
RNG = np.random.default_rng(1)
# One layer: dropout takes long to compile.
DROPPING = dataclasses.replace(DECODER, spec=dataclasses.replace(SPEC, layers=1, dropout=0.3))
TOKENS = RNG.integers(VOCABULARY, size=(ROWS, LENGTH)).astype(np.int32)
FEATURES = RNG.normal(size=(ROWS, PLACES, 7)).astype(np.float32)
USED = np.array([[3], [6], [1], [10]])  # tokens of each text; the rest is padding
MASK = np.arange(LENGTH) < USED
PARAMS = random_parameters(DECODER, TOKENS, features=FEATURES)


@functools.cache
def compiled(decoder, method="__call__"):
    return jax.jit(functools.partial(decoder.apply, method=method))


def whole(tokens=TOKENS, mask=None, features=FEATURES, features_mask=None, keys=None, of=DECODER):
    """Logits and intermediates of whole texts, as NumPy arrays."""
    found = compiled(of)({"params": PARAMS}, tokens, mask, features, features_mask, keys)
    return jax.tree.map(np.asarray, found)


def in_pieces(
    pieces, tokens=TOKENS, mask=None, features=FEATURES, features_mask=None, slots=LENGTH
):
    """Logits [R, N, V] and attention over the context by extending a cache piece by piece."""
    variables = {"params": PARAMS}
    context = compiled(DECODER, "read")(variables, features, features_mask)
    cache, logits, crossed, start = empty_cache(DECODER, len(tokens), slots), [], [], 0
    for size in pieces:
        piece = slice(start, start + size)
        found, cache, intermediates = compiled(DECODER, "extend")(
            variables,
            tokens[:, piece],
            cache,
            start,
            context,
            None if mask is None else mask[:, piece],
        )
        logits.append(found)
        crossed.append(intermediates["cross_1"])
        start += size
    return np.concatenate(logits, axis=1), np.concatenate(crossed, axis=2)


@pytest.mark.parametrize("pieces", [[1] * 10, [10], [7, 1, 1, 1], [1, 4, 5]], ids=str)
def test_a_cache_changes_nothing(pieces):
    mask = RNG.random((ROWS, PLACES)) < 0.6
    mask[:, 0] = True
    expected, intermediates = whole(features_mask=mask)
    logits, crossed = in_pieces(pieces, features_mask=mask)
    agree(logits, expected, 1e-6)
    agree(crossed, intermediates["cross_1"], 1e-6)
    # Slots that are not used are as if they were not there.
    agree(in_pieces([3, 1], slots=5)[0], in_pieces([3, 1])[0], 1e-6)


def test_a_token_is_seen_by_itself_and_those_behind_it():
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % VOCABULARY
    (a, hidden_a), (b, hidden_b) = whole(), whole(changed)
    for x, y in [(a, b), *((hidden_a[f"hidden_{i}"], hidden_b[f"hidden_{i}"]) for i in range(3))]:
        np.testing.assert_array_equal(x[:, :4], y[:, :4])
        assert np.abs(x[:, 4] - y[:, 4]).max() > 1e-3
    assert (np.abs(a[:, 5:] - b[:, 5:]).max(axis=(0, 2)) > 1e-3).all()


@pytest.mark.parametrize("mask", [MASK, None], ids=["masked", "none"])
def test_padding_behind_a_text_never_reaches_it(mask):
    logits, _ = whole(mask=mask)
    other, _ = whole(np.where(MASK, TOKENS, 7), mask)
    np.testing.assert_array_equal(logits[MASK], other[MASK])
    for row, used in enumerate(USED[:, 0]):
        rows = slice(row, row + 1)
        alone, _ = whole(TOKENS[rows, :used], features=FEATURES[rows])
        agree(logits[row, :used], alone[0], 1e-6)


def test_padding_in_front_is_as_if_it_were_not_there():
    """Prompts of several lengths, aligned at their ends, then two tokens more."""
    prompts, more = 8, 2
    mask = np.arange(prompts + more) >= prompts - np.minimum(USED, prompts)
    tokens = np.where(mask, TOKENS, 7)
    logits, _ = whole(tokens, mask)
    cached, _ = in_pieces([prompts, 1, 1], tokens, mask)
    for row in range(ROWS):
        rows, real = slice(row, row + 1), mask[row]
        alone, _ = whole(tokens[rows, real], features=FEATURES[rows])
        agree(logits[row, real], alone[0], 1e-6)
        agree(cached[row, real], alone[0], 1e-6)


def test_masked_places_of_the_context_are_not_attended():
    used = np.array([[5], [2], [3], [1]])
    mask = np.arange(PLACES) < used
    logits, intermediates = whole(features_mask=mask)
    np.testing.assert_array_equal(
        logits, whole(features=np.where(mask[..., None], FEATURES, 9.0), features_mask=mask)[0]
    )
    assert np.abs(logits - whole()[0])[1:].max(axis=(1, 2)).min() > 1e-3
    for i in range(SPEC.layers):
        weights = intermediates[f"cross_{i}"]
        assert weights.shape == (ROWS, SPEC.heads, LENGTH, PLACES)
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
        assert (weights.transpose(0, 3, 1, 2)[~mask] == 0.0).all()
    for row, m in enumerate(used[:, 0]):
        rows = slice(row, row + 1)
        agree(logits[row], whole(TOKENS[rows], features=FEATURES[rows, :m])[0][0], 1e-6)


def test_the_rows_of_one_example_share_its_context():
    """Two beams an example: the same as with the features repeated."""
    beams = 2
    variables, extend = {"params": PARAMS}, compiled(DECODER, "extend")
    mask = np.array([[True] * 5, [True, False, True, True, False]])
    found = []
    for repeats in (1, beams):
        features = np.repeat(FEATURES[:2], repeats, axis=0)
        context = compiled(DECODER, "read")(variables, features, np.repeat(mask, repeats, axis=0))
        cache = empty_cache(DECODER, ROWS, LENGTH)
        logits, _, intermediates = extend(variables, TOKENS[:, :3], cache, 0, context)
        found.append((logits, intermediates))
    agree(found[0], found[1], 1e-6)


def test_rows_do_not_know_each_other():
    keys = jax.random.split(jax.random.key(0), ROWS)
    for decoder in (DECODER, DROPPING):
        together, _ = whole(mask=MASK, keys=keys, of=decoder)
        order = np.array([2, 0])
        part, _ = whole(TOKENS[order], MASK[order], FEATURES[order], None, keys[order], decoder)
        np.testing.assert_allclose(part, together[order], atol=1e-5)
    assert np.abs(together - whole(mask=MASK, of=DROPPING)[0]).max() > 0.1


def test_remat_changes_neither_values_nor_gradients():
    keys = jax.random.split(jax.random.key(0), ROWS)
    weights = RNG.normal(size=(ROWS, LENGTH, VOCABULARY)).astype(np.float32)

    def value_and_gradient(remat):
        decoder = dataclasses.replace(DROPPING, remat=remat)
        loss = lambda p: (  # noqa: E731
            decoder.apply({"params": p}, TOKENS, MASK, FEATURES, None, keys)[0] * weights
        ).sum()
        return jax.jit(jax.value_and_grad(loss))(PARAMS)

    agree(value_and_gradient(True), value_and_gradient(False), 1e-6)


def test_bfloat16_is_close_to_float32():
    reduced = dataclasses.replace(DECODER, dtype=jnp.bfloat16)
    logits, intermediates = whole(of=reduced)
    assert logits.dtype == intermediates["cross_0"].dtype == jnp.float32
    assert intermediates["hidden_1"].dtype == jnp.bfloat16
    assert empty_cache(reduced, 1, 2).layers[0].key.dtype == jnp.bfloat16
    agree(logits, whole()[0], 0.03)


def test_what_does_not_fit_is_refused():
    variables = {"params": PARAMS}
    with pytest.raises(ValueError, match="11 tokens, but the decoder has 10"):
        DECODER.apply(variables, np.zeros((1, LENGTH + 1), np.int32))
    with pytest.raises(ValueError, match="11 tokens, but the decoder has 10"):
        empty_cache(DECODER, 1, LENGTH + 1)
    with pytest.raises(ValueError, match="give it features"):
        DECODER.apply(variables, TOKENS)
    alone = TextDecoder(SPEC, VOCABULARY, LENGTH)
    with pytest.raises(ValueError, match="takes no features"):
        alone.apply(variables, TOKENS, features=FEATURES)


def test_the_published_number_of_parameters():
    decoder = TextDecoder(TEXT_DECODERS["gpt2"], 50257, 1024)
    assert count(shapes(decoder, jax.ShapeDtypeStruct((1, 8), jnp.int32))) == 124_439_808


def test_the_kernels_start_as_the_spec_says():
    spec = DecoderSpec(width=64, layers=2, heads=2, init_std=0.04)
    params = jax.jit(TextDecoder(spec, 500, 64).init)(jax.random.key(0), TOKENS)["params"]
    block = params["h_1"]
    for kernel, deviation in (
        (params["wte"]["embedding"], 0.04),
        (params["wpe"]["embedding"], 0.04),
        (block["attn"]["c_attn"]["kernel"], 0.04),
        (block["mlp"]["c_fc"]["kernel"], 0.04),
        (block["attn"]["c_proj"]["kernel"], 0.04 / math.sqrt(4)),
        (block["mlp"]["c_proj"]["kernel"], 0.04 / math.sqrt(4)),
    ):
        np.testing.assert_allclose(kernel.std(), deviation, rtol=0.05)
