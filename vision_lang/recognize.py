"""Images -> labels, from a run, as JSON lines on stdout.

    python -m vision_lang.recognize --run=DIR IMAGE... [--top=5]

IMAGE is a file, a folder or a pattern. A line: image, label, probability, top (a list of [label,
probability], the best first). A picture that cannot be read is named on stderr and the rest goes
on; the exit code is 1 then.
"""

from __future__ import annotations

import json

import numpy as np
from absl import flags

from vision_lang import flags as commands
from vision_lang.errors import InputError

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_integer("top", 5, "How many labels a line tells.", lower_bound=1)
    commands.run(_run, names=True)


def _run(places: list[str]) -> None:
    from vision_lang.training import devices

    devices.set_up()
    import jax

    from vision_lang.over_pictures import answers
    from vision_lang.training import setup

    loaded = setup.load(FLAGS.run, FLAGS.weights)
    if loaded.config.task != "recognition":
        raise InputError(
            f"Run '{FLAGS.run}' is a {loaded.config.task} run: it does not recognise anything."
        )

    def rows(variables, batch):
        return jax.nn.softmax(loaded.task.logits(variables, batch["image"]))

    for name, _, found in answers(loaded, places, rows, "recognize"):
        line = {"image": name} | answer(found, loaded.class_names, FLAGS.top)
        print(json.dumps(line), flush=True)


def answer(row: np.ndarray, names: list[str], top: int) -> dict[str, object]:
    """What a line tells of one picture's probabilities [C]."""
    order = np.argsort(-row, kind="stable")[:top]
    best = [[names[i], round(float(row[i]), 6)] for i in order]
    return {"label": best[0][0], "probability": best[0][1], "top": best}


if __name__ == "__main__":
    main()
