"""What is learned: each task is a loss, predictions and a batch spec; pure, without files."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose
from vision_lang.tasks import (
    autoencoder_config,
    captioning_config,
    clip_config,
    contrastive_config,
    diffusion_config,
    features_config,
    recognition_config,
)
from vision_lang.tasks.facts import DataFacts


class Entry(NamedTuple):
    """How a task is built, and what it wants of the data.

    make: (config, facts about the data) -> the task.
    reads_text: whether it learns from texts: the run then has a tokenizer of its own.
    wants_label: whether an example without a class is a broken one.
    multi_label: whether an example may have any number of classes.
    """

    make: Callable[[ConfigDict, DataFacts], Any]
    reads_text: Callable[[ConfigDict], bool]
    wants_label: bool
    multi_label: Callable[[ConfigDict], bool] = lambda config: False


# config.task -> how it is built
TASKS = {
    "diffusion": Entry(diffusion_config.from_config, lambda c: c.condition == "text", False),
    "captioning": Entry(captioning_config.from_config, lambda c: True, False),
    "contrastive": Entry(contrastive_config.from_config, lambda c: True, False),
    "clip": Entry(clip_config.from_config, lambda c: True, False),
    "autoencoder": Entry(autoencoder_config.from_config, lambda c: False, False),
    "features": Entry(features_config.from_config, lambda c: False, False),
    "recognition": Entry(
        recognition_config.from_config, lambda c: False, True, lambda c: c.multi_label
    ),
}
# Those that put pictures near their texts.
MATCHING = ("contrastive", "clip")


def entry(config: ConfigDict) -> Entry:
    """Returns the row of `TASKS` that config.task names.

    Raises:
      InputError: there is none, or the run is one converted network, not a task.
    """
    if config.task == "weights":
        raise InputError(
            f"This run holds a network alone ({config.network}): begin another run with it, by "
            f"--config.init.{config.part}=RUN."
        )
    return choose(TASKS, config.task, "task")
