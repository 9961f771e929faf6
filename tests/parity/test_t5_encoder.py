"""T5Encoder against transformers' T5EncoderModel: random weights, every hidden state."""

from __future__ import annotations

import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_lang.data import tokenizer
from vision_lang.models.t5_encoder import T5_ENCODERS, T5Encoder, T5Spec, bucket_starts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.parity.mapping import SIZES, WEIGHTS, close, randomise  # noqa: E402

pytestmark = pytest.mark.parity

# name -> (sizes, vocabulary; above 4096 tokens the look-up is another, text length)
CASES = {
    "tiny": (T5_ENCODERS["t5_tiny"], 50, 9),
    "relu": (T5Spec(32, layers=3, heads=4, hidden=48, key_size=8, feed_forward="relu"), 50, 20),
    "long": (T5Spec(24, layers=2, heads=3, hidden=40, key_size=16), 50, 200),
    "other buckets, large vocabulary": (
        T5Spec(16, layers=2, heads=1, hidden=24, key_size=10, buckets=12, max_distance=30),
        5000,
        50,
    ),
}


def pair(spec: T5Spec, vocabulary: int):
    """Our network and theirs, of the same sizes."""
    config = transformers.T5Config(
        vocab_size=vocabulary,
        d_model=spec.width,
        d_kv=spec.key_size,
        d_ff=spec.hidden,
        num_layers=spec.layers,
        num_heads=spec.heads,
        feed_forward_proj=spec.feed_forward,
        relative_attention_num_buckets=spec.buckets,
        relative_attention_max_distance=spec.max_distance,
    )
    return T5Encoder(spec, vocabulary), transformers.T5EncoderModel(config).eval()


def our_parameters(module, encoder: T5Encoder) -> dict:
    """Their parameters under our names; kernels are [in, out] here, [out, in] there."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    expected = jax.eval_shape(encoder.init, jax.random.key(0), tokens)["params"]
    leaves = flax.traverse_util.flatten_dict(expected, sep="/")
    found = {}
    for name, tensor in module.named_parameters():  # a table for two is named once, as `shared`
        stem = name.removeprefix("encoder.").removesuffix(".weight")
        stem = re.sub(r"\b(block|layer)\.", r"\1_", stem).replace(".", "/")
        ours = next(f"{stem}/{x}" for x in WEIGHTS if f"{stem}/{x}" in leaves)
        tensor = tensor.T if ours.endswith("kernel") else tensor
        assert tensor.shape == leaves[ours].shape, name
        found[ours] = tensor
    assert found.keys() == leaves.keys(), leaves.keys() - found.keys()
    if next(module.parameters()).is_meta:  # names and shapes are all there is
        return {}
    arrays = {name: tensor.detach().numpy().copy() for name, tensor in found.items()}
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


@pytest.mark.parametrize("masked", [False, True], ids=["all positions", "masked"])
@pytest.mark.parametrize("case", CASES)
def test_hidden_states(case, masked):
    spec, vocabulary, length = CASES[case]
    ours, theirs = pair(spec, vocabulary)
    last: list = []  # the last of their hidden states is behind the final norm; ours is not
    theirs.encoder.block[-1].register_forward_hook(lambda _, __, output: last.append(output[0]))
    apply = jax.jit(ours.apply)
    for seed, size in enumerate(SIZES):
        randomise(theirs, seed, size)
        params = our_parameters(theirs, ours)
        rng = np.random.default_rng(seed)
        tokens = rng.integers(vocabulary, size=(4, length))
        mask = np.arange(length) < rng.integers(1, length + 1, size=(4, 1)) if masked else None
        states, hidden = apply({"params": params}, tokens.astype(np.int32), mask)
        with torch.inference_mode():
            reference = theirs(
                torch.tensor(tokens),
                attention_mask=None if mask is None else torch.tensor(mask).long(),
                output_hidden_states=True,
            )
        assert len(reference.hidden_states) == len(hidden) == spec.layers + 1
        for i, state in enumerate([*reference.hidden_states[:-1], last.pop()]):
            close(hidden[f"hidden_{i}"], state, f"seed {seed}, hidden_{i}")
        close(states, reference.last_hidden_state, f"seed {seed}, states")


def test_buckets():
    attention = transformers.models.t5.modeling_t5.T5Attention
    distance = np.arange(1000)
    for buckets, farthest in ((32, 128), (12, 30), (64, 1000), (4, 8)):
        theirs = attention._relative_position_bucket(
            -torch.tensor(distance), num_buckets=buckets, max_distance=farthest
        )
        starts = bucket_starts(buckets, farthest)
        np.testing.assert_array_equal((distance[:, None] >= starts[1:]).sum(1), theirs)


@pytest.mark.parametrize("name", [name for name in T5_ENCODERS if name != "tiny"])
def test_the_published_sizes_have_all_names_and_shapes(name):
    with torch.device("meta"):
        ours, theirs = pair(T5_ENCODERS[name], 32128)
    our_parameters(theirs, ours)


def test_tokens_are_those_of_transformers():
    """Of a text's words, its end and its padding; no token begins it."""
    pieces = "<pad> </s> <unk> \u2581 \u2581a \u2581red b ed r \u2581b ar".split()
    theirs = transformers.T5Tokenizer(vocab=[(piece, -float(n)) for n, piece in enumerate(pieces)])
    ours = tokenizer.Tokenizer(theirs.backend_tokenizer.to_str())
    texts = ["a red bar", "", " a  bed x", "red" * 9]
    expected = theirs(texts, padding="max_length", max_length=12, truncation=True)
    ids, mask = ours.encode_batch(texts, 12)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])
    assert ours.vocab_size == len(theirs)
