"""The validation loss is a mean over examples, whatever the batch size, and changes nothing."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vision_lang.data import sources
from vision_lang.errors import InputError
from vision_lang.evaluators import EVALUATORS, make_evaluators, validation_loss
from vision_lang.evaluators.context import Context
from vision_lang.runs.records import digest
from vision_lang.training import parallel, setup


@pytest.fixture(scope="module")
def context(trained):
    loaded = setup.load(str(trained))
    config = loaded.config.copy_and_resolve_references().unlock()
    config.data.dir = str(trained.parent / "data")
    data = sources.prepare(config.data)
    return Context(config, loaded.task, data, loaded.tokenizer, parallel.make("pmap"), setup.load)


@pytest.fixture(scope="module")
def weights(trained):
    return {name: setup.load(str(trained), name).variables for name in ("raw", "ema")}


def test_each_example_counts_once_for_any_batch_size(context, weights):
    before = digest(weights)
    found = []
    for size in (7, 16):  # the split has 48 examples: 7 leaves a part of a batch, 16 none
        evaluate = validation_loss.make(
            ConfigDict({"split": "validation", "batch_size": size}), context
        )
        found.append(evaluate(weights, False).numbers)
    one, other = found
    parts = ("", "_sketch", "_t0.125", "_t0.375", "_t0.625", "_t0.875")
    assert set(one) == {f"validation/loss{part}{end}" for part in parts for end in ("", "_raw")}
    for name, value in one.items():
        assert other[name] == pytest.approx(value, rel=1e-6), name
    assert one["validation/loss"] != one["validation/loss_raw"]
    assert evaluate(weights, True).numbers == other  # no draw of its own
    assert digest(weights) == before


def test_it_is_the_mean_over_the_examples(context, weights):
    """Against the task's loss on the whole split as one batch."""
    from vision_lang import keys as random_keys
    from vision_lang.data import pipeline

    source = context.data.open("validation")
    (batch,) = pipeline.eval_batches(
        source, context.encode, data=context.config.data, batch_size=len(source)
    )
    key = random_keys.make(context.config.seed, "validation")
    keys = random_keys.per_example(key, batch["index"])
    loss = jax.jit(lambda v: context.task.loss(v, batch, keys, across=None, train=False)[0])
    evaluate = validation_loss.make(ConfigDict({"split": "validation", "batch_size": 16}), context)
    wanted = float(np.mean(loss(weights["ema"]), dtype=np.float64))
    assert evaluate(weights, False).numbers["validation/loss"] == pytest.approx(wanted, rel=1e-5)


def test_an_unknown_evaluator_is_refused(context):
    config = context.config.copy_and_resolve_references().unlock()
    config.evaluators = {"mine": {"kind": "shapes_oracel"}}
    with pytest.raises(InputError, match=r"evaluators\.mine\.kind.*'shapes_oracle'"):
        make_evaluators(Context(config, *list(vars(context).values())[1:]))
    assert EVALUATORS.keys() > {"validation_loss", "samples", "shapes_oracle"}
