"""The clip task: its loss redone by numpy, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import clip as config_file
from tests.tasks import parts
from vision_lang.errors import InputError
from vision_lang.tasks import clip, clip_config

ROWS, SIDE, WORDS, LENGTH = 4, 32, 9, 6


def make(**changes):
    """A tiny task; see `parts.change`."""
    config = config_file.get_config("tiny")
    parts.change(config, data__text_length=LENGTH, **changes)
    return clip_config.from_config(config, parts.facts(WORDS, LENGTH))


@pytest.mark.parametrize("scale", [5.0, 200.0])
def test_the_loss_is_the_cross_entropy_of_both_directions(scale):
    """With a scale of at most 100; `similarity` has what was stored."""
    task = make()
    variables = parts.init(task)
    variables["params"]["projections"]["logit_scale"] = jnp.log(scale)
    data = parts.batch(SIDE, texts=(1, 2, 3, 4), words=WORDS, length=LENGTH)
    image = jax.jit(task.embed_images)(variables, data["image"])
    text = jax.jit(task.embed_texts)(variables, data["tokens"], data["text_mask"])
    cosine = np.asarray(image, np.float64) @ np.asarray(text, np.float64).T
    np.testing.assert_allclose(task.similarity(variables, image, text), scale * cosine, rtol=1e-4)
    logits = min(scale, 100) * cosine
    sums = np.log(np.exp(logits).sum(1)) + np.log(np.exp(logits).sum(0))
    found, mutable, metrics = parts.loss(task, variables, data)
    np.testing.assert_allclose(found, sums / 2 - np.diag(logits), rtol=1e-3, atol=1e-4)
    assert mutable == {} and metrics["i2t_right"][1] == ROWS


def test_variables_go_to_the_published_form_and_back():
    variables = parts.init(make())
    assert set(variables["params"]) == {"text_encoder", "vision_encoder", "projections"}
    again = clip.to_task(clip.to_published(variables))
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 2}, "must be 1 for clip runs"),
        ({"augmentation__mixup": 1.0}, "no text"),
        ({"data__resolution": 30}, "no multiple of its patch=8"),
        ({"model__text__heads": 3}, "no multiple of its heads=3"),
        ({"model__text__dropout": 0.1}, "no dropout"),
        ({"model__preprocessing": "clp"}, "'clip'"),
    ],
)
def test_wrong_configs_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)
