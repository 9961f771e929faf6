"""The text condition of a diffusion model: which tokens mean "no text", and who attends padding.

Shapes: B batch, L text length. The same object serves training, sampling and fine-tuning, so the
null text and the mask policy can't differ between them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MASK_POLICIES = {
    "masked": "padding is never attended; a longer padding leaves the output unchanged",
    "none": "every position is attended, as in Stable Diffusion",
}


class Condition(NamedTuple):
    """What a batch of images is drawn from: arrays with a leading batch axis."""

    tokens: jax.Array  # [B, L] int32
    mask: jax.Array  # [B, L] bool, True = a token of the text
    label: jax.Array  # [B] int32; the null class is the last row of the class table


class TextConditioning(NamedTuple):
    """Attributes:
    null_tokens, null_mask: the empty text, [L] int32 and [L] bool.
    policy: a row of MASK_POLICIES.
    null_label: the class that means "no label".
    """

    null_tokens: np.ndarray
    null_mask: np.ndarray
    policy: str
    null_label: int

    def null(self, batch: int) -> Condition:
        """Returns the condition that says nothing, for `batch` images."""
        return Condition(
            jnp.broadcast_to(jnp.asarray(self.null_tokens), (batch, len(self.null_tokens))),
            jnp.broadcast_to(jnp.asarray(self.null_mask), (batch, len(self.null_mask))),
            jnp.full((batch,), self.null_label, jnp.int32),
        )

    def drop(self, condition: Condition, dropped: jax.Array) -> Condition:
        """Replaces the conditions of the examples where `dropped` [B] is True by the null one."""
        null = self.null(dropped.shape[0])
        return Condition(
            jnp.where(dropped[:, None], null.tokens, condition.tokens),
            jnp.where(dropped[:, None], null.mask, condition.mask),
            jnp.where(dropped, null.label, condition.label),
        )

    def attended(self, mask: jax.Array) -> jax.Array | None:
        """Returns the mask that the networks get: `mask` [B, L], or None for "every position"."""
        return mask if self.policy == "masked" else None
