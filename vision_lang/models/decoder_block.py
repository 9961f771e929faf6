"""One pre-norm layer of GPT-2, with optional cross-attention, whose self-attention can be cached.

Shapes: B batch, N tokens of one call, R rows of a cache (B, or B times the beams), T slots of a
cache, M places of the context, E their width, H heads, D width. Names and kernels are those of
transformers' `GPT2Block`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vision_lang.models.layers import Dropout, layer_norm

Dtype = jnp.dtype


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes of a text decoder.

    Attributes:
      dropout: of the embeddings, the attention weights and what each branch adds.
      init_std: deviation of tables and kernels at init; of a branch's last kernel it is this over
        the root of the number of branches (two a layer).
    """

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    init_std: float = 0.02


class Memory(NamedTuple):
    """Keys and values of one layer; one query reads both along their last axis."""

    key: jax.Array  # [R, H, D / H, T]
    value: jax.Array  # [R, H, T, D / H]


def _dense(spec: DecoderSpec, features: int, dtype: Dtype, last: bool = False) -> nn.Dense:
    deviation = spec.init_std / math.sqrt(2 * spec.layers) if last else spec.init_std
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(deviation))


def _heads(x: jax.Array, heads: int) -> jax.Array:
    """[B, N, D] -> [B, H, N, D / H]."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _memory(key: jax.Array, value: jax.Array, heads: int) -> Memory:
    """Of keys and values [B, M, D]."""
    return Memory(_heads(key, heads).swapaxes(2, 3), _heads(value, heads))


def _weights(query: jax.Array, key: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """Attention weights, float32 [B, H, N, M], of query [B, H, N, d] over key [B, H, d, M]."""
    logits = jnp.einsum("bhnd,bhdm->bhnm", query, key, preferred_element_type=jnp.float32)
    logits = logits / math.sqrt(query.shape[-1])
    if allowed is not None:
        # Not minus infinity: padding in front of a text may attend nothing, and must not be NaN.
        logits = jnp.where(allowed, logits, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits, axis=-1)


def _mix(weights: jax.Array, value: jax.Array) -> jax.Array:
    """[B, H, N, M] and [B, H, M, d] -> [B, N, D]."""
    out = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(value.dtype), value)
    return out.swapaxes(1, 2).reshape(out.shape[0], out.shape[2], -1)


class SelfAttention(nn.Module):
    spec: DecoderSpec
    dtype: Dtype

    def setup(self) -> None:
        width = self.spec.width
        self.c_attn = _dense(self.spec, 3 * width, self.dtype)
        self.c_proj = _dense(self.spec, width, self.dtype, last=True)
        self.dropout = Dropout(self.spec.dropout)

    def __call__(
        self,
        x: jax.Array,  # [R, N, D]
        allowed: jax.Array,  # [R or 1, 1, N, N or T] bool
        keys: jax.Array | None,
        memory: Memory | None,
        position: jax.Array | int,
    ) -> tuple[jax.Array, Memory | None]:
        query, key, value = jnp.split(self.c_attn(x), 3, axis=-1)
        new = _memory(key, value, self.spec.heads)
        if memory is not None:
            memory = Memory(
                lax.dynamic_update_slice_in_dim(memory.key, new.key, position, axis=3),
                lax.dynamic_update_slice_in_dim(memory.value, new.value, position, axis=2),
            )
            new = memory
        weights = _weights(_heads(query, self.spec.heads), new.key, allowed)
        return self.c_proj(_mix(self.dropout(weights, keys), new.value)), memory


class CrossAttention(nn.Module):
    spec: DecoderSpec
    dtype: Dtype

    def setup(self) -> None:
        width = self.spec.width
        self.c_attn = _dense(self.spec, 2 * width, self.dtype)
        self.q_attn = _dense(self.spec, width, self.dtype)
        self.c_proj = _dense(self.spec, width, self.dtype, last=True)
        self.dropout = Dropout(self.spec.dropout)

    def read(self, features: jax.Array) -> Memory:  # [B, M, E]
        key, value = jnp.split(self.c_attn(features), 2, axis=-1)
        return _memory(key, value, self.spec.heads)

    def __call__(
        self, x: jax.Array, memory: Memory, mask: jax.Array | None, keys: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """x [R, N, D], mask [B, M] -> [R, N, D] and the attention weights [R, H, N, M]."""
        rows, length, width = x.shape
        batch = memory.key.shape[0]
        query = self.q_attn(x).reshape(batch, -1, width)  # beams are more queries of an example
        allowed = None if mask is None else mask[:, None, None, :]
        weights = _weights(_heads(query, self.spec.heads), memory.key, allowed)
        mixed = _mix(self.dropout(weights, keys), memory.value).reshape(x.shape)
        weights = weights.reshape(batch, self.spec.heads, rows // batch, length, -1)
        weights = weights.swapaxes(1, 2).reshape(rows, self.spec.heads, length, -1)
        return self.c_proj(mixed), weights


class Mlp(nn.Module):
    spec: DecoderSpec
    dtype: Dtype

    def setup(self) -> None:
        self.c_fc = _dense(self.spec, round(self.spec.width * self.spec.mlp_ratio), self.dtype)
        self.c_proj = _dense(self.spec, self.spec.width, self.dtype, last=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.c_proj(jax.nn.gelu(self.c_fc(x), approximate=True))


class Block(nn.Module):
    """One pre-norm layer, [R, N, D] -> [R, N, D]."""

    spec: DecoderSpec
    crossing: bool
    dtype: Dtype

    def setup(self) -> None:
        self.ln_1 = layer_norm(1e-5, "ln_1")
        self.attn = SelfAttention(self.spec, self.dtype)
        if self.crossing:
            self.ln_cross_attn = layer_norm(1e-5, "ln_cross_attn")
            self.crossattention = CrossAttention(self.spec, self.dtype)
            self.drop_cross = Dropout(self.spec.dropout)
        self.ln_2 = layer_norm(1e-5, "ln_2")
        self.mlp = Mlp(self.spec, self.dtype)
        self.drop_1 = Dropout(self.spec.dropout)
        self.drop_2 = Dropout(self.spec.dropout)

    def read(self, features: jax.Array) -> Memory:
        return self.crossattention.read(features)

    def __call__(
        self,
        x: jax.Array,
        allowed: jax.Array,
        context: tuple[Memory, jax.Array | None] | None,
        keys: jax.Array | None,
        memory: Memory | None,
        position: jax.Array | int,
    ) -> tuple[jax.Array, Memory | None, jax.Array | None]:
        """Returns the new x, the layer's memory with the tokens in it, and the weights over the
        context."""
        weights = None
        h, memory = self.attn(self.ln_1(x).astype(self.dtype), allowed, keys, memory, position)
        x = x + self.drop_1(h, keys)
        if context is not None:
            h = self.ln_cross_attn(x).astype(self.dtype)
            h, weights = self.crossattention(h, *context, keys)
            x = x + self.drop_cross(h, keys)
        h = self.mlp(self.ln_2(x).astype(self.dtype))
        return x + self.drop_2(h, keys), memory, weights
