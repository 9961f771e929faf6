"""Each picture is encoded once: the latents that a diffusion run learns from, kept on disk.

Shapes: b pictures at a time, R their side, S that of the latents, C their channels; K = 2 where
training mirrors pictures, else 1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vision_lang.data import pipeline
from vision_lang.data.builders import latents as builder_lib
from vision_lang.data.sources import Prepared
from vision_lang.errors import InputError
from vision_lang.runs import records
from vision_lang.runs.console import Progress
from vision_lang.tasks.diffusion import Diffusion
from vision_lang.tasks.preprocessing import symmetric
from vision_lang.training.parallel import Parallel

# What of config.data decides what stands in an example.
FIELDS = (
    "resolution", "crop", "flip", "background", "image_key", "text_key", "label_key",
)  # fmt: skip


def prepare(
    data: Prepared, config: ConfigDict, task: Diffusion, variables: Any, way: Parallel
) -> tuple[Prepared, str]:
    """Returns the data set with the latents of all its splits, made now where they are not there
    yet, and their fingerprint: of the data, the autoencoder, and what is done to pictures.

    The autoencoder computes in float32, whatever config.model.dtype is.

    Raises:
      InputError: they cannot be written; too many pictures are broken.
    """
    facts = {
        "data": data.fingerprint,
        "splits": data.splits,
        "autoencoder": records.digest(variables["params"]["autoencoder"])[:16],
        **{name: config.data[name] for name in FIELDS},
    }
    net: Any = task.latents.net
    exact = dataclasses.replace(task.latents, net=net.clone(dtype=jnp.float32))
    views = 2 if config.data.flip else 1

    def encode(variables, images):
        """uint8 [b, R, R, 3] -> [b, K, 2, S, S, C]."""
        x = symmetric(images)
        several = [x, x[:, :, ::-1]][:views]
        return jnp.stack([jnp.stack(exact.moments(variables, v), 1) for v in several], 1)

    def splits():
        logging.info("Encoding %s, once.", ", ".join(data.splits))
        for split in data.splits:
            yield split, _encoded(data, split, config, way.forward(encode), variables, way)

    stem = re.sub(r"\W+", "_", data.name)
    shape = (views, 2, *task.shape)
    builder = builder_lib.prepare(config.data.dir, stem, facts, shape, splits)
    found = builder.info.metadata["statistics"]
    logging.info(
        "Latents at %s. Those of %d training pictures: mean %s, deviation %s by channel; "
        "model.autoencoder.scaling=%.4g makes the deviation 1, this run has %.4g.",
        builder.data_path, found["count"], np.round(found["mean"], 3),
        np.round(found["deviation"], 3), found["scaling"], task.latents.scaling,
    )  # fmt: skip
    fingerprint = builder_lib.fingerprint_of(facts)
    return data.with_latents(builder, fingerprint), fingerprint


def _encoded(
    data: Prepared, split: str, config: ConfigDict, forward: Any, variables: Any, way: Parallel
) -> Iterator[list[dict[str, Any]]]:
    """The examples of a split, batch by batch."""
    source = data.whole(split)
    size = config.batch_size // config.accumulate
    batches = pipeline.eval_batches(
        source, None, data=config.data, batch_size=size, workers=config.workers
    )
    with Progress(len(source), what=f"encode {split}") as progress:
        for batch in batches:
            found = np.asarray(forward(variables, way.place(batch["image"])))
            examples = []
            for k, index in enumerate(batch["index"]):
                if index < len(source):
                    kept = found[k] if batch["weight"][k] else None
                    if kept is not None and not np.isfinite(kept).all():
                        raise InputError(
                            f"The autoencoder makes no numbers of '{source.name(index)}'."
                        )
                    examples.append({"latents": kept} | source.said(index))
            yield examples
            progress.update(min(int(batch["index"][-1]) + 1, len(source)))
