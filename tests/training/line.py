"""The smallest task that has all that a task may have, so that a step can be redone by hand."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from configs import diffusion
from vision_lang import keys as random_keys
from vision_lang.training import parallel, setup

ROWS, WIDTH = 8, 3


@dataclass(frozen=True, eq=False)
class Line:
    """0.5 (w x + b + progress + noise - y)^2, the noise being each example's own."""

    def batch_spec(self):
        shapes = {"x": (WIDTH,), "y": (), "weight": (), "index": ()}
        types = {"index": jnp.int32}
        return {
            name: jax.ShapeDtypeStruct(shape, types.get(name, jnp.float32))
            for name, shape in shapes.items()
        }

    def init(self, key):
        start = jax.random.normal(key, (WIDTH,))
        return {"params": {"line": {"kernel": start, "bias": jnp.float32(0.5)}}}

    def loss(self, variables, batch, keys, *, across, train):
        line = variables["params"]["line"]
        noise = jax.vmap(jax.random.normal)(random_keys.named(keys, "noise"))
        # Not a matrix product: rounding then does not depend on the number of rows.
        error = (batch["x"] * line["kernel"]).sum(1) + line["bias"] + noise - batch["y"]
        error += batch["progress"]
        weight = batch["weight"]
        return 0.5 * error**2, {}, {"error": ((error * weight).sum(), weight.sum())}


def noise(seed: int, step: int) -> np.ndarray:
    """The noise that the examples of a step must have got, [ROWS]."""
    keys = random_keys.per_example(random_keys.make(seed, "train", step), jnp.arange(ROWS))
    return np.asarray(jax.vmap(jax.random.normal)(random_keys.named(keys, "noise")), np.float64)


def batch(step: int) -> dict[str, np.ndarray]:
    """Row 2 of every batch and row 5 of some have weight 0."""
    rng = np.random.default_rng(step)
    weight = np.ones(ROWS, np.float32)
    weight[[2, 5] if step % 3 == 0 else [2]] = 0
    return {
        "x": rng.standard_normal((ROWS, WIDTH), np.float32),
        "y": rng.standard_normal(ROWS, np.float32),
        "weight": weight,
        "index": np.arange(ROWS, dtype=np.int32),
    }


def config(**changes):
    """A tiny config; `changes` are dotted paths with __ for the dot."""
    made = diffusion.get_config("tiny")
    made.optimizer.update(learning_rate=0.05, warmup=4)
    made.steps = 20
    with made.unlocked():
        for path, value in changes.items():
            *parents, name = path.split("__")
            place = made
            for parent in parents:
                place = place[parent]
            place[name] = value
    return made


class Trainer:
    """A compiled step and its state."""

    def __init__(self, task, made, devices=None) -> None:
        self.step, first = setup.start(made, task)
        self.way = parallel.make(made.parallel, devices=devices or jax.local_devices()[:1])
        self.compiled = self.way.step(self.step)
        self.state = self.way.place_state(first)

    def __call__(self, batch) -> int:
        """Takes a step; returns the number of bad ones in a row."""
        self.state, bad = self.compiled(self.state, self.way.place(batch))
        return int(bad)


def host(tree):
    """A copy that no donation can take away."""
    return jax.tree.map(np.array, tree)
