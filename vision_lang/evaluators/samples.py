"""A grid of pictures of the same prompts and seeds, so that runs and steps can be compared."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from vision_lang.evaluators import drawing
from vision_lang.evaluators.context import Context, Evaluator, Result, Weights
from vision_lang.tasks.diffusion import Sampling


def make(config: ConfigDict, context: Context) -> Evaluator:
    """config: prompts (() = captions or classes of the validation split), count, columns,
    device_batch."""
    run = context.config
    draw = drawing.drawer(
        context.task, context.parallel, Sampling(**run.sampling), run.seed, config.device_batch
    )
    titles, labels = _conditions(config, context)
    # The data's own captions are cut where they are too long, as they are in training.
    tokens, mask = context.tokenizer.encode_batch(
        titles, run.data.text_length, strict=bool(config.prompts)
    )

    def evaluate(weights: Weights, final: bool) -> Result:
        del final
        pictures = np.concatenate(
            list(draw(context.best(weights), tokens, mask, labels, np.arange(len(titles))))
        )
        zoom = max(1, 96 // pictures.shape[1])
        return Result({}, {"samples": drawing.grid(pictures, titles, config.columns, zoom)})

    return evaluate


def _conditions(config: ConfigDict, context: Context) -> tuple[list[str], np.ndarray]:
    """Titles and class labels [N] of the pictures."""
    if context.task.condition == "label":
        names = context.data.class_names or []
        labels = np.arange(config.count, dtype=np.int32) % max(len(names), 1)
        return [names[i] for i in labels], labels
    prompts = list(config.prompts)
    if not prompts:
        splits = context.data.splits
        source = context.data.open("validation" if "validation" in splits else "train")
        prompts = [texts[0] for texts in source.captions(config.count)]
    titles = [prompts[i % len(prompts)] for i in range(config.count)]
    return titles, np.full(len(titles), -1, np.int32)
