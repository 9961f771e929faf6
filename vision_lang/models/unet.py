"""Stable Diffusion's U-Net (Rombach et al. 2022), as in diffusers' UNet2DConditionModel.

Shapes: B batch, H W height and width, C channels, N = H*W tokens, L text length, D context width,
E width of the time embedding. Images are NHWC. The names of the sub-modules follow diffusers:
`down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q` is
`down_blocks_0/attentions_1/transformer_blocks_0/attn2/to_q`, and what holds a single layer there
is joined with it: `ff.net.0.proj` is `ff_net_0_proj`, `downsamplers.0.conv` `downsamplers_0_conv`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_lang.errors import InputError
from vision_lang.models.layers import (
    Dropout,
    Embed,
    attend,
    group_norm,
    layer_norm,
    position_features,
    timestep_embedding,
)

Dtype = jnp.dtype


@dataclass(frozen=True)
class UNetSpec:
    """Sizes of a U-Net; one entry per resolution level, finest first.

    Attributes:
      widths: channels of each level (`block_out_channels`).
      depth: transformer layers of each attention; 0 = a level without attention.
      heads: attention heads of each level. The configs of Stable Diffusion 1.x call this number
        `attention_head_dim`.
      layers: residual blocks of each level on the way down; one more on the way up.
      groups: groups of the group norms.
      linear_projection: tokens enter and leave a transformer by a dense layer (2.x) instead of a
        1x1 convolution (1.x).
      scale_shift: the time scales and shifts what leaves a residual block's second norm (Dhariwal &
        Nichol 2021), instead of being added before it; diffusers' `resnet_time_scale_shift`.
      positions: sines and cosines of a pixel's place are channels of the input. Without them only
        the padding of convolutions tells where a pixel is, which few levels don't carry far.
      pooled_text: the mean of the text joins the time embedding, and so reaches every pixel: what
        the background is, how many objects there are. (SDXL adds CLIP's pooled text there.)
      dropout: in the residual blocks, behind the second norm.
      zero_init: residual branches and the output start at zero. Only training from nothing cares.
    """

    widths: tuple[int, ...]
    depth: tuple[int, ...]
    heads: tuple[int, ...]
    layers: int = 2
    groups: int = 32
    linear_projection: bool = False
    scale_shift: bool = False
    positions: bool = False
    pooled_text: bool = False
    dropout: float = 0.0
    zero_init: bool = True


UNETS = {
    # For tests, whose time is what it takes to compile: the middle alone attends.
    "tiny": UNetSpec(
        (8,), depth=(0,), heads=(2,), layers=1, groups=4, positions=True, pooled_text=True
    ),
    # For patches of 4x4 pixels: a CPU is at its best in the products of few, wide rows.
    "small": UNetSpec(
        (64,), depth=(1,), heads=(2,), layers=1, groups=8, positions=True, pooled_text=True
    ),
    "sd15": UNetSpec((320, 640, 1280, 1280), depth=(1, 1, 1, 0), heads=(8, 8, 8, 8)),
    "sd21": UNetSpec(
        (320, 640, 1280, 1280), depth=(1, 1, 1, 0), heads=(5, 10, 20, 20), linear_projection=True
    ),
}


def check(spec: UNetSpec) -> None:
    """Raises InputError for sizes that do not fit together."""
    levels = len(spec.widths)
    if not levels or {len(spec.depth), len(spec.heads)} != {levels}:
        raise InputError(
            f"The U-Net's widths={spec.widths}, depth={spec.depth} and heads={spec.heads} must "
            "have one entry for each level."
        )
    # The middle attends too, with the last level's heads.
    depths = (*spec.depth[:-1], 1)
    for width, depth, heads in zip(spec.widths, depths, spec.heads, strict=True):
        if width % spec.groups:
            raise InputError(
                f"The U-Net's width {width} is no multiple of its groups={spec.groups}."
            )
        if depth and width % heads:
            raise InputError(f"The U-Net's width {width} is no multiple of its {heads} heads.")


def _last_kernel_init(spec: UNetSpec):
    return nn.initializers.zeros if spec.zero_init else nn.initializers.lecun_normal()


class TimestepMLP(nn.Module):
    """Sinusoidal embedding -> [B, E]."""

    width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        h = nn.Dense(self.width, dtype=self.dtype, name="linear_1")(embedding.astype(self.dtype))
        return nn.Dense(self.width, dtype=self.dtype, name="linear_2")(nn.silu(h))


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions around the time embedding, [B, H, W, C_in] -> [B, H, W, width]."""

    spec: UNetSpec
    width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, keys: jax.Array | None) -> jax.Array:
        spec = self.spec
        h = nn.silu(group_norm(spec.groups, 1e-5, "norm1")(x)).astype(self.dtype)
        h = nn.Conv(self.width, (3, 3), padding=1, dtype=self.dtype, name="conv1")(h)
        outputs = 2 * self.width if spec.scale_shift else self.width
        time = nn.Dense(outputs, dtype=self.dtype, name="time_emb_proj")(nn.silu(time))
        time = time[:, None, None]
        norm = group_norm(spec.groups, 1e-5, "norm2")
        if spec.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + time)
        h = nn.silu(h).astype(self.dtype)
        h = Dropout(spec.dropout, name="dropout")(h, keys)
        h = nn.Conv(
            self.width,
            (3, 3),
            padding=1,
            dtype=self.dtype,
            kernel_init=_last_kernel_init(spec),
            name="conv2",
        )(h)
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Attention of tokens [B, N, C] over a context [B, M, D] (or over themselves)."""

    heads: int
    dtype: Dtype
    fused: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        dense = lambda name: nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name=name)  # noqa: E731
        q, k, v = dense("to_q")(x), dense("to_k")(context), dense("to_v")(context)
        out = attend(q, k, v, self.heads, mask=mask, fused=self.fused)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="to_out_0")(out)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward with GEGLU (Shazeer 2020); pre-norm."""

    heads: int
    dtype: Dtype
    fused: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, mask: jax.Array | None) -> jax.Array:
        width = x.shape[-1]
        norm = lambda name: layer_norm(1e-5, name)(x).astype(self.dtype)  # noqa: E731
        h = norm("norm1")
        x = x + Attention(self.heads, self.dtype, self.fused, name="attn1")(h, h)
        x = x + Attention(self.heads, self.dtype, self.fused, name="attn2")(
            norm("norm2"), context, mask
        )
        value, gate = jnp.split(
            nn.Dense(8 * width, dtype=self.dtype, name="ff_net_0_proj")(norm("norm3")), 2, -1
        )
        h = value * jax.nn.gelu(gate, approximate=False)
        return x + nn.Dense(width, dtype=self.dtype, name="ff_net_2")(h)


