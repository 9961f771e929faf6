"""GPT-2 (Radford et al. 2019) with optional cross-attention: a pre-norm causal transformer.

Shapes: B batch, L text length, N tokens of one call, R rows of a cache (B, or B times the beams),
T slots of a cache, M places of the context, E their width, H heads, D width, V vocabulary. Names
and kernels are those of transformers' `GPT2LMHeadModel`, one to one: `h.3.attn.c_attn.weight`
[D, 3D] is `h_3/attn/c_attn/kernel`. The table of the tokens also gives the logits.

Three ways in: `__call__` takes whole texts; `read` makes of the context's features what every
layer attends, once; `extend` takes the next N tokens behind those that a cache holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vision_lang.errors import InputError
from vision_lang.models.decoder_block import Block, DecoderSpec, Memory
from vision_lang.models.layers import Dropout, Embed, layer_norm

Dtype = jnp.dtype

TEXT_DECODERS = {
    "tiny": DecoderSpec(width=32, layers=2, heads=2),
    # init_std: 1 over the root of the width; the usual 0.02 is meant for wide networks.
    "mini": DecoderSpec(width=128, layers=2, heads=4, init_std=0.09),
    "small": DecoderSpec(width=256, layers=4, heads=4),
    "gpt2": DecoderSpec(width=768, layers=12, heads=12, dropout=0.1),  # 50,257 tokens, 1,024 places
}


def check(spec: DecoderSpec) -> None:
    """Raises InputError for sizes that do not fit together."""
    if spec.width % spec.heads:
        raise InputError(
            f"The text decoder's width={spec.width} is no multiple of its heads={spec.heads}."
        )


class Cache(NamedTuple):
    """What `extend` keeps of the tokens that it has seen."""

    layers: tuple[Memory, ...]
    mask: jax.Array  # [R, T] bool: the slots that hold a token, not padding or nothing


class Context(NamedTuple):
    """What the layers attend of the encoder's features. It never changes."""

    layers: tuple[Memory, ...]  # M places instead of T slots
    mask: jax.Array | None  # [B, M] bool, or None: every place is attended


def empty_cache(decoder: TextDecoder, rows: int, length: int) -> Cache:
    """Returns a cache of `length` slots without a token.

    Raises:
      ValueError: the decoder has fewer positions.
    """
    _check_length(length, decoder.max_length)
    spec, size = decoder.spec, decoder.spec.width // decoder.spec.heads
    memory = Memory(
        jnp.zeros((rows, spec.heads, size, length), decoder.dtype),
        jnp.zeros((rows, spec.heads, length, size), decoder.dtype),
    )
    return Cache((memory,) * spec.layers, jnp.zeros((rows, length), bool))


def next_token(
    decoder: TextDecoder, variables: Any, context: Context | None = None
) -> Callable[[Cache, jax.Array, jax.Array | int], tuple[jax.Array, Cache]]:
    """Returns (cache, tokens [R], position) -> (logits [R, V], cache), for vision_lang/decoding.py.

    Beams of one example are neighbouring rows and share its row of the context.
    """

    def step(cache, tokens, position):
        found: Any = decoder.apply(
            variables, tokens[:, None], cache, position, context, method="extend"
        )
        logits, cache, _ = found
        return logits[:, 0], cache

    return step


def _check_length(length: int, positions: int) -> None:
    if length > positions:
        raise ValueError(f"{length} tokens, but the decoder has {positions} positions")


