"""CLIP's text tower (Radford et al. 2021): a pre-norm transformer, causal where it is CLIP's.

Shapes: B batch, L text length, D width, V vocabulary. The names of the sub-modules follow
transformers' `CLIPTextModel` without its groups `text_model`, `embeddings`, `encoder` and `mlp`:
`encoder.layers.3.self_attn.q_proj` is `layers_3/self_attn/q_proj`, `encoder.layers.3.mlp.fc1` is
`layers_3/fc1`.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_lang.errors import InputError, choose
from vision_lang.models.layers import Dropout, Embed, attend, layer_norm

Dtype = jnp.dtype


def quick_gelu(x: jax.Array) -> jax.Array:
    """The sigmoid approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}


@dataclass(frozen=True)
class TextSpec:
    """Sizes of a text encoder.

    Attributes:
      embedding_std, position_std: deviations of the token and the position table at init.
      causal: a token sees itself and what stands before it, as in CLIP; otherwise all of the text.
      distance_slopes: of each head, what its logits lose per token of distance to a key that stands
        before and behind the query (Press et al. 2022); empty: nothing, as in CLIP.
    """

    width: int
    layers: int
    heads: int
    activation: str = "quick_gelu"
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    embedding_std: float = 0.02
    position_std: float = 0.02
    causal: bool = True
    distance_slopes: tuple[tuple[float, float], ...] = ()


TEXT_ENCODERS = {
    # Trained from nothing on short captions. With tables of deviation 0.02, far smaller than what
    # the first layer norm expects, words stay indistinct for thousands of steps. Not causal, so
    # that a noun knows from what follows where it belongs. Near words weigh more from the first
    # step on, what stands before apart from what follows: a noun begins with its colour in it. Two
    # heads see all of either side. Positions hardly count: words move from caption to caption.
    "tiny": TextSpec(
        width=16,
        layers=1,
        heads=2,
        embedding_std=0.5,
        position_std=0.01,
        causal=False,
        distance_slopes=((0.5, 9.0), (9.0, 0.5)),
    ),
    "small": TextSpec(
        width=64,
        layers=2,
        heads=4,
        embedding_std=0.5,
        position_std=0.01,
        causal=False,
        distance_slopes=((1.0, 9.0), (9.0, 1.0), (0.0, 9.0), (9.0, 0.0)),
    ),
    "clip_l14": TextSpec(width=768, layers=12, heads=12),
    "openclip_h14": TextSpec(width=1024, layers=23, heads=16, activation="gelu"),
}


def check(spec: TextSpec) -> None:
    """Raises InputError for sizes that do not fit together."""
    slopes = spec.distance_slopes
    if spec.width % spec.heads:
        raise InputError(
            f"The text encoder's width={spec.width} is no multiple of its heads={spec.heads}."
        )
    if slopes and len(slopes) != spec.heads:  # one row would do for all heads, unasked
        raise InputError(
            f"The text encoder's distance_slopes has {len(slopes)} row(s) for heads={spec.heads}: "
            "one a head is wanted, or () for none."
        )
    if not all(isinstance(row, tuple) and len(row) == 2 for row in slopes):
        raise InputError(
            f"The text encoder's distance_slopes={slopes} wants rows (before, behind), as in "
            "((1.0, 9.0), (9.0, 1.0))."
        )
    choose(ACTIVATIONS, spec.activation, "activation of the text encoder")


def mean_of_tokens(states: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of a text's own vectors: [B, L, D] where mask [B, L] is True -> float32 [B, D]."""
    shares = mask / jnp.maximum(mask.sum(1, keepdims=True), 1)
    return (states.astype(jnp.float32) * shares[..., None]).sum(1)


class SelfAttention(nn.Module):
    spec: TextSpec
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        spec, bias = self.spec, None
        dense = lambda name: nn.Dense(x.shape[-1], dtype=self.dtype, name=name)  # noqa: E731
        q, k, v = (dense(name)(x) for name in ("q_proj", "k_proj", "v_proj"))
        if spec.distance_slopes:
            at = jnp.arange(x.shape[1])
            offset = at - at[:, None]  # of the key from the query
            before, behind = jnp.asarray(spec.distance_slopes, jnp.float32).T[..., None, None]
            bias = before * jnp.minimum(offset, 0) - behind * jnp.maximum(offset, 0)
        h = attend(q, k, v, spec.heads, mask=mask, bias=bias, causal=spec.causal)
        return dense("out_proj")(h)


class Block(nn.Module):
    """One pre-norm transformer layer, [B, L, D] -> [B, L, D]."""

    spec: TextSpec
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, keys: jax.Array | None) -> jax.Array:
        spec = self.spec
        h = layer_norm(1e-5, "layer_norm1")(x).astype(self.dtype)
        h = SelfAttention(spec, self.dtype, name="self_attn")(h, mask)
        x = x + Dropout(spec.dropout, name="drop1")(h, keys)
        h = layer_norm(1e-5, "layer_norm2")(x).astype(self.dtype)
        h = nn.Dense(round(spec.width * spec.mlp_ratio), dtype=self.dtype, name="fc1")(h)
        h = choose(ACTIVATIONS, spec.activation, "activation")(h)
        h = nn.Dense(spec.width, dtype=self.dtype, name="fc2")(h)
        return x + Dropout(spec.dropout, name="drop2")(h, keys)


class TextEncoder(nn.Module):
    """Token ids -> one vector per token.

    Attributes:
      spec: the sizes, a row of `TEXT_ENCODERS`.
      vocab_size, max_length: rows of the token and position tables.
      dtype: compute dtype; parameters are float32.
      remat: recompute each layer in the backward pass instead of keeping its activations.
    """

    spec: TextSpec
    vocab_size: int
    max_length: int
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,  # [B, L] int32
        mask: jax.Array | None = None,  # [B, L] bool, or None: every position is attended
        keys: jax.Array | None = None,  # [B] dropout keys
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the last hidden state [B, L, D] after the final norm, and the intermediates
        `hidden_0` (embeddings) ... `hidden_N` (before the final norm), each [B, L, D].

        With causal attention padding behind a text never reaches its tokens, and `mask` only keeps
        padding from attending padding; otherwise `mask` is all that keeps it out.
        """
        spec, length = self.spec, tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens, but the encoder has {self.max_length} positions")
        embed = Embed(self.vocab_size, spec.width, spec.embedding_std, name="token_embedding")
        positions = Embed(self.max_length, spec.width, spec.position_std, name="position_embedding")
        x = (embed(tokens) + positions(jnp.arange(length))).astype(self.dtype)
        intermediates = {"hidden_0": x}
        block = nn.remat(Block) if self.remat else Block
        for i in range(spec.layers):
            x = block(spec, self.dtype, name=f"layers_{i}")(x, mask, keys)
            intermediates[f"hidden_{i + 1}"] = x
        x = layer_norm(1e-5, "final_layer_norm")(x).astype(self.dtype)
        return x, intermediates
