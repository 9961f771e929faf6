"""From a config and a run folder to everything that training or using the run needs."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vision_lang import keys as random_keys
from vision_lang.data import sources, tokenizer
from vision_lang.errors import InputError, choose
from vision_lang.runs import checkpoint, files
from vision_lang.runs import folder as folder_lib
from vision_lang.tasks import TASKS
from vision_lang.tasks.diffusion_config import DataFacts
from vision_lang.training import optimizer, parallel, state
from vision_lang.training.step import Step

TOKENIZER_CAPTIONS = 50_000  # enough to train a tokenizer on; larger splits are thinned evenly


@dataclass(frozen=True)
class Job:
    """What a training run is made of."""

    config: ConfigDict
    data: sources.Prepared
    tokenizer: tokenizer.Tokenizer
    task: Any
    parallel: parallel.Parallel
    step: Any  # compiled (state, batch) -> (state, bad steps in a row)
    state: state.TrainState  # before the first step, on the devices


def prepare_data(
    config: ConfigDict, run: folder_lib.RunFolder
) -> tuple[sources.Prepared, tokenizer.Tokenizer]:
    """Prepares the data set, and trains or reads the tokenizer, which the run folder keeps.

    The run's data.json says which data were used; a resumed run whose data changed is refused.
    """
    data = sources.prepare(config.data)
    facts = {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "splits": data.splits,
        "class_names": data.class_names or [],
    }
    if run.data.exists():
        stored = json.loads(run.data.read_text())
        if stored["fingerprint"] != data.fingerprint:
            raise InputError(
                f"The data set '{data.name}' has changed since this run began (fingerprint "
                f"{stored['fingerprint']}, now {data.fingerprint}). Bring the old data back, or "
                "start a new run."
            )
        return data, tokenizer.load(run.tokenizer)
    texts: list[str] = []
    if config.condition == "text":
        captions = data.open("train").captions(TOKENIZER_CAPTIONS)
        texts = [text for several in captions for text in several]
    words = tokenizer.for_captions(
        texts or ["a"],
        path=config.data.tokenizer,
        vocab_size=config.data.vocab_size,
        length=config.data.text_length,
    )
    words.save(run.tokenizer)
    files.write_json(run.data, facts)
    return data, words


def make_task(config: ConfigDict, words: tokenizer.Tokenizer, num_classes: int) -> Any:
    """Builds the task of a config; every name in it is checked here."""
    null_tokens, null_mask = words.encode("", config.data.text_length)
    facts = DataFacts(
        words.vocab_size, tuple(map(int, null_tokens)), tuple(map(bool, null_mask)), num_classes
    )
    return choose(TASKS, config.task, "task")(config, facts)


def make(config: ConfigDict, run: folder_lib.RunFolder) -> Job:
    """Builds the job: data, task, optimizer, compiled step, and the state before the first step."""
    data, words = prepare_data(config, run)
    task = make_task(config, words, len(data.class_names or []))
    way = parallel.make(config.parallel, config.batch_size, config.accumulate)
    step, first = start(config, task)
    return Job(config, data, words, task, way, way.step(step), way.place_state(first))


def start(config: ConfigDict, task: Any) -> tuple[Step, state.TrainState]:
    """Returns a task's step, not compiled yet, and the state before the first step."""
    # Hundreds of random arrays, drawn once: to optimise that program costs more than to run it.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(task.init, compiler_options=quick)
    variables = init(random_keys.make(config.seed, "init"))
    first = state.create(variables, tuple(config.optimizer.frozen), tuple(config.ema.keys()))
    first = first.replace(params=_initialised(first.params, config.init))
    packing = optimizer.Packing(first.params, config.optimizer.groups)
    optimiser = optimizer.make(config.optimizer, config.steps, packing)
    step = Step(
        task=task,
        optimizer=optimiser,
        packing=packing,
        learning_rate=optimizer.learning_rate(config.optimizer, config.steps),
        ema_decays={name: spec.decay for name, spec in config.ema.items()},
        seed=config.seed,
        steps=config.steps,
        accumulate=config.accumulate,
    )
    first = first.replace(
        opt_state=optimiser.init(packing.pack(first.params)),
        ema={
            n: e.replace(params=jax.tree.map(jnp.copy, first.params)) for n, e in first.ema.items()
        },
    )
    return step, first.replace(window=_empty_window(step, task, first))


