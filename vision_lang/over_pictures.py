"""What commands that take pictures share: a run's network over named files, in fixed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vision_lang import flags as commands

DEVICE_BATCH = 32  # pictures at a time: fixed, so that an answer does not depend on the others


def answers(
    loaded: Any, places: Sequence[str], rows: Callable[[Any, dict], Any], what: str
) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Yields (name, picture uint8 [R, R, 3], its answer) for every picture that can be read.

    Those that cannot are named at the end, which is exit code 1 then.

    Args:
      loaded: the run (training.setup.Loaded).
      places: files, folders or patterns.
      rows: (variables, a batch of data/pictures.py) -> a tree of [b, ...], each row on its own.
      what: the word in front of the progress.

    Raises:
      InputError: a place where there is no picture.
    """
    import jax

    from vision_lang.data import pictures
    from vision_lang.runs.console import Progress
    from vision_lang.training import parallel

    names = pictures.find(places)
    way = parallel.make(loaded.config.parallel)
    forward = way.forward(rows)
    reader = pictures.Reader(loaded.config.data)
    done = 0
    with Progress(len(names), what=what) as progress:
        for there, batch in reader.batches(names, DEVICE_BATCH * way.devices):
            found = jax.device_get(forward(loaded.variables, way.place(batch)))
            for k, name in enumerate(there):
                yield name, batch["image"][k], jax.tree.map(lambda x, k=k: x[k], found)
            done += len(there)
            progress.update(done + len(reader.bad))
    commands.report_bad(reader.bad, len(names))
