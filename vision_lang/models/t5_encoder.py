"""T5's encoder (Raffel et al. 2020): a pre-norm transformer that knows how far apart tokens are,
not where they stand.

Shapes: B batch, L text length, H heads, K key size (H K need not be D), D width, V vocabulary. The
names of the sub-modules follow transformers' `T5EncoderModel` without its group `encoder`:
`encoder.block.3.layer.0.SelfAttention.q` is `block_3/layer_0/SelfAttention/q`. No layer has a bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_lang.errors import InputError, choose
from vision_lang.models.layers import Dropout, Embed

Dtype = jnp.dtype
EMBEDDING_STD = 1.0  # of the token table at init

# Names as in published configs -> whether a second product gates the first, and the activation.
FEED_FORWARDS: dict[str, tuple[bool, Callable[[jax.Array], jax.Array]]] = {
    "relu": (False, nn.relu),  # the paper's
    "gated-gelu": (True, lambda x: jax.nn.gelu(x, approximate=True)),  # version 1.1 (Shazeer 2020)
}


@dataclass(frozen=True)
class T5Spec:
    """Sizes of a T5 encoder.

    Attributes:
      hidden: width between the two products of a feed-forward layer.
      key_size: of one head.
      feed_forward: a row of `FEED_FORWARDS`.
      buckets: of distances between tokens, one half for keys before the query or at it and one for
        those behind; see `bucket_starts`.
      max_distance: where the last bucket of a half begins at the latest.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    key_size: int = 64
    feed_forward: str = "gated-gelu"
    buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.0


T5_ENCODERS = {
    "t5_tiny": T5Spec(width=16, layers=2, heads=2, hidden=32, key_size=12),
    "t5_v1_1_small": T5Spec(width=512, layers=8, heads=6, hidden=1024),
    "t5_v1_1_base": T5Spec(width=768, layers=12, heads=12, hidden=2048),
    "t5_v1_1_large": T5Spec(width=1024, layers=24, heads=16, hidden=2816),
    "t5_v1_1_xl": T5Spec(width=2048, layers=24, heads=32, hidden=5120),
    "t5_v1_1_xxl": T5Spec(width=4096, layers=24, heads=64, hidden=10240),
}


def check(spec: T5Spec) -> None:
    """Raises InputError for an unknown name or buckets that cannot be."""
    if spec.buckets % 2 or spec.buckets < 4:
        raise InputError(f"A T5 encoder's buckets={spec.buckets} must be even, and at least 4.")
    if spec.max_distance <= spec.buckets // 4:
        raise InputError(
            f"A T5 encoder's max_distance={spec.max_distance} must be more than a quarter of its "
            f"buckets={spec.buckets}, which hold one distance each."
        )
    choose(FEED_FORWARDS, spec.feed_forward, "feed-forward layer of a T5 encoder")


def bucket_starts(buckets: int, max_distance: int) -> np.ndarray:
    """The smallest distance of every bucket of one direction, [buckets / 2].

    Half of them hold one distance each; the bounds of the others grow geometrically and would reach
    `max_distance` one bucket on. The last also holds all that is farther.
    """
    half = buckets // 2
    single = half // 2
    share = np.arange(half - single) / (half - single)
    grown = single * (max_distance / single) ** share
    # Some bounds are whole, as 16, 32 and 64 of the usual sizes: no rounding may lift them.
    return np.concatenate([np.arange(single), np.ceil(grown - 1e-9).astype(int)])


def relative_buckets(length: int, buckets: int, max_distance: int) -> jax.Array:
    """The bucket of the distance from each query to each key, int32 [L, L]."""
    at = jnp.arange(length)
    offset = at - at[:, None]  # of the key from the query
    starts = jnp.asarray(bucket_starts(buckets, max_distance)[1:])
    bucket = (jnp.abs(offset)[..., None] >= starts).sum(-1)
    return bucket + jnp.where(offset > 0, buckets // 2, 0)


def rms_norm(name: str) -> nn.RMSNorm:
    """Divides by the root mean square (no mean is subtracted), in float32."""
    return nn.RMSNorm(epsilon=1e-6, dtype=jnp.float32, name=name)


def _dense(features: int, dtype: Dtype, name: str, variance: float = 1.0) -> nn.Dense:
    """Without a bias. At init, inputs of size 1 give outputs of the variance named."""
    init = nn.initializers.variance_scaling(variance, "fan_in", "normal")
    return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)


