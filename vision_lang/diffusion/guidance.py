"""Classifier-free guidance (Ho & Salimans 2022), on estimates of x0.

Every prediction type is linear in x0 at a given x_t, so guiding x0 equals guiding epsilon, v or
flow. Scale 1 is the conditional model, 0 the unconditional one, both exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vision_lang.diffusion.prediction import Denoiser
from vision_lang.diffusion.schedules import Level

Array = Any
Interval = tuple[float, float]
EVERYWHERE = (0.0, 1.0)


def guide(
    conditional: Array,
    null: Array,
    scale: Array | float,
    level: Level,
    interval: Interval = EVERYWHERE,
    rescale: float = 0.0,
) -> jax.Array:
    """Combines the two estimates of x0 [B, H, W, C].

    Args:
      scale: guidance, 1 = conditional; a number or a scalar array.
      interval: the t (lowest, highest) within which guidance acts; the conditional model holds
      outside
        (Kynkaanniemi et al. 2024, whose interval of sigma maps to t by the schedule's inverse).
      rescale: phi of Lin et al. 2024, section 3.4: the share of the guided image that is brought
      back
        to the standard deviation of the conditional one (here of x0, per image).
    """
    # The two-term form is exact at scale 1 and at scale 0.
    guided_x0 = scale * conditional + (1.0 - scale) * null
    if rescale:
        axes = tuple(range(1, conditional.ndim))
        ratio = conditional.std(axes, keepdims=True) / guided_x0.std(axes, keepdims=True)
        guided_x0 = guided_x0 * (rescale * ratio + (1.0 - rescale))
    if tuple(interval) == EVERYWHERE:
        return guided_x0
    inside = (level.t >= interval[0]) & (level.t <= interval[1])
    return jnp.where(inside, guided_x0, conditional)


def guided(
    denoise: Callable[[Array, Level, Any], Array],
    condition: Any,
    null: Any,
    scale: Array | float,
    interval: Interval = EVERYWHERE,
    rescale: float = 0.0,
) -> Denoiser:
    """Returns the guided denoiser (x, level) -> x0.

    Args:
      denoise: (x [n, H, W, C], level of scalars, condition) -> x0; called once per level with both
        halves concatenated (n = 2 B), or with one half (n = B) where scale is exactly 1 or 0.
      condition, null: trees of arrays [B, ...] with the same shapes.
      scale, interval, rescale: as in `guide`. With a Python number for scale, a half without weight
        is not computed; a traced scalar changes the guidance without another compilation.
    """
    known = isinstance(scale, int | float)
    if known and scale == 1.0:
        return lambda x, level: denoise(x, level, condition)
    if known and scale == 0.0 and tuple(interval) == EVERYWHERE and not rescale:
        return lambda x, level: denoise(x, level, null)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), condition, null)

    def denoise_both(x, level):
        conditional, unconditional = jnp.split(denoise(jnp.concatenate([x, x]), level, both), 2)
        return guide(conditional, unconditional, scale, level, interval, rescale)

    return denoise_both
