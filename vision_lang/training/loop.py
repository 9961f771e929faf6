"""The training loop: one, for every task, from top to bottom."""

from __future__ import annotations

import collections
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from vision_lang import processes
from vision_lang.data import pipeline
from vision_lang.errors import InputError
from vision_lang.evaluators import make_evaluators
from vision_lang.evaluators.context import Context, Evaluator, Result
from vision_lang.runs import config as config_lib
from vision_lang.runs import files, manifest, provenance, records
from vision_lang.runs.checkpoint import Checkpoints
from vision_lang.runs.console import Progress, Silent, duration
from vision_lang.runs.folder import RunFolder
from vision_lang.runs.writer import Writer
from vision_lang.training import devices, setup
from vision_lang.training.signals import Signals, Stopped
from vision_lang.training.state import TrainState

SHOWN = ("loss", "images/s")  # beside the progress bar


def train(
    config: ConfigDict, run: RunFolder, command: list[str], defaults: ConfigDict | None = None
) -> dict[str, float]:
    """Trains (or resumes) the run and returns its final results.

    Args:
      config: of the run.
      run: its folder, which holds the config.
      command: the command line, for the record.
      defaults: what the logged config is compared with.

    Raises:
      InputError: something that the user can put right.
      Stopped: SIGTERM or SIGINT; the run was saved and can be resumed.
    """
    devices.check(config)

    # Everything a run is made of. -----------------------------------------------------------------
    job = setup.make(config, run)
    context = Context(config, job.task, job.data, job.tokenizer, job.parallel, setup.load)
    evaluators = make_evaluators(context)
    record = provenance.collect(command, config_lib.fingerprint(config), job.data.fingerprint)

    keep = config.keep, config.keep_period, config.keep_best
    with Checkpoints(run.checkpoints, *keep, config_lib.lasting_hash(config)) as saved:
        # Where to begin. --------------------------------------------------------------------------
        state, start = job.state, 0
        # Damaged or not: never begin anew over them. What process 0 sees of a shared folder counts.
        if processes.agreed(manifest.any_finished(run.checkpoints)):
            start, state = saved.restore(job.state)
            logging.info("Resumed from step %d.", start)
        if start > config.steps:
            raise InputError(
                f"The run has {start} steps behind it, more than config.steps={config.steps}. "
                "Give more steps, or start a new run with --fork=NEW."
            )
        record_start(run, record, start)
        began = time.perf_counter()

        batches = pipeline.train_batches(
            job.data.learned_from("train"),
            context.encode,
            data=config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            step=start,
            classes=context.classes,
            multi_label=context.multi_label,
            workers=config.workers,
            process_index=job.parallel.share[0],
            process_count=job.parallel.share[1],
        )
        with (
            Writer(run, start) if processes.first() else Silent() as writer,
            Progress(config.steps, start) if processes.first() else Silent() as progress,
            pipeline.prefetch(batches, job.parallel.place) as feed,
            Signals() as signals,
        ):
            writer.config(config, defaults)
            clock = Clock(config.batch_size, feed, start)
            flying = InFlight(config.max_bad_steps, job.parallel.devices, saved)
            numbers: dict[str, float] = {}  # for the progress bar
            results: dict[str, float] = {}

            # The loop. ----------------------------------------------------------------------------
            for step in range(start + 1, config.steps + 1):
                state, bad = job.step(state, next(feed))
                flying.add(step, bad)
                saved.check()

                if step % config.log_every == 0 or step == config.steps:
                    numbers = averages(state) | clock.lap(step)
                    writer.scalars(step, numbers)
                if step % config.log_every == 0:  # a run that is extended later keeps its window
                    empty = jax.tree.map(jnp.zeros_like, state.window)
                    state = state.replace(window=job.parallel.place_state(empty))
                progress.update(step, {name: numbers[name] for name in SHOWN if name in numbers})

                last = step == config.steps
                measured: dict[str, float] = {}  # at this step: what `keep_best` chooses by
                # Where the best is to be kept, what is measured is saved, the last step as well.
                if is_due(step, config.eval_every) and not last or last and config.keep_best:
                    flying.drain()
                    clock.pause()
                    progress.pause()
                    measured = evaluate(evaluators, state, writer, step, final=last)
                    progress.resume()
                    clock.resume()
                best = bool(config.keep_best and measured)
                stopped = signals.at(step)
                if is_due(step, config.save_every) or best or last or stopped:
                    flying.drain()
                    writer.flush()
                    saved.save(step, state, measured)
                if last:
                    results = measured
                if stopped and not last:
                    saved.wait()
                    record_end(run, time.perf_counter() - began)
                    raise Stopped(stopped, step)

            # The end. -----------------------------------------------------------------------------
            saved.wait()
            signals.end_at_once(config.steps)
            results = results or evaluate(evaluators, state, writer, config.steps, final=True)
            writer.finished()
    record_end(run, time.perf_counter() - began)
    parts = {"params": state.params, "opt_state": state.opt_state, "mutable": state.mutable}
    parts |= {f"ema/{name}": ema for name, ema in state.ema.items()}
    parts = job.parallel.host(parts)
    if processes.first():
        records.write_results(run, results)
        records.write_final(run, config.steps, parts)
    return results


