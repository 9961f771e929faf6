"""Which features a run has of pictures and of texts: what extract and search share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vision_lang.data import pictures, texts
from vision_lang.errors import InputError, choose
from vision_lang.models.text_encoder import mean_of_tokens
from vision_lang.over_inputs import Reader, Rows
from vision_lang.runs import records
from vision_lang.training.setup import Loaded


class Kind(NamedTuple):
    """What features are of.

    reader: of a run, makes batches of them as in its evaluation.
    prefix: of `network` in their recipe, as in "vgg_pool5".
    of_run: the config of a run -> whether its network takes them.
    layers: (task, variables, a batch of the reader) -> {name: [b, ...]}.
    resize: config -> how they are brought to one size, in words.
    """

    reader: Callable[[Loaded], Reader]
    prefix: str
    of_run: Callable[[ConfigDict], bool]
    layers: Callable[[Any, Any, dict], dict[str, Any]]
    resize: Callable[[ConfigDict], str]


KINDS = {
    "pictures": Kind(
        lambda loaded: pictures.Reader(loaded.config.data),
        "vgg",
        lambda config: config.task != "diffusion",
        lambda task, variables, batch: task.layers(variables, batch["image"]),
        lambda config: f"{config.data.crop} to {config.data.resolution} px",
    ),
    "texts": Kind(
        lambda loaded: texts.Reader(loaded.tokenizer, loaded.config.data),
        "text",
        lambda config: config.task == "contrastive" or _draws_from_text(config),
        lambda task, variables, batch: task.text_layers(
            variables, batch["tokens"], batch["text_mask"]
        ),
        lambda config: f"pad to {config.data.text_length} tokens",
    ),
}


def _draws_from_text(config: ConfigDict) -> bool:
    return config.task == "diffusion" and config.condition == "text"


def kind_of(network: str) -> tuple[str, str]:
    """The kind and the layer of features, by their recipe: "vgg_pool5" -> ("pictures", "pool5").

    Raises:
      InputError: no run of ours made them.
    """
    prefix, _, layer = network.partition("_")
    for name, kind in KINDS.items():
        if kind.prefix == prefix and layer:
            return name, layer
    raise InputError(f"Features of the network '{network}' are none that extract makes of a run.")


def layer_of(loaded: Loaded, what: str, layer: str, spatial: bool) -> str:
    """The layer's name, checked.

    Args:
      loaded: the run.
      what: a row of `KINDS`.
      layer: its name, or '': `embedding` where there is one, but not if it is to be spatial; else
        the last but the logits.

    Raises:
      InputError: there is no such layer, or the run takes no such thing.
    """
    kind, config = KINDS[what], loaded.config
    if not kind.of_run(config):
        raise InputError(
            f"Run '{loaded.run.root}' is a {config.task} run: it has no features of {what} to give."
        )
    names: list[str] = []  # JAX sorts those of a dictionary that comes out of it

    def traced(variables, batch):
        names.extend(kind.layers(loaded.task, variables, batch))

    example = loaded.task.batch_spec()
    batch = {name: jax.ShapeDtypeStruct((1, *s.shape), s.dtype) for name, s in example.items()}
    jax.eval_shape(traced, loaded.variables, batch)
    if layer:
        return choose(dict(zip(names, names, strict=True)), layer, "layer")
    if "embedding" in names and not spatial:
        return "embedding"
    return [name for name in names if name not in ("logits", "embedding")][-1]


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
        "network": f"{kind.prefix}_{layer}",
        "network_hash": records.digest(loaded.variables)[:16],
        "resize": kind.resize(loaded.config),
    }
