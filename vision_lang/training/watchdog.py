"""Says when a stage of the training takes longer than it should, and where it stands."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from typing import NamedTuple

from absl import logging

POLL = 1.0  # seconds between two looks at whether a stage that was warned of has ended


class Stage(NamedTuple):
    """What is being done, at which step, and since when (seconds, time.monotonic)."""

    name: str
    step: int
    since: float


class Watchdog:
    """Warns once of each stage that lasts longer than `seconds`, with the stack of every thread;
    and says when it is over. Of several processes each watches itself: the one that names another
    stage than the others is the one that they wait for.

    What is watched only sets an attribute; a thread of its own looks at it.

    Args:
      seconds: what a stage may take; 0: nothing is watched.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._stage = Stage("preparation", 0, time.monotonic())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def enter(self, name: str, step: int) -> None:
        """Tells that the stage before is over and this one begins. Takes less than 1 us."""
        self._stage = Stage(name, step, time.monotonic())

    def _watch(self) -> None:
        told: Stage | None = None  # the stage that was warned of, as long as it lasts
        pause = self._seconds
        while not self._over.wait(pause):
            stage, now = self._stage, time.monotonic()
            if told is not None and told is not stage:
                # Others may have come and gone since the last look, none of them long.
                logging.warning(
                    "Step %d: the stage '%s' was over after %.1f s.", told.step, told.name,
                    now - told.since,
                )  # fmt: skip
                told = None
            left = stage.since + self._seconds - now
            if told is None and left <= 0:
                told = stage
                logging.warning(
                    "Step %d: the stage '%s' has taken %.1f s so far, more than config.stuck_after="
                    "%g. Where each thread stands:\n%s", stage.step, stage.name, now - stage.since,
                    self._seconds, stacks(),
                )  # fmt: skip
            pause = left if told is None else min(POLL, self._seconds)


def stacks() -> str:
    """Where every other thread stands, the latest call last (config.workers are processes of their
    own). No file is read for it: the disk may be what does not answer."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = []
    for thread, frame in sys._current_frames().items():
        if thread != threading.get_ident():
            calls = reversed(list(traceback.walk_stack(frame)))
            lines = [f"  {f.f_code.co_filename}:{n} {f.f_code.co_name}" for f, n in calls]
            found.append("\n".join([f"thread {names.get(thread, thread)}", *lines]))
    return "\n".join(found)
