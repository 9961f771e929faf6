"""From a config to the task of `tasks/captioning.py`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose
from vision_lang.models import text_decoder
from vision_lang.models.layers import DTYPES
from vision_lang.models.text_decoder import DecoderSpec, TextDecoder
from vision_lang.tasks.augmentation import Augmentation
from vision_lang.tasks.captioning import METHODS, Bridge, Captioning, Decoding
from vision_lang.tasks.encoder import make_encoder, stage_shape
from vision_lang.tasks.facts import DataFacts


def from_config(config: ConfigDict, facts: DataFacts) -> Captioning:
    """Builds the task and checks every name and number of its config.

    Raises:
      InputError: an unknown name; a stage that the encoder lacks; a weight of a word that is no
        token, or below 0; pictures that are mixed, which
        have no one text; networks whose sizes do not fit together.
    """
    model = config.model
    augmentation = Augmentation(**config.augmentation)
    if augmentation.mixup or augmentation.cutmix:
        raise InputError("Two pictures mixed have no caption: augmentation.mixup, .cutmix = 0.")
    encoder = make_encoder(config, head="none")
    stage_shape(encoder, model.stage)
    choose(METHODS, Decoding(**config.decoding).method, "way of decoding (config.decoding.method)")
    decoder = DecoderSpec(**model.decoder)
    text_decoder.check(decoder)
    return Captioning(
        encoder=encoder,
        stage=model.stage,
        bridge=Bridge(decoder.width),
        decoder=TextDecoder(
            spec=decoder,
            vocab_size=facts.vocab_size,
            max_length=config.data.text_length,
            crossing=True,
            dtype=choose(DTYPES, model.dtype, "dtype (config.model.dtype)"),
        ),
        augmentation=augmentation,
        label_smoothing=config.label_smoothing,
        token_weights=_token_weights(config.get("word_weights", {}), facts),
        length=config.data.text_length,
        begin=facts.null_tokens[0],
        end=facts.null_tokens[1],
        padding=facts.null_tokens[-1],
    )


def _token_weights(weights: Mapping[str, float], facts: DataFacts) -> np.ndarray | None:
    """config.word_weights by token [V]; None where no word has one."""
    weights = {word: weight for word, weight in weights.items() if weight != 1.0}
    found = np.ones(facts.vocab_size, np.float32)
    for word, weight in weights.items():
        tokens = facts.tokens_of(word)
        if weight < 0:
            raise InputError(f"config.word_weights.{word}={weight} is below 0.")
        if not tokens:
            raise InputError(
                f"config.word_weights.{word}: the tokenizer has no such word as one token; with a "
                "larger data.vocab_size it may, and a weight of 1 needs none."
            )
        found[list(tokens)] = weight
    return found if weights else None
