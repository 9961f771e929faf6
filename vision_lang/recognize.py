"""Images -> labels, or the best of given descriptions, from a run, as JSON lines on stdout.

    python -m vision_lang.recognize --run=DIR IMAGE... [--top=5]
    python -m vision_lang.recognize --run=DIR IMAGE... [--descriptions=FILE]

A recognition run names its classes. A contrastive, clip, captioning or diffusion run chooses from
descriptions, each kind in its own way (tasks/descriptions.py): those of a file, one a line, or
--descriptions='"a red circle","a blue square"'; without, from the classes of its data.

IMAGE is a file, a folder or a pattern. A line: image, label, probability, top (a list of [label,
probability], the best first), where a label is a class or a description. Where a picture may have
several labels (config.multi_label), a line has `labels` in place of label and probability: those
that are more likely than not. A picture that cannot be read is named on stderr and the rest goes
on; the exit code is 1 then.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from vision_lang import by_description
from vision_lang import flags as commands
from vision_lang.errors import InputError

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_integer("top", 5, "How many labels a line tells.", lower_bound=1)
    flags.DEFINE_string("descriptions", "", "A file, or texts in quotes between commas.")
    flags.DEFINE_integer("seed", 0, "Diffusion runs: decides the noises.")
    by_description.define_flags()
    commands.run(_run, names=True)


def _run(places: list[str]) -> None:
    from vision_lang.training import devices

    devices.set_up()
    from vision_lang import tasks
    from vision_lang.over_inputs import answers
    from vision_lang.training import setup

    loaded = setup.load(FLAGS.run, FLAGS.weights)
    given = by_description.given(loaded.config.task)
    if loaded.config.task != "recognition":
        loaded, rows, names = _by_description(loaded, given)
    elif FLAGS.descriptions:
        raise InputError(
            f"Run '{FLAGS.run}' is a recognition run: it knows its classes, but no descriptions."
        )
    else:
        rows, names = _by_class(loaded), loaded.class_names
    several = tasks.entry(loaded.config).multi_label(loaded.config)
    for name, _, found in answers(loaded, places, rows, "recognize"):
        line = {"image": name} | answer(found, names, FLAGS.top, several)
        print(json.dumps(line), flush=True)


Rows = Callable[[Any, dict], Any]  # (variables, batch) -> probabilities [b, K]


def _by_class(loaded: Any) -> Rows:
    return lambda variables, batch: loaded.task.probabilities(variables, batch["image"])


def _by_description(loaded: Any, given: dict[str, Any]) -> tuple[Any, Rows, list[str]]:
    """The run with the candidates beside its variables, what answers, and the candidates' names."""
    import jax
    import jax.numpy as jnp

    from vision_lang.tasks import descriptions

    if loaded.config.task not in descriptions.WAYS:
        raise InputError(f"Run '{FLAGS.run}' is a {loaded.config.task} run: it names nothing.")
    wanted = FLAGS.descriptions
    names = by_description.read(wanted) if wanted else loaded.class_names
    if not names:
        raise InputError(f"Run '{FLAGS.run}' has no classes to choose from: give --descriptions.")
    candidates = descriptions.candidates(
        loaded.config, loaded.tokenizer, names, loaded.class_names,
        templates=given.pop("templates", ()), own=not wanted,
    )  # fmt: skip
    how = descriptions.How(seed=FLAGS.seed, **given)
    way = descriptions.make(loaded.config.task, loaded.task, how)
    table = jax.jit(way.read)(loaded.variables, candidates)

    def rows(both, batch):
        variables, table = both
        which = jnp.broadcast_to(jnp.arange(len(names)), (len(batch["image"]), len(names)))
        return jax.nn.softmax(way.scores(variables, table, batch["image"], which))

    return dataclasses.replace(loaded, variables=(loaded.variables, table)), rows, names


def answer(row: np.ndarray, names: list[str], top: int, several: bool) -> dict[str, object]:
    """What a line tells of one picture's probabilities [C]; several: of any number of labels."""
    order = np.argsort(-row, kind="stable")
    best = [[names[i], round(float(row[i]), 6)] for i in order]
    if several:
        return {"labels": best[: int((row > 0.5).sum())], "top": best[:top]}
    return {"label": best[0][0], "probability": best[0][1], "top": best[:top]}


if __name__ == "__main__":
    main()