class Transformer(nn.Module):
    """`depth` transformer blocks over the pixels of a feature map, residual around them all."""

    spec: UNetSpec
    depth: int
    heads: int
    dtype: Dtype
    fused: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, mask: jax.Array | None) -> jax.Array:
        batch, height, width, channels = x.shape
        # A 1x1 convolution is a dense layer on pixels; only the published kernel shapes differ.
        project = lambda name, **kw: (  # noqa: E731
            nn.Dense(channels, dtype=self.dtype, name=name, **kw)
            if self.spec.linear_projection
            else nn.Conv(channels, (1, 1), dtype=self.dtype, name=name, **kw)
        )
        h = group_norm(self.spec.groups, 1e-6, "norm")(x).astype(self.dtype)
        h = project("proj_in")(h).reshape(batch, height * width, channels)
        for i in range(self.depth):
            h = TransformerBlock(
                self.heads, self.dtype, self.fused, name=f"transformer_blocks_{i}"
            )(h, context, mask)
        h = h.reshape(batch, height, width, channels)
        return x + project("proj_out", kernel_init=_last_kernel_init(self.spec))(h)


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by a transformer where depth > 0.

    On the way down it returns every block's output; on the way up it takes the skips of the
    mirrored level, last first.
    """

    spec: UNetSpec
    level: int
    layers: int
    dtype: Dtype
    fused: bool = False
    downsample: bool = False
    upsample_to: tuple[int, int] | None = None  # the size of the skip that comes next

    @nn.compact
    def __call__(self, x, time, context, mask, keys, skips=None):
        spec, outputs = self.spec, []
        width, depth, heads = (row[self.level] for row in (spec.widths, spec.depth, spec.heads))
        for i in range(self.layers):
            if skips is not None:
                x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
            x = ResnetBlock(spec, width, self.dtype, name=f"resnets_{i}")(x, time, keys)
            if depth:
                x = Transformer(spec, depth, heads, self.dtype, self.fused, name=f"attentions_{i}")(
                    x, context, mask
                )
            outputs.append(x)
        if self.downsample:
            x = nn.Conv(
                width, (3, 3), strides=2, padding=1, dtype=self.dtype, name="downsamplers_0_conv"
            )(x)
            outputs.append(x)
        if self.upsample_to:  # doubled, and cut where the way down had rounded an odd size up
            rows, columns = self.upsample_to
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, :rows, :columns]
            x = nn.Conv(width, (3, 3), padding=1, dtype=self.dtype, name="upsamplers_0_conv")(x)
        return x, outputs


class MidBlock(nn.Module):
    """Residual block, transformer, residual block at the coarsest resolution."""

    spec: UNetSpec
    dtype: Dtype
    fused: bool = False

    @nn.compact
    def __call__(self, x, time, context, mask, keys):
        spec = self.spec
        width, heads = spec.widths[-1], spec.heads[-1]
        x = ResnetBlock(spec, width, self.dtype, name="resnets_0")(x, time, keys)
        # diffusers gives the middle one layer even where the coarsest level has none.
        x = Transformer(
            spec, max(spec.depth[-1], 1), heads, self.dtype, self.fused, name="attentions_0"
        )(x, context, mask)
        return ResnetBlock(spec, width, self.dtype, name="resnets_1")(x, time, keys)


class UNet(nn.Module):
    """Noisy images, times and a text -> the network's prediction, the shape of the images.

    Attributes:
      spec: the sizes, a row of `UNETS`.
      out_channels: channels of the prediction.
      num_classes: rows of the class table, whose row is added to the time embedding (the last row
        is the null class by convention of the task); 0 = no class condition.
      dtype: compute dtype; parameters are float32.
      remat: recompute each level in the backward pass instead of keeping its activations.
      fused: cuDNN's attention kernel.
    """

    spec: UNetSpec
    out_channels: int
    num_classes: int = 0
    dtype: Dtype = jnp.float32
    remat: bool = False
    fused: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,  # [B, H, W, C]
        time: jax.Array,  # [B], the scale the schedule's `network_time` gives
        context: jax.Array,  # [B, L, D]
        mask: jax.Array | None = None,  # [B, L] bool; None: every position is attended
        label: jax.Array | None = None,  # [B] int32
        keys: jax.Array | None = None,  # [B] dropout keys
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the prediction [B, H, W, out_channels] in float32, and the intermediates
        `down_i`, `mid`, `up_i` (feature maps, NHWC) and `time` [B, E]."""
        spec, levels = self.spec, len(self.spec.widths)
        level = functools.partial(
            nn.remat(Level) if self.remat else Level, spec, dtype=self.dtype, fused=self.fused
        )

        embedding = timestep_embedding(time, spec.widths[0])
        emb = TimestepMLP(4 * spec.widths[0], self.dtype, name="time_embedding")(embedding)
        if self.num_classes:
            assert label is not None, "a U-Net with classes wants labels"
            width = 4 * spec.widths[0]
            table = Embed(self.num_classes, width, width**-0.5, self.dtype, name="class_embedding")
            emb = emb + table(label)

        context = context.astype(self.dtype)
        if spec.pooled_text:
            pooled = jnp.mean(context, axis=1, where=None if mask is None else mask[..., None])
            emb = emb + nn.Dense(4 * spec.widths[0], dtype=self.dtype, name="add_embedding")(pooled)
        if spec.positions:
            places = position_features(*x.shape[1:3])
            places = jnp.broadcast_to(places, (*x.shape[:3], places.shape[-1]))
            x = jnp.concatenate([x, places.astype(x.dtype)], axis=-1)
        x = nn.Conv(spec.widths[0], (3, 3), padding=1, dtype=self.dtype, name="conv_in")(
            x.astype(self.dtype)
        )
        skips, out = [x], {"time": emb}
        for i in range(levels):
            down = level(
                level=i,
                layers=spec.layers,
                downsample=i < levels - 1,
                name=f"down_blocks_{i}",
            )
            x, outputs = down(x, emb, context, mask, keys)
            skips += outputs
            out[f"down_{i}"] = x
        x = MidBlock(spec, self.dtype, self.fused, name="mid_block")(x, emb, context, mask, keys)
        out["mid"] = x
        for i, lvl in enumerate(reversed(range(levels))):
            used, skips = skips[-(spec.layers + 1) :], skips[: -(spec.layers + 1)]
            rows, columns = skips[-1].shape[1:3] if lvl else (0, 0)
            up = level(
                level=lvl,
                layers=spec.layers + 1,
                upsample_to=(rows, columns) if lvl else None,
                name=f"up_blocks_{i}",
            )
            x, _ = up(x, emb, context, mask, keys, used)
            out[f"up_{i}"] = x
        x = nn.silu(group_norm(spec.groups, 1e-5, "conv_norm_out")(x)).astype(self.dtype)
        x = nn.Conv(
            self.out_channels,
            (3, 3),
            padding=1,
            dtype=self.dtype,
            kernel_init=_last_kernel_init(spec),
            name="conv_out",
        )(x)
        return x.astype(jnp.float32), out
