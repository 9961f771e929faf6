"""CLIP (Radford et al. 2021): a text tower and a vision tower that meet in one space.

Shapes: B batch, K texts, L text length, H W height and width, D width of a tower, P of the common
space. Either tower may stand alone, with its projection or without. Names are those of
transformers' `CLIPModel`.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_lang.models.text_encoder import TextEncoder, TextSpec
from vision_lang.models.vision_transformer import VisionSpec, VisionTransformer

Dtype = jnp.dtype


def unit(x: jax.Array) -> jax.Array:
    """[..., P] -> the same direction, of length 1."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class CLIP(nn.Module):
    """Texts and pictures -> vectors and their similarities.

    Attributes:
      text, vision: the sizes of the towers; None: there is no such tower.
      projection: P, or 0: without projections, which a tower alone may lack.
      vocab_size, max_length: rows of the text tower's tables.
      end: id of the token whose state stands for a text; None: the largest id of each.
      dtype: compute dtype of the towers; parameters are float32.
    """

    text: TextSpec | None
    vision: VisionSpec | None
    projection: int
    vocab_size: int = 0
    max_length: int = 0
    end: int | None = None
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        project = lambda: nn.Dense(self.projection, use_bias=False, dtype=jnp.float32)  # noqa: E731
        if self.text is not None:
            self.text_model = TextEncoder(self.text, self.vocab_size, self.max_length, self.dtype)
            if self.projection:
                self.text_projection = project()
        if self.vision is not None:
            self.vision_model = VisionTransformer(self.vision, self.dtype)
            if self.projection:
                self.visual_projection = project()
        if self.text is not None and self.vision is not None:
            init = nn.initializers.constant(2.6592)  # log(1 / 0.07)
            self.logit_scale = self.param("logit_scale", init, (), jnp.float32)

    def of_text(self, tokens: jax.Array, mask: jax.Array | None = None) -> dict[str, jax.Array]:
        """Of texts, int32 [B, L], with mask [B, L] or every position attended, as it was trained.

        Returns `last_hidden_state` [B, L, D] (behind the final norm), `pooler_output` [B, D] (its
        state at the first end token, or at the largest id), the intermediates `hidden_0` ... and,
        with a projection, `text_embeds` [B, P].
        """
        states, out = self.text_model(tokens, mask)
        ends = tokens if self.end is None else tokens == self.end
        pooled = jnp.take_along_axis(states, ends.argmax(-1)[:, None, None], axis=1)[:, 0]
        out |= {"last_hidden_state": states, "pooler_output": pooled}
        if self.projection:
            out["text_embeds"] = self.text_projection(pooled.astype(jnp.float32))
        return out

    def of_image(self, images: jax.Array) -> dict[str, jax.Array]:
        """Of preprocessed pictures, float32 [B, H, W, 3].

        Returns `last_hidden_state` [B, N + 1, D] (before the final norm), `pooler_output` [B, D]
        (the class token, behind it), the intermediates `hidden_0` ... and, with a projection,
        `image_embeds` [B, P].
        """
        states, out = self.vision_model(images)
        pooled = out.pop("pooled")
        out |= {"last_hidden_state": states, "pooler_output": pooled}
        if self.projection:
            out["image_embeds"] = self.visual_projection(pooled)
        return out

    def __call__(
        self,
        tokens: jax.Array,  # [K, L] int32
        images: jax.Array,  # [B, H, W, 3], preprocessed
        mask: jax.Array | None = None,  # [K, L]
    ) -> dict[str, jax.Array]:
        """Of both towers: `text_embeds` [K, P] and `image_embeds` [B, P] of length 1, and their
        scaled similarities `logits_per_image` [B, K] and `logits_per_text` [K, B]."""
        text = unit(self.of_text(tokens, mask)["text_embeds"])
        image = unit(self.of_image(images)["image_embeds"])
        similarity = jnp.exp(self.logit_scale) * image @ text.T
        return {
            "text_embeds": text,
            "image_embeds": image,
            "logits_per_image": similarity,
            "logits_per_text": similarity.T,
        }
