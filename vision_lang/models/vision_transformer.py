"""CLIP's vision tower (Radford et al. 2021): a transformer over the patches of a picture.

Shapes: B batch, H W height and width, N patches, D width. The layers are those of the text tower
without its causal mask. The names of the sub-modules follow transformers' `CLIPVisionModel` without
its groups `vision_model`, `embeddings`, `encoder` and `mlp`, with its spelling of `pre_layrnorm`.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_lang.errors import InputError, choose
from vision_lang.models.layers import Embed, layer_norm
from vision_lang.models.text_encoder import ACTIVATIONS, Block, TextSpec

Dtype = jnp.dtype


@dataclass(frozen=True)
class VisionSpec:
    """Sizes of a vision transformer.

    Attributes:
      patch, resolution: sides of a patch and of a picture, in pixels.
      activation: a row of text_encoder's `ACTIVATIONS`.
    """

    width: int
    layers: int
    heads: int
    patch: int
    resolution: int = 224
    activation: str = "quick_gelu"
    mlp_ratio: float = 4.0


VISION_TRANSFORMERS = {
    "tiny": VisionSpec(width=32, layers=2, heads=2, patch=8, resolution=32),
    "clip_b32": VisionSpec(width=768, layers=12, heads=12, patch=32),
    "clip_l14": VisionSpec(width=1024, layers=24, heads=16, patch=14),
    "openclip_h14": VisionSpec(width=1280, layers=32, heads=16, patch=14, activation="gelu"),
}


def check(spec: VisionSpec) -> None:
    """Raises InputError for sizes that do not fit together."""
    if spec.width % spec.heads:
        raise InputError(
            f"The vision transformer's width={spec.width} is no multiple of its heads={spec.heads}."
        )
    if spec.resolution % spec.patch:
        raise InputError(
            f"The vision transformer's resolution={spec.resolution} is no multiple of its "
            f"patch={spec.patch}."
        )
    choose(ACTIVATIONS, spec.activation, "activation of the vision transformer")


class VisionTransformer(nn.Module):
    """Pictures -> one vector per patch, and one for the whole.

    Attributes:
      spec: the sizes, a row of `VISION_TRANSFORMERS`.
      dtype: compute dtype; parameters and norms are float32.
    """

    spec: VisionSpec
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes preprocessed pictures, float32 [B, H, W, 3].

        Returns the last hidden state [B, N + 1, D], to which transformers applies no final norm
        either, and the intermediates: `hidden_0` (embeddings) ... `hidden_N`, the same as it, and
        `pooled`, float32 [B, D], the norm of the class token. That token stands before the patches,
        which go row by row.

        Raises:
          InputError: pictures of another size than the spec's.
        """
        spec, batch = self.spec, images.shape[0]
        if images.shape[1:] != (spec.resolution, spec.resolution, 3):
            raise InputError(
                f"Pictures of shape {images.shape[1:]}, but this vision transformer reads "
                f"{spec.resolution} x {spec.resolution} pixels of 3 channels."
            )
        size, deviation = (spec.patch, spec.patch), spec.width**-0.5  # CLIP's, at init
        convolve = nn.Conv(
            spec.width, size, strides=size, use_bias=False, dtype=self.dtype, name="patch_embedding"
        )
        x = convolve(images).reshape(batch, -1, spec.width)
        init = nn.initializers.normal(deviation)
        first = self.param("class_embedding", init, (spec.width,), jnp.float32)
        first = jnp.broadcast_to(first.astype(x.dtype), (batch, 1, spec.width))
        x = jnp.concatenate([first, x], axis=1)
        places = x.shape[1]
        x = x + Embed(places, spec.width, deviation, name="position_embedding")(jnp.arange(places))
        x = layer_norm(1e-5, "pre_layrnorm")(x).astype(self.dtype)
        intermediates = {"hidden_0": x}
        layer = TextSpec(
            spec.width, spec.layers, spec.heads, spec.activation, spec.mlp_ratio, causal=False
        )
        for i in range(spec.layers):
            x = Block(layer, self.dtype, name=f"layers_{i}")(x, None, None)
            intermediates[f"hidden_{i + 1}"] = x
        intermediates["pooled"] = layer_norm(1e-5, "post_layernorm")(x[:, 0])
        return x, intermediates
