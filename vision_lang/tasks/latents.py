"""Where a diffusion model works: on pixels, or on an autoencoder's latents (Rombach et al. 2022).

Shapes: B batch, R side of the image, S side of what is diffused, C its channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vision_lang.errors import InputError
from vision_lang.models import autoencoder
from vision_lang.models.autoencoder import Autoencoder, AutoencoderSpec
from vision_lang.models.layers import Dtype

Variables = Any
PIXELS = 3  # channels


@dataclass(frozen=True, eq=False)
class Latents:
    """Images <-> what is diffused. The autoencoder's variables stand under "autoencoder".

    net: None: pixels themselves.
    scaling, shift: what is diffused of latents z is (z - shift) scaling.
    """

    net: Autoencoder | None
    scaling: float = 1.0
    shift: float = 0.0

    def shape(self, resolution: int) -> tuple[int, int, int]:
        """[S, S, C] of what is diffused for images of `resolution` pixels a side."""
        if self.net is None:
            return resolution, resolution, PIXELS
        side = resolution // self.net.spec.factor
        return side, side, self.net.spec.latent_channels

    def init(self, key: jax.Array) -> Variables:
        """Returns {"autoencoder": parameters}, or {} for pixels."""
        if self.net is None:
            return {}
        side = self.net.spec.factor
        made = self.net.init(key, jnp.zeros((1, side, side, PIXELS)))
        return {"autoencoder": made["params"]}

    def encode(
        self, variables: Variables, images: jax.Array, keys: jax.Array | None = None
    ) -> jax.Array:
        """images [B, R, R, 3] in [-1, 1] -> [B, S, S, C]; latents are drawn with keys [B], or are
        the means without. No gradient reaches the autoencoder."""
        if self.net is None:
            return images
        found: Any = self.net.apply(self._own(variables), images, method="encode")
        latents = found["mean"]
        if keys is not None:
            noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))(keys)
            latents = latents + jnp.exp(0.5 * found["logvar"]) * noise
        return jax.lax.stop_gradient((latents - self.shift) * self.scaling)

    def decode(self, variables: Variables, x: jax.Array) -> jax.Array:
        """[B, S, S, C] -> images [B, R, R, 3], about in [-1, 1]."""
        if self.net is None:
            return x
        latents = x / self.scaling + self.shift
        images: Any = self.net.apply(self._own(variables), latents, method="decode")
        return images

    def _own(self, variables: Variables) -> Variables:
        return {"params": variables["params"]["autoencoder"]}


def make_latents(config: ConfigDict, resolution: int, dtype: Dtype, remat: bool) -> Latents:
    """Builds what config.model.autoencoder describes; widths=() are pixels.

    Raises:
      InputError: sizes that do not fit together, or a scaling of 0.
    """
    fields = dict(config)
    scaling, shift = fields.pop("scaling"), fields.pop("shift")
    spec = AutoencoderSpec(**fields)
    if not spec.widths:
        return Latents(None)
    autoencoder.check(spec, resolution)
    if not scaling:
        raise InputError("model.autoencoder.scaling=0 leaves nothing of the latents.")
    return Latents(Autoencoder(spec, dtype=dtype, remat=remat), scaling, shift)
