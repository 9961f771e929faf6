"""Losses that jump: the mean of a log window against those of the windows before it."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Mapping
from typing import Any

from absl import logging

from vision_lang import processes

WINDOWS = 32  # the latest ones, which a loss is compared with
FEWEST = 16  # with fewer nothing is said
FACTOR = 10.0  # deviations above the median
NORMAL = 1.4826  # deviation of a normal distribution / its median absolute deviation
SMALLEST = 0.01  # of the median: a deviation is taken for at least that


class Spikes:
    """Warns of a loss that lies more than `FACTOR` deviations above the median of the latest
    windows. The deviation is estimated by the median absolute deviation from that median, which a
    few spikes do not move, and by 1 % of the median where that is more: what is said lies at least
    a tenth above it. A higher level is said until half of the windows have it.

    One step out of the n of a window has to jump by n times as much: of steps nothing is read.

    Args:
      steps: of a window (config.log_every).
      notes: what `notes` returned when the step was saved that is gone on from; {}: nothing.
    """

    def __init__(self, steps: int, notes: Mapping[str, Any]) -> None:
        same = notes.get("loss_window") == steps  # the noise of longer windows is another
        self._steps = steps
        self._losses = collections.deque(notes["losses"] if same else (), maxlen=WINDOWS)

    def add(self, step: int, loss: float) -> None:
        """Takes the mean loss of the window that ends with `step`, and warns if it is a spike."""
        if len(self._losses) >= FEWEST:
            median = statistics.median(self._losses)
            absolute = statistics.median(abs(x - median) for x in self._losses)
            deviation = max(NORMAL * absolute, SMALLEST * abs(median))
            if loss - median > FACTOR * deviation and processes.first():
                logging.warning(
                    "Step %d: the loss jumped to %.4g (mean of %d steps). The median of the %d "
                    "means before it is %.4g, their deviation %.2g.", step, loss, self._steps,
                    len(self._losses), median, deviation,
                )  # fmt: skip
        self._losses.append(loss)

    def notes(self) -> dict[str, Any]:
        """What a resumed run has to know, as JSON holds it."""
        return {"loss_window": self._steps, "losses": list(self._losses)}
