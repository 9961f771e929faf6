"""The training loop: one, for every task, from top to bottom."""

from __future__ import annotations

import contextlib
import functools
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
from vision_lang.training.inflight import InFlight
from vision_lang.training.profile import Profile
from vision_lang.training.signals import Signals, Stopped
from vision_lang.training.spikes import Spikes
from vision_lang.training.state import TrainState
from vision_lang.training.watchdog import Watchdog

SHOWN = ("loss", "images/s")  # beside the progress bar


def train(
    config: ConfigDict,
    run: RunFolder,
    command: list[str],
    defaults: ConfigDict | None = None,
    until: int | None = None,
) -> dict[str, float]:
    """Trains (or resumes) the run and returns its final results, {} before its last step.

    Args:
      config: of the run.
      run: its folder, which holds the config.
      command: the command line, for the record.
      defaults: what the logged config is compared with.
      until: a step to end after, as at a signal: saved, to be resumed.

    Raises:
      InputError: something that the user can put right.
      Stopped: SIGTERM or SIGINT; the run was saved and can be resumed.
    """
    devices.check(config)
    keep = config.keep, config.keep_period, config.keep_best
    with (
        Watchdog(config.stuck_after) as watch,
        Checkpoints(run.checkpoints, *keep, config_lib.lasting_hash(config)) as saved,
    ):
        # Everything a run is made of. -------------------------------------------------------------
        job = setup.make(config, run)
        context = Context(config, job.task, job.data, job.tokenizer, job.parallel, setup.load)
        evaluators = make_evaluators(context)
        record = provenance.collect(command, config_lib.fingerprint(config), job.data.fingerprint)

        # Where to begin. --------------------------------------------------------------------------
        state, start, notes = job.state, 0, {}
        # Damaged or not: never begin anew over them. What process 0 sees of a shared folder counts.
        if processes.agreed(manifest.any_finished(run.checkpoints)):
            watch.enter("restore", 0)
            start, state = saved.restore(job.state)
            notes = saved.notes(start)
            logging.info("Resumed from step %d.", start)
        if start > config.steps:
            raise InputError(
                f"The run has {start} steps behind it, more than config.steps={config.steps}. "
                "Give more steps, or start a new run with --fork=NEW."
            )
        record_start(run, record, start)
        began = time.perf_counter()

        source = job.data.learned_from("train")
        batches = pipeline.train_batches(
            source,
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
        names = functools.partial(pipeline.train_names, source, config.batch_size, config.seed)
        with (
            Writer(run, start) if processes.first() else Silent() as writer,
            Progress(config.steps, start) if processes.first() else Silent() as progress,
            pipeline.prefetch(batches, job.parallel.place) as feed,
            Signals() as signals,
            contextlib.ExitStack() as stack,
        ):
            writer.config(config, defaults)
            clock = Clock(config.batch_size, feed, start)
            flying = InFlight(job.parallel.devices, config.max_bad_steps, saved, names, notes)
            profile = stack.enter_context(Profile(run, config.profile, flying.drain))
            spikes = Spikes(config.log_every, notes)
            numbers: dict[str, float] = {}  # for the progress bar
            results = Result({})

            # The loop. ----------------------------------------------------------------------------
            for step in range(start + 1, config.steps + 1):
                watch.enter("data", step)
                batch = next(feed)
                watch.enter("step" if step > start + 1 else "compilation", step)
                with profile.step(step):
                    state, bad = job.step(state, batch)
                del batch  # or its memory would wait for the next one
                flying.add(step, bad)
                profile.after(step)
                saved.check()

                if step % config.log_every == 0 or step == config.steps:
                    flying.drain()
                    numbers = averages(state) | clock.lap(step)
                    writer.scalars(step, numbers | {"skipped_steps": flying.skipped})
                if step % config.log_every == 0:  # a run that is extended later keeps its window
                    if "loss" in numbers:  # not all updates were skipped
                        spikes.add(step, numbers["loss"])
                    empty = jax.tree.map(jnp.zeros_like, state.window)
                    state = state.replace(window=job.parallel.place_state(empty))
                progress.update(step, {name: numbers[name] for name in SHOWN if name in numbers})

                last = step == config.steps
                measured = Result({})  # at this step: what `keep_best` chooses by
                # Where the best is to be kept, what is measured is saved, the last step as well.
                if is_due(step, config.eval_every) and not last or last and config.keep_best:
                    flying.drain()
                    watch.enter("evaluation", step)
                    clock.pause()
                    progress.pause()
                    measured = evaluate(evaluators, state, writer, step, final=last)
                    progress.resume()
                    clock.resume()
                best = bool(config.keep_best and measured.numbers)
                stopped = signals.at(step)
                ends = step == until or bool(stopped)
                if is_due(step, config.save_every) or best or last or ends:
                    flying.drain()
                    watch.enter("save", step)
                    writer.flush()
                    saved.save(step, state, measured.numbers, flying.notes() | spikes.notes())
                if last:
                    results = measured
                if ends and not last:
                    saved.wait()
                    record_end(run, time.perf_counter() - began)
                    if stopped:
                        raise Stopped(stopped, step)
                    return {}

            # The end. -----------------------------------------------------------------------------
            watch.enter("save", config.steps)
            saved.wait()
            signals.end_at_once(config.steps)
            watch.enter("evaluation", config.steps)
            if not results.numbers:
                results = evaluate(evaluators, state, writer, config.steps, final=True)
            writer.finished()
    record_end(run, time.perf_counter() - began)
    parts = {"params": state.params, "opt_state": state.opt_state, "mutable": state.mutable}
    parts |= {f"ema/{name}": ema for name, ema in state.ema.items()}
    parts = job.parallel.host(parts)
    if processes.first():
        records.write_results(run, results.numbers, results.examples)
        records.write_final(run, config.steps, parts)
    return results.numbers


def is_due(step: int, every: int) -> bool:
    """Whether something that happens each `every` steps (0: only at the end) happens now."""
    return every > 0 and step % every == 0


def averages(state: TrainState) -> dict[str, float]:
    """The means of the metrics since the last log; waits for the step."""
    window = jax.device_get(state.window)
    return {name: float(total) / float(count) for name, (total, count) in window.items() if count}


def evaluate(
    evaluators: dict[str, Evaluator], state: TrainState, writer: Any, step: int, final: bool
) -> Result:
    """Runs the evaluators on the raw weights and every average, and logs what they find."""
    weights = {"raw": state.variables()} | {n: state.variables(n) for n in state.ema}
    total = Result({})
    for name, evaluator in evaluators.items():
        began = time.perf_counter()
        result = evaluator(weights, final)
        logging.info("%s at step %d: %.1f s", name, step, time.perf_counter() - began)
        for what, note in result.notes.items():
            logging.info("%s: %s", what, note)
        total |= result
    writer.scalars(step, total.numbers)
    for name, picture in total.pictures.items():
        path = writer.image(step, name, picture)
        logging.info("Wrote %s", path)
    return total


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
