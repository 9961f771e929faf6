"""The contrastive task: its losses redone by loops, what is no negative, and devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import contrastive as config_file
from vision_lang import keys as random_keys
from vision_lang.errors import InputError
from vision_lang.tasks import contrastive_config
from vision_lang.tasks.facts import DataFacts
from vision_lang.training import parallel

ROWS, SIDE, WORDS, LENGTH = 6, 32, 9, 6
BOS, EOS, PAD = 1, 2, 0


def make(**changes):
    """A tiny task; `changes` are dotted paths with __ for the dot."""
    config = config_file.get_config("tiny")
    config.data.text_length = LENGTH
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = config
        for parent in parents:
            place = place[parent]
        place[name] = value
    null = (BOS, EOS, *[PAD] * (LENGTH - 2))
    facts = DataFacts(WORDS, null, tuple(t != PAD for t in null), 0)
    return contrastive_config.from_config(config, facts)


def batch():
    """Rows 1 and 4 have the same text; row 5 counts nothing."""
    random = np.random.default_rng(0)
    tokens = np.full((ROWS, LENGTH), PAD, np.int32)
    for row, words in enumerate((1, 2, 3, 4, 2, 3)):
        tokens[row, : words + 2] = [BOS, *random.integers(3, WORDS, words), EOS]
    tokens[4] = tokens[1]
    return {
        "image": random.integers(0, 256, (ROWS, SIDE, SIDE, 3), np.uint8),
        "tokens": tokens,
        "text_mask": tokens != PAD,
        "weight": np.float32([1, 1, 1, 1, 1, 0]),
        "index": np.arange(ROWS, dtype=np.int32),
    }


def keys():
    return random_keys.per_example(random_keys.make(0, "train", 0), jnp.arange(ROWS))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_loss_by_loops(loss):
    task = make(loss=loss)
    variables, data = task.init(jax.random.key(0)), batch()
    images = np.asarray(task.embed_images(variables, data["image"]), np.float64)
    texts = np.asarray(task.embed_texts(variables, data["tokens"], data["text_mask"]), np.float64)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)
    scale, bias = (1 / 0.07, 0.0) if loss == "softmax" else (10.0, -10.0)
    similarity = scale * images @ texts.T + bias
    wanted = []
    for i in range(ROWS):
        others = [
            j for j in range(ROWS)
            if j != i and data["weight"][j] and (data["tokens"][i] != data["tokens"][j]).any()
        ]  # fmt: skip
        both = []
        for row in (similarity[i], similarity[:, i]):
            if loss == "softmax":
                both.append(np.log(np.exp(row[[i, *others]]).sum()) - row[i])
            else:
                both.append(np.log1p(np.exp(-row[i])) + np.log1p(np.exp(row[others])).sum())
        wanted.append(np.mean(both))
    found, mutable, metrics = task.loss(
        variables, data, keys(), across=parallel.ONE_DEVICE, train=False
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert mutable == {} and metrics["t2i_right"][1] == 5


def test_two_devices_are_told_from_each_others_examples():
    """Losses, statistics and gradients of a split batch, put together, are those of the whole."""
    task = make()
    variables, data = task.init(jax.random.key(0)), batch()
    across = parallel.Across(
        mean=lambda tree: jax.lax.pmean(tree, "rows"),
        gather=lambda tree: jax.tree.map(
            lambda x: jax.lax.all_gather(x, "rows", axis=0, tiled=True), tree
        ),
        spread=parallel.ONE_DEVICE.spread,
    )

    def total(params, data, keys, across):
        losses, mutable, _ = task.loss(
            variables | {"params": params}, data, keys, across=across, train=True
        )
        return (losses * data["weight"]).sum(), (losses, mutable)

    gradient = jax.grad(total, has_aux=True)
    alone = jax.jit(
        lambda part, keys: gradient(variables["params"], part, keys, parallel.ONE_DEVICE)
    )
    whole, (losses, statistics) = alone(data, keys())
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), (data, keys()))
    split = jax.vmap(
        lambda part, part_keys: gradient(variables["params"], part, part_keys, across),
        axis_name="rows",
    )
    parts, (losses_2, statistics_2) = jax.jit(split)(*halves)
    np.testing.assert_allclose(losses_2.reshape(-1), losses, rtol=1e-4)
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(whole))
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(two.sum(0), one, atol=1e-4 * largest)
    for one, two in zip(jax.tree.leaves(statistics), jax.tree.leaves(statistics_2), strict=True):
        np.testing.assert_allclose(two[0], one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 2}, "micro-batch"),
        ({"loss": "sofmax"}, "'softmax'"),
        ({"model__grid": 3}, "does not divide"),
        ({"model__text__heads": 3}, "no multiple of its heads=3"),
        ({"model__encoder__stages": ((4,),) * 6}, "makes nothing of pictures"),
        ({"model__stage": "pool7"}, "stage"),
        ({"augmentation__cutmix": 1.0}, "no text"),
    ],
)
def test_wrong_configs_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)
