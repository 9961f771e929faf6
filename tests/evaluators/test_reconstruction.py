"""Errors of what comes back, and the size of the latents, against pictures that are known."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluators.test_make import build, make, one_device
from vision_lang.data import pipeline

ERROR, LOGVAR = 2, -1.0


def encode(variables, images):
    """One latent: the picture's mean, drawn with a variance that is known."""
    mean = images.astype(jnp.float32).mean((1, 2, 3), keepdims=True)
    return {"mean": mean, "logvar": jnp.full_like(mean, LOGVAR)}


def test_the_numbers_are_those_of_the_pictures(tmp_path):
    """Of splits that leave a part of a batch, whose padding counts nothing."""
    task = SimpleNamespace(
        encode=encode, reconstruct=lambda variables, x: jnp.where(x < 128, x + ERROR, x - ERROR)
    )
    parallel = one_device(lambda rows: rows)
    context = dataclasses.replace(build(tmp_path, "a dog"), task=task, parallel=parallel)
    found = make(context, "reconstruction", batch_size=7)({"raw": None}, False)
    source = context.data.open("train")
    (batch,) = pipeline.eval_batches(source, None, data=context.config.data, batch_size=len(source))
    means = batch["image"].mean((1, 2, 3), dtype=np.float64)
    assert found.numbers == pytest.approx({
        "validation/psnr": 20 * np.log10(255 / ERROR),
        "validation/mae": ERROR,
        "validation/n": len(context.data.open("validation")),
        "train/latent_mean": means.mean(),
        "train/latent_std": np.sqrt(means.var() + np.exp(LOGVAR)),
    }, rel=1e-4)  # fmt: skip
    assert set(found.pictures) == {"reconstructions/validation"}
