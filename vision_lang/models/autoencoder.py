"""Stable Diffusion's autoencoder (Rombach et al. 2022), as in diffusers' AutoencoderKL.

Shapes: B batch, H W height and width of the image, h w those of the latents, C channels of the
image, L channels of the latents, D channels of a feature map. Arrays are NHWC. The names of the
sub-modules follow diffusers: `encoder.down_blocks.0.resnets.1.conv1` is
`encoder/down_blocks_0/resnets_1/conv1`, and what holds a single layer there is joined with it:
`downsamplers.0.conv` is `downsamplers_0_conv`, `to_out.0` `to_out_0`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_lang.errors import InputError
from vision_lang.models.layers import attend, group_norm

Dtype = jnp.dtype
EPSILON = 1e-6  # of all norms
LOGVAR = (-30.0, 20.0)  # the range of the latents' log-variance


@dataclass(frozen=True)
class AutoencoderSpec:
    """Sizes of an autoencoder.

    Attributes:
      widths: channels of each level, finest first (`block_out_channels`). A level has half the
        height and width of the one before.
      layers: residual blocks of each level of the encoder (`layers_per_block`); the decoder's have
        one more.
      groups: groups of the group norms.
      latent_channels: L.
      mid_attention: the coarsest level attends to itself (`mid_block_add_attention`).
      use_quant_conv, use_post_quant_conv: a 1x1 convolution behind the encoder, and one before the
        decoder.
    """

    widths: tuple[int, ...]
    layers: int = 2
    groups: int = 32
    latent_channels: int = 4
    mid_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @property
    def factor(self) -> int:
        """H / h: pixels along a side that share one place of the latents."""
        return 2 ** (len(self.widths) - 1)


AUTOENCODERS = {
    "none": AutoencoderSpec(()),  # pixels themselves
    # For tests, whose time is what it takes to compile.
    "tiny": AutoencoderSpec((8, 8), layers=1, groups=4),
    # For 32 px on a CPU, whose time is that of the finest level: twice as wide takes four times
    # as long.
    "small": AutoencoderSpec((16, 32, 64), layers=1, groups=8),
    # Stable Diffusion 1.x and 2.x.
    "sd": AutoencoderSpec((128, 256, 512, 512)),
}


def check(spec: AutoencoderSpec, side: int | None = None) -> None:
    """Raises InputError for sizes that do not fit together, and for pictures of `side` pixels that
    would not come back in the same size."""
    if not spec.widths or min(spec.layers, spec.latent_channels) < 1:
        raise InputError(
            f"The autoencoder's widths={spec.widths}, layers={spec.layers} and latent_channels="
            f"{spec.latent_channels} must be at least one each."
        )
    for width in spec.widths:
        if width % spec.groups:
            raise InputError(
                f"The autoencoder's width {width} is no multiple of its groups={spec.groups}."
            )
    if side is not None and side % spec.factor:
        raise InputError(
            f"data.resolution={side} is no multiple of {spec.factor}, by which an autoencoder of "
            f"{len(spec.widths)} levels makes pictures smaller."
        )


def conv3x3(features: int, dtype: Dtype, name: str) -> nn.Conv:
    """A 3x3 convolution that keeps height and width; `Conv3x3` is no faster at the sizes here."""
    return nn.Conv(features, (3, 3), padding=1, dtype=dtype, name=name)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions behind their norms, [B, h, w, D] -> [B, h, w, width]."""

    spec: AutoencoderSpec
    width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x
        for i in (1, 2):
            h = nn.silu(group_norm(self.spec.groups, EPSILON, f"norm{i}")(h)).astype(self.dtype)
            h = conv3x3(self.width, self.dtype, f"conv{i}")(h)
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Self-attention of all places with one head, residual, [B, h, w, D] -> the same."""

    spec: AutoencoderSpec
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = lambda name: nn.Dense(x.shape[-1], dtype=self.dtype, name=name)  # noqa: E731
        h = group_norm(self.spec.groups, EPSILON, "group_norm")(x).astype(self.dtype)
        h = h.reshape(x.shape[0], -1, x.shape[-1])
        h = attend(dense("to_q")(h), dense("to_k")(h), dense("to_v")(h), heads=1)
        return x + dense("to_out_0")(h).reshape(x.shape)


class Level(nn.Module):
    """The residual blocks of one resolution, and the step to the next, where there is one."""

    spec: AutoencoderSpec
    width: int
    layers: int
    dtype: Dtype
    downsample: bool = False
    upsample: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = ResnetBlock(self.spec, self.width, self.dtype, name=f"resnets_{i}")(x)
        if self.downsample:  # padded to the right and below only; an odd size is rounded down
            layer = functools.partial(nn.Conv, strides=2, padding=((0, 1), (0, 1)))
            x = layer(self.width, (3, 3), dtype=self.dtype, name="downsamplers_0_conv")(x)
        if self.upsample:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = conv3x3(self.width, self.dtype, "upsamplers_0_conv")(x)
        return x


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    spec: AutoencoderSpec
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.spec.widths[-1]
        x = ResnetBlock(self.spec, width, self.dtype, name="resnets_0")(x)
        if self.spec.mid_attention:
            x = Attention(self.spec, self.dtype, name="attentions_0")(x)
        return ResnetBlock(self.spec, width, self.dtype, name="resnets_1")(x)


class Encoder(nn.Module):
    """Images [B, H, W, C] -> mean and log-variance, before the 1x1 convolution, [B, h, w, 2 L]."""

    spec: AutoencoderSpec
    dtype: Dtype
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        spec, last = self.spec, len(self.spec.widths) - 1
        level = nn.remat(Level) if self.remat else Level
        x = conv3x3(spec.widths[0], self.dtype, "conv_in")(x)
        for i, width in enumerate(spec.widths):
            down = functools.partial(level, downsample=i < last, name=f"down_blocks_{i}")
            x = down(spec, width, spec.layers, self.dtype)(x)
        x = MidBlock(spec, self.dtype, name="mid_block")(x)
        x = nn.silu(group_norm(spec.groups, EPSILON, "conv_norm_out")(x))
        return conv3x3(2 * spec.latent_channels, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
    """Latents, behind the 1x1 convolution, [B, h, w, L] -> images [B, H, W, C]."""

    spec: AutoencoderSpec
    channels: int
    dtype: Dtype
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        spec, last = self.spec, len(self.spec.widths) - 1
        level = nn.remat(Level) if self.remat else Level
        x = conv3x3(spec.widths[-1], self.dtype, "conv_in")(x)
        x = MidBlock(spec, self.dtype, name="mid_block")(x)
        for i, width in enumerate(reversed(spec.widths)):
            up = functools.partial(level, upsample=i < last, name=f"up_blocks_{i}")
            x = up(spec, width, spec.layers + 1, self.dtype)(x)
        x = nn.silu(group_norm(spec.groups, EPSILON, "conv_norm_out")(x))
        return conv3x3(self.channels, self.dtype, "conv_out")(x)


class Autoencoder(nn.Module):
    """Images -> a normal distribution of latents -> images.

    Latents are as the encoder gives them: whoever diffuses them shifts and scales them.

    Attributes:
      spec: the sizes, a row of `AUTOENCODERS`.
      channels: C.
      dtype: compute dtype; parameters, and all that is returned, are float32.
      remat: recompute each level in the backward pass instead of keeping its activations.
    """

    spec: AutoencoderSpec
    channels: int = 3
    dtype: Dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        spec, point = self.spec, functools.partial(nn.Conv, kernel_size=(1, 1), dtype=self.dtype)
        self.encoder = Encoder(spec, self.dtype, self.remat)
        self.decoder = Decoder(spec, self.channels, self.dtype, self.remat)
        if spec.use_quant_conv:
            self.quant_conv = point(2 * spec.latent_channels)
        if spec.use_post_quant_conv:
            self.post_quant_conv = point(spec.latent_channels)

    def encode(self, images: jax.Array) -> dict[str, jax.Array]:
        """Images [B, H, W, C] in [-1, 1] -> `mean` and `logvar`, [B, h, w, L].

        Sizes are halved and rounded down from level to level, as in diffusers: what an image has
        beyond a multiple of `spec.factor` is seen in part and does not come back.

        Raises:
          InputError: a side is shorter than `spec.factor`.
        """
        spec = self.spec
        if min(images.shape[1:3]) < spec.factor:
            raise InputError(
                f"The autoencoder makes nothing of pictures of {images.shape[2]}x{images.shape[1]} "
                f"pixels: each side needs {spec.factor} at least."
            )
        moments = self.encoder(images)
        if spec.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return {"mean": mean, "logvar": jnp.clip(logvar, *LOGVAR)}

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents [B, h, w, L] -> images [B, h * factor, w * factor, C], about in [-1, 1]."""
        if self.spec.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, images: jax.Array, noise: jax.Array | None = None) -> dict[str, jax.Array]:
        """Encodes images [B, H, W, C], draws latents with `noise` [B, h, w, L] of a standard normal
        distribution, or takes the mean without, and decodes them.

        Returns `mean`, `logvar`, `latents` [B, h, w, L] and `sample`, the images decoded.
        """
        out = self.encode(images)
        latents = out["mean"]
        if noise is not None:
            latents = latents + jnp.exp(0.5 * out["logvar"]) * noise
        return out | {"latents": latents, "sample": self.decode(latents)}
