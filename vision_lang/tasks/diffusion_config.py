"""From a config to the task of `tasks/diffusion.py`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import flax.traverse_util
import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vision_lang.diffusion import prediction as predictions
from vision_lang.diffusion import schedules, time_sampling, weighting
from vision_lang.errors import InputError, choose
from vision_lang.models import sketch, t5_encoder, text_encoder, unet
from vision_lang.models.layers import DTYPES, Dtype
from vision_lang.models.sketch import Sketch, SketchSpec
from vision_lang.models.t5_encoder import T5Encoder, T5Spec
from vision_lang.models.text_encoder import TextEncoder, TextSpec
from vision_lang.models.unet import UNet, UNetSpec
from vision_lang.tasks import diffusion as task_lib
from vision_lang.tasks.conditioning import MASK_POLICIES, TextConditioning
from vision_lang.tasks.facts import DataFacts
from vision_lang.tasks.latents import Latents, make_latents

CONDITIONS = {"text": "captions", "label": "classes"}


def from_config(config: ConfigDict, facts: DataFacts) -> task_lib.Diffusion:
    """Builds the task and checks every name and number of its config.

    Raises:
      InputError: an unknown name, an inadmissible (schedule, prediction), an image size that the
        patches do not divide, networks whose sizes do not fit together.
    """
    model, diffusion = config.model, config.diffusion
    choose(CONDITIONS, config.condition, "condition")
    choose(MASK_POLICIES, config.text_mask, "mask policy")
    if config.condition == "label" and not facts.num_classes:
        raise InputError("condition=label needs a data set with classes; this one has none.")
    if config.condition == "label" and model.sketch.layers:
        raise InputError(
            "condition=label gives a sketch no text to read: give the config's argument, "
            "--config=configs/diffusion.py:condition=label, or --config.model.sketch.layers=0."
        )
    unet_spec, sketch_spec = UNetSpec(**model.unet), SketchSpec(**model.sketch)
    unet.check(unet_spec)
    sketch.check(sketch_spec, config.data.resolution)
    schedule = schedules.make_schedule(diffusion.schedule)
    prediction = predictions.make_prediction(diffusion.prediction)
    predictions.check(schedule, prediction)
    normal = {"course": diffusion.time_course, "stratified": diffusion.time_stratified}
    time_arguments = {"logit_normal": normal, "log_normal": normal}
    weight_arguments = {
        **dict.fromkeys(("min_snr", "snr_plus_one", "flow"), {"gamma": diffusion.largest_weight}),
        "sigmoid": {"bias": diffusion.sigmoid_bias},
    }
    dtype = choose(DTYPES, model.dtype, "dtype (config.model.dtype)")
    if model.fused_attention and model.dtype != "bfloat16":
        raise InputError("model.fused_attention is of 16-bit numbers: set model.dtype=bfloat16.")
    fused = model.fused_attention and jax.default_backend() == "gpu"
    if fused != model.fused_attention:
        logging.warning("Without a GPU model.fused_attention changes nothing.")
    latents = make_latents(model.autoencoder, config.data, dtype, model.remat)
    side, _, channels = latents.shape(config.data.resolution)
    if side % model.patch:
        what = "data.resolution" if latents.net is None else "the latents' side"
        raise InputError(f"{what}={side} is no multiple of model.patch={model.patch}.")
    if latents.net is not None and model.sketch.layers:
        raise InputError("A sketch is of pixels: set model.sketch.layers=0 with an autoencoder.")
    if latents.net is not None and config.sampling.clip == "static":
        raise InputError("Latents have no bounds: set sampling.clip=none with an autoencoder.")
    _demand_frozen(latents, config.optimizer.frozen)
    if latents.net is not None and not config.init.autoencoder:
        logging.warning(
            "The autoencoder's weights are random, and stay so: config.init.autoencoder=RUN, an "
            "autoencoder's run, gives it some that have learned."
        )
    labelled = config.condition == "label"
    task = task_lib.Diffusion(
        text_encoder=make_text_encoder(
            model.text, facts.vocab_size, config.data.text_length, dtype, model.remat
        ),
        unet=UNet(
            spec=unet_spec,
            out_channels=channels * model.patch**2,
            num_classes=facts.num_classes + 1 if labelled else 0,
            dtype=dtype,
            remat=model.remat,
            fused=fused,
        ),
        latents=latents,
        sketch=Sketch(spec=sketch_spec, side=config.data.resolution, dtype=dtype),
        schedule=schedule,
        prediction=prediction,
        times=time_sampling.make_time_sampling(
            diffusion.time_sampling, **time_arguments.get(diffusion.time_sampling, {})
        ),
        weight=weighting.make_weighting(
            diffusion.weighting, **weight_arguments.get(diffusion.weighting, {})
        ),
        gradient_weight=diffusion.gradient_weight,
        mean_weight=diffusion.mean_weight,
        sketch_weight=diffusion.sketch_weight,
        conditioning=TextConditioning(
            np.asarray(facts.null_tokens, np.int32),
            np.asarray(facts.null_mask, bool),
            config.text_mask,
            facts.num_classes,
        ),
        condition=config.condition,
        caption_drop=config.caption_drop,
        patch=model.patch,
        resolution=config.data.resolution,
        batch_size=config.batch_size,
    )
    task_lib.check_sampling(task, task_lib.Sampling(**config.sampling))
    return task


def make_text_encoder(
    config: ConfigDict, vocab_size: int, length: int, dtype: Dtype, remat: bool
) -> TextEncoder | T5Encoder:
    """Builds what config.model.text describes: CLIP's text tower, or T5's encoder where it has the
    sizes of one, such as `buckets`.

    Args:
      vocab_size: of the tokenizer.
      length: L, of the texts.

    Raises:
      InputError: sizes that do not fit together, or fewer rows than the tokenizer has tokens.
    """
    fields = dict(config)
    if "buckets" not in fields:
        spec = TextSpec(**fields)
        text_encoder.check(spec)
        return TextEncoder(spec, vocab_size, length, dtype, remat)
    rows = fields.pop("vocab_size") or vocab_size
    if rows < vocab_size:
        raise InputError(
            f"The tokenizer has {vocab_size} tokens, more than model.text.vocab_size={rows}: set "
            "data.tokenizer to that of the weights, or model.text.vocab_size=0."
        )
    t5_spec = T5Spec(**fields)
    t5_encoder.check(t5_spec)
    return T5Encoder(t5_spec, rows, dtype, remat)


def _demand_frozen(latents: Latents, frozen: Sequence[str]) -> None:
    """Raises InputError where the autoencoder would be trained: no gradient reaches it, but weight
    decay would."""
    made = jax.eval_shape(latents.init, jax.random.key(0))
    for path in flax.traverse_util.flatten_dict(made, sep="/"):
        if not any(re.fullmatch(pattern, path) for pattern in frozen):
            raise InputError(
                f"The autoencoder must not be trained, and {path} is not frozen: give the config's "
                "argument, --config=configs/diffusion.py:autoencoder=small, or "
                "--config.optimizer.frozen=\"('autoencoder/.*',)\"."
            )