class SelfAttention(nn.Module):
    """Attention without 1 / sqrt(K): the initialisation of `q` has it instead."""

    spec: T5Spec
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array | None,
        keys: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns [B, L, D] and what is added to the logits, float32 [H, L, L]: `bias`, or where
        that is None, as in the first block, what this layer's own table says."""
        spec, (batch, length, width) = self.spec, x.shape
        if bias is None:
            table = Embed(spec.buckets, spec.heads, width**-0.5, name="relative_attention_bias")
            buckets = relative_buckets(length, spec.buckets, spec.max_distance)
            bias = table(buckets).transpose(2, 0, 1)
        inner = spec.heads * spec.key_size
        q = _dense(inner, self.dtype, "q", 1 / spec.key_size)(x)
        k, v = (_dense(inner, self.dtype, name)(x) for name in ("k", "v"))
        q, k, v = (y.reshape(batch, length, spec.heads, spec.key_size) for y in (q, k, v))
        logits = jnp.einsum("bnhk,bmhk->bhnm", q, k, preferred_element_type=jnp.float32) + bias
        if mask is not None:
            # Not minus infinity: a text without tokens attends nothing, and must not be NaN.
            logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        weights = Dropout(spec.dropout, name="dropout")(jax.nn.softmax(logits), keys)
        h = jnp.einsum("bhnm,bmhk->bnhk", weights.astype(self.dtype), v)
        return _dense(width, self.dtype, "o")(h.reshape(batch, length, inner)), bias


class FeedForward(nn.Module):
    spec: T5Spec
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        spec = self.spec
        gated, activation = choose(FEED_FORWARDS, spec.feed_forward, "feed-forward layer")
        h = activation(_dense(spec.hidden, self.dtype, "wi_0" if gated else "wi")(x))
        if gated:
            h = h * _dense(spec.hidden, self.dtype, "wi_1")(x)
        h = Dropout(spec.dropout, name="dropout")(h, keys)
        return _dense(spec.width, self.dtype, "wo")(h)


class AttentionLayer(nn.Module):
    spec: T5Spec
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array | None,
        keys: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        h = rms_norm("layer_norm")(x).astype(self.dtype)
        h, bias = SelfAttention(self.spec, self.dtype, name="SelfAttention")(h, bias, mask, keys)
        return x + Dropout(self.spec.dropout, name="dropout")(h, keys), bias


class FeedForwardLayer(nn.Module):
    spec: T5Spec
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        h = rms_norm("layer_norm")(x).astype(self.dtype)
        h = FeedForward(self.spec, self.dtype, name="DenseReluDense")(h, keys)
        return x + Dropout(self.spec.dropout, name="dropout")(h, keys)


class Block(nn.Module):
    """One layer of attention and one feed-forward, [B, L, D] -> [B, L, D], and the bias."""

    spec: T5Spec
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array | None,
        keys: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        x, bias = AttentionLayer(self.spec, self.dtype, name="layer_0")(x, bias, mask, keys)
        return FeedForwardLayer(self.spec, self.dtype, name="layer_1")(x, keys), bias


class T5Encoder(nn.Module):
    """Token ids -> one vector per token.

    Attributes:
      spec: the sizes, a row of `T5_ENCODERS`.
      vocab_size: rows of the token table; 32,128 in the published weights.
      dtype: compute dtype; parameters, norms and softmax are float32.
      remat: recompute each block in the backward pass instead of keeping its activations.
    """

    spec: T5Spec
    vocab_size: int
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,  # [B, L] int32
        mask: jax.Array | None = None,  # [B, L] bool, or None: every position is attended
        keys: jax.Array | None = None,  # [B] dropout keys
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the states [B, L, D] after the final norm, and the intermediates `hidden_0`
        (embeddings) ... `hidden_N` (before the final norm), each [B, L, D].

        In transformers the last of the hidden states is not `hidden_N` but the states again.
        """
        spec, bias = self.spec, None
        embed = Embed(self.vocab_size, spec.width, EMBEDDING_STD, self.dtype, name="shared")
        x = embed(tokens)
        x = Dropout(spec.dropout, name="dropout")(x, keys)
        intermediates = {"hidden_0": x}
        block = nn.remat(Block) if self.remat else Block
        for i in range(spec.layers):
            x, bias = block(spec, self.dtype, name=f"block_{i}")(x, bias, mask, keys)
            intermediates[f"hidden_{i + 1}"] = x
        x = rms_norm("final_layer_norm")(x).astype(self.dtype)
        return Dropout(spec.dropout, name="last_dropout")(x, keys), intermediates
