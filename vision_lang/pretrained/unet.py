"""Stable Diffusion's U-Net as diffusers publishes it (`UNet2DConditionModel`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vision_lang.errors import InputError
from vision_lang.models import unet
from vision_lang.models.unet import UNet, UNetSpec
from vision_lang.pretrained import layout, tensors
from vision_lang.pretrained.layout import CONV, DENSE, NORM, TABLE, Row, under
from vision_lang.pretrained.options import Options, as_mask

RESNET = (
    Row("resnets.{}.norm1", "resnets_{}/norm1", NORM),
    Row("resnets.{}.conv1", "resnets_{}/conv1", CONV),
    Row("resnets.{}.time_emb_proj", "resnets_{}/time_emb_proj", DENSE),
    Row("resnets.{}.norm2", "resnets_{}/norm2", NORM),
    Row("resnets.{}.conv2", "resnets_{}/conv2", CONV),
    Row("resnets.{}.conv_shortcut", "resnets_{}/conv_shortcut", CONV),
)
TOKENS = tuple(
    Row(
        f"attentions.{{}}.transformer_blocks.{{}}.{theirs}",
        f"attentions_{{}}/transformer_blocks_{{}}/{ours}",
        leaves,
    )
    for theirs, ours, leaves in (
        ("norm1", "norm1", NORM),
        ("attn1.to_q", "attn1/to_q", DENSE),
        ("attn1.to_k", "attn1/to_k", DENSE),
        ("attn1.to_v", "attn1/to_v", DENSE),
        ("attn1.to_out.0", "attn1/to_out_0", DENSE),
        ("norm2", "norm2", NORM),
        ("attn2.to_q", "attn2/to_q", DENSE),
        ("attn2.to_k", "attn2/to_k", DENSE),
        ("attn2.to_v", "attn2/to_v", DENSE),
        ("attn2.to_out.0", "attn2/to_out_0", DENSE),
        ("norm3", "norm3", NORM),
        ("ff.net.0.proj", "ff_net_0_proj", DENSE),
        ("ff.net.2", "ff_net_2", DENSE),
    )
)


def rows(linear_projection: bool) -> tuple[Row, ...]:
    """The table; tokens enter and leave a transformer by a 1x1 convolution (1.x) or a dense layer
    (2.x)."""
    project = DENSE if linear_projection else CONV
    block = (
        *RESNET,
        Row("attentions.{}.norm", "attentions_{}/norm", NORM),
        Row("attentions.{}.proj_in", "attentions_{}/proj_in", project),
        *TOKENS,
        Row("attentions.{}.proj_out", "attentions_{}/proj_out", project),
        Row("downsamplers.{}.conv", "downsamplers_{}_conv", CONV),
        Row("upsamplers.{}.conv", "upsamplers_{}_conv", CONV),
    )
    return (
        Row("conv_in", "conv_in", CONV),
        Row("time_embedding.linear_1", "time_embedding/linear_1", DENSE),
        Row("time_embedding.linear_2", "time_embedding/linear_2", DENSE),
        Row("class_embedding", "class_embedding", TABLE),
        *under(block, "down_blocks.{}", "down_blocks_{}"),
        *under(block, "mid_block", "mid_block"),
        *under(block, "up_blocks.{}", "up_blocks_{}"),
        Row("conv_norm_out", "conv_norm_out", NORM),
        Row("conv_out", "conv_out", CONV),
    )


@dataclass(frozen=True, eq=False)
class PublishedUNet:
    """Attributes:
    net: the network.
    in_channels: of the noisy latents.
    context_width: of the text's vectors.
    """

    net: UNet
    in_channels: int
    context_width: int

    def apply(
        self,
        variables: Any,
        sample: jax.Array,  # [B, H, W, C]
        timesteps: jax.Array,  # [B]
        encoder_hidden_states: jax.Array,  # [B, L, D]
        encoder_attention_mask: jax.Array | None = None,  # [B, L]
        class_labels: jax.Array | None = None,  # [B] int32
    ) -> dict[str, jax.Array]:
        """Returns `sample` [B, H, W, out_channels]."""
        mask = as_mask(encoder_attention_mask)
        time = jnp.broadcast_to(jnp.asarray(timesteps, jnp.float32), sample.shape[:1])
        made: Any = self.net.apply(
            variables, sample, time, encoder_hidden_states, mask, class_labels
        )
        return {"sample": made[0]}

    def shapes(self) -> Any:
        """Its variables as shapes."""
        x = jnp.zeros((1, 8, 8, self.in_channels))
        text, label = jnp.zeros((1, 1, self.context_width)), jnp.zeros((1,), jnp.int32)
        init = lambda key: self.net.init(key, x, jnp.zeros((1,)), text, None, label)  # noqa: E731
        return jax.eval_shape(init, jax.random.key(0))

    def rows(self) -> tuple[Row, ...]:
        """The table of its layout."""
        return rows(self.net.spec.linear_projection)


def read(path: Any) -> tuple[PublishedUNet, Any]:
    """Returns the network and its variables."""
    model = build(Options(tensors.config_beside(path), f"{path}: config.json"))
    return model, layout.read(tensors.open(path), model.shapes(), model.rows())


def build(config: Options) -> PublishedUNet:
    """Returns the network that a config.json describes."""
    config.demand(
        _class_name=("UNet2DConditionModel",),
        act_fn=("silu",),
        addition_embed_type=(None,),
        attention_type=("default",),
        center_input_sample=(False,),
        class_embed_type=(None,),
        class_embeddings_concat=(False,),
        conv_in_kernel=(3,),
        conv_out_kernel=(3,),
        cross_attention_norm=(None,),
        downsample_padding=(1,),
        dual_cross_attention=(False,),
        encoder_hid_dim=(None,),
        encoder_hid_dim_type=(None,),
        flip_sin_to_cos=(True,),
        freq_shift=(0,),
        mid_block_only_cross_attention=(None, False),
        mid_block_scale_factor=(1, 1.0),
        mid_block_type=("UNetMidBlock2DCrossAttn",),
        norm_eps=(1e-5,),
        num_attention_heads=(None,),
        only_cross_attention=(False,),
        resnet_out_scale_factor=(1.0, 1),
        resnet_skip_time_act=(False,),
        resnet_time_scale_shift=("default", "scale_shift"),
        reverse_transformer_layers_per_block=(None,),
        time_cond_proj_dim=(None,),
        time_embedding_act_fn=(None,),
        time_embedding_dim=(None,),
        time_embedding_type=("positional",),
        timestep_post_act=(None,),
    )
    widths = tuple(config["block_out_channels"])
    levels = len(widths)
    kinds = config["down_block_types"]
    known = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    mirrored = [k.replace("Down", "Up") for k in reversed(kinds)]
    if not set(kinds) <= known.keys() or mirrored != list(config["up_block_types"]):
        raise InputError(
            f"{config.source}: blocks {kinds} and {config['up_block_types']} are not built here: "
            f"{' and '.join(known)} are, with the way up as the mirror of the way down."
        )
    each = lambda x: tuple(x) if isinstance(x, list | tuple) else (x,) * levels  # noqa: E731
    layers = set(each(config.get("layers_per_block", 2)))
    if len(layers) != 1:
        raise InputError(f"{config.source}: layers_per_block must be the same on all levels.")
    depth = each(config.get("transformer_layers_per_block", 1))
    if not known[kinds[-1]] and depth[-1] != 1:
        raise InputError(f"{config.source}: a middle of {depth[-1]} layers below a level without.")
    spec = UNetSpec(
        widths=widths,
        depth=tuple(d * known[kind] for d, kind in zip(depth, kinds, strict=True)),
        # Named wrongly, as the number of heads has been since Stable Diffusion 1.
        heads=each(config.get("attention_head_dim", 8)),
        layers=layers.pop(),
        groups=config.get("norm_num_groups", 32),
        linear_projection=config.get("use_linear_projection", False),
        scale_shift=config.get("resnet_time_scale_shift", "default") == "scale_shift",
        dropout=config.get("dropout", 0.0),
    )
    unet.check(spec)
    context = each(config.get("cross_attention_dim", 1280))
    if len(set(context)) != 1:
        raise InputError(f"{config.source}: cross_attention_dim must be the same on all levels.")
    net = UNet(
        spec, config.get("out_channels", 4), num_classes=config.get("num_class_embeds", None) or 0
    )
    return PublishedUNet(net, config.get("in_channels", 4), context[0])