class TextDecoder(nn.Module):
    """Tokens -> the logits of the next one.

    Attributes:
      spec: the sizes, a row of `TEXT_DECODERS`.
      vocab_size, max_length: rows of the token and position tables.
      crossing: whether the layers attend a context.
      dtype: compute dtype; parameters are float32, and so are norms, softmax and logits.
      remat: recompute each layer in the backward pass instead of keeping its activations.
    """

    spec: DecoderSpec
    vocab_size: int
    max_length: int
    crossing: bool = False
    dtype: Dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        spec, block = self.spec, nn.remat(Block) if self.remat else Block
        self.wte = Embed(self.vocab_size, spec.width, spec.init_std, self.dtype)
        self.wpe = Embed(self.max_length, spec.width, spec.init_std, self.dtype)
        self.drop = Dropout(spec.dropout)
        self.h = [block(spec, self.crossing, self.dtype) for _ in range(spec.layers)]
        self.ln_f = layer_norm(1e-5, "ln_f")

    def __call__(
        self,
        tokens: jax.Array,  # [B, L] int32
        mask: jax.Array | None = None,  # [B, L] bool, or None: every token is attended
        features: jax.Array | None = None,  # [B, M, E], where the decoder has cross-attention
        features_mask: jax.Array | None = None,  # [B, M] bool
        keys: jax.Array | None = None,  # [B] dropout keys
        places: jax.Array | None = None,  # [B, L] int32, or None: padding does not count
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the logits, float32 [B, L, V], and the intermediates: `hidden_0` (embeddings) ...
        `hidden_N` (before the final norm) and `final` (behind it), each [B, L, D], and of a decoder
        with cross-attention `cross_0` ..., each layer's weights over the context, [B, H, L, M].

        Logits at a token are those of the one behind it. Padding behind a text never reaches its
        tokens; a text with padding in front has the same logits as without, given the mask.
        """
        length = tokens.shape[1]
        _check_length(length, self.max_length)
        allowed = jnp.tril(jnp.ones((length, length), bool))[None, None]
        counted = jnp.arange(length)[None]
        if mask is not None:
            allowed &= mask[:, None, None, :]
            counted = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        places = counted if places is None else places
        context = None if features is None else self.read(features, features_mask)
        x = self.drop(self.wte(tokens) + self.wpe(places), keys)
        logits, _, intermediates = self._layers(x, allowed, context, keys, None, 0)
        return logits, intermediates

    def read(self, features: jax.Array, mask: jax.Array | None = None) -> Context:
        """Returns what the layers attend of features [B, M, E]; `mask` [B, M] says what counts."""
        if not self.crossing:
            raise ValueError("This decoder has no cross-attention: it takes no features.")
        features = features.astype(self.dtype)
        return Context(tuple(block.read(features) for block in self.h), mask)

    def extend(
        self,
        tokens: jax.Array,  # [R, N] int32
        cache: Cache,
        position: jax.Array | int,  # the slot of the first of them
        context: Context | None = None,
        mask: jax.Array | None = None,  # [R, N] bool; False where a prompt is padding
    ) -> tuple[jax.Array, Cache, dict[str, jax.Array]]:
        """Puts tokens into slots position ... position + N - 1, which must be there.

        Returns the logits [R, N, V], the new cache and intermediates as `__call__` does. Shorter
        prompts of a batch have their padding in front: then all end in the same slot.
        """
        length, slots = tokens.shape[1], cache.mask.shape[1]
        if mask is None:
            mask = jnp.ones(tokens.shape, bool)
        seen = lax.dynamic_update_slice_in_dim(cache.mask, mask, position, axis=1)
        upto = jnp.arange(slots) <= position + jnp.arange(length)[:, None]  # [N, T]
        allowed = (seen[:, None] & upto)[:, None]
        places = cache.mask.sum(1, keepdims=True) + jnp.cumsum(mask, axis=1) - 1
        x = self.wte.take(tokens) + self.wpe.take(jnp.maximum(places, 0))
        logits, layers, intermediates = self._layers(
            x, allowed, context, None, cache.layers, position
        )
        return logits, Cache(layers, seen), intermediates

    def _layers(self, x, allowed, context, keys, memories, position):
        if self.crossing and context is None:
            raise ValueError("This decoder has cross-attention: give it features to attend.")
        intermediates, after = {"hidden_0": x}, []
        for i, block in enumerate(self.h):
            crossed = None if context is None else (context.layers[i], context.mask)
            memory = None if memories is None else memories[i]
            x, memory, weights = block(x, allowed, crossed, keys, memory, position)
            after.append(memory)
            intermediates[f"hidden_{i + 1}"] = x
            if weights is not None:
                intermediates[f"cross_{i}"] = weights
        x = intermediates["final"] = self.ln_f(x).astype(self.dtype)
        return self.wte.logits(x), tuple(after), intermediates
