"""From a config to the task of `tasks/clip.py`."""

from __future__ import annotations

from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose
from vision_lang.models import text_encoder, vision_transformer
from vision_lang.models.clip import CLIP
from vision_lang.models.layers import DTYPES
from vision_lang.models.text_encoder import TextSpec
from vision_lang.models.vision_transformer import VisionSpec
from vision_lang.tasks.clip import Clip
from vision_lang.tasks.contrastive_config import of_whole_batches
from vision_lang.tasks.facts import DataFacts
from vision_lang.tasks.preprocessing import make_preprocessing


def from_config(config: ConfigDict, facts: DataFacts) -> Clip:
    """Builds the task and checks every name and number of its config.

    Raises:
      InputError: an unknown name; gradient accumulation, or pictures that are mixed, as for
        contrastive runs; towers whose sizes do not fit together, or a text tower with dropout.
    """
    model, resolution = config.model, config.data.resolution
    augmentation = of_whole_batches(config)
    text = TextSpec(**model.text)
    text_encoder.check(text)
    if text.dropout:
        raise InputError(f"model.text.dropout={text.dropout}: CLIP has no dropout, 0 is wanted.")
    vision = VisionSpec(**model.vision, resolution=resolution)
    vision_transformer.check(vision)
    net = CLIP(
        text=text,
        vision=vision,
        projection=model.projection,
        vocab_size=facts.vocab_size,
        max_length=config.data.text_length,
        end=facts.null_tokens[1],  # the empty text is begin, end, padding
        dtype=choose(DTYPES, model.dtype, "dtype (config.model.dtype)"),
    )
    return Clip(
        net=net,
        preprocess=make_preprocessing(model.preprocessing),
        resolution=resolution,
        augmentation=augmentation,
        length=config.data.text_length,
    )
