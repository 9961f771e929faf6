"""A training step of text to image: U-Net, text encoder, noise and loss, against the usual script
with diffusers' UNet2DConditionModel and transformers' CLIPTextModel.

Both predict the noise of Stable Diffusion's schedule, drop no caption, mask no padding and keep no
average. sd15 learns the U-Net alone, of 64x64x4 latents that are kept, as fine-tuning does.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from experiments.speed import floors, ours, peers
from experiments.speed.case import OURS, Case, Contest, Options

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCALING = 0.18215  # of Stable Diffusion's latents


class Size(NamedTuple):
    """How large a case is.

    side: pixels, or latents.
    batch: on a CPU, on a GPU.
    text: width, layers and heads of the text encoder.
    """

    name: str
    side: int
    batch: tuple[int, int]
    unet: dict[str, Any]
    text: tuple[int, int, int]
    vocabulary: int = 512
    length: int = 32

    def rows(self, options: Options) -> int:
        """Examples in a batch."""
        return options.size(*self.batch, small=2)

    def tried(self, options: Options) -> Size:
        """The size itself, or one that compiles in seconds."""
        if not options.small:
            return self
        unet = dict(widths=(8, 16), depth=(0, 1), heads=(2, 2), groups=4, layers=1)
        return self._replace(side=8, unet=unet, text=(16, 1, 2), vocabulary=64)

    @property
    def channels(self) -> int:
        """Of what is diffused."""
        return 4 if self.name == "sd15" else 3

    def specs(self) -> tuple[Any, Any]:
        """Of our U-Net and our text encoder."""
        from vision_lang.models.text_encoder import TextSpec
        from vision_lang.models.unet import UNetSpec

        return UNetSpec(**self.unet), TextSpec(*self.text)


SMALL = Size(
    "small",
    32,
    (64, 256),
    dict(widths=(32, 64, 96), depth=(0, 1, 1), heads=(4, 4, 4), groups=8),
    (64, 2, 4),
)
MEDIUM = Size(
    "medium",
    64,
    (4, 64),
    dict(widths=(128, 256, 384), depth=(0, 1, 1), heads=(8, 8, 8)),
    (256, 4, 4),
)
SD15 = Size(
    "sd15",
    64,
    (1, 16),
    dict(widths=(320, 640, 1280, 1280), depth=(1, 1, 1, 0), heads=(8, 8, 8, 8)),
    (768, 12, 12),
    vocabulary=49408,
    length=77,
)


def config(size: Size, options: Options) -> Any:
    """configs/diffusion.py at this size, with the usual loss and optimizer."""
    from ml_collections import ConfigDict

    from configs import diffusion
    from vision_lang.models.sketch import SKETCHES

    latents = size.name == "sd15"
    found = diffusion.get_config("size=sd15" if latents else "size=small")
    unet, text = size.specs()
    found.batch_size = size.rows(options)
    found.cpu_devices = min(2, options.threads)
    found.caption_drop, found.text_mask = 0.0, "none"
    found.data.resolution = size.side * (8 if latents else 1)
    found.data.text_length, found.data.cache_latents = size.length, latents
    found.model.unet = ConfigDict(dataclasses.asdict(unet))
    found.model.text = ConfigDict(dataclasses.asdict(text))
    found.model.sketch = ConfigDict(dataclasses.asdict(SKETCHES["none"]))
    found.model.patch = 1
    gpu = options.device == "cuda"
    found.model.dtype, found.model.fused_attention = "bfloat16" if gpu else "float32", gpu
    found.diffusion.update(
        schedule="scaled_linear", prediction="epsilon", weighting="uniform", gradient_weight=0.0,
        mean_weight=1.0, time_sampling="uniform",
    )  # fmt: skip
    found.sampling.update(sampler="ddim", steps=30, guidance=3.0, spacing="trailing", shift=1.0)
    found.sampling.update(eta=0.0, clip="none")
    ours.optimizer(found)
    if latents:
        found.optimizer.frozen = ("autoencoder/.*", "text_encoder/.*")
    return found


def hand(size: Size) -> int:
    """Operations of the forward pass on one example; of a text encoder that learns, its too."""
    unet, text = size.specs()
    return floors.unet(unet, size.side, size.channels, size.length, text.width)


def _ours(options: Options, size: Size) -> Contest:
    size = size.tried(options)
    made = ours.training(
        config(size, options), ours.facts(vocabulary=size.vocabulary, length=size.length), options
    )
    learned = hand(size)
    frozen = floors.text(size.specs()[1], size.length)
    counted = 3 * learned + (1 if size.name == "sd15" else 3) * frozen
    return made._replace(flops={**made.flops, "hand": size.rows(options) * counted})


def networks(size: Size) -> dict[str, Any]:
    """The U-Net and the text encoder of the peers."""
    import diffusers
    import transformers

    unet, text = size.specs()
    kinds = ["CrossAttn" * bool(depth) for depth in unet.depth]
    return {
        "unet": diffusers.UNet2DConditionModel(
            sample_size=size.side,
            in_channels=size.channels,
            out_channels=size.channels,
            down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
            up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
            block_out_channels=unet.widths,
            layers_per_block=unet.layers,
            norm_num_groups=unet.groups,
            cross_attention_dim=text.width,
            attention_head_dim=unet.heads[0],
        ),
        "text": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=size.vocabulary,
                hidden_size=text.width,
                intermediate_size=4 * text.width,
                num_hidden_layers=text.layers,
                num_attention_heads=text.heads,
                max_position_embeddings=size.length,
                bos_token_id=0,
                eos_token_id=1,
            )
        ),
    }


def _peer(options: Options, compiled: bool, last: bool, size: Size) -> Contest:
    torch, size = peers.set_up(options), size.tried(options)
    import diffusers

    made, rows = networks(size), size.rows(options)
    scheduler = diffusers.DDPMScheduler(**BETAS)
    latents = size.name == "sd15"
    of = {"device": options.device}
    tokens = torch.randint(size.vocabulary, (rows, size.length), **of)
    if latents:
        made["text"].requires_grad_(False)
        mean = torch.randn(rows, 4, size.side, size.side, **of)
        deviation = torch.exp(0.5 * torch.randn(mean.shape, **of))
    pictures = torch.randint(256, (rows, size.side, size.side, 3), dtype=torch.uint8, **of)

    def loss(made):
        if latents:
            x = SCALING * (mean + deviation * torch.randn_like(mean))
        else:
            x = pictures.permute(0, 3, 1, 2) / 127.5 - 1.0
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        noise = torch.randn_like(x)
        t = torch.randint(1000, (rows,), **of)
        context = made["text"](tokens).last_hidden_state
        found = made["unet"](scheduler.add_noise(x, noise, t), t, context).sample
        return torch.nn.functional.mse_loss(found.float(), noise)

    return peers.training(made, loss, options, compiled=compiled, last=last)


def saved(made: dict[str, Any], folder: str) -> dict[str, Any]:
    """The peers' networks as ours: what vision_lang.pretrained reads of their files."""
    from vision_lang import pretrained

    for name, network in made.items():
        network.save_pretrained(f"{folder}/{name}")
    return {
        "unet": pretrained.load("unet", f"{folder}/unet"),
        "text": pretrained.load("clip_text", f"{folder}/text"),
    }


