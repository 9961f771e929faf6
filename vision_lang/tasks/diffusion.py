"""Text (or label) -> image: the loss of a diffusion model and how it draws.

Shapes: B batch, H W height and width of what is diffused (the image, or its latents), C its
channels, L text length, D width of the text. Images are uint8 in batches and float32 in [-1, 1]
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vision_lang import keys as random_keys
from vision_lang.diffusion import guidance as guiding
from vision_lang.diffusion import prediction as predictions
from vision_lang.diffusion import samplers, schedules, spacing, time_sampling, weighting
from vision_lang.errors import choose
from vision_lang.models import layers
from vision_lang.models.sketch import Sketch, Sketched
from vision_lang.models.t5_encoder import T5Encoder
from vision_lang.models.text_encoder import TextEncoder
from vision_lang.models.unet import UNet
from vision_lang.tasks.conditioning import Condition, TextConditioning
from vision_lang.tasks.example import example_spec
from vision_lang.tasks.latents import Latents

Variables = Any
NOISE_BINS = 4  # the loss is logged for each quarter of t


@dataclass(frozen=True)
class Sampling:
    """How images are drawn; a row of choices that `generate` and the evaluators share."""

    sampler: str = "dpmpp_2m"
    steps: int = 30
    guidance: float = 3.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    spacing: str = "uniform"
    shift: float = 1.0
    clip: str = "static"
    eta: float = 0.0
    final_sigma: str = "zero"


class Encoded(NamedTuple):
    """A condition as the U-Net takes it: arrays with a leading batch axis.

    context, mask: the text's vectors [B, L, D], and which of them may be attended (None: all).
    sketch: the mean of the pictures that the text fits, with hints; None = there is none.
    label: [B] int32.
    """

    context: jax.Array
    mask: jax.Array | None
    sketch: Sketched | None
    label: jax.Array


@dataclass(frozen=True, eq=False)
class Diffusion:
    """The task. `diffusion_config.from_config` builds it; nothing in it changes afterwards."""

    text_encoder: TextEncoder | T5Encoder
    unet: UNet
    sketch: Sketch
    latents: Latents
    schedule: schedules.Schedule
    prediction: predictions.Prediction
    times: time_sampling.TimeSampling
    weight: weighting.Weighting
    gradient_weight: float
    mean_weight: float
    sketch_weight: float
    conditioning: TextConditioning
    condition: str
    caption_drop: float
    patch: int
    resolution: int
    batch_size: int

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of one example (without the batch axis)."""
        length = len(self.conditioning.null_tokens)
        spec = example_spec(self.resolution, text_length=length, label=True)
        if self.latents.kept:
            del spec["image"]
            moments = jax.ShapeDtypeStruct(self.shape, jnp.float32)
            spec |= {"latent_mean": moments, "latent_logvar": moments}
        return spec

    def init(self, key: jax.Array) -> Variables:
        """Returns {"params": {"text_encoder": ..., "unet": ...}} of fresh float32 parameters, and
        of the "sketch" and the "autoencoder" where there are any."""
        text_key, unet_key, sketch_key = jax.random.split(key, 3)
        null = self.conditioning.null(1)
        text = self.text_encoder.init(text_key, null.tokens)
        context, _ = self.text_encoder.apply(text, null.tokens)
        side, _, channels = self.shape
        channels += 3 + self.sketch.spec.hints if self.sketches else 0
        side //= self.patch
        x = jnp.zeros((1, side, side, channels * self.patch**2))
        unet = self.unet.init(unet_key, x, jnp.zeros(1), context, null.mask, null.label)
        params = {"text_encoder": text["params"], "unet": unet["params"]}
        params |= self.latents.init(jax.random.fold_in(key, 3))
        if self.sketches:
            params["sketch"] = self.sketch.init(sketch_key, context, null.mask)["params"]
        return {"params": params}

    @property
    def shape(self) -> tuple[int, int, int]:
        """[H, W, C] of what is diffused."""
        return self.latents.shape(self.resolution)

    @property
    def sketches(self) -> bool:
        """Whether texts are sketched."""
        return self.sketch.spec.layers > 0

    def condition_of(self, batch: dict[str, jax.Array]) -> Condition:
        """Returns what the images of a batch are to be drawn from."""
        return self.make_condition(batch["tokens"], batch["text_mask"], batch["label"])

    def make_condition(self, tokens: jax.Array, mask: jax.Array, label: jax.Array) -> Condition:
        """Keeps what `condition` names and replaces the other by its null value."""
        null = self.conditioning.null(tokens.shape[0])
        if self.condition == "label":
            return Condition(null.tokens, null.mask, jnp.where(label < 0, null.label, label))
        return Condition(tokens, mask, null.label)

    def loss(
        self,
        variables: Variables,
        batch: dict[str, jax.Array],
        keys: jax.Array,  # [B], one per example
        *,
        across: Any,
        train: bool,
    ) -> tuple[jax.Array, dict, dict[str, tuple[jax.Array, jax.Array]]]:
        """Returns the loss of each example [B], new mutable collections (none), and metrics as
        (sum, count) pairs: the loss in each quarter of t, and that of the sketch.

        In training the times come from `times` and conditions are dropped; otherwise (validation)
        the times are a fixed low-discrepancy sequence over the examples, without drops.
        """
        draw = random_keys.named(keys, "latents") if train else None
        x0 = self.latents.of_batch(variables, batch, draw)
        condition, dropout = self.condition_of(batch), None
        if train:
            t = self.times(
                self.schedule,
                random_keys.named(keys, "times"),
                batch["index"],
                self.batch_size,
                batch["progress"],
            )
            drop_keys = random_keys.named(keys, "caption drop")
            dropped = jax.vmap(lambda k: jax.random.bernoulli(k, self.caption_drop))(drop_keys)
            condition = self.conditioning.drop(condition, dropped)
            dropout = random_keys.named(keys, "dropout")
        else:
            t = fixed_times(self.schedule, batch["index"])
        encoded = self.encode(variables, condition, dropout)

        weight = batch["weight"]
        losses = self._denoising(variables, x0, t, encoded, keys, dropout)  # [B]
        metrics = self._loss_by_noise(losses, t, weight)
        if encoded.sketch is not None:
            missed = weighting.squared_error(encoded.sketch.picture - x0, mean=self.mean_weight)
            metrics["loss_sketch"] = ((missed * weight).sum(), weight.sum())
            losses = losses + self.sketch_weight * missed
        return losses, {}, metrics

    def _denoising(self, variables, x0, t, encoded, keys, dropout) -> jax.Array:
        """The U-Net's loss at the times t [B]; returns [B]."""
        noise_keys = random_keys.named(keys, "noise")
        eps = jax.vmap(lambda k: jax.random.normal(k, x0.shape[1:]))(noise_keys)
        level = self.schedule.level(t)
        x_t = predictions.add_noise(x0, eps, level)
        scale = schedules.expand(self.schedule.input_scale(t), x_t)
        time = self.schedule.network_time(t)
        output = self.network(variables, scale * x_t, time, encoded, dropout)

        target = self.prediction.target(x0, eps, level.alpha, level.sigma)
        # At much noise the picture's mean is uncertain, above all the background where the text
        # leaves it open, and would drown what else is to be learned.
        mean_weight = level.alpha + (1.0 - level.alpha) * self.mean_weight
        error = weighting.squared_error(
            output - target, self.gradient_weight * level.alpha, mean_weight
        )
        return self.weight(self.prediction, self.schedule.log_snr(t)) * error

    def _loss_by_noise(self, losses: jax.Array, t: jax.Array, weight: jax.Array) -> dict:
        low, high = self.schedule.t_min, self.schedule.t_max
        which = jnp.clip((t - low) / (high - low) * NOISE_BINS, 0, NOISE_BINS - 1).astype(jnp.int32)
        inside = jax.nn.one_hot(which, NOISE_BINS, axis=0) * weight  # [NOISE_BINS, B]
        return {
            f"loss_t{(i + 0.5) / NOISE_BINS:.3f}": ((inside[i] * losses).sum(), inside[i].sum())
            for i in range(NOISE_BINS)
        }

    def encode(
        self, variables: Variables, condition: Condition, dropout: jax.Array | None = None
    ) -> Encoded:
        """Returns the condition as the U-Net takes it."""
        mask = self.conditioning.attended(condition.mask)
        params = variables["params"]
        context, _ = self.text_encoder.apply(
            {"params": params["text_encoder"]}, condition.tokens, mask, dropout
        )
        sketch: Any = None
        if self.sketches:
            sketch = self.sketch.apply({"params": params["sketch"]}, context, mask)
        return Encoded(context, mask, sketch, condition.label)

    def text_layers(
        self, variables: Variables, tokens: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """Every named intermediate of the text encoder, and the `states` that the U-Net looks at,
        each [B, L, D]."""
        params = {"params": variables["params"]["text_encoder"]}
        made: Any = self.text_encoder.apply(params, tokens, self.conditioning.attended(mask))
        states, found = made
        return found | {"states": states}

    def network(self, variables, x, time, encoded: Encoded, dropout=None) -> jax.Array:
        """The U-Net on x [B, H, W, C], or on patches of it as channels."""
        params = {"params": variables["params"]["unet"]}
        if encoded.sketch is not None:
            # The picture is learned from the pictures alone and so stays their mean.
            picture = jax.lax.stop_gradient(encoded.sketch.picture)
            x = jnp.concatenate([x, picture, encoded.sketch.hints], axis=-1)
        x = layers.space_to_depth(x, self.patch)
        output, _ = self.unet.apply(
            params, x, time, encoded.context, encoded.mask, encoded.label, dropout
        )
        return layers.depth_to_space(output, self.patch)

    def denoiser(
        self, variables: Variables, condition: Condition, sampling: Sampling
    ) -> predictions.Denoiser:
        """Returns (x, level) -> x0 with guidance and clipping; the texts are encoded once, here."""

        def denoise(x, level, encoded):
            network = lambda x, time: self.network(variables, x, time, encoded)  # noqa: E731
            return predictions.make_denoiser(network, self.schedule, self.prediction)(x, level)

        null = self.conditioning.null(condition.tokens.shape[0])
        inputs, null_inputs = (self.encode(variables, c) for c in (condition, null))
        guided = guiding.guided(
            denoise, inputs, null_inputs, sampling.guidance, sampling.interval, sampling.rescale
        )
        return predictions.clipped(guided, sampling.clip)

    def sample(
        self, variables: Variables, condition: Condition, keys: jax.Array, sampling: Sampling
    ) -> jax.Array:
        """Draws one image per condition, [B, R, R, 3] float32 in about [-1, 1]; `keys` [B] decide
        it."""
        levels = self.levels(sampling)
        noise_keys = random_keys.named(keys, "noise")
        x = samplers.initial_noise(noise_keys, self.shape, levels)
        denoiser = self.denoiser(variables, condition, sampling)
        x = samplers.sample(make_sampler(sampling), denoiser, levels, x, noise_keys)
        return self.latents.decode(variables, x)

    def levels(self, sampling: Sampling) -> schedules.Level:
        """The noise levels of `sampling`, arrays [steps + 1]."""
        space = spacing.make_spacing(sampling.spacing, sampling.shift)
        times = space(self.schedule, sampling.steps)
        return spacing.levels(self.schedule, times, final_sigma=sampling.final_sigma)


def make_sampler(sampling: Sampling) -> samplers.Sampler:
    """Returns the sampler by name; `eta` is DDIM's alone."""
    return samplers.make_sampler(
        sampling.sampler, **({"eta": sampling.eta} if sampling.sampler == "ddim" else {})
    )


def to_uint8(x: jax.Array) -> jax.Array:
    """float [-1, 1] -> uint8 [0, 255], clipped and rounded."""
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def fixed_times(schedule: schedules.Schedule, index: jax.Array) -> jax.Array:
    """Validation's t of each example: multiples of the golden ratio modulo 1, in [t_min, t_max].

    Any run of consecutive examples covers the range evenly.
    """
    golden = 0.6180339887498949
    u = jnp.mod(index.astype(jnp.float32) * golden + 0.5, 1.0)
    return schedule.t_min + (schedule.t_max - schedule.t_min) * u


def check_sampling(task: Diffusion, sampling: Sampling) -> None:
    """Raises InputError for an unknown sampler, spacing, final_sigma or clip, or for steps below
    1."""
    make_sampler(sampling)
    task.levels(sampling)
    choose(predictions.CLIPS, sampling.clip, "clipping of x0")
