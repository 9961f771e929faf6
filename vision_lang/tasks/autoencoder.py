"""Image -> latents -> image: an autoencoder for latent diffusion (Rombach et al. 2022).

The loss of a picture x that comes back as y, which has N = H W 3 numbers in [-1, 1]:

    mean |x - y|  +  perceptual_weight P(x, y)  +  kl_weight KL / N

P is the distance in a VGG's features (`tasks/perceptual.py`), KL that of the latents' distribution
from the standard normal, summed over all latents. It is the paper's loss over N, so that the
weights mean what they mean there; its adversarial part is left out.

Shapes: B batch, H W height and width of the image, h w those of the latents, L their channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vision_lang import keys as random_keys
from vision_lang.models.autoencoder import Autoencoder
from vision_lang.tasks.diffusion import to_uint8
from vision_lang.tasks.encoder import part
from vision_lang.tasks.example import example_spec
from vision_lang.tasks.perceptual import Perceptual
from vision_lang.tasks.preprocessing import symmetric

Variables = Any
PIXELS = 3  # channels
BEST_PSNR = 100.0  # dB; a perfect picture's would be infinite

# config.error -> the error of a number in [-1, 1]
ERRORS: dict[str, Callable[[jax.Array], jax.Array]] = {"absolute": jnp.abs, "squared": jnp.square}


@dataclass(frozen=True, eq=False)
class AutoencoderTask:
    """The task. `autoencoder_config.from_config` builds it; nothing in it changes afterwards.

    perceptual: None where its weight is 0.
    error: a row of `ERRORS`.
    """

    net: Autoencoder
    perceptual: Perceptual | None
    error: Callable[[jax.Array], jax.Array]
    kl_weight: float
    perceptual_weight: float
    resolution: int

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of one example (without the batch axis)."""
        return example_spec(self.resolution)

    def init(self, key: jax.Array) -> Variables:
        """Returns {"params": {"autoencoder": ..., "perceptual": ...}, "batch_stats":
        {"perceptual": ...}}, what is perceptual where there is such a network."""
        own, other = jax.random.split(key)
        side = self.net.spec.factor
        made = self.net.init(own, jnp.zeros((1, side, side, PIXELS)))
        variables = {} if self.perceptual is None else self.perceptual.init(other)
        return variables | {"params": variables.get("params", {}) | {"autoencoder": made["params"]}}

    def loss(
        self,
        variables: Variables,
        batch: dict[str, jax.Array],
        keys: jax.Array,  # [B], one per example
        *,
        across: Any,
        train: bool,
    ) -> tuple[jax.Array, dict, dict[str, tuple[jax.Array, jax.Array]]]:
        """Returns the loss of each example [B], the collections that training leaves as they are,
        and metrics as (sum, count): `reconstruction`, `kl` (not divided by N), `perceptual`, and
        `psnr_drawn`, dB, of what comes back. Latents are drawn, also where nothing is trained."""
        del across
        x, weight = symmetric(batch["image"]), batch["weight"]
        side = self.resolution // self.net.spec.factor
        shape = side, side, self.net.spec.latent_channels
        draw = jax.vmap(lambda key: jax.random.normal(key, shape))
        noise = draw(random_keys.named(keys, "latents"))
        found: Any = self.net.apply(part(variables, "autoencoder"), x, noise)
        y = found["sample"]
        each = {"reconstruction": self.error(x - y).mean((1, 2, 3)), "kl": divergence(found)}
        losses = each["reconstruction"] + self.kl_weight * each["kl"] / x[0].size
        if self.perceptual is not None:
            each["perceptual"] = self.perceptual(variables, *(127.5 * (p + 1) for p in (x, y)))
            losses += self.perceptual_weight * each["perceptual"]
        each["psnr_drawn"] = psnr(((x - jnp.clip(y, -1, 1)) ** 2).mean((1, 2, 3)), 2.0)
        mutable = {name: tree for name, tree in variables.items() if name != "params"}
        metrics = {name: ((value * weight).sum(), weight.sum()) for name, value in each.items()}
        return losses, mutable if train else {}, metrics

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """uint8 [B, H, W, 3] -> `mean` and `logvar` of the latents, [B, h, w, L]."""
        found: Any = self.net.apply(
            part(variables, "autoencoder"), symmetric(images), method="encode"
        )
        return found

    def reconstruct(self, variables: Variables, images: jax.Array) -> jax.Array:
        """uint8 [B, H, W, 3] -> the same, by the means of the latents."""
        found: Any = self.net.apply(part(variables, "autoencoder"), symmetric(images))
        return to_uint8(found["sample"])


def divergence(found: dict[str, jax.Array]) -> jax.Array:
    """KL from N(mean, exp(logvar)), [B, h, w, L], to N(0, 1), summed over the latents, [B] nats
    (Kingma & Welling 2014, appendix B)."""
    mean, logvar = found["mean"], found["logvar"]
    return 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar).sum((1, 2, 3))


def psnr(squared_error: jax.Array, span: float) -> jax.Array:
    """Peak signal-to-noise ratio, dB, at most `BEST_PSNR`, of the mean squared error of pixels
    whose values lie `span` apart at most."""
    least = 10 ** (-BEST_PSNR / 10)
    return -10 * jnp.log10(jnp.maximum(squared_error / span**2, least))
