"""A text's sketch: the mean of all pictures that the text fits, from the text alone.

It is the best guess of the picture where there is nothing but noise, t = 1, learned at every step
and given to the U-Net as channels of its input, as Grad-TTS (Popov et al. 2021, eq. 14) gives its
network the mean that its text encoder predicts. The U-Net sees its own noise level alone at each
step, so without a sketch the text encoder hears little of what is decided at high noise: how many
objects there are and how they stand to each other.

Beside the mean there is room for hints, channels that no picture teaches: what may lie where, as
the U-Net's own loss makes them. The mean of two layouts does not tell what belongs together.

Shapes: B batch, H = W side of the picture, K cells along a side, L text length, D text width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_lang.errors import InputError
from vision_lang.models.layers import Embed, depth_to_space, layer_norm
from vision_lang.models.unet import Attention

Dtype = jnp.dtype


@dataclass(frozen=True)
class SketchSpec:
    """Sizes; `layers` = 0 means that there is no sketch.

    Attributes:
      width: of each cell's vector.
      layers: of cross-attention to the text and a feed-forward network, each cell for itself.
      heads: attention heads.
      cells: K; a cell is a square of side / K pixels.
      hints: channels of the hints.
    """

    width: int = 64
    layers: int = 0
    heads: int = 4
    cells: int = 4
    hints: int = 0


SKETCHES = {
    "none": SketchSpec(),
    "tiny": SketchSpec(width=16, layers=1, heads=2, cells=2, hints=1),
    "small": SketchSpec(width=64, layers=2, heads=4, cells=4, hints=4),
}


def check(spec: SketchSpec, side: int) -> None:
    """Raises InputError for sizes that fit neither each other nor pictures of `side` pixels."""
    if not spec.layers:
        return
    if spec.width % spec.heads:
        raise InputError(
            f"The sketch's width={spec.width} is no multiple of its heads={spec.heads}."
        )
    if side % spec.cells:
        raise InputError(
            f"data.resolution={side} is no multiple of model.sketch.cells={spec.cells}."
        )


class Sketched(NamedTuple):
    """picture: the mean of the pictures that the text fits, [B, side, side, channels]; hints: what
    else the U-Net is told, [B, side, side, hints]. Both float32."""

    picture: jax.Array
    hints: jax.Array


class Block(nn.Module):
    """One pre-norm layer, [B, K K, width] -> the same."""

    spec: SketchSpec
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, mask: jax.Array | None) -> jax.Array:
        h = layer_norm(1e-5, "norm1")(x).astype(self.dtype)
        x = x + Attention(self.spec.heads, self.dtype, name="attn")(h, context, mask)
        h = layer_norm(1e-5, "norm2")(x).astype(self.dtype)
        h = nn.gelu(nn.Dense(4 * self.spec.width, dtype=self.dtype, name="fc1")(h))
        return x + nn.Dense(self.spec.width, dtype=self.dtype, name="fc2")(h)


class Sketch(nn.Module):
    """Text [B, L, D] -> its sketch."""

    spec: SketchSpec
    side: int
    channels: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, context: jax.Array, mask: jax.Array | None = None) -> Sketched:
        spec, pixels = self.spec, self.side // self.spec.cells
        channels = self.channels + spec.hints
        places = Embed(spec.cells**2, spec.width, 0.5, self.dtype, name="position_embedding")
        x = places(jnp.arange(spec.cells**2))
        x = jnp.broadcast_to(x, (context.shape[0], *x.shape))  # [B, K K, width]
        context = context.astype(self.dtype)
        for i in range(spec.layers):
            x = Block(spec, self.dtype, name=f"layers_{i}")(x, context, mask)
        x = layer_norm(1e-5, "norm_out")(x).astype(self.dtype)
        x = nn.Dense(
            channels * pixels**2,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="proj_out",
        )(x)
        x = x.reshape(-1, spec.cells, spec.cells, channels * pixels**2)
        x = depth_to_space(x.astype(jnp.float32), pixels)
        return Sketched(x[..., : self.channels], x[..., self.channels :])
