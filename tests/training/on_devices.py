r"""Trains a tiny task on 1, 2, ... forced host devices and prints what came out as JSON.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 \
        python -m tests.training.on_devices 30 diffusion

or, as one of several processes, on the devices of all:

    python -m tests.training.on_devices 30 diffusion localhost:PORT COUNT INDEX

What it prints is compared by test_devices.py and test_processes.py.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from vision_lang.models import layers
from vision_lang.models.sketch import Sketch, SketchSpec
from vision_lang.runs.records import digest
from vision_lang.training import parallel, setup

ROWS, LENGTH, SIDE, WORDS, CLASSES = 8, 6, 16, 32, 4
parallel.SMALL = 32  # of networks as tiny as these hardly anything would be cut


class Tokenizer:
    """What a task asks of a tokenizer."""

    vocab_size = WORDS

    def encode(self, text, length):
        return np.arange(length, dtype=np.int32) % 2, np.arange(length) < 2

    def tokens_of(self, word):
        return (WORDS - 1,)


def side(task):
    """A VGG pads what is smaller than 32 px: in the flat margin equal values tie in its pools, and
    rounding, which differs between programs, would decide where a gradient goes."""
    return SIDE if task == "diffusion" else 32


def config(task="diffusion", accumulate=1):
    made = importlib.import_module(f"configs.{task}").get_config("tiny")
    made.batch_size, made.accumulate = ROWS, accumulate
    made.data.update(resolution=side(task), text_length=LENGTH)
    if task == "diffusion":
        made.caption_drop = 0.5
        made.model.unet.update(depth=(1,), dropout=0.1)
        made.model.text.dropout = 0.1
    if task == "captioning":
        made.model.decoder.dropout = 0.1
    return made


def batch(step, side=SIDE):
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (ROWS, side, side, 3), np.uint8),
        "tokens": rng.integers(2, WORDS, (ROWS, LENGTH), np.int32),
        "text_mask": np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (ROWS, 1)),
        "label": rng.integers(0, CLASSES, ROWS, np.int32),
        "weight": (np.arange(ROWS) != step % 11).astype(np.float32),
        "index": np.arange(ROWS, dtype=np.int32),
    }


def own(way, batch):
    """The rows of a batch that this process has."""
    return jax.tree.map(lambda x: x[way.own(ROWS)], batch)


# Hands gradients through and keeps the last ones as its state.
RECORDER = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params=None: (grads, grads),
)


def noisy(params):
    """Zero-initialised layers would let no gradient through to the others at step 0."""
    rng = np.random.default_rng(0)
    add = lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32)  # noqa: E731
    return {name: jnp.asarray(add(params[name])) for name in sorted(params)}


def train(way, steps, task, accumulate=1, kind="pmap"):
    """Returns the gradients of step 0 as one vector, and the loss of each step."""
    made = config(task, accumulate)
    made.parallel = kind
    made_task = setup.make_task(made, Tokenizer(), CLASSES)
    step, state = setup.start(made, made_task, way.lay_out)
    step = dataclasses.replace(step, optimizer=optax.chain(RECORDER, step.optimizer))
    params = noisy(way.host(state.params))  # fsdp: a process has parts of them
    state = state.replace(params=params, opt_state=step.optimizer.init(step.packing.pack(params)))
    compiled, state = way.step(step), way.place_state(state)
    losses = []
    for number in range(steps):
        state = state.replace(window=way.place_state(jax.tree.map(jnp.zeros_like, state.window)))
        state, bad = compiled(state, way.place(own(way, batch(number, side(task)))))
        assert int(bad) == 0  # waits: many collectives in flight can deadlock the CPU backend
        total, count = jax.device_get(state.window["loss"])
        losses.append(float(total) / float(count))
        if number == 0:
            seen = way.host(jax.tree.leaves(state.opt_state[0]))
            grads = np.concatenate([g.ravel() for g in seen])
    return grads, losses


class Probe:
    """The diffusion task with networks that note what every row is given."""

    def __init__(self, made):
        self.task = setup.make_task(made, Tokenizer(), 0)
        self.batch_spec = self.task.batch_spec

    def init(self, key):
        params = {name: {"kernel": jnp.ones(3)} for name in ("unet", "text_encoder")}
        spec = {name: jnp.zeros((ROWS, *s.shape), s.dtype) for name, s in self.batch_spec().items()}
        spec["progress"] = jnp.zeros(ROWS)
        keys = jax.random.split(key, ROWS)
        _, seen = self.seen({"params": params}, spec, keys)
        return {"params": params, "seen": jax.tree.map(jnp.zeros_like, seen)}

    def seen(self, variables, rows, keys):
        seen: dict = {}
        drop = lambda keys: layers.Dropout(0.5).apply({}, jnp.ones((len(keys), 40)), keys)  # noqa: E731

        def text(params, tokens, mask, dropout):
            seen.update(tokens=tokens, mask=mask, dropout_of_text=drop(dropout))
            return jnp.zeros((*tokens.shape, 1)), {}

        def unet(params, x, time, context, mask, label, dropout):
            seen.update(noisy=x, time=time, dropout=drop(dropout))
            return jnp.zeros_like(x), {}

        task = dataclasses.replace(
            self.task,
            text_encoder=SimpleNamespace(apply=text),
            unet=SimpleNamespace(apply=unet),
            sketch=Sketch(SketchSpec(layers=0), self.task.resolution),
        )
        return task.loss(variables, rows, keys, across=parallel.ONE_DEVICE, train=True), seen

    def loss(self, variables, rows, keys, *, across, train):
        (losses, _, metrics), seen = self.seen(variables, rows, keys)
        return losses, {"seen": across.gather(seen)}, metrics


def draws(way):
    """What the rows of two steps were given, gathered over devices."""
    made = config()
    step, state = setup.start(made, Probe(made))
    compiled, state = way.step(step), way.place_state(state)
    black = batch(0) | {"image": np.zeros((ROWS, SIDE, SIDE, 3), np.uint8)}
    found = []
    for _ in range(2):
        state, _ = compiled(state, way.place(own(way, black)))
        found.append(jax.device_get(state.mutable["seen"]))
    return found


def spread(way):
    """Rows that the devices square each, three times: more rows than devices, and fewer."""

    def step(state, batch, *, across):
        own = lambda x: x**2 + 0 * batch["index"].sum()  # noqa: E731
        return {name: across.spread(own, x) for name, x in state.items()}

    rows = {str(n): jnp.arange(6.0 * n).reshape(n, 2, 3) for n in (1, 5, 8)}
    index = own(way, {"index": np.arange(ROWS)})
    squares = way.step(step)(way.place_state(rows), way.place(index))
    return {name: x.tolist() for name, x in way.host(squares).items()}


def describe(found):
    """Digests of all, and how many rows differ from each other in each draw."""
    first = found[0]
    dropped = [bool((row[:2] == [0, 1]).all()) for row in first["tokens"]]
    return {
        "digests": {name: [digest(f[name]) for f in found] for name in first},
        "different": {name: len({x.tobytes() for x in value}) for name, value in first.items()},
        "dropped": dropped,
    }


def main(steps: int, task: str) -> None:
    every = jax.local_devices()
    counts = [n for n in (1, 2, 4, 8) if n <= len(every)]
    ways = {f"pmap {n}": parallel.make("pmap", devices=every[:n]) for n in counts}
    ways |= {kind: parallel.make(kind, devices=every) for kind in ("jit", "fsdp")}
    # Diffusion on two devices in micro-batches: one program less to compile. (A batch norm has the
    # statistics of a micro-batch, and contrastive losses want the whole batch.)
    parts = {name: 2 if (name, task) == ("pmap 2", "diffusion") else 1 for name in ways}
    runs = {
        name: train(way, steps, task, parts[name], name.partition(" ")[0])
        for name, way in ways.items()
    }
    grads, losses = runs.pop("pmap 1")
    found = {
        "losses_of": {name: other for name, (_, other) in runs.items()},
        "largest": float(np.abs(grads).max()),
        "share_not_zero": float((grads != 0).mean()),
        "losses": losses,
        "gradient_error": {n: float(np.abs(g - grads).max()) for n, (g, _) in runs.items()},
        "loss_error": {
            n: float(np.abs(np.subtract(other, losses)).max()) for n, (_, other) in runs.items()
        },
    }
    if task == "diffusion":
        found["spread"] = {name: spread(way) for name, way in ways.items()}
        some = ("pmap 1", f"pmap {counts[-1]}", "jit")
        found["draws"] = {name: describe(draws(ways[name])) for name in some}
    print(json.dumps(found))


def of_processes(steps: int, task: str, where: str, count: int, index: int) -> None:
    jax.distributed.initialize(where, count, index, heartbeat_timeout_seconds=60)
    # They meet now. Where they first met in a step, one that compiles 30 s longer would be missed.
    multihost_utils.sync_global_devices("begin")
    ways = {kind: parallel.make(kind) for kind in ("pmap", "jit", "fsdp")}
    found = {
        "losses_of": {kind: train(way, steps, task, kind=kind)[1] for kind, way in ways.items()}
    }
    if task == "diffusion":
        found["spread"] = {name: spread(way) for name, way in ways.items()}
        found["draws"] = {name: describe(draws(ways[name])) for name in ("pmap", "jit")}
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[3:]:
        of_processes(int(sys.argv[1]), sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
    else:
        main(int(sys.argv[1]), sys.argv[2])
