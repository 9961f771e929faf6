"""Layers that several networks share.

Shapes: B batch, N tokens of the query, M tokens of the context, D width, H W height and width.
Everything that is sensitive to rounding (norms, softmax, time embeddings) is computed in float32,
whatever the compute dtype.
"""

from __future__ import annotations

import math
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Dtype = jnp.dtype
# What networks can compute in; parameters are float32.
DTYPES: dict[str, Dtype] = {"float32": jnp.dtype("float32"), "bfloat16": jnp.dtype("bfloat16")}
ONE_HOT_LIMIT = 4096  # vocabularies up to this size are looked up by a matrix product


class Dropout(nn.Module):
    """Dropout whose mask depends on the example, not on its place in a device's batch.

    Linen's own Dropout draws one mask for the whole array, so that the masks would change with the
    number of devices. Here each row has a key of its own (see `vision_lang/keys.py`), folded with
    the layer's path, so that no two layers share a mask.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """x: [B, ...]; keys: [B] typed PRNG keys, or None to switch dropout off."""
        if self.rate == 0.0 or keys is None:
            return x
        layer = zlib.crc32("/".join(self.path).encode())
        keep = jax.vmap(
            lambda key: jax.random.bernoulli(
                jax.random.fold_in(key, layer), 1 - self.rate, x.shape[1:]
            )
        )(keys)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


class Embed(nn.Module):
    """A table look-up, [...] int32 -> [..., D].

    Small vocabularies are looked up by a one-hot matrix product: the values are the same bit for
    bit, and the gradient is a matrix product too, instead of the scatter-add that is very slow on
    GPU in jaxlib 0.10.2 to 0.11.0.
    """

    vocab_size: int
    width: int
    init_std: float = 0.02
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        init = nn.initializers.normal(self.init_std)
        self.embedding = self.param("embedding", init, (self.vocab_size, self.width), jnp.float32)

    def __call__(self, ids: jax.Array) -> jax.Array:
        if self.vocab_size > ONE_HOT_LIMIT:
            return self.take(ids)
        one_hot = jax.nn.one_hot(ids, self.vocab_size, dtype=self.dtype)
        table = self.embedding.astype(self.dtype)
        return jnp.dot(one_hot, table, precision=jax.lax.Precision.HIGHEST)

    def take(self, ids: jax.Array) -> jax.Array:
        """The same without the matrix product: faster where no gradient is wanted."""
        return jnp.take(self.embedding, ids, axis=0).astype(self.dtype)

    def logits(self, x: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V]: the products with every row (tied output embeddings)."""
        table = self.embedding.astype(self.dtype)
        return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)


def layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    """LayerNorm in float32 with a two-pass variance, as the reference libraries compute it."""
    return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


def group_norm(groups: int, epsilon: float, name: str) -> nn.GroupNorm:
    """GroupNorm in float32 with a two-pass variance."""
    return nn.GroupNorm(
        num_groups=groups, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name
    )


def attend(
    query: jax.Array,  # [B, N, D]
    key: jax.Array,  # [B, M, D]
    value: jax.Array,  # [B, M, D]
    heads: int,
    *,
    mask: jax.Array | None = None,  # [B, M] or [B, 1, N, M] bool, True = may be attended
    bias: jax.Array | None = None,  # [heads, N, M], added to the logits
    causal: bool = False,
    fused: bool = False,
) -> jax.Array:  # [B, N, D]
    """Scaled dot-product attention with `heads` heads (Vaswani et al. 2017, eq. 1).

    `fused` asks for cuDNN's kernel, which holds no [N, M] array; it wants a GPU and 16-bit inputs.
    """
    batch, _, width = query.shape
    split = lambda x: x.reshape(batch, x.shape[1], heads, width // heads)  # noqa: E731
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    out = jax.nn.dot_product_attention(
        split(query),
        split(key),
        split(value),
        bias=None if bias is None else bias[None].astype(query.dtype),
        mask=mask,
        is_causal=causal,
        implementation="cudnn" if fused else "xla",
    )
    return out.reshape(query.shape)


def timestep_embedding(t: jax.Array, width: int, max_period: float = 10_000.0) -> jax.Array:
    """Sinusoidal embedding [B] -> [B, width] (Ho et al. 2020), cosines first.

    Right to 1e-6 for |t| up to 1024. The plain product of t and a frequency is not: at t near 1000
    its float32 rounding alone is 3e-5 of a radian.
    """
    half = width // 2
    frequencies = np.exp(-math.log(max_period) * np.arange(half, dtype=np.float64) / half)
    turns = frequencies / (2 * math.pi)  # per unit of t
    coarse = np.round(turns * 2**14) / 2**14  # so few bits that `whole * coarse` is exact
    t = t.astype(jnp.float32)[:, None]
    whole = jnp.floor(t)
    angle = whole * jnp.asarray(coarse, jnp.float32)
    angle -= jnp.round(angle)  # a full turn changes nothing
    angle += whole * jnp.asarray(turns - coarse, jnp.float32)
    angle += (t - whole) * jnp.asarray(turns, jnp.float32)
    angle = 2 * math.pi * (angle - jnp.round(angle))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def position_features(height: int, width: int, octaves: int = 3) -> jax.Array:
    """Where a pixel is, [H, W, 4 octaves]: of its row, then of its column, the sines and then the
    cosines of 1/2, 1, 2, ... turns across the picture. A resized picture keeps them."""

    def waves(side: int) -> np.ndarray:
        angle = np.pi * (np.arange(side) + 0.5)[:, None] / side * 2.0 ** np.arange(octaves)
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)

    shape = (height, width, 2 * octaves)
    down = np.broadcast_to(waves(height)[:, None], shape)
    right = np.broadcast_to(waves(width), shape)
    return jnp.asarray(np.concatenate([down, right], axis=-1), jnp.float32)


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, H/p, W/p, p*p*C]: a patch of pixels becomes channels; nothing is lost."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // patch, width // patch, patch * patch * channels)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """The inverse of `space_to_depth`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, patch, patch, channels // patch**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * patch, width * patch, channels // patch**2)
