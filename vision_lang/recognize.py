"""Images -> labels, from a run, as JSON lines on stdout.

    python -m vision_lang.recognize --run=DIR IMAGE... [--top=5]

IMAGE is a file, a folder or a pattern. A line: image, label, probability, top (a list of [label,
probability], the best first). A picture that cannot be read is named on stderr and the rest goes
on; the exit code is 1 then.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from absl import flags

from vision_lang import flags as commands
from vision_lang.errors import InputError

FLAGS = flags.FLAGS
DEVICE_BATCH = 32  # pictures at a time: fixed, so that an answer does not depend on the others


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_integer("top", 5, "How many labels a line tells.", lower_bound=1)
    commands.run(_run, names=True)


def _run(places: list[str]) -> None:
    from vision_lang.training import devices

    devices.set_up()
    import jax

    from vision_lang.data import pictures
    from vision_lang.runs.console import Progress
    from vision_lang.training import parallel, setup

    names = pictures.find(places)
    loaded = setup.load(FLAGS.run, FLAGS.weights)
    if loaded.config.task != "recognition":
        raise InputError(
            f"Run '{FLAGS.run}' is a {loaded.config.task} run: it does not recognise anything."
        )
    way = parallel.make(loaded.config.parallel)
    forward = way.forward(
        lambda variables, batch: jax.nn.softmax(loaded.task.logits(variables, batch["image"]))
    )
    reader = pictures.Reader(loaded.config.data)
    done = 0
    with Progress(len(names), what="recognize") as progress:
        for there, batch in reader.batches(names, DEVICE_BATCH * way.devices):
            found = forward(loaded.variables, way.place(batch))
            for name, row in zip(there, np.asarray(found), strict=False):
                print(json.dumps({"image": name} | answer(row, loaded.class_names, FLAGS.top)))
            sys.stdout.flush()
            done += len(there)
            progress.update(done + len(reader.bad))
    commands.report_bad(reader.bad, len(names))


def answer(row: np.ndarray, names: list[str], top: int) -> dict[str, object]:
    """What a line tells of one picture's probabilities [C]."""
    order = np.argsort(-row, kind="stable")[:top]
    best = [[names[i], round(float(row[i]), 6)] for i in order]
    return {"label": best[0][0], "probability": best[0][1], "top": best}


if __name__ == "__main__":
    main()
