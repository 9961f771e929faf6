"""A function of rows, over any number of them, in batches of one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from vision_lang.watching import watched

# (variables, a tree of arrays [N, ...]) -> what the function makes of them, batch by batch
Batched = Callable[[Any, Any], Iterator[Any]]


def batched(
    parallel: Any,
    rows: Callable[[Any, Any], Any],
    device_batch: int,
    prepare: Callable[[Any], Any] = lambda part: part,
) -> Batched:
    """Returns `rows` over any number of examples.

    The last batch is filled up with rows that are there, so that one program is compiled. Each
    process is given all examples, prepares its share of a batch, and gets what all have made.

    Args:
      parallel: the devices (training.parallel.Parallel).
      rows: (variables, a tree of [b, ...]) -> a tree of [b, ...], each row on its own.
      device_batch: rows per device of the compiled program.
      prepare: a batch of the examples -> what `rows` takes of it; done batch by batch.
    """
    forward = parallel.forward(rows)
    size = device_batch * parallel.devices

    def run(variables: Any, examples: Any) -> Iterator[Any]:
        total = len(jax.tree.leaves(examples)[0])
        for start in watched(range(0, total, size), -(-total // size)):
            count = min(size, total - start)
            place = start + np.arange(size)[parallel.own(size)] % count
            part = jax.tree.map(lambda x, place=place: np.asarray(x)[place], examples)
            found = forward(variables, parallel.place(prepare(part)))
            yield jax.tree.map(lambda x, count=count: np.asarray(x)[:count], found)

    return run
