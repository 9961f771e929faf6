"""A run that is told to end saves once more and ends; a second signal ends it at once."""

from __future__ import annotations

import signal
from typing import Any

from jax.experimental import multihost_utils

from vision_lang import processes

BOTH = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal ended the training early; the state has been saved."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}, state saved")
        self.exit_code = 128 + signum


class Signals:
    """Turns the first SIGTERM or SIGINT into a note; a second one ends the program at once.

    Several processes have to save at the same step, whichever of them was told to end. JAX sees to
    that, for which SIGTERM must be left to it; it also hears of it when a cluster takes the machine
    away. A SIGINT counts as one.
    """

    received = 0
    _saved: int | None = None  # the step, where nothing is left to save

    def __enter__(self) -> Signals:
        self._old: dict[int, Any] = {}
        handlers = dict.fromkeys(BOTH, self._note)
        if processes.several():
            handlers = {signal.SIGINT: lambda *_: signal.raise_signal(signal.SIGTERM)}
        try:
            for number, handler in handlers.items():
                self._old[number] = signal.signal(number, handler)
        except ValueError:  # not the main thread (a notebook, a test): signals stay as they are
            pass
        return self

    def at(self, step: int) -> int:
        """The signal that was received before this step ended, or 0; all processes ask at every
        step, and get the same answer."""
        if processes.several() and multihost_utils.reached_preemption_sync_point(step):
            self.received = signal.SIGTERM
            self._let_go()
        return self.received

    def end_at_once(self, step: int) -> None:
        """From here on, where the last `step` is saved, a signal raises Stopped; so does one that
        came before. One of several processes just ends, as the others then do."""
        self._saved = step
        if processes.several():
            self._let_go()
        if self.received:
            raise Stopped(self.received, step)

    def _note(self, number: int, frame: Any) -> None:
        del frame
        self.received = number
        self._let_go()
        if self._saved is not None:
            raise Stopped(number, self._saved)

    def _let_go(self) -> None:
        """Signals end the program again."""
        if self._old:  # we are in the main thread
            for number in BOTH:
                signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
