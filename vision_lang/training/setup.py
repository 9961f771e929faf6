"""From a config and a run folder to everything that training or using the run needs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from vision_lang import keys as random_keys
from vision_lang import processes, tasks
from vision_lang.data import sources, tokenizer
from vision_lang.errors import InputError
from vision_lang.runs import files, records, trees
from vision_lang.runs import folder as folder_lib
from vision_lang.tasks.facts import DataFacts
from vision_lang.training import averages, latents, lora, optimizer, parallel, state, stored
from vision_lang.training.step import Step

TOKENIZER_CAPTIONS = 50_000  # enough to train a tokenizer on; larger splits are thinned evenly
# What a network is called in the run that it begins with, where it is not called the same.
THEIRS = {"perceptual": "encoder"}


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
        check_data(data, run)
        return data, tokenizer.load(run.tokenizer)
    texts: list[str] = []
    if tasks.entry(config).reads_text(config):
        captions = data.open("train").captions(TOKENIZER_CAPTIONS)
        texts = [text for several in captions for text in several]
    words = tokenizer.for_captions(
        texts or ["a"],
        path=config.data.tokenizer,
        vocab_size=config.data.vocab_size,
        length=config.data.text_length,
    )
    if config.task in ("captioning", "clip") and words.bos_id is None:
        raise InputError(
            f"data.tokenizer={config.data.tokenizer} has no token that begins a text, as T5's has "
            f"none, and a {config.task} run wants one: leave data.tokenizer empty, or name another."
        )
    files.write_text(run.tokenizer, words.json)
    files.write_json(run.data, facts)
    return data, words


def check_data(data: sources.Prepared, run: folder_lib.RunFolder) -> None:
    """Raises InputError if the data set is another than the run was trained on."""
    stored = json.loads(run.data.read_text())
    for what, found in (("fingerprint", data.fingerprint), ("splits", data.splits)):
        if stored[what] != found:
            raise InputError(
                f"The data set '{data.name}' has changed since this run began ({what} "
                f"{stored[what]}, now {found}). Bring the old data back, or start a new run."
            )


def make_task(config: ConfigDict, words: tokenizer.Tokenizer, num_classes: int) -> Any:
    """Builds the task of a config; every name in it is checked here."""
    null_tokens, null_mask = words.encode("", config.data.text_length)
    facts = DataFacts(
        words.vocab_size,
        tuple(map(int, null_tokens)),
        tuple(map(bool, null_mask)),
        num_classes,
        words.tokens_of,
    )
    return tasks.entry(config).make(config, facts)


def make(config: ConfigDict, run: folder_lib.RunFolder) -> Job:
    """Builds the job: data, task, optimizer, compiled step, and the state before the first step."""
    data, words = processes.in_turn("data", lambda: prepare_data(config, run))
    task = make_task(config, words, len(data.class_names or []))
    way = parallel.make(config.parallel, config.batch_size, config.accumulate)
    step, first = start(config, task, way.lay_out)
    placed = way.place_state(first)
    if config.task == "diffusion" and task.latents.kept:
        own = parallel.make(config.parallel, devices=jax.local_devices())
        made = lambda: _with_latents(data, config, task, first, own, run)  # noqa: E731
        data = processes.in_turn("latents", made)
    return Job(config, data, words, task, way, way.step(step), placed)


def _with_latents(
    data: sources.Prepared,
    config: ConfigDict,
    task: Any,
    first: state.TrainState,
    way: parallel.Parallel,
    run: folder_lib.RunFolder,
) -> sources.Prepared:
    """The data with the latents of their pictures, which data.json then names."""
    variables = way.place_state(first.variables())
    data, fingerprint = latents.prepare(data, config, task, variables, way)
    stored = json.loads(run.data.read_text())
    if stored.get("latents", fingerprint) != fingerprint:
        raise InputError(
            f"The autoencoder '{config.init.autoencoder}' has changed since this run began (its "
            f"latents were {stored['latents']}, now {fingerprint}). Bring the old one back, or "
            "start a new run."
        )
    if processes.first():
        files.write_json(run.data, stored | {"latents": fingerprint})
    return data


def start(
    config: ConfigDict, task: Any, lay_out: Callable[[Any], Any] = lambda tree: tree
) -> tuple[Step, state.TrainState]:
    """Returns a task's step, not compiled yet, and the state before the first step.

    Args:
      lay_out: Parallel's: a state that no device can hold is made in parts.
    """
    # Hundreds of arrays, made once: to optimise these programs costs more than to run them.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(lambda key: lay_out(task.init(key)), compiler_options=quick)
    variables = init(random_keys.make(config.seed, "init"))
    variables = _initialised(variables, config.init, config.init_except)
    updates = lora.init(
        stored.flat(variables["params"]), config.lora, random_keys.make(config.seed, "lora")
    )
    scale = lora.scale(config)
    first = state.create(variables, tuple(config.optimizer.frozen), updates, scale)
    settings = (
        optimizer.with_group(config.optimizer, "lora", lora.GROUP) if scale else config.optimizer
    )
    kind = optimizer.Grouping if config.parallel == "fsdp" else optimizer.Packing
    packing = kind(first.params, settings.groups)
    optimiser = optimizer.make(settings, config.steps, packing)
    step = Step(
        task=task,
        optimizer=optimiser,
        packing=packing,
        learning_rate=optimizer.learning_rate(config.optimizer, config.steps),
        averages={name: averages.move(name, spec.to_dict()) for name, spec in config.ema.items()},
        seed=config.seed,
        steps=config.steps,
        accumulate=config.accumulate,
    )

    def derived(params):
        # Copies: an average that shares the parameters' buffers would be donated with them.
        average = lambda: state.Ema(jax.tree.map(jnp.copy, params), jnp.int32(0))  # noqa: E731
        return lay_out((optimiser.init(packing.pack(params)), {n: average() for n in config.ema}))

    opt_state, ema = jax.jit(derived, compiler_options=quick)(first.params)
    first = first.replace(opt_state=opt_state, ema=ema)
    rows = lambda s: jax.ShapeDtypeStruct((config.batch_size, *s.shape), s.dtype)  # noqa: E731
    batch = jax.tree.map(rows, task.batch_spec())
    return step, first.replace(window=step.empty_window(first, batch))


def _initialised(variables: Any, init: ConfigDict, left_out: str) -> Any:
    """Replaces the networks that config.init names by those of other runs; each leaf is logged.

    A network is its sub-tree of every collection: parameters and batch statistics. It has the same
    name there, or that of `THEIRS`.

    Args:
      left_out: config.init_except, a pattern of paths such as 'encoder/fc8/.*' that are not asked
        of the other run, nor taken from it.

    Raises:
      InputError: the run has other leaves, shapes or types there; all of them are named.
    """
    here = stored.flat(variables)
    for part, spec in init.items():
        if not spec:
            continue
        source, there = stored.weights_of(spec)
        theirs = f"^([^/]+)/{THEIRS.get(part, part)}/"  # behind the collection
        there = {re.sub(theirs, rf"\1/{part}/", n): leaf for n, leaf in there.items()}

        def belongs(name, part=part):
            path = name.partition("/")[2]  # without the collection
            return path.startswith(part + "/") and not re.fullmatch(left_out, path)

        own, other = set(filter(belongs, here)), set(filter(belongs, there))
        lines = [f"missing there: {n}" for n in sorted(own - other)]
        lines += [f"only there: {n}" for n in sorted(other - own)]
        for name in sorted(own & other):
            old, new = here[name], there[name]
            if old.shape != new.shape or old.dtype != new.dtype:
                lines.append(f"{name}: {new.dtype}{new.shape} there, {old.dtype}{old.shape} here")
        if lines or not own:
            detail = "\n  ".join(lines or [f"this model has no sub-tree '{part}'"])
            raise InputError(
                f"config.init.{part}={spec} does not fit:\n  {detail}\nWhat is to begin anew, or "
                "to be left behind, may be named by the pattern config.init_except."
            )
        for name in sorted(own):
            here[name] = jnp.asarray(there[name])
            logging.info("init: %s from %s", name, source)
        for name in here:
            if name.partition("/")[2].startswith(part + "/") and name not in own:
                logging.info("init: %s is new", name)
    return trees.nest(here)


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
    chosen: bool  # a certain step or certain weights were asked for

    @property
    def digest(self) -> str:
        """Tells these weights from others: the first 16 digits of their sha256."""
        return records.digest(self.variables)[:16]


def load(path: str, weights: str = "") -> Loaded:
    """Loads a run for inference: no data set and no optimizer is touched.

    Args:
      path: 'RUN[@step]', or with its weights as 'RUN[@step][:ema|raw|std=S]'.
      weights: 'ema', 'raw', 'std=S', or '' = as `path` says, else the average where there is one.

    Raises:
      InputError: no such run, it has no finished checkpoint, or its config is of another version
        of the code.
    """
    spec = stored.spec(path, weights)
    folder, step, which = stored.parse(spec)
    chosen = step is not None or which != ""
    run = folder_lib.open(folder, checkpoint=True)
    config = run.read_config()
    tasks.entry(config)  # refuses a run that holds a network alone
    source, flat = stored.weights_of(spec)
    words = tokenizer.load(run.tokenizer)
    class_names = json.loads(run.data.read_text())["class_names"]
    try:
        task = make_task(config, words, len(class_names))
    except (AttributeError, TypeError) as e:  # of a field that is missing there, or here
        raise InputError(
            f"The config of '{folder}' does not fit this version of the code ({e}); the commit "
            f"that made it is in {run.provenance.name}."
        ) from e
    return Loaded(run, config, task, words, class_names, trees.nest(flat), source, chosen)
