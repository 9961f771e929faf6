"""From a config to the task of `tasks/autoencoder.py`."""

from __future__ import annotations

import re

import flax.traverse_util
import jax
from absl import logging
from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose
from vision_lang.models import autoencoder
from vision_lang.models.autoencoder import Autoencoder, AutoencoderSpec
from vision_lang.models.layers import DTYPES
from vision_lang.tasks.autoencoder import ERRORS, AutoencoderTask
from vision_lang.tasks.facts import DataFacts
from vision_lang.tasks.perceptual import make_perceptual


def from_config(config: ConfigDict, facts: DataFacts) -> AutoencoderTask:
    """Builds the task and checks every name and number of its config.

    Raises:
      InputError: an unknown name, sizes that do not fit together or the pictures, a perceptual
        network that would be trained.
    """
    del facts
    model, resolution = config.model, config.data.resolution
    spec = AutoencoderSpec(**model.autoencoder)
    autoencoder.check(spec, resolution)
    dtype = choose(DTYPES, model.dtype, "dtype (config.model.dtype)")
    perceptual = None
    if config.perceptual_weight:
        perceptual = make_perceptual(model.perceptual, resolution, dtype)
        made = jax.eval_shape(perceptual.init, jax.random.key(0))["params"]
        for path in flax.traverse_util.flatten_dict(made, sep="/"):
            if not any(re.fullmatch(pattern, path) for pattern in config.optimizer.frozen):
                raise InputError(
                    f"The perceptual network must not be trained, and {path} is not frozen: give "
                    "the config's argument, --config=configs/autoencoder.py:perceptual=true, or "
                    "--config.optimizer.frozen=\"('perceptual/.*',)\"."
                )
        if not config.init.perceptual:
            logging.warning(
                "The perceptual network's weights are random: config.init.perceptual=RUN, a "
                "recognition run, gives it some that have learned."
            )
    elif config.init.perceptual:
        raise InputError(
            "config.init.perceptual wants config.perceptual_weight above 0: give the config's "
            "argument, --config=configs/autoencoder.py:perceptual=true."
        )
    return AutoencoderTask(
        net=Autoencoder(spec, dtype=dtype, remat=model.remat),
        perceptual=perceptual,
        error=choose(ERRORS, config.error, "error (config.error)"),
        kl_weight=config.kl_weight,
        perceptual_weight=config.perceptual_weight,
        resolution=resolution,
    )
