"""What the tests of tasks share: changed configs, facts about data, texts, losses of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vision_lang import keys as random_keys
from vision_lang.tasks.facts import DataFacts
from vision_lang.training import parallel

BOS, EOS, PAD = 1, 2, 0


def change(config, **changes):
    """Sets fields of a config: `changes` are dotted paths with __ for the dot."""
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = config
        for parent in parents:
            place = place[parent]
        place[name] = value


def facts(words, length, classes=0):
    """Of a tokenizer whose empty text is <bos> <eos> <pad>..."""
    null = (BOS, EOS, *[PAD] * (length - 2))
    return DataFacts(words, null, tuple(t != PAD for t in null), classes)


def batch(side, *, texts: Sequence[int] = (), words=0, length=0, labels: Sequence[int] = ()):
    """Random pictures, and `texts` of so many random words each, padded to `length`, or labels."""
    random = np.random.default_rng(0)
    rows = len(texts) or len(labels)
    tokens = np.full((rows, length), PAD, np.int32)
    for row, count in enumerate(texts):
        tokens[row, : count + 2] = [BOS, *random.integers(3, words, count), EOS]
    found = {"image": random.integers(0, 256, (rows, side, side, 3), np.uint8)}
    if texts:
        found |= {"tokens": tokens, "text_mask": tokens != PAD}
    if labels:
        found["label"] = np.array(labels, np.int32)
    return found | {"weight": np.ones(rows, np.float32), "index": np.arange(rows, dtype=np.int32)}


def keys(rows, step=0):
    """The keys of a step's examples [rows]."""
    return random_keys.per_example(random_keys.make(0, "train", step), jnp.arange(rows))


def init(task, seed=0):
    """The task's first variables, as one program: many small ones take long to compile."""
    return jax.jit(task.init)(jax.random.key(seed))


def loss(task, variables, rows, *, train=False):
    """The task's losses of the batch `rows` alone, its new collections, and its metrics."""

    def run(variables, rows, keys):
        return task.loss(variables, rows, keys, across=parallel.ONE_DEVICE, train=train)

    return jax.jit(run)(variables, rows, keys(len(rows["weight"])))
