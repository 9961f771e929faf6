"""The contrastive task: its losses redone by loops, what is no negative, and devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from configs import contrastive as config_file
from tests.tasks import parts
from vision_lang.errors import InputError
from vision_lang.tasks import contrastive_config
from vision_lang.training import parallel

ROWS, SIDE, WORDS, LENGTH = 6, 32, 9, 6


def make(**changes):
    """A tiny task; see `parts.change`."""
    config = config_file.get_config("tiny")
    parts.change(config, data__text_length=LENGTH, **changes)
    return contrastive_config.from_config(config, parts.facts(WORDS, LENGTH))


def batch():
    """Rows 1 and 4 have the same text; row 5 counts nothing."""
    rows = parts.batch(SIDE, texts=(1, 2, 3, 4, 2, 3), words=WORDS, length=LENGTH)
    for name in ("tokens", "text_mask"):
        rows[name][4] = rows[name][1]
    rows["weight"][5] = 0
    return rows


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_loss_by_loops(loss):
    task = make(loss=loss)
    variables, data = parts.init(task), batch()
    images = np.asarray(jax.jit(task.embed_images)(variables, data["image"]), np.float64)
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
    found, mutable, metrics = parts.loss(task, variables, data)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert mutable == {} and metrics["t2i_right"][1] == 5


def test_two_devices_are_told_from_each_others_examples():
    """Losses, statistics and gradients of a split batch, put together, are those of the whole."""
    task = make()
    variables, data = parts.init(task), batch()
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
    whole, (losses, statistics) = alone(data, parts.keys(ROWS))
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), (data, parts.keys(ROWS)))
    split = jax.vmap(
        lambda part, part_keys: gradient(variables["params"], part, part_keys, across),
        axis_name="rows",
    )
    shares, (losses_2, statistics_2) = jax.jit(split)(*halves)
    np.testing.assert_allclose(losses_2.reshape(-1), losses, rtol=1e-4)
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(whole))
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(shares), strict=True):
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
