"""From a config to the task of `tasks/contrastive.py`."""

from __future__ import annotations

from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose
from vision_lang.models import text_encoder
from vision_lang.models.layers import DTYPES
from vision_lang.models.text_encoder import TextEncoder, TextSpec
from vision_lang.tasks.augmentation import Augmentation
from vision_lang.tasks.contrastive import LOSSES, Contrastive, Projections
from vision_lang.tasks.encoder import make_encoder, stage_shape
from vision_lang.tasks.facts import DataFacts


def from_config(config: ConfigDict, facts: DataFacts) -> Contrastive:
    """Builds the task and checks every name and number of its config.

    Raises:
      InputError: an unknown name; gradient accumulation, which would leave out negatives; pictures
        that are mixed, which have no one text; a map that the grid does not divide;
        networks whose sizes do not fit together.
    """
    model = config.model
    choose(LOSSES, config.loss, "contrastive loss (config.loss)")
    augmentation = of_whole_batches(config)
    encoder = make_encoder(config, head="none")
    text = TextSpec(**model.text)
    text_encoder.check(text)
    side, _, _ = stage_shape(encoder, model.stage)
    if model.grid < 1 or side % model.grid:
        raise InputError(
            f"config.model.grid={model.grid} does not divide the {side} places along a side of "
            f"{model.stage}."
        )
    return Contrastive(
        encoder=encoder,
        stage=model.stage,
        grid=model.grid,
        text_encoder=TextEncoder(
            spec=text,
            vocab_size=facts.vocab_size,
            max_length=config.data.text_length,
            dtype=choose(DTYPES, model.dtype, "dtype (config.model.dtype)"),
        ),
        projections=Projections(model.width, config.loss),
        loss_of=config.loss,
        augmentation=augmentation,
        length=config.data.text_length,
    )


def of_whole_batches(config: ConfigDict) -> Augmentation:
    """Checks what a loss that tells the pictures of a batch apart wants; returns the augmentation.

    Raises:
      InputError: gradient accumulation, or pictures that are mixed.
    """
    if config.accumulate > 1:
        raise InputError(
            f"config.accumulate={config.accumulate} would tell each picture only from those of its "
            f"own micro-batch, which is another loss: it must be 1 for {config.task} runs."
        )
    augmentation = Augmentation(**config.augmentation)
    if augmentation.mixup or augmentation.cutmix:
        raise InputError("Two pictures mixed have no text: augmentation.mixup, .cutmix = 0.")
    return augmentation
