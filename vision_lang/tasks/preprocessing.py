"""From stored pixels to what a network was made for. Shapes: uint8 [B, H, W, 3] RGB in.

Which row a network wants is a fact about its weights: a run stores it in its config, and a network
that begins with another run's weights keeps that run's (Keras's VGG wants blue first and no scale,
torchvision's the opposite; either is silently wrong with the other's).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vision_lang.errors import choose

RGB = tuple[float, float, float]
Preprocess = Callable[[jax.Array], jax.Array]  # uint8 [B, H, W, 3] -> float32, same shape
# Of ImageNet's training pictures: RGB on [0, 1], and BGR on [0, 255] as Caffe's first networks.
TORCHVISION_MEAN, TORCHVISION_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
# Of CLIP's training pictures, RGB on [0, 1].
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# What libraries write beside weights, of [0, 1] -> the row of PREPROCESSINGS.
NORMALISED = {
    (CLIP_MEAN, CLIP_STD): "clip",
    (TORCHVISION_MEAN, TORCHVISION_STD): "torchvision",
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)): "symmetric",
}


def symmetric(images: jax.Array) -> jax.Array:
    """To [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def torchvision(images: jax.Array) -> jax.Array:
    """To [0, 1], then less the mean and over the deviation of ImageNet, for each channel."""
    return _normalised(images, TORCHVISION_MEAN, TORCHVISION_STD)


def clip(images: jax.Array) -> jax.Array:
    """The same of CLIP's training pictures (Radford et al. 2021)."""
    return _normalised(images, CLIP_MEAN, CLIP_STD)


def keras(images: jax.Array) -> jax.Array:
    """Blue, green, red; less ImageNet's mean; not scaled ("caffe" mode)."""
    return images[..., ::-1].astype(jnp.float32) - np.array(CAFFE_MEAN_BGR, np.float32)


def _normalised(images: jax.Array, mean: RGB, std: RGB) -> jax.Array:
    x = images.astype(jnp.float32) / 255.0
    return (x - np.array(mean, np.float32)) / np.array(std, np.float32)


PREPROCESSINGS: dict[str, Preprocess] = {
    "symmetric": symmetric,
    "torchvision": torchvision,
    "keras": keras,
    "clip": clip,
}


def make_preprocessing(name: str) -> Preprocess:
    """Returns the row `name` of `PREPROCESSINGS`."""
    return choose(PREPROCESSINGS, name, "preprocessing (config.model.preprocessing)")
