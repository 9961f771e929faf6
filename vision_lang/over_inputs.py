"""What commands that take pictures or texts share: a run's network over them, in fixed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from vision_lang import flags as commands

DEVICE_BATCH = 32  # rows at a time: fixed, so that an answer does not depend on the others

Rows = Callable[[Any, dict], Any]  # (variables, a batch) -> a tree of [b, ...], each row on its own


class Reader(Protocol):
    """What data/pictures.py and data/texts.py have in common.

    what: what is read, in the plural.
    bad: name -> why it could not be read, filled while reading.
    """

    what: str
    bad: dict[str, str]

    def batches(
        self, items: Any, size: int
    ) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]: ...


def batchwise(
    loaded: Any, reader: Reader, items: Iterable[Any], rows: Rows
) -> Iterator[tuple[list[str], dict[str, np.ndarray], Any]]:
    """Yields (names, batch, answers) batch by batch; rows beyond the names are padding.

    Args:
      loaded: the run (training.setup.Loaded).
      reader: makes the batches.
      items: what its `batches` takes.
      rows: see `Rows`.
    """
    import jax

    from vision_lang.training import parallel

    way = parallel.make(loaded.config.parallel)
    forward = way.forward(rows)
    for names, batch in reader.batches(items, DEVICE_BATCH * way.devices):
        yield names, batch, jax.device_get(forward(loaded.variables, way.place(batch)))


def one_by_one(
    loaded: Any, reader: Reader, items: Iterable[Any], total: int, rows: Rows, what: str
) -> Iterator[tuple[str, dict[str, np.ndarray], Any]]:
    """Yields (name, its row of the batch, its answer) for all of the `total` items that can be
    read, with progress, `what` in front of it.

    Those that cannot are named at the end, which is exit code 1 then.
    """
    import jax

    from vision_lang.runs.console import Progress

    done = 0
    with Progress(total, what=what) as progress:
        for names, batch, found in batchwise(loaded, reader, items, rows):
            for k, name in enumerate(names):
                yield name, *jax.tree.map(lambda x, k=k: x[k], (batch, found))
            done += len(names)
            progress.update(done + len(reader.bad))
    commands.report_bad(reader.bad, total, reader.what)


def answers(
    loaded: Any, places: Sequence[str], rows: Rows, what: str
) -> Iterator[tuple[str, np.ndarray, Any]]:
    """`one_by_one` over pictures: yields (name, picture uint8 [R, R, 3], its answer).

    Args:
      places: files, folders or patterns.

    Raises:
      InputError: a place where there is no picture.
    """
    from vision_lang.data import pictures

    names = pictures.find(places)
    reader = pictures.Reader(loaded.config.data)
    for name, row, found in one_by_one(loaded, reader, names, len(names), rows, what):
        yield name, row["image"], found