def agree(options: Options, size: Size) -> dict[str, float]:
    """Loss and gradient of the U-Net from the same weights, as relative differences."""
    torch, size = peers.set_up(options), size.tried(options)
    import jax
    import jax.numpy as jnp
    import optax

    made = networks(size)
    unet, variables = saved(made, options.scratch)["unet"]
    rng = np.random.default_rng(0)
    shape = (2, size.side, size.side, size.channels)
    x, noise = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    text = rng.normal(size=(2, size.length, size.text[0])).astype(np.float32)
    t = np.asarray([3, 700])

    def our_loss(variables):
        found = unet.apply(variables, jnp.asarray(x), jnp.asarray(t), jnp.asarray(text))
        return jnp.square(found["sample"] - noise).mean()

    value, gradient = jax.jit(jax.value_and_grad(our_loss))(variables)
    nchw = lambda a: torch.tensor(a).permute(0, 3, 1, 2)  # noqa: E731
    found = made["unet"](nchw(x), torch.tensor(t), torch.tensor(text)).sample
    theirs = torch.nn.functional.mse_loss(found, nchw(noise))
    theirs.backward()
    norm = torch.nn.utils.clip_grad_norm_(made["unet"].parameters(), 1.0)
    return differences(
        loss=(float(value), float(theirs)),
        gradient_norm=(float(optax.tree.norm(gradient)), float(norm)),
    )


def differences(**pairs: tuple[float, float]) -> dict[str, float]:
    """How far apart the two of each pair are; raises where it is more than rounding."""
    found = {name: abs(a - b) / abs(b) for name, (a, b) in pairs.items()}
    assert max(found.values()) < 1e-3, found
    return found


def _case(what: str, size: Size, target: float | None = None, devices=("cpu", "cuda")) -> Case:
    return Case(
        what,
        {
            OURS: functools.partial(_ours, size=size),
            **peers.sides(functools.partial(_peer, size=size)),
        },
        functools.partial(agree, size=size),
        target,
        devices,
    )


CASES = {
    "unet_small": _case("training step, U-Net of 32/64/96 channels, 32 px, batch 64", SMALL, 0.8),
    "unet_medium": _case("training step, U-Net of 128/256/384 channels, 64 px, batch 4", MEDIUM),
    "unet_sd15": _case(
        "training step, Stable Diffusion 1.5's U-Net on 64x64x4 latents, batch 16",
        SD15,
        devices=("cuda",),
    ),
}
