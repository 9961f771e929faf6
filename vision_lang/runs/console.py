"""Progress on stderr: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, SupportsFloat, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar


class Progress:
    """Shows steps done, steps per second, the time left and the last metrics.

    The speed is measured from the first update on, so that compilation, which comes before it,
    does not count; it is an average over about the last `window` seconds. What lies between `pause`
    and `resume` does not count either.

    Args:
      total: steps in all.
      start: steps done before (a resumed run).
      what: the word in front.
      stream: where to write; default stderr.
      every: seconds between two lines where the stream is no terminal.
      window: seconds that the speed is averaged over.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        what: str = "train",
        stream: TextIO | None = None,
        every: float = 10.0,
        window: float = 30.0,
    ) -> None:
        self._total, self._step, self._what = total, start, what
        self._stream = sys.stderr if stream is None else stream
        self._every, self._window = every, window
        self._last_line = -math.inf
        self._paused, self._away = 0.0, 0.0  # when, and seconds of all pauses
        self._marks: list[tuple[float, int]] = []  # (seconds, step)
        self._metrics = ""
        self._bar: Bar | None = None
        if self._stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            console = Console(file=self._stream)
            self._bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=console)
            self._task = self._bar.add_task(what, total=total, completed=start, note="compiling")
            self._bar.start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, step: int, metrics: Mapping[str, SupportsFloat] | None = None) -> None:
        """Tells that `step` steps are done; metrics stay shown until the next ones."""
        now = time.monotonic() - self._away
        self._step = step
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] > self._window:
            self._marks.pop(0)
        if metrics:
            self._metrics = "  ".join(f"{n} {float(v):.4g}" for n, v in metrics.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=self._note())
        elif now - self._last_line >= self._every:
            self._line(now)

    def pause(self) -> None:
        """Stops the clock, for an evaluation."""
        self._paused = time.monotonic()

    def resume(self) -> None:
        """Lets the clock go on: the time since `pause` does not count."""
        self._away += time.monotonic() - self._paused

    def close(self) -> None:
        """Leaves the last state on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._marks and self._marks[-1][0] > self._last_line:
            self._line(self._marks[-1][0])

    def _line(self, now: float) -> None:
        self._last_line = now
        share = f"{self._step}/{self._total}"
        print(f"{self._what} {share}  {self._note()}", file=self._stream, flush=True)

    def _note(self) -> str:
        speed = self._speed()
        if not speed:
            return self._metrics
        left = duration((self._total - self._step) / speed)
        return f"{speed:.3g} steps/s  {left} left  {self._metrics}".rstrip()

    def _speed(self) -> float:
        """Steps per second; 0 as long as it is unknown."""
        if len(self._marks) < 2:
            return 0.0
        (t0, s0), (t1, s1) = self._marks[0], self._marks[-1]
        return max(0.0, (s1 - s0) / (t1 - t0)) if t1 > t0 else 0.0


class Silent:
    """Stands for a `Progress`, or a `Writer`, in a process that shows and writes nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def duration(seconds: float) -> str:
    """Returns '45s', '3m05s', '2h07m', '1d03h'."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
