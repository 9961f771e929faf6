"""A classifier by angle, which trains features that are compared by cosine.

Shapes: B batch, D width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_lang.errors import choose


def cosface(cosine: jax.Array, margin: float) -> jax.Array:
    """cos(theta) - m (Wang et al. 2018, CosFace, eq. 4)."""
    return cosine - margin


def arcface(cosine: jax.Array, margin: float) -> jax.Array:
    """cos(theta + m) (Deng et al. 2019, ArcFace, eq. 3).

    Beyond theta = pi - m the cosine would rise again: there a straight line goes on downwards,
    touching it, so that a larger angle is never better.
    """
    sine = jnp.sqrt(jnp.maximum(1.0 - jnp.square(cosine), 1e-12))
    moved = cosine * math.cos(margin) - sine * math.sin(margin)
    return jnp.where(cosine > -math.cos(margin), moved, cosine + math.cos(margin) - 1.0)


MARGINS: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "cosface": cosface,
    "arcface": arcface,
}


@dataclass(frozen=True)
class MarginSpec:
    """kind: a row of MARGINS, "none" = an ordinary head; width: D of the features that are
    compared; scale: s, what cosines are multiplied by; margin: m, in radians for arcface."""

    kind: str = "none"
    width: int = 128
    scale: float = 30.0
    margin: float = 0.35


class MarginHead(nn.Module):
    """Pooled features -> unit vectors, and the cosines of their angles to one vector per class."""

    spec: MarginSpec
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """x [B, E]; label [B] int32 in training, which gets the margin. Returns the logits [B, C]
        and the features [B, D] of length 1, float32."""
        normal = nn.initializers.normal
        features = nn.Dense(self.spec.width, use_bias=False, name="embedding")(x)
        features = unit(features.astype(jnp.float32))
        table = self.param("classes", normal(1.0), (self.classes, self.spec.width), jnp.float32)
        cosine = jnp.clip(features @ unit(table).T, -1.0, 1.0)
        if label is not None:
            harder = choose(MARGINS, self.spec.kind, "margin")(cosine, self.spec.margin)
            cosine = jnp.where(jax.nn.one_hot(label, self.classes) > 0, harder, cosine)
        return self.spec.scale * cosine, features


def unit(x: jax.Array) -> jax.Array:
    """x over its length along the last axis."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))
