"""Which checkpoints stay: the latest, those of a period, the best by a metric."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vision_lang.errors import InputError, suggestion


@dataclasses.dataclass(frozen=True)
class Retention:
    """The rule.

    Attributes:
      keep: how many of the latest steps stay (at least 1).
      keep_period: each step that is a multiple of it stays too; 0: none.
      best: the metric whose best step stays too; '': none.
      sign: +1 where more is better, -1 where less is.
    """

    keep: int
    keep_period: int
    best: str
    sign: int

    def check_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Checks that metrics, where there are any, hold the one that decides.

        Raises:
          InputError: they do not; the nearest name is suggested.
        """
        if self.best and metrics and self.best not in metrics:
            raise InputError(
                f"keep_best wants '{self.best}', which is not measured."
                f"{suggestion(self.best, list(metrics))}"
            )

    def stay(self, metrics: Mapping[int, Mapping[str, Any]], newest: int) -> set[int]:
        """Returns the steps that stay.

        Args:
          metrics: {step: its metrics} of all good steps. Of equal ones the earliest is the best;
            NaN never is.
          newest: the step just saved, which always stays.
        """
        steps = sorted(metrics)
        staying = {newest, *steps[-self.keep :]}
        if self.keep_period:
            staying |= {step for step in steps if step % self.keep_period == 0}
        scores = {step: float(metrics[step].get(self.best, math.nan)) for step in steps}
        scored = [(self.sign * score, -step) for step, score in scores.items() if score == score]
        return staying | {-max(scored)[1]} if scored else staying


def parse(keep: int, keep_period: int, keep_best: str) -> Retention:
    """Reads the config's fields; `keep_best` is 'metric:min', 'metric:max' or ''.

    Raises:
      InputError: a number is too small, or `keep_best` names no direction.
    """
    if keep < 1:
        raise InputError(f"keep = {keep}: at least 1 checkpoint must be kept.")
    if keep_period < 0:
        raise InputError(f"keep_period = {keep_period}: 0 (none) or a number of steps is wanted.")
    name, _, direction = keep_best.rpartition(":")
    if keep_best and (not name or direction not in ("min", "max")):
        raise InputError(f"keep_best = '{keep_best}': write 'metric:min' or 'metric:max'.")
    return Retention(keep, keep_period, name, -1 if direction == "min" else 1)
