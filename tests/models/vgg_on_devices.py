"""Gradients and batch statistics of a small VGG on forced host devices, against those of one.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.models.vgg_on_devices

Prints the largest difference, of the largest entry, for each way to run.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from vision_lang.models.vgg import VGG, VGGS
from vision_lang.training import parallel

ROWS, CLASSES = 8, 5
NETWORK = VGG(dataclasses.replace(VGGS["tiny"], batch_norm=True), CLASSES)


def step(state, batch, *, across):
    """The gradient of the weighted mean loss, as vision_lang/training/step.py takes it."""

    def summed(params):
        (logits, _), mutable = NETWORK.apply(
            {"params": params, "batch_stats": state["batch_stats"]},
            batch["image"],
            jax.vmap(jax.random.key)(batch["index"]),
            train=True,
            weight=batch["weight"],
            across=across,
            mutable=["batch_stats"],
        )
        losses = -jax.nn.log_softmax(logits)[:, 0]
        return (losses * batch["weight"]).sum(), mutable

    grads, mutable = jax.grad(summed, has_aux=True)(state["params"])
    grads, count = across.mean((grads, batch["weight"].sum()))
    return {"gradient": jax.tree.map(lambda g: g / count, grads), "statistics": mutable}


def main() -> None:
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((ROWS, 32, 32, 3), np.float32),
        "weight": np.float32([1, 0, 1, 1, 1, 1, 0, 0]),
        "index": np.arange(ROWS),
    }
    variables = NETWORK.init(jax.random.key(0), batch["image"], train=False)
    every, found = jax.local_devices(), {}
    ways = {f"pmap {n}": parallel.make("pmap", devices=every[:n]) for n in (1, 2, 4)}
    for name, way in (ways | {"jit": parallel.make("jit", devices=every)}).items():
        state = way.place_state(jax.tree.map(jnp.copy, variables))  # which the step donates
        output = jax.device_get(way.step(step)(state, way.place(batch)))
        found[name] = {
            part: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
            for part, tree in output.items()
        }
    one = found.pop("pmap 1")
    assert all((x != 0).mean() > 0.8 for x in one.values())
    error = lambda a, b: float(np.abs(a - b).max() / np.abs(b).max())  # noqa: E731
    print(json.dumps({n: {p: error(x[p], one[p]) for p in one} for n, x in found.items()}))


if __name__ == "__main__":
    main()
