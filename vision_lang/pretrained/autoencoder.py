"""Stable Diffusion's autoencoder as diffusers publishes it (`AutoencoderKL`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vision_lang.errors import InputError
from vision_lang.models import autoencoder
from vision_lang.models.autoencoder import Autoencoder, AutoencoderSpec
from vision_lang.pretrained import layout, tensors
from vision_lang.pretrained.layout import CONV, DENSE, NORM, Row, under
from vision_lang.pretrained.options import Options

BLOCK = (
    Row("resnets.{}.norm1", "resnets_{}/norm1", NORM),
    Row("resnets.{}.conv1", "resnets_{}/conv1", CONV),
    Row("resnets.{}.norm2", "resnets_{}/norm2", NORM),
    Row("resnets.{}.conv2", "resnets_{}/conv2", CONV),
    Row("resnets.{}.conv_shortcut", "resnets_{}/conv_shortcut", CONV),
    Row("attentions.{}.group_norm", "attentions_{}/group_norm", NORM),
    Row("attentions.{}.to_q", "attentions_{}/to_q", DENSE),
    Row("attentions.{}.to_k", "attentions_{}/to_k", DENSE),
    Row("attentions.{}.to_v", "attentions_{}/to_v", DENSE),
    Row("attentions.{}.to_out.0", "attentions_{}/to_out_0", DENSE),
    Row("downsamplers.{}.conv", "downsamplers_{}_conv", CONV),
    Row("upsamplers.{}.conv", "upsamplers_{}_conv", CONV),
)
HALF = (
    Row("conv_in", "conv_in", CONV),
    *under(BLOCK, "down_blocks.{}", "down_blocks_{}"),
    *under(BLOCK, "mid_block", "mid_block"),
    *under(BLOCK, "up_blocks.{}", "up_blocks_{}"),
    Row("conv_norm_out", "conv_norm_out", NORM),
    Row("conv_out", "conv_out", CONV),
)
ROWS = (
    *under(HALF, "encoder", "encoder"),
    Row("quant_conv", "quant_conv", CONV),
    Row("post_quant_conv", "post_quant_conv", CONV),
    *under(HALF, "decoder", "decoder"),
)
# Files from before diffusers 0.17 name the projections of the attention otherwise.
OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, eq=False)
class PublishedAutoencoder:
    """Attributes:
    net: the network.
    scaling, shift: what a diffusion model sees of latents z is (z - shift) scaling.
    """

    net: Autoencoder
    scaling: float
    shift: float

    def apply(
        self, variables: Any, sample: jax.Array, noise: jax.Array | None = None
    ) -> dict[str, Any]:
        """sample [B, H, W, C] in [-1, 1] -> `mean` and `logvar` of its latents, the `latents` with
        `noise` (or their mean) [B, h, w, L], and `sample`, the images that they stand for."""
        found: Any = self.net.apply(variables, sample, noise)
        return found

    def encode(self, variables: Any, sample: jax.Array) -> dict[str, Any]:
        """sample [B, H, W, C] -> `mean` and `logvar` [B, h, w, L]."""
        found: Any = self.net.apply(variables, sample, method="encode")
        return found

    def decode(self, variables: Any, latents: jax.Array) -> dict[str, Any]:
        """latents [B, h, w, L], as `encode` gives them -> `sample` [B, H, W, C]."""
        return {"sample": self.net.apply(variables, latents, method="decode")}

    def shapes(self) -> Any:
        """Its variables as shapes."""
        side = self.net.spec.factor
        image = jnp.zeros((1, side, side, self.net.channels))
        return jax.eval_shape(lambda key: self.net.init(key, image), jax.random.key(0))

    def rows(self) -> tuple[Row, ...]:
        """The table of its layout."""
        return ROWS


def read(path: Any) -> tuple[PublishedAutoencoder, Any]:
    """Returns the network and its variables."""
    model = build(Options(tensors.config_beside(path), f"{path}: config.json"))
    pattern = re.compile(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)")

    def rename(name: str) -> str:
        match = pattern.fullmatch(name)
        return f"{match[1]}.{OLDER[match[2]]}.{match[3]}" if match and match[2] in OLDER else name

    return model, layout.read(tensors.open(path).renamed(rename), model.shapes(), ROWS)


def build(config: Options) -> PublishedAutoencoder:
    """Returns the network that a config.json describes."""
    config.demand(
        _class_name=("AutoencoderKL",),
        act_fn=("silu",),
        latents_mean=(None,),
        latents_std=(None,),
    )
    widths = tuple(config["block_out_channels"])
    for name in ("down_block_types", "up_block_types"):
        kind = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}[
            name
        ]
        if list(config[name]) != [kind] * len(widths):
            raise InputError(f"{config.source}: {name} other than {kind} are not built here.")
    if config.get("in_channels", 3) != config.get("out_channels", 3):
        raise InputError(f"{config.source}: in_channels and out_channels must be the same.")
    spec = AutoencoderSpec(
        widths=widths,
        layers=config.get("layers_per_block", 1),
        groups=config.get("norm_num_groups", 32),
        latent_channels=config.get("latent_channels", 4),
        mid_attention=config.get("mid_block_add_attention", True),
        use_quant_conv=config.get("use_quant_conv", True),
        use_post_quant_conv=config.get("use_post_quant_conv", True),
    )
    autoencoder.check(spec)
    net = Autoencoder(spec, config.get("in_channels", 3))
    return PublishedAutoencoder(
        net, config.get("scaling_factor", 0.18215), config.get("shift_factor", 0.0)
    )
