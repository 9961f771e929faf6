"""The steps that the devices have been given and not yet done, and those that went wrong."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from vision_lang import processes
from vision_lang.errors import InputError, printable
from vision_lang.runs.checkpoint import Checkpoints

NAMES_SHOWN = 5  # of a batch, in a sentence


class InFlight:
    """Bounds the steps that are queued on the devices, and finds updates that went wrong.

    On the CPU, queued collectives of several devices can deadlock the backend, so each step is
    waited for; an accelerator is kept busy by a few steps.

    Attributes:
      skipped: updates that were not applied so far, over the whole run; exact after `drain()`.

    Args:
      devices: how many there are.
      max_bad_steps: updates in a row that may go wrong.
      saved: the run's checkpoints.
      names: step -> what the examples of its batch are called, over all processes.
      notes: what `notes` returned when the step was saved that is gone on from; {}: nothing.
    """

    def __init__(
        self,
        devices: int,
        max_bad_steps: int,
        saved: Checkpoints,
        names: Callable[[int], list[str]],
        notes: Mapping[str, Any],
    ) -> None:
        on_cpu = jax.default_backend() == "cpu"
        self._limit = (0 if devices > 1 else 1) if on_cpu else 8
        self._max_bad, self._saved, self._names = max_bad_steps, saved, names
        self._queue: collections.deque[tuple[int, jax.Array]] = collections.deque()
        self.skipped: int = notes.get("skipped_steps", 0)

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
            if in_a_row := int(bad):
                self._report(step, in_a_row)

    def notes(self) -> dict[str, Any]:
        """What a resumed run has to know, as JSON holds it."""
        return {"skipped_steps": self.skipped}

    def _report(self, step: int, in_a_row: int) -> None:
        self.skipped += 1
        names = [printable(name) for name in self._names(step)]
        if processes.first():
            logging.warning(
                "Step %d: NaN or Inf in the loss or the gradients: the update is skipped, %d in a "
                "row, %d in all. The batch: %s", step, in_a_row, self.skipped, ", ".join(names),
            )  # fmt: skip
        if in_a_row <= self._max_bad:
            return
        self._saved.wait()  # what is being saved is good as well
        latest = self._saved.latest()
        processes.wait("told of the last good step")  # or one that ends would end the others there
        good = "there is none" if latest is None else f"the last good checkpoint is step {latest}"
        more = len(names) - NAMES_SHOWN
        raise InputError(
            f"Step {step}: NaN or Inf in the loss or the gradients, {in_a_row} update(s) in a row "
            f"(max_bad_steps={self._max_bad}). None was applied; {good}. The batch: "
            f"{', '.join(names[:NAMES_SHOWN])}"
            f"{f' and {more} more, all of them in the log' if more > 0 else ''}. Look at these "
            "examples, lower the learning rate, use float32, or go on past them with a larger "
            "max_bad_steps."
        )
