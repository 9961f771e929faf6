"""From a config to the task of `tasks/recognition.py`."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose
from vision_lang.models import vgg
from vision_lang.models.margin import MARGINS, MarginHead, MarginSpec
from vision_lang.models.vgg import VGG, VGGSpec
from vision_lang.tasks.augmentation import Augmentation
from vision_lang.tasks.facts import DataFacts
from vision_lang.tasks.preprocessing import make_preprocessing
from vision_lang.tasks.recognition import Recognition

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def from_config(config: ConfigDict, facts: DataFacts) -> Recognition:
    """Builds the task and checks every name and number of its config.

    Raises:
      InputError: an unknown name, data without classes, pictures mixed in a head by angle, an
        encoder that does not fit them.
    """
    model = config.model
    if not facts.num_classes:
        raise InputError(
            f"The data set '{config.data.name}' has no classes to recognise; name the feature "
            "that holds them with data.label_key."
        )
    margin = MarginSpec(**model.margin)
    choose({"none": None, **MARGINS}, margin.kind, "margin (config.model.margin.kind)")
    augmentation = Augmentation(**config.augmentation)
    if margin.kind != "none" and (augmentation.mixup or augmentation.cutmix):
        raise InputError(
            "A head by angle gives its margin to one class: config.augmentation.mixup and .cutmix "
            "must be 0 with it."
        )
    spec = VGGSpec(**model.encoder)
    if margin.kind != "none":
        spec = dataclasses.replace(spec, head="none")
    elif spec.head == "none":
        raise InputError("Recognition wants a head: config.model.encoder.head=dense or pool.")
    vgg.check(spec, config.data.resolution)
    return Recognition(
        encoder=VGG(
            spec=spec,
            classes=facts.num_classes,
            dtype=choose(DTYPES, model.dtype, "dtype"),
        ),
        head=None if margin.kind == "none" else MarginHead(margin, facts.num_classes),
        preprocess=make_preprocessing(model.preprocessing),
        augmentation=augmentation,
        label_smoothing=config.label_smoothing,
        classes=facts.num_classes,
        resolution=config.data.resolution,
    )
