"""Features of whole splits, for evaluators that compare pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vision_lang.data import pipeline
from vision_lang.errors import InputError, choose
from vision_lang.evaluators.context import Context

# (variables, split) -> features [N, D] float32 and labels [N] of the examples that could be read
Extract = Callable[[Any, str], tuple[np.ndarray, np.ndarray]]


def extractor(context: Context, layer: str, batch_size: int) -> Extract:
    """Returns a function that gives `layer` of a split, averaged over the picture where spatial.

    Args:
      layer: of the task's `layers`.
      batch_size: rows per device.

    Raises:
      InputError: there is no such layer, or an example has not one label.
    """
    if context.multi_label:
        raise InputError("Features are compared by one label an example: not in multi_label runs.")
    task, parallel = context.task, context.parallel
    image = task.batch_spec()["image"]
    one = jax.ShapeDtypeStruct((1, *image.shape), image.dtype)
    shapes = jax.eval_shape(task.layers, jax.eval_shape(task.init, jax.random.key(0)), one)
    choose(shapes, layer, "layer")

    def rows(variables, images):
        found = task.layers(variables, images)[layer].astype(np.float32)
        return found if found.ndim == 2 else found.mean((1, 2))

    forward = parallel.forward(rows)

    def extract(variables, split):
        batches = pipeline.eval_batches(
            context.data.open(split), context.encode, data=context.config.data,
            batch_size=batch_size * parallel.devices, classes=context.classes,
        )  # fmt: skip
        features, labels = [], []
        for batch in batches:
            kept = batch["weight"] > 0
            features.append(np.asarray(forward(variables, parallel.place(batch["image"])))[kept])
            labels.append(batch["label"][kept])
        return np.concatenate(features), np.concatenate(labels)

    return extract
