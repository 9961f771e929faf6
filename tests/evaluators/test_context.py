"""What evaluators share: broken examples count over all processes."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorflow_datasets import features as f

from tests.data.conftest import encode, plain, write_tfds
from vision_lang.data import pipeline, presets, sources
from vision_lang.errors import InputError
from vision_lang.evaluators.context import Context
from vision_lang.training import parallel

COUNT, ROWS = 22, 4  # the last batch of 2 x 4 rows is filled up by 2
BROKEN = (1, 6, 12)  # one or two in the part of each of two processes


@pytest.fixture
def read(tmp_path):
    """read(max_bad_share, index) -> the weights that process `index` of two has of all rows."""
    pictures = [b"no picture" if n in BROKEN else encode(plain(n)) for n in range(COUNT)]
    structure = f.FeaturesDict({"image": f.Image(shape=(None, None, 3)), "id": f.Text()})
    examples = [{"image": picture, "id": f"{n:02d}"} for n, picture in enumerate(pictures)]
    path = write_tfds(tmp_path, "numbers", structure, {"test": examples})

    def run(share, index):
        data = ConfigDict(presets.fields("numbers"))
        data.path, data.resolution, data.max_bad_share = str(path), 8, share
        source = sources.prepare(data).open("test")  # in an order of its own
        source = source.only(np.argsort([source.name(n) for n in range(COUNT)]))
        others = pipeline.eval_batches(
            source, None, data=data, batch_size=2 * ROWS, process_index=1 - index, process_count=2
        )

        def gather(own):
            other = next(others)
            pair = (own, other) if index == 0 else (other, own)
            return {name: np.concatenate([part[name] for part in pair]) for name in own}

        way = parallel.make("jit")._replace(share=(index, 2), gather=gather, devices=2)
        context = Context(
            ConfigDict({"data": data}), None, sources.prepare(data), cast(Any, None), way,
            cast(Any, None),
        )  # fmt: skip
        return np.concatenate([known["weight"] for _, known in context.batches(source, ROWS)])

    return run


@pytest.mark.parametrize("index", [0, 1])
def test_broken_examples_count_over_all_processes(read, index):
    """Two are allowed, which no process reaches alone."""
    with pytest.raises(InputError, match="3 broken records in the 22 of the split 'test'"):
        read(2.5 / COUNT, index)
    weights = read(3.5 / COUNT, index)
    assert set(np.flatnonzero(weights == 0)) == {*BROKEN, 22, 23}
