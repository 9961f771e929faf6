"""VisionTransformer against transformers' CLIPVisionModel: random weights, every hidden state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_lang.models.vision_transformer import (
    VISION_TRANSFORMERS,
    VisionSpec,
    VisionTransformer,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.parity.mapping import SIZES, close, our_parameters, randomise  # noqa: E402

pytestmark = pytest.mark.parity

CASES = {
    "tiny": VISION_TRANSFORMERS["tiny"],
    "gelu": VisionSpec(32, layers=3, heads=4, patch=7, resolution=28, activation="gelu"),
    "one patch": VisionSpec(24, layers=1, heads=1, patch=8, resolution=8, mlp_ratio=2),
    "many patches": VisionSpec(64, layers=6, heads=4, patch=2, resolution=32),
}


def pair(spec: VisionSpec):
    """Our network and theirs, of the same sizes."""
    config = transformers.CLIPVisionConfig(
        hidden_size=spec.width,
        intermediate_size=round(spec.mlp_ratio * spec.width),
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        image_size=spec.resolution,
        patch_size=spec.patch,
        hidden_act=spec.activation,
    )
    return VisionTransformer(spec), transformers.CLIPVisionModel(config).eval()


def expected_parameters(network: VisionTransformer):
    images = jax.ShapeDtypeStruct((1, *[network.spec.resolution] * 2, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), images)["params"]


@pytest.mark.parametrize("case", CASES)
def test_hidden_states(case):
    ours, theirs = pair(CASES[case])
    spec, expected, apply = ours.spec, expected_parameters(ours), jax.jit(ours.apply)
    for seed, size in enumerate(SIZES):
        randomise(theirs, seed, size)
        params = our_parameters(theirs, expected)
        shape = (3, spec.resolution, spec.resolution, 3)
        images = np.random.default_rng(seed).standard_normal(shape, np.float32)
        tokens, intermediates = apply({"params": params}, images)
        with torch.inference_mode():
            reference = theirs(torch.tensor(images).permute(0, 3, 1, 2), output_hidden_states=True)
        assert len(reference.hidden_states) == spec.layers + 1 == len(intermediates) - 1
        for i, state in enumerate(reference.hidden_states):
            close(intermediates[f"hidden_{i}"], state, f"seed {seed}, hidden_{i}")
        close(tokens, reference.last_hidden_state, f"seed {seed}, tokens")
        close(intermediates["pooled"], reference.pooler_output, f"seed {seed}, pooled")


@pytest.mark.parametrize("name", ["clip_b32", "clip_l14", "openclip_h14"])
def test_the_published_sizes_have_all_names_and_shapes(name):
    with torch.device("meta"):
        ours, theirs = pair(VISION_TRANSFORMERS[name])
    our_parameters(theirs, expected_parameters(ours))