def is_due(step: int, every: int) -> bool:
    """Whether something that happens each `every` steps (0: only at the end) happens now."""
    return every > 0 and step % every == 0


def averages(state: TrainState) -> dict[str, float]:
    """The means of the metrics since the last log; waits for the step."""
    window = jax.device_get(state.window)
    return {name: float(total) / float(count) for name, (total, count) in window.items() if count}


def evaluate(
    evaluators: dict[str, Evaluator], state: TrainState, writer: Any, step: int, final: bool
) -> dict[str, float]:
    """Runs the evaluators on the raw weights and every average, and logs what they find."""
    weights = {"raw": state.variables()} | {n: state.variables(n) for n in state.ema}
    total = Result({}, {})
    for name, evaluator in evaluators.items():
        began = time.perf_counter()
        result = evaluator(weights, final)
        logging.info("%s at step %d: %.1f s", name, step, time.perf_counter() - began)
        for what, note in result.notes.items():
            logging.info("%s: %s", what, note)
        total = Result(total.numbers | result.numbers, total.pictures | result.pictures)
    writer.scalars(step, total.numbers)
    for name, picture in total.pictures.items():
        path = writer.image(step, name, picture)
        logging.info("Wrote %s", path)
    return total.numbers


def record_start(run: RunFolder, record: dict[str, Any], start: int) -> None:
    """Adds this start to provenance.json: a resumed run has one record per start."""
    if not processes.first():
        return
    starts = json.loads(run.provenance.read_text())["starts"] if run.provenance.exists() else []
    files.write_json(run.provenance, {"starts": [*starts, {"step": start} | record]})


def record_end(run: RunFolder, seconds: float) -> None:
    """Adds to this start's record how long its loop took, compilation and evaluations included."""
    if not processes.first():
        return
    starts = json.loads(run.provenance.read_text())["starts"]
    files.write_json(run.provenance, {"starts": [*starts[:-1], starts[-1] | {"seconds": seconds}]})
    logging.info("The loop took %s.", duration(seconds))


class Clock:
    """Images per second, and the share of the time that was spent waiting for data."""

    def __init__(self, batch_size: int, feed: Any, start: int) -> None:
        self._batch, self._feed = batch_size, feed
        self._step, self._time, self._waited = start, time.perf_counter(), feed.waited

    def lap(self, step: int) -> dict[str, float]:
        """The numbers since the last lap, evaluations left out."""
        now = time.perf_counter()
        seconds, waited = now - self._time, self._feed.waited - self._waited
        numbers = {
            "images/s": (step - self._step) * self._batch / seconds,
            "data_wait": min(1.0, waited / seconds),
        }
        self._step, self._time, self._waited = step, now, self._feed.waited
        return numbers

    def pause(self) -> None:
        """Stops the clock, for an evaluation."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """Lets the clock go on: the time since `pause` does not count."""
        self._time += time.perf_counter() - self._paused


class InFlight:
    """Bounds the steps that are queued on the devices, and finds updates that went wrong.

    On the CPU, queued collectives of several devices can deadlock the backend, so each step is
    waited for; an accelerator is kept busy by a few steps.
    """

    def __init__(self, max_bad_steps: int, count: int, saved: Checkpoints) -> None:
        on_cpu = jax.default_backend() == "cpu"
        self._limit = (0 if count > 1 else 1) if on_cpu else 8
        self._max_bad, self._saved = max_bad_steps, saved
        self._queue: collections.deque[tuple[int, jax.Array]] = collections.deque()

    def add(self, step: int, bad: jax.Array) -> None:
        """Queues a step; waits until few enough are queued."""
        self._queue.append((step, bad))
        self.drain(self._limit)

    def drain(self, limit: int = 0) -> None:
        """Waits until at most `limit` steps are queued.

        Raises:
          InputError: more than `max_bad_steps` updates in a row were not finite.
        """
        while len(self._queue) > limit:
            step, bad = self._queue.popleft()
            if int(bad) > self._max_bad:
                latest = self._saved.latest()
                good = f"the last good checkpoint is step {latest}" if latest else "there is none"
                raise InputError(
                    f"Step {step}: NaN or Inf in the loss or the gradients, {int(bad)} update(s) "
                    f"in a row (max_bad_steps={self._max_bad}). None was applied; {good}. "
                    "Lower the learning rate or use float32."
                )
