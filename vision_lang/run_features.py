"""Which features a run has of pictures and of texts: what extract and search share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vision_lang.data import pictures, texts
from vision_lang.errors import InputError, choose
from vision_lang.evaluators import features
from vision_lang.metrics.frechet import INCEPTION
from vision_lang.models.text_encoder import mean_of_tokens
from vision_lang.over_inputs import Reader, Rows
from vision_lang.tasks import MATCHING
from vision_lang.training.setup import Loaded


class Kind(NamedTuple):
    """What features are of.

    reader: of a run, makes batches of them as in its evaluation.
    prefixes: what `network` in their recipe may begin with.
    network: (config, layer) -> that, as in "vgg11_pool5".
    of_run: the config of a run -> whether its network takes them.
    layers: (task, variables, a batch of the reader) -> {name: [b, ...]}.
    resize: config -> how they are brought to one size, in words.
    """

    reader: Callable[[Loaded], Reader]
    prefixes: tuple[str, ...]
    network: Callable[[ConfigDict, str], str]
    of_run: Callable[[ConfigDict], bool]
    layers: Callable[[Any, Any, dict], dict[str, Any]]
    resize: Callable[[ConfigDict], str]


KINDS = {
    "pictures": Kind(
        lambda loaded: pictures.Reader(
            loaded.config.data, features.fitter(loaded.task, loaded.config.data)
        ),
        ("vgg", "clip", "inception"),
        features.network,
        lambda config: config.task not in ("diffusion", "autoencoder"),
        lambda task, variables, batch: task.layers(variables, batch["image"]),
        lambda config: features.resizing(config.data),
    ),
    "texts": Kind(
        lambda loaded: texts.Reader(loaded.tokenizer, loaded.config.data),
        ("text",),
        lambda config, layer: f"text_{layer}",
        lambda config: config.task in MATCHING or _draws_from_text(config),
        lambda task, variables, batch: task.text_layers(
            variables, batch["tokens"], batch["text_mask"]
        ),
        lambda config: f"pad to {config.data.text_length} tokens",
    ),
}


def _draws_from_text(config: ConfigDict) -> bool:
    return config.task == "diffusion" and config.condition == "text"


def kind_of(network: str) -> tuple[str, str]:
    """The kind and the layer of features, by their recipe: "vgg11_pool5" -> ("pictures", "pool5").

    Raises:
      InputError: no run of ours made them.
    """
    if network == INCEPTION:
        return "pictures", "2048"
    prefix, _, layer = network.partition("_")
    for name, kind in KINDS.items():
        if prefix.startswith(kind.prefixes) and layer:
            return name, layer
    raise InputError(f"Features of the network '{network}' are none that extract makes of a run.")


def layer_of(loaded: Loaded, what: str, layer: str, spatial: bool) -> str:
    """The layer's name, checked.

    Args:
      loaded: the run.
      what: a row of `KINDS`.
      layer: its name, or '': `embedding` where there is one, else the last but the logits; of those
        that have places, if it is to be spatial.

    Raises:
      InputError: there is no such layer, or the run takes no such thing.
    """
    kind, config = KINDS[what], loaded.config
    if not kind.of_run(config):
        raise InputError(
            f"Run '{loaded.run.root}' is a {config.task} run: it has no features of {what} to give."
        )
    example = loaded.task.batch_spec()
    batch = {name: jax.ShapeDtypeStruct((1, *s.shape), s.dtype) for name, s in example.items()}
    layers = functools.partial(kind.layers, loaded.task)
    shapes = features.layer_shapes(layers, loaded.variables, batch)
    if layer:
        choose(shapes, layer, "layer")
        return layer
    if "embedding" in shapes and not spatial:
        return "embedding"
    known = [name for name in shapes if name not in ("logits", "embedding")]
    return [name for name in known if shapes[name].ndim > 2 or not spatial][-1]


def rows(loaded: Loaded, what: str, layer: str, spatial: bool) -> Rows:
    """Returns (variables, batch) -> {"features": float32 [b, D]}, the mean over the picture or over
    the text's tokens; with `spatial` [b, h, w, D], or [b, L, D] and {"mask": bool [b, L]}."""

    def make(variables, batch):
        found = KINDS[what].layers(loaded.task, variables, batch)[layer].astype(np.float32)
        if found.ndim == 4 and not spatial:
            found = found.mean((1, 2))
        if found.ndim == 3:
            if spatial:
                return {"features": found, "mask": batch["text_mask"]}
            found = mean_of_tokens(found, batch["text_mask"])
        return {"features": found}

    return make


def recipe(loaded: Loaded, what: str, layer: str) -> dict[str, str]:
    """What the features can be compared by, see data/features.py."""
    kind = KINDS[what]
    return {
        "network": kind.network(loaded.config, layer),
        "network_hash": loaded.digest,
        "resize": kind.resize(loaded.config),
    }
