"""Where a diffusion model works: on pixels, or on an autoencoder's latents (Rombach et al. 2022).

Shapes: B batch, R side of the image, S side of what is diffused, C its channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vision_lang.data import augment
from vision_lang.errors import InputError, choose
from vision_lang.models import autoencoder
from vision_lang.models.autoencoder import Autoencoder, AutoencoderSpec
from vision_lang.models.layers import Dtype
from vision_lang.tasks.preprocessing import symmetric

Variables = Any
PIXELS = 3  # channels


@dataclass(frozen=True, eq=False)
class Latents:
    """Images <-> what is diffused. The autoencoder's variables stand under "autoencoder".

    net: None: pixels themselves.
    scaling, shift: what is diffused of latents z is (z - shift) scaling.
    kept: batches have what `moments` gives, in place of images.
    """

    net: Autoencoder | None
    scaling: float = 1.0
    shift: float = 0.0
    kept: bool = False

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
        return self.draw(*self.moments(variables, images), keys)

    def moments(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """images [B, R, R, 3] in [-1, 1] -> mean and log-variance of their latents, [B, S, S, C],
        before scaling and shift."""
        found: Any = self.net.apply(self._own(variables), images, method="encode")  # type: ignore[union-attr]
        return found["mean"], found["logvar"]

    def draw(self, mean: jax.Array, logvar: jax.Array, keys: jax.Array | None) -> jax.Array:
        """What `encode` makes of `moments`."""
        latents = mean
        if keys is not None:
            noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
            latents = latents + jnp.exp(0.5 * logvar) * noise
        return jax.lax.stop_gradient((latents - self.shift) * self.scaling)

    def of_batch(
        self, variables: Variables, batch: dict[str, jax.Array], keys: jax.Array | None
    ) -> jax.Array:
        """The same of a batch, whose rows are uint8 images or what is kept of these."""
        if "latent_mean" in batch:
            return self.draw(batch["latent_mean"], batch["latent_logvar"], keys)
        return self.encode(variables, symmetric(batch["image"]), keys)

    def decode(self, variables: Variables, x: jax.Array) -> jax.Array:
        """[B, S, S, C] -> images [B, R, R, 3], about in [-1, 1]."""
        if self.net is None:
            return x
        latents = x / self.scaling + self.shift
        images: Any = self.net.apply(self._own(variables), latents, method="decode")
        return images

    def _own(self, variables: Variables) -> Variables:
        return {"params": variables["params"]["autoencoder"]}


def make_latents(config: ConfigDict, data: ConfigDict, dtype: Dtype, remat: bool) -> Latents:
    """Builds what config.model.autoencoder describes; widths=() are pixels.

    Args:
      data: config.data.

    Raises:
      InputError: sizes that do not fit together, a scaling of 0, latents to be kept where there are
        none or where each epoch has other pictures.
    """
    kept = "cache_latents" in data and data.cache_latents  # not in runs older than it
    fields = dict(config)
    scaling, shift = fields.pop("scaling"), fields.pop("shift")
    spec = AutoencoderSpec(**fields)
    if not spec.widths:
        if kept:
            raise InputError(
                "data.cache_latents is for diffusion on an autoencoder's latents: give the "
                "config's argument, --config=configs/diffusion.py:autoencoder=small."
            )
        return Latents(None)
    autoencoder.check(spec, data.resolution)
    if not scaling:
        raise InputError("model.autoencoder.scaling=0 leaves nothing of the latents.")
    if kept and choose(augment.CROPS, data.crop, "crop policy (data.crop)").random:
        raise InputError(
            f"data.crop={data.crop} makes other pictures in each epoch, whose latents cannot be "
            "kept: set data.crop=resize, or data.cache_latents=false."
        )
    return Latents(Autoencoder(spec, dtype=dtype, remat=remat), scaling, shift, kept)
