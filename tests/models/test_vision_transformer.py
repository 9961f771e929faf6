"""The vision transformer: embeddings, what sees what, precision, sizes. tests/parity compares it
with CLIP's, and the text encoder's tests know its layers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.parameters import agree, count, random_parameters, shapes
from vision_lang.errors import InputError
from vision_lang.models.vision_transformer import (
    VISION_TRANSFORMERS,
    VisionSpec,
    VisionTransformer,
    check,
)

SPEC = VisionSpec(width=16, layers=2, heads=2, patch=4, resolution=12)
NETWORK = VisionTransformer(SPEC)
IMAGES = np.random.default_rng(1).standard_normal((3, 12, 12, 3), np.float32)
PARAMS = random_parameters(NETWORK, IMAGES)


def encode(images, network=NETWORK):
    """The last hidden state and the intermediates, as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.jit(network.apply)({"params": PARAMS}, images))


def normed(x, params):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * params["scale"] + params["bias"]


def test_embeddings_and_the_pooled_vector_are_those_of_numpy():
    tokens, intermediates = encode(IMAGES)
    kernel = PARAMS["patch_embedding"]["kernel"]
    rows = [np.broadcast_to(PARAMS["class_embedding"], (3, 16))]
    for top in (0, 4, 8):
        for left in (0, 4, 8):
            patch = IMAGES[:, top : top + 4, left : left + 4]
            rows.append(np.einsum("bhwc,hwcd->bd", patch, kernel))
    x = np.stack(rows, axis=1) + PARAMS["position_embedding"]["embedding"]
    agree(intermediates["hidden_0"], normed(x, PARAMS["pre_layrnorm"]), 1e-6)
    agree(intermediates["pooled"], normed(tokens[:, 0], PARAMS["post_layernorm"]), 1e-6)
    np.testing.assert_array_equal(intermediates["hidden_2"], tokens)


def test_a_patch_is_seen_by_all_and_a_row_by_none_of_the_others():
    changed = IMAGES.copy()
    changed[0, 4:8, 8:] += 1  # the sixth patch of nine
    (a, before), (b, after) = encode(IMAGES), encode(changed)
    np.testing.assert_array_equal(a[1:], b[1:])
    embeddings = np.abs(before["hidden_0"] - after["hidden_0"]).max(axis=(0, 2))
    np.testing.assert_array_equal(np.flatnonzero(embeddings), [6])
    assert (np.abs(a - b)[0].max(-1) > 1e-3).all()
    agree(encode(IMAGES[[2, 0]])[0], a[[2, 0]], 1e-6)


def test_bfloat16_is_close_to_float32():
    exact, _ = encode(IMAGES)
    tokens, intermediates = encode(IMAGES, NETWORK.clone(dtype=jnp.bfloat16))
    assert tokens.dtype == intermediates["hidden_0"].dtype == jnp.bfloat16
    assert intermediates["pooled"].dtype == jnp.float32
    agree(np.asarray(tokens, np.float32), exact, 0.03)


@pytest.mark.parametrize(
    "name, parameters",
    [("clip_b32", 87_456_000), ("clip_l14", 303_179_776), ("openclip_h14", 630_766_080)],
)
def test_the_published_number_of_parameters(name, parameters):
    """OpenAI's and OpenCLIP's towers have 87,849,216, 303,966,208 and 632,076,800 with their
    projections. Layers are alike: two tell of all."""
    spec = VISION_TRANSFORMERS[name]
    images = jax.ShapeDtypeStruct((1, spec.resolution, spec.resolution, 3), jnp.float32)
    one, two = (
        count(shapes(VisionTransformer(dataclasses.replace(spec, layers=n)), images))
        for n in (1, 2)
    )
    assert one + (spec.layers - 1) * (two - one) == parameters


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (1, 12, 16, 3), (1, 12, 12, 1), (12, 12, 3)])
def test_pictures_of_another_size_are_refused(shape):
    with pytest.raises(InputError, match=r"this vision transformer reads 12 x 12 pixels of 3"):
        NETWORK.apply({"params": PARAMS}, np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"heads": 3}, "width=16 is no multiple of its heads=3"),
        ({"patch": 5}, "resolution=12 is no multiple of its patch=5"),
        ({"activation": "gelo"}, "'gelo'.*mean 'gelu'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, sentence):
    for spec in (SPEC, *VISION_TRANSFORMERS.values()):
        check(spec)
    with pytest.raises(InputError, match=sentence):
        check(dataclasses.replace(SPEC, **change))
