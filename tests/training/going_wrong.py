r"""Runs of the real command in which updates go wrong, or are left out, at chosen steps.

    python -m tests.training.going_wrong --config=tests/training/going_wrong.py:grey \
        --config.nan_at='(4,5)' --config.max_bad_steps=2 --config.data.path=DIR

Behind the colon: grey, a task of two numbers that is trained in seconds on a folder of pictures
with labels; or the name of a config, whose tiny variant is taken.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from configs import recognition
from vision_lang import keys as random_keys
from vision_lang import main
from vision_lang.training import setup

make, make_task = setup.make, setup.make_task


def get_config(arg=""):
    if arg in ("", "grey"):
        config = recognition.get_config("tiny,data=folder")
        del config.evaluators["classes"], config.init["encoder"]
        config.ema = {"ema": {"decay": 0.9}}
        config.data.resolution = 8
        config.model = {"name": "grey"}
    else:
        config = importlib.import_module(f"configs.{arg}").get_config("tiny")
        config.evaluators = {}
    config.nan_at = (0,)  # steps whose losses and gradients are NaN
    config.skip_at = (0,)  # steps that do nothing but count
    return config


@dataclasses.dataclass(frozen=True, eq=False)
class Grey:
    """0.5 (w x + b - x^2 + noise)^2, x being how bright a picture is."""

    def batch_spec(self):
        image = jax.ShapeDtypeStruct((8, 8, 3), jnp.uint8)
        row = {"weight": jnp.float32, "index": jnp.int32}
        return {"image": image} | {n: jax.ShapeDtypeStruct((), t) for n, t in row.items()}

    def init(self, key):
        start = jax.random.normal(key, (1,))
        return {"params": {"grey": {"kernel": start, "bias": jnp.float32(0.5)}}}

    def loss(self, variables, batch, keys, *, across, train):
        grey = variables["params"]["grey"]
        x = batch["image"].astype(jnp.float32).mean((1, 2, 3)) / 255
        noise = jax.vmap(jax.random.normal)(random_keys.named(keys, "noise"))
        error = x * grey["kernel"] + grey["bias"] - x**2 + 0.1 * noise
        return 0.5 * error**2, {}, {}


def task_that_goes_wrong(config, words, classes) -> Any:
    """The config's task, whose losses are NaN at the steps `config.nan_at`."""
    grey = config.model.get("name") == "grey"
    task = copy.copy(Grey() if grey else make_task(config, words, classes))
    right = type(task).loss

    def loss(self, variables, batch, keys, *, across, train):
        losses, *others = right(self, variables, batch, keys, across=across, train=train)
        if train:
            step = jnp.round(batch["progress"] * config.steps).astype(jnp.int32) + 1
            losses *= jnp.where(jnp.isin(step, jnp.asarray(config.nan_at)), jnp.nan, 1.0)
        return losses, *others

    wrong = type(type(task).__name__, (type(task),), {"loss": loss})
    object.__setattr__(task, "__class__", wrong)
    return task


def make_that_skips(config, run) -> Any:
    """The job, whose step does nothing at the steps `config.skip_at`."""
    job = make(config, run)

    def step(state, batch):
        if int(state.step) + 1 in config.skip_at:
            return state.replace(step=state.step + 1), jnp.int32(0)
        return job.step(state, batch)

    return dataclasses.replace(job, step=step)


def install(setattr=setattr) -> None:
    setattr(setup, "make_task", task_that_goes_wrong)
    setattr(setup, "make", make_that_skips)


if __name__ == "__main__":
    install()
    main.main()
