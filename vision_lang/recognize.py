"""Images -> labels, from a run, as JSON lines on stdout.

    python -m vision_lang.recognize --run=DIR IMAGE... [--top=5]

IMAGE is a file, a folder or a pattern. A line: image, label, probability, top (a list of [label,
probability], the best first). Where a picture may have several labels (config.multi_label), a line
has `labels` in place of label and probability: those that are more likely than not. A picture that
cannot be read is named on stderr and the rest goes on; the exit code is 1 then.
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
    from vision_lang.over_inputs import answers
    from vision_lang.training import setup

    loaded = setup.load(FLAGS.run, FLAGS.weights)
    if loaded.config.task != "recognition":
        raise InputError(
            f"Run '{FLAGS.run}' is a {loaded.config.task} run: it does not recognise anything."
        )

    def rows(variables, batch):
        return loaded.task.probabilities(variables, batch["image"])

    for name, _, found in answers(loaded, places, rows, "recognize"):
        how = (loaded.class_names, FLAGS.top, loaded.config.multi_label)
        line = {"image": name} | answer(found, *how)
        print(json.dumps(line), flush=True)


def answer(row: np.ndarray, names: list[str], top: int, several: bool) -> dict[str, object]:
    """What a line tells of one picture's probabilities [C]; several: of any number of labels."""
    order = np.argsort(-row, kind="stable")
    best = [[names[i], round(float(row[i]), 6)] for i in order]
    if several:
        return {"labels": best[: int((row > 0.5).sum())], "top": best[:top]}
    return {"label": best[0][0], "probability": best[0][1], "top": best[:top]}


if __name__ == "__main__":
    main()
