"""From a config to the task of `tasks/captioning.py`."""

from __future__ import annotations

import dataclasses
import re

import jax.numpy as jnp
from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose
from vision_lang.models import text_decoder, vgg
from vision_lang.models.text_decoder import DecoderSpec, TextDecoder
from vision_lang.models.vgg import VGG, VGGSpec
from vision_lang.tasks.augmentation import Augmentation
from vision_lang.tasks.captioning import METHODS, Bridge, Captioning, Decoding
from vision_lang.tasks.facts import DataFacts
from vision_lang.tasks.preprocessing import make_preprocessing

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def from_config(config: ConfigDict, facts: DataFacts) -> Captioning:
    """Builds the task and checks every name and number of its config.

    Raises:
      InputError: an unknown name; a stage that the encoder lacks; pictures that are mixed, which
        have no one text; networks whose sizes do not fit together.
    """
    model = config.model
    augmentation = Augmentation(**config.augmentation)
    if augmentation.mixup or augmentation.cutmix:
        raise InputError("Two pictures mixed have no caption: augmentation.mixup, .cutmix = 0.")
    spec = dataclasses.replace(VGGSpec(**model.encoder), head="none")
    vgg.check(spec, config.data.resolution)
    stages = {f"pool{s}": s for s in range(1, len(spec.stages) + 1)}
    stages |= {
        f"conv{s}_{i}": s
        for s, widths in enumerate(spec.stages, 1)
        for i in range(1, len(widths) + 1)
    }
    choose(stages, model.stage, "stage of the encoder (config.model.stage)")
    choose(METHODS, Decoding(**config.decoding).method, "way of decoding (config.decoding.method)")
    dtype = choose(DTYPES, model.dtype, "dtype")
    decoder = DecoderSpec(**model.decoder)
    text_decoder.check(decoder)
    frozen = any(re.fullmatch(p, "encoder/conv1_1/kernel") for p in config.optimizer.frozen)
    return Captioning(
        encoder=VGG(spec=spec, dtype=dtype),
        stage=model.stage,
        encoder_learns=not frozen,
        bridge=Bridge(decoder.width),
        decoder=TextDecoder(
            spec=decoder,
            vocab_size=facts.vocab_size,
            max_length=config.data.text_length,
            crossing=True,
            dtype=dtype,
        ),
        preprocess=make_preprocessing(model.preprocessing),
        augmentation=augmentation,
        label_smoothing=config.label_smoothing,
        resolution=config.data.resolution,
        length=config.data.text_length,
        begin=facts.null_tokens[0],
        end=facts.null_tokens[1],
        padding=facts.null_tokens[-1],
    )
