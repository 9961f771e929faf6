"""The matching evaluator on pictures whose grey value is what their texts name."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorflow_datasets import features as f

from tests.data.conftest import encode, plain, write_tfds
from vision_lang.data import presets, sources
from vision_lang.evaluators import retrieval
from vision_lang.evaluators.context import Context
from vision_lang.training import parallel

COUNT, BROKEN, MISNAMED = 12, (3, 8), 5


class Task:
    """A picture and a text are near each other where they name the same number."""

    def embed_images(self, variables, images):
        return jax.nn.one_hot(images[:, 0, 0, 0].astype(jnp.int32) // 10, COUNT)

    def embed_texts(self, variables, tokens, mask):
        return jax.nn.one_hot(tokens[:, 0], COUNT)


class Words:
    def encode_batch(self, texts, length):
        numbers = np.array([[int(text.split()[-1])] for text in texts], np.int32)
        return numbers, np.ones_like(numbers, bool)


@pytest.mark.parametrize("batch_size", [4, 32])
def test_pictures_that_cannot_be_read_are_left_out_with_their_texts(tmp_path, batch_size):
    texts = [[f"number {n}", f"again {n}"] for n in range(COUNT)]
    texts[MISNAMED][1] = f"number {BROKEN[0]}"  # no picture that is left fits
    examples = [
        {"image": b"no picture" if n in BROKEN else encode(plain(10 * n)), "captions": texts[n]}
        for n in range(COUNT)
    ]
    structure = f.FeaturesDict(
        {"image": f.Image(shape=(None, None, 3)), "captions": f.Sequence(f.Text())}
    )
    data = ConfigDict(presets.fields("numbers"))
    data.path = str(write_tfds(tmp_path, "numbers", structure, {"test": examples}))
    data.resolution, data.max_bad_share = 8, 0.5
    config = ConfigDict({"task": "contrastive", "data": data})
    prepared, words = sources.prepare(data), cast(Any, Words())
    context = Context(config, Task(), prepared, words, parallel.make("jit"), cast(Any, None))
    entry = ConfigDict(
        {"splits": (), "final_splits": ("test",), "count": 0, "batch_size": batch_size}
    )
    found = retrieval.make(entry, context)({"raw": {}}, True).numbers
    kept = COUNT - len(BROKEN)
    assert found["test/n"] == kept
    assert found["test/i2t_recall1"] == 1
    assert found["test/t2i_recall1"] == pytest.approx(1 - 1 / (2 * kept))
    assert found["test/t2i_recall5"] == found["test/t2i_recall1"]  # a tie of all is a miss
    assert found["test/t2i_median_rank"] == 1
