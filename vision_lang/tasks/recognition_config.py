"""From a config to the task of `tasks/recognition.py`."""

from __future__ import annotations

from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose
from vision_lang.models.margin import MARGINS, MarginHead, MarginSpec
from vision_lang.tasks.augmentation import Augmentation
from vision_lang.tasks.encoder import make_encoder
from vision_lang.tasks.facts import DataFacts
from vision_lang.tasks.recognition import Recognition


def from_config(config: ConfigDict, facts: DataFacts) -> Recognition:
    """Builds the task and checks every name and number of its config.

    Raises:
      InputError: an unknown name, data without classes, pictures mixed or several labels in a
        head by angle, an encoder that does not fit them.
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
    if margin.kind != "none" and config.multi_label:
        raise InputError(
            "A head by angle gives its margin to one class: config.multi_label must be False."
        )
    head = model.encoder.head if margin.kind == "none" else "none"
    if margin.kind == "none" and head == "none":
        raise InputError("Recognition wants a head: config.model.encoder.head=dense or pool.")
    return Recognition(
        encoder=make_encoder(config, head=head, classes=facts.num_classes),
        head=None if margin.kind == "none" else MarginHead(margin, facts.num_classes),
        augmentation=augmentation,
        label_smoothing=config.label_smoothing,
        classes=facts.num_classes,
        multi_label=config.multi_label,
    )
