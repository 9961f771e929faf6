"""How unlike two pictures are in the features of a network (Johnson et al. 2016), not in pixels.

Shapes: B batch, H W height and width of the image, h w those of a layer, C its channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose
from vision_lang.models import vgg
from vision_lang.models.layers import Dtype
from vision_lang.models.vgg import VGG, VGGSpec
from vision_lang.tasks.encoder import part
from vision_lang.tasks.preprocessing import make_preprocessing

Variables = Any
EPSILON = 1e-10  # beside the square of a vector's length


@dataclass(frozen=True, eq=False)
class Perceptual:
    """A VGG that is never trained. Its variables stand in a task's under the name "perceptual".

    layers: of `VGG`'s features, those that are compared.
    """

    net: VGG
    preprocess: Callable[[jax.Array], jax.Array]
    layers: tuple[str, ...]

    def init(self, key: jax.Array) -> Variables:
        """Returns {"params": {"perceptual": ...}}, and "batch_stats" where there are any."""
        made = self.net.init(key, jnp.zeros((1, vgg.SMALLEST, vgg.SMALLEST, 3)), train=False)
        return {name: {"perceptual": tree} for name, tree in made.items()}

    def __call__(self, variables: Variables, x: jax.Array, y: jax.Array) -> jax.Array:
        """[B, H, W, 3] twice, between 0 and 255 -> [B], 0 for equal pictures.

        The squared distance of the vectors of length 1 that a layer has at a place, averaged over
        places, summed over layers: equation 1 of LPIPS (Zhang et al. 2018) with w = 1. The gradient
        reaches the pictures alone.
        """
        own = jax.lax.stop_gradient(part(variables, "perceptual"))

        def units(images: jax.Array) -> list[jax.Array]:  # [B, h, w, C] each
            _, found = self.net.apply(own, self.preprocess(images), train=False)
            maps = [found[name].astype(jnp.float32) for name in self.layers]
            return [m * jax.lax.rsqrt((m**2).sum(-1, keepdims=True) + EPSILON) for m in maps]

        pairs = zip(units(x), units(y), strict=True)
        return jnp.stack([((a - b) ** 2).sum(-1).mean((1, 2)) for a, b in pairs]).sum(0)


def make_perceptual(config: ConfigDict, resolution: int, dtype: Dtype) -> Perceptual:
    """Builds what config.model.perceptual describes.

    Raises:
      InputError: an unknown name, no layer, or stages that leave nothing of the pictures.
    """
    fields = dict(config)
    preprocessing, layers = fields.pop("preprocessing"), fields.pop("layers")
    spec = VGGSpec(**fields, head="none")
    vgg.check(spec, resolution)
    made = Perceptual(VGG(spec, dtype=dtype), make_preprocessing(preprocessing), layers)
    image = jnp.zeros((1, resolution, resolution, 3))
    (_, known), _ = jax.eval_shape(
        lambda: made.net.init_with_output(jax.random.key(0), image, train=False)
    )
    for layer in layers:
        choose(known, layer, "layer (config.model.perceptual.layers)")
    if not layers:
        raise InputError("config.model.perceptual.layers=() compares nothing; name a layer.")
    return made
