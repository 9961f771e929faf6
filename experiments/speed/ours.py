"""Our side of the training cases: the project's own step of a config, on batches made once."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from experiments.speed.case import Contest, Options


def set_up(options: Options) -> None:
    """As the commands do it: two devices of one core each where there are two cores."""
    from vision_lang.training import devices

    devices.set_up(min(2, options.threads))


def optimizer(config: Any) -> None:
    """AdamW for all parameters, as torch's defaults have it, in place of the config's own."""
    from ml_collections import ConfigDict

    from configs import common

    config.optimizer.groups = ConfigDict({"all": common.adamw(".*", weight_decay=0.01)})
    config.optimizer.learning_rate, config.optimizer.b2 = 1e-4, 0.999
    config.optimizer.schedule, config.optimizer.warmup = "constant", 0
    config.ema = ConfigDict()


def facts(*, vocabulary: int = 4, length: int = 2, classes: int = 0) -> Any:
    """What a task must know of data: token 0 begins a text, 1 ends it, the last one pads."""
    from vision_lang.tasks.facts import DataFacts

    null = (0, 1) + (vocabulary - 1,) * (length - 2)
    return DataFacts(vocabulary, null, (True, True) + (False,) * (length - 2), classes)


def rows(task: Any, batch_size: int, *, vocabulary: int = 4, classes: int = 0) -> dict[str, Any]:
    """A batch of random pictures, whole texts and labels; every example counts."""
    rng, found = np.random.default_rng(0), {}
    for name, spec in task.batch_spec().items():
        shape = (batch_size, *spec.shape)
        if name in ("weight", "text_mask"):
            found[name] = np.ones(shape, spec.dtype)
        elif name == "index":
            found[name] = np.arange(batch_size, dtype=spec.dtype)
        elif np.issubdtype(spec.dtype, np.floating):
            found[name] = rng.normal(size=shape).astype(spec.dtype)
        else:
            most = {"image": 256, "tokens": vocabulary, "label": max(classes, 1)}[name]
            found[name] = rng.integers(most, size=shape).astype(spec.dtype)
    return found


def training(config: Any, about: Any, options: Options) -> Contest:
    """The project's step: setup.start, spread over devices by config.parallel; optimizer, metrics
    and the check for NaN included."""
    import jax

    from vision_lang import tasks
    from vision_lang.training import parallel, setup

    set_up(options)
    task = tasks.entry(config).make(config, about)
    way = parallel.make(config.parallel, config.batch_size)
    step, first = setup.start(config, task, way.lay_out)
    batch = rows(task, config.batch_size, vocabulary=about.vocab_size, classes=about.num_classes)
    whole = jax.jit(functools.partial(step, across=parallel.ONE_DEVICE))
    counted = whole.lower(first, batch).cost_analysis()["flops"]
    parameters = sum(x.size for x in first.params.values())
    state, placed, run = way.place_state(first), way.place(batch), way.step(step)

    def unit() -> None:
        nonlocal state
        state, _ = run(state, placed)
        jax.block_until_ready(state)

    return Contest(unit, {"parameters": parameters}, {"xla": counted})
