"""A trace of a few steps, for TensorBoard's profiler and for Perfetto."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from vision_lang import processes
from vision_lang.errors import InputError
from vision_lang.runs.folder import RunFolder


class Profile:
    """Traces the steps first ... last into the run's folder; of several processes the first does.

    Args:
      run: its folder; the trace goes where TensorBoard looks for it, plugins/profile.
      steps: (first, last), or (0, 0): nothing is traced. Of a run that is resumed behind its first
        step, nothing is.
      drain: waits until the steps that were given to the devices are done, so that a trace holds
        those that it is of and no others.

    Raises:
      InputError: the last step lies before the first, or there are not two.
    """

    def __init__(self, run: RunFolder, steps: tuple[int, ...], drain: Callable[[], Any]) -> None:
        if len(steps) != 2 or steps[1] < steps[0]:
            raise InputError(
                f"config.profile={steps}: the first and the last step to trace are wanted, such as "
                "(11,13); (0,0) traces none."
            )
        self._run, self._drain = run, drain
        self._first, self._last = steps if processes.first() else (0, 0)
        self._running = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()

    def step(self, number: int) -> contextlib.AbstractContextManager:
        """Within it, a step is given to the devices; a trace names it by its number."""
        if number == self._first:
            self._drain()
            jax.profiler.start_trace(str(self._run.root), create_perfetto_trace=True)
            self._running = True
        if not self._running:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def after(self, number: int) -> None:
        """Ends the trace behind its last step."""
        if self._running and number >= self._last:
            self._drain()
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        logging.info(
            "Traced steps %d to %d: %s, for TensorBoard's profiler (pip install xprof) and, as "
            "perfetto_trace.json.gz, for ui.perfetto.dev.",
            self._first, self._last, self._run.root / "plugins" / "profile",
        )  # fmt: skip
