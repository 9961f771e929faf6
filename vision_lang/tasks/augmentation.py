"""Augmentation on the device, as pure functions of pictures and one key per example.

Shapes: B batch, H W height and width, C classes. Pictures are uint8 [B, H, W, 3] before and float32
on [0, 255] afterwards. What changes a picture's size or mirrors it is done by the readers of the
data (data/augment.py), keyed by the same (seed, step, row); what is here would cost them more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from vision_lang import keys as random_keys
from vision_lang.errors import InputError

LUMA = (0.299, 0.587, 0.114)  # of R, G, B (ITU-R BT.601)
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # Zhong et al. 2020, section 4.1


@dataclass(frozen=True)
class Augmentation:
    """What is done to training pictures, in this order; 0 switches a row off.

    pad: the picture is moved by up to so many pixels along each axis; what comes in is the mirror
      image of the border (He et al. 2016, section 4.2, who fill with zeros).
    brightness, contrast, saturation: each is multiplied by 1 + u, u uniform in [-value, value].
    erase: probability that a rectangle becomes noise (Zhong et al. 2020).
    mixup, cutmix: the a of Beta(a, a), which gives the share of the picture and of its label that
      stay when it is mixed with its partner's (Zhang et al. 2018; Yun et al. 2019). With both, a
      picture has one or the other, half each.
    """

    pad: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def pictures(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Everything that concerns one picture alone. [B, H, W, 3] uint8 -> float32."""
        x = images.astype(jnp.float32)
        if self.pad:
            x = jax.vmap(lambda p, k: shift(p, k, self.pad))(x, random_keys.named(keys, "shift"))
        if self.brightness or self.contrast or self.saturation:
            strengths = (self.brightness, self.contrast, self.saturation)
            x = jax.vmap(lambda p, k: jitter(p, k, strengths))(x, random_keys.named(keys, "jitter"))
        if self.erase:
            x = jax.vmap(lambda p, k: erase(p, k, self.erase))(x, random_keys.named(keys, "erase"))
        return x

    def mix(
        self, x: jax.Array, targets: jax.Array, weight: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mixes pictures [B, H, W, 3] and targets [B, C] of rows 2k and 2k + 1, each its own way.

        The partners are fixed places of the global batch, so that they are on one device as long
        as a device's rows are even in number. A row whose partner counts nothing stays as it is.

        Raises:
          InputError: they are odd in number.
        """
        if not (self.mixup or self.cutmix):
            return x, targets
        if x.shape[0] % 2:
            raise InputError(
                f"mixup and cutmix mix pictures in pairs, but a device has {x.shape[0]} of them at "
                "a time: choose another batch_size."
            )
        swap = lambda a: a.reshape(-1, 2, *a.shape[1:])[:, ::-1].reshape(a.shape)  # noqa: E731
        masks = jax.vmap(lambda k: self._share(k, x.shape[1:3]))(random_keys.named(keys, "mix"))
        masks = jnp.where((swap(weight) > 0)[:, None, None], masks, 1.0)  # [B, H, W]
        share = masks.mean((1, 2))[:, None]
        x = masks[..., None] * x + (1 - masks[..., None]) * swap(x)
        return x, share * targets + (1 - share) * swap(targets)

    def _share(self, key: jax.Array, size: Sequence[int]) -> jax.Array:
        """How much of each pixel stays, [H, W]."""
        which, beta, box = jax.random.split(key, 3)
        shares = [jax.random.beta(beta, a, a) for a in (self.mixup, self.cutmix) if a]
        flat = jnp.full(size, shares[0])
        cut = 1.0 - rectangle(box, size, 1.0 - shares[-1], 1.0)
        if self.mixup and self.cutmix:
            return jnp.where(jax.random.bernoulli(which), flat, cut)
        return flat if self.mixup else cut


def shift(picture: jax.Array, key: jax.Array, most: int) -> jax.Array:
    """Moves [H, W, 3] by up to `most` pixels along each axis, uniformly."""
    padded = jnp.pad(picture, ((most, most), (most, most), (0, 0)), mode="symmetric")
    down, right = jax.random.randint(key, (2,), 0, 2 * most + 1)
    return jax.lax.dynamic_slice(padded, (down, right, 0), picture.shape)


def jitter(picture: jax.Array, key: jax.Array, strengths: tuple[float, ...]) -> jax.Array:
    """Brightness, contrast (about the mean luma) and saturation (about each pixel's luma)."""
    u = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    bright, contrast, saturation = 1.0 + u * jnp.asarray(strengths)
    luma = lambda x: (x * jnp.asarray(LUMA)).sum(-1, keepdims=True)  # noqa: E731
    x = jnp.clip(picture * bright, 0, 255)
    middle = luma(x).mean()
    x = jnp.clip(middle + (x - middle) * contrast, 0, 255)
    return jnp.clip(luma(x) + (x - luma(x)) * saturation, 0, 255)


def erase(picture: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """With `probability` a rectangle of [H, W, 3] becomes uniform noise."""
    happens, area, aspect, box, noise = jax.random.split(key, 5)
    share = jax.random.uniform(area, minval=ERASED_AREA[0], maxval=ERASED_AREA[1])
    low, high = (jnp.log(a) for a in ERASED_ASPECT)
    ratio = jnp.exp(jax.random.uniform(aspect, minval=low, maxval=high))
    inside = rectangle(box, picture.shape[:2], share, ratio)
    inside *= jax.random.bernoulli(happens, probability)
    fill = jax.random.uniform(noise, picture.shape, maxval=255.0)
    return jnp.where(inside[..., None] > 0, fill, picture)


def rectangle(
    key: jax.Array, size: Sequence[int], share: jax.Array, ratio: jax.Array | float
) -> jax.Array:
    """1 inside of a rectangle about a uniformly drawn pixel, 0 outside, [H, W].

    share: of the picture's area; ratio: height over width, relative to the picture's own. What
    reaches beyond the border is cut off (Yun et al. 2019), so that the area may be smaller.
    """
    height, width = size
    high, wide = height * jnp.sqrt(share * ratio), width * jnp.sqrt(share / ratio)
    y, x = jax.random.uniform(key, (2,)) * jnp.asarray([height, width])
    rows = jnp.abs(jnp.arange(height) + 0.5 - y) < high / 2
    columns = jnp.abs(jnp.arange(width) + 0.5 - x) < wide / 2
    return (rows[:, None] & columns[None, :]).astype(jnp.float32)
