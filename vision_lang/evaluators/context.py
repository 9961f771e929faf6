"""What every evaluator is given, and what it gives back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vision_lang import tasks
from vision_lang.data import pipeline
from vision_lang.data.pipeline import Batch
from vision_lang.data.reading import Source
from vision_lang.data.sources import Prepared
from vision_lang.data.tokenizer import Tokenizer
from vision_lang.errors import InputError

Weights = dict[str, Any]  # "raw" and the names of the averages -> a task's variables
KNOWN = ("index", "weight", "label", "labels")  # of a batch: what every process gets of all rows
READ = 256  # pictures that are read at once


@dataclass(frozen=True)
class Context:
    """The run that is evaluated: its task, data, tokenizer and devices.

    load: 'RUN[@step][:ema|raw]' -> another run that judges it (training.setup.load, which lies
      above this floor, as the devices do).
    """

    config: ConfigDict
    task: Any
    data: Prepared
    tokenizer: Tokenizer
    parallel: Any  # training.parallel.Parallel
    load: Callable[[str], Any]

    @property
    def encode(self) -> Callable[[str], tuple[np.ndarray, np.ndarray]] | None:
        """text -> (tokens int32 [L], mask bool [L]), a long text is cut; None: none is read."""
        if not tasks.entry(self.config).reads_text(self.config):
            return None
        return functools.partial(self.tokenizer.encode, length=self.config.data.text_length)

    @property
    def classes(self) -> int:
        """How many classes the data have, where each example must have one; else 0."""
        wanted = tasks.entry(self.config).wants_label
        return len(self.data.class_names or []) if wanted else 0

    @property
    def multi_label(self) -> bool:
        """Whether an example may have any number of classes."""
        return tasks.entry(self.config).multi_label(self.config)

    def present(self, splits: Sequence[str]) -> tuple[str, ...]:
        """Those of the splits that the data set has: `test` it need not have, the others it must.

        Raises:
          InputError: see `Prepared.check`.
        """
        for split in splits:
            if split != "test":
                self.data.check(split)
        if "test" in splits and "test" not in self.data.splits:
            logging.warning("The data set '%s' has no split test: not evaluated.", self.data.name)
        return tuple(split for split in splits if split in self.data.splits)

    def batches(
        self, source: Source, rows: int, as_learned: bool = False
    ) -> Iterator[tuple[Batch, Batch]]:
        """Every example once, each process reading its share: (its own rows of a batch, for
        `parallel.place`; what is `KNOWN` of all rows of it).

        Args:
          rows: per device.
          as_learned: with what the task learns from, so that an example without the text or the
            label that it wants is broken; else pictures are all that is asked for.

        Raises:
          InputError: more examples are broken, over all processes, than data.max_bad_share allows.
        """
        index, count = self.parallel.share
        asked: dict[str, Any] = {"encode": None}
        if as_learned:
            asked = {
                "encode": self.encode, "classes": self.classes, "multi_label": self.multi_label,
            }  # fmt: skip
        bad = 0
        for batch in pipeline.eval_batches(
            source, data=self.config.data, batch_size=rows * self.parallel.devices,
            process_index=index, process_count=count, **asked,
        ):  # fmt: skip
            known = self.parallel.gather({name: batch[name] for name in KNOWN if name in batch})
            if count > 1:  # each has counted its own rows alone
                bad += int(((known["weight"] == 0) & (known["index"] < len(source))).sum())
                if bad > self.config.data.max_bad_share * len(source):
                    raise InputError(
                        f"{bad} broken records in the {len(source)} of the split "
                        f"'{source.split}', more than data.max_bad_share="
                        f"{self.config.data.max_bad_share} allows: the log of each process names "
                        "those that it read. Repair or remove them."
                    )
            yield batch, known

    def read(self, source: Source) -> Iterator[Batch]:
        """The pictures of all examples, in order, with what is `KNOWN` of them: for every process,
        and each reads its share."""
        for own, known in self.batches(source, max(1, READ // self.parallel.devices)):
            batch = known | self.parallel.gather({"image": own["image"]})
            real = batch["index"] < len(source)  # not those that fill up the last batch
            yield {name: rows[real] for name, rows in batch.items()}

    def pictures(self, source: Source) -> np.ndarray:
        """All pictures of a small source, uint8 [N, R, R, 3]; black where one cannot be read."""
        return np.concatenate([batch["image"] for batch in self.read(source)])

    def best(self, weights: Weights) -> Any:
        """The weights that are shown and published: the first average, or else the raw ones."""
        averages = [name for name in weights if name != "raw"]
        return weights[averages[0] if averages else "raw"]


@dataclass(frozen=True)
class Result:
    """numbers: "<split>/<metric>" -> float; pictures: name -> uint8 [H, W, 3]; notes: what some of
    the numbers were measured with, in words, to be kept beside them; examples: of some of the
    numbers, the values whose mean they are, by place in the split (of a retrieval: among the
    queries)."""

    numbers: dict[str, float]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    examples: dict[str, dict[int, float]] = field(default_factory=dict)

    def __or__(self, other: Result) -> Result:
        """What either has found."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Result(*(mine | theirs for mine, theirs in pairs))


def by_place(places: Sequence[int] | np.ndarray, values: Sequence | np.ndarray) -> dict[int, float]:
    """An entry of `Result.examples`."""
    return {int(place): float(value) for place, value in zip(places, values, strict=True)}


# (weights, whether the run is over) -> Result
Evaluator = Callable[[Weights, bool], Result]