def _empty_window(step: Step, task: Any, first: state.TrainState) -> dict:
    """Zeros with the names and shapes of the step's metrics."""
    example = task.batch_spec()
    rows = step.accumulate
    batch = {k: jax.ShapeDtypeStruct((rows, *s.shape), s.dtype) for k, s in example.items()}
    function = functools.partial(step, across=parallel.ONE_DEVICE)
    after, _ = jax.eval_shape(function, first, batch)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), after.window)


def _initialised(params: dict[str, jax.Array], init: ConfigDict) -> dict[str, jax.Array]:
    """Replaces the sub-trees that config.init names by those of other runs; each leaf is logged.

    Raises:
      InputError: the run has other leaves, shapes or types there; all of them are named.
    """
    params = dict(params)
    for part, spec in init.items():
        if not spec:
            continue
        source, stored = weights_of(spec)
        own = {name for name in params if name.startswith(part + "/")}
        other = {name for name in stored if name.startswith(part + "/")}
        lines = [f"missing there: {n}" for n in sorted(own - other)]
        lines += [f"only there: {n}" for n in sorted(other - own)]
        for name in sorted(own & other):
            here, there = params[name], stored[name]
            if here.shape != there.shape or here.dtype != there.dtype:
                lines.append(
                    f"{name}: {there.dtype}{there.shape} there, {here.dtype}{here.shape} here"
                )
        if lines or not own:
            detail = "\n  ".join(lines or [f"this model has no sub-tree '{part}'"])
            raise InputError(f"config.init.{part}={spec} does not fit:\n  {detail}")
        for name in sorted(own):
            params[name] = jnp.asarray(stored[name])
            logging.info("init: %s from %s", name, source)
    return params


def weights_of(spec: str) -> tuple[str, dict[str, np.ndarray]]:
    """Reads 'RUN[@step][:ema|raw]': returns (where from, parameters by path).

    `ema` (the default where the run has one) is the run's first average.
    """
    path, _, which = spec.partition(":") if spec.endswith((":ema", ":raw")) else (spec, "", "")
    path, _, step = path.partition("@")
    if step and not step.isdigit():
        raise InputError(f"'{spec}': a step is a whole number, as in RUN@1000:ema.")
    run = folder_lib.open(path, checkpoint=True)
    averages = list(run.read_config().ema.keys())
    if which == "ema" and not averages:
        raise InputError(f"'{spec}': that run keeps no average; use ':raw'.")
    average = averages[0] if averages and which != "raw" else ""
    name = f"ema/{average}/params" if average else "params"
    frozen = bool(run.read_config().optimizer.frozen)
    names = [name, *(["frozen"] if frozen else [])]
    found, parts = checkpoint.restore_part(run.checkpoints, names, int(step) if step else None)
    flat = {p: a for part in parts.values() for p, a in _flat(part).items()}
    return f"{path}@{found} ({average or 'raw'})", flat


def _flat(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for name, sub in tree.items() for k, v in _flat(sub, f"{prefix}{name}/").items()}


@dataclass(frozen=True)
class Loaded:
    """A trained run, ready to be used."""

    run: folder_lib.RunFolder
    config: ConfigDict
    task: Any
    tokenizer: tokenizer.Tokenizer
    class_names: list[str]
    variables: Any
    source: str  # run, step and weights, in words


def load(path: str, weights: str = "") -> Loaded:
    """Loads a run for inference: no data set and no optimizer is touched.

    Args:
      path: 'RUN' or 'RUN@step'.
      weights: 'ema', 'raw', or '' = the average where there is one.

    Raises:
      InputError: no such run, or it has no finished checkpoint.
    """
    run = folder_lib.open(path.partition("@")[0], checkpoint=True)
    config = run.read_config()
    source, flat = weights_of(path + (f":{weights}" if weights else ""))
    words = tokenizer.load(run.tokenizer)
    class_names = json.loads(run.data.read_text())["class_names"]
    task = make_task(config, words, len(class_names))
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return Loaded(run, config, task, words, class_names, {"params": nested}, source)
