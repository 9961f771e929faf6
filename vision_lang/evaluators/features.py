"""Features of whole splits, for evaluators that compare pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vision_lang.data import augment
from vision_lang.errors import InputError, choose
from vision_lang.evaluators.context import Context
from vision_lang.metrics.frechet import INCEPTION
from vision_lang.models import inception
from vision_lang.models.vgg import VGGS

# (variables, split) -> features [N, D] float32 and labels [N] of the examples that could be read
# and have a label
Extract = Callable[[Any, str], tuple[np.ndarray, np.ndarray]]


def find_layer(task: Any, layer: str) -> tuple[str, int]:
    """Returns the layer's name ('' = the last one before the logits) and its number of channels.

    Raises:
      InputError: the task gives no features, or has no such layer.
    """
    if not hasattr(task, "layers"):
        raise InputError("This run draws pictures: it has no features to give.")
    image = task.batch_spec()["image"]
    one = jax.ShapeDtypeStruct((1, *image.shape), image.dtype)
    shapes = layer_shapes(task.layers, jax.eval_shape(task.init, jax.random.key(0)), one)
    layer = layer or [name for name in shapes if name != "logits"][-1]
    return layer, choose(shapes, layer, "layer").shape[-1]


def layer_shapes(layers: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What `layers` returns, as shapes and in its order; nothing is computed."""
    order: list[str] = []  # JAX hands dicts back sorted by name

    def named(*arguments):
        found = layers(*arguments)
        order.extend(found)
        return found

    shapes = jax.eval_shape(named, *arguments)
    return {name: shapes[name] for name in order}


def network(config: ConfigDict, layer: str) -> str:
    """What features are called after: 'vgg11_pool5', the row of VGGS without its number where the
    stages are of none; 'clip_pooled'; 'inception_768'. The last features of an Inception with FID's
    own weights are 'inception_fid', whose distances alone are called FID."""
    if config.task == "features" and config.model.network == "inception":
        fid = layer == "2048" and inception.is_fid(config.model.source_sha256)
        return INCEPTION if fid else f"inception_{layer}"
    if config.task in ("clip", "features"):
        return f"clip_{layer}"
    stages = config.model.encoder.stages
    return f"vgg{next((n for n, spec in VGGS.items() if spec.stages == stages), '')}_{layer}"


def fitter(task: Any, data: ConfigDict) -> augment.Fit:
    """Returns how a run's network sees a picture: by the run's `config.data`, unless the task has a
    `fit` of its own."""
    return getattr(task, "fit", None) or augment.fitter(data)


def resizing(data: ConfigDict) -> str:
    """How pictures are brought to one size, in words."""
    return f"{data.crop} to {data.resolution} px"


def pooled(task: Any, layer: str) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns (variables, images [b, H, W, 3]) -> the layer [b, D] float32, averaged over the
    picture where it is spatial."""

    def rows(variables, images):
        found = task.layers(variables, images)[layer].astype(np.float32)
        return found if found.ndim == 2 else found.mean((1, 2))

    return rows


def extractor(context: Context, layer: str, batch_size: int) -> Extract:
    """Returns a function that gives `layer` of a split, averaged over the picture where spatial.

    Args:
      layer: see `find_layer`.
      batch_size: rows per device.

    Raises:
      InputError: there is no such layer, or an example has not one label.
    """
    if context.multi_label:
        raise InputError("Features are compared by one label an example: not in multi_label runs.")
    parallel = context.parallel
    layer, _ = find_layer(context.task, layer)
    forward = parallel.forward(pooled(context.task, layer))

    def extract(variables, split):
        features, labels = [], []
        for own, known in context.batches(context.data.open(split), batch_size, as_learned=True):
            kept = (known["weight"] > 0) & (known["label"] >= 0)
            features.append(forward(variables, parallel.place(own["image"]))[kept])
            labels.append(known["label"][kept])
        return np.concatenate(features), np.concatenate(labels)

    return extract
