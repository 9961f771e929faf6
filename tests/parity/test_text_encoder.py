"""TextEncoder against transformers' CLIPTextModel: random weights, every hidden state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_lang.models.text_encoder import TEXT_ENCODERS, TextEncoder, TextSpec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.parity.mapping import SIZES, agree, our_parameters, randomise  # noqa: E402

pytestmark = pytest.mark.parity

MAX_LENGTH = 13
# name -> (sizes, vocabulary; above 4096 tokens the look-up is another)
CASES = {
    "quick_gelu": (TextSpec(width=24, layers=3, heads=3), 50),
    "gelu": (TextSpec(width=32, layers=2, heads=2, activation="gelu"), 50),
    "one head, large vocabulary": (TextSpec(width=16, layers=1, heads=1), 5000),
}


def pair(spec: TextSpec, vocabulary: int, length: int):
    """Our network and theirs, of the same sizes."""
    config = transformers.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=spec.width,
        intermediate_size=round(spec.mlp_ratio * spec.width),
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        max_position_embeddings=length,
        hidden_act=spec.activation,
        bos_token_id=0,
        eos_token_id=1,
    )
    return TextEncoder(spec, vocabulary, length), transformers.CLIPTextModel(config).eval()


def expected_parameters(network: TextEncoder):
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]


@pytest.mark.parametrize("masked", [False, True], ids=["all positions", "masked"])
@pytest.mark.parametrize("case", CASES)
def test_hidden_states(case, masked):
    spec, vocabulary = CASES[case]
    ours, theirs = pair(spec, vocabulary, MAX_LENGTH)
    expected = expected_parameters(ours)
    apply = jax.jit(ours.apply)
    for seed, (size, length) in enumerate(zip(SIZES, (MAX_LENGTH, 7, MAX_LENGTH), strict=True)):
        randomise(theirs, seed, size)
        params = our_parameters(theirs, expected)
        rng = np.random.default_rng(seed)
        tokens = rng.integers(vocabulary, size=(4, length))
        mask = np.arange(length) < rng.integers(1, length + 1, size=(4, 1)) if masked else None
        output, hidden = apply({"params": params}, tokens.astype(np.int32), mask)
        reference = theirs(
            torch.tensor(tokens),
            attention_mask=None if mask is None else torch.tensor(mask).long(),
            output_hidden_states=True,
        )
        assert len(reference.hidden_states) == len(hidden) == spec.layers + 1
        for i, state in enumerate(reference.hidden_states):
            agree(hidden[f"hidden_{i}"], state, f"seed {seed}, hidden_{i}")
        agree(output, reference.last_hidden_state, f"seed {seed}, output")


@pytest.mark.parametrize("name", ["clip_l14", "openclip_h14"])
def test_the_published_sizes_have_all_names_and_shapes(name):
    with torch.device("meta"):
        ours, theirs = pair(TEXT_ENCODERS[name], 49408, 77)
    our_parameters(theirs, expected_parameters(ours))
