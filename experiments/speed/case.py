"""What a case of the comparison is made of; see measure.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

OURS = "ours"


class Options(NamedTuple):
    """How a contestant works.

    device: "cpu" or "cuda".
    threads: cores that a side may use.
    scratch: a folder of its own, which is deleted afterwards.
    small: a try-out: too little work to say anything about speed.
    """

    device: str
    threads: int
    scratch: str
    small: bool

    def size(self, cpu: int, cuda: int, small: int) -> int:
        """The one of three sizes of work that is wanted."""
        return small if self.small else cuda if self.device == "cuda" else cpu


class Contest(NamedTuple):
    """One side of a case, built.

    unit: one unit of the case's work, over when it returns; returns its seconds where not all that
      it does is to be timed.
    same: numbers that all sides must share: how many parameters, a score, a mean.
    flops: of one unit, by who counted them.
    """

    unit: Callable[[], float | None]
    same: Mapping[str, float] = {}
    flops: Mapping[str, float] = {}


@dataclass(frozen=True)
class Case:
    """What is measured.

    what: in words, for the table.
    sides: name -> builder; `ours`, and every way of the peer that may be its best.
    agree: builds both sides in one process and raises unless they compute the same; returns how far
      they are apart.
    target: the ratio of our time to the peer's that is wanted on two cores.
    devices: where the case is one.
    """

    what: str
    sides: Mapping[str, Callable[[Options], Contest]]
    agree: Callable[[Options], dict[str, float]] | None = None
    target: float | None = None
    devices: tuple[str, ...] = field(default=("cpu", "cuda"))
