"""Measures a trained run and writes its results.json.

    python -m vision_lang.evaluate --run=DIR [--split=test] [--count=1000]
    python -m vision_lang.evaluate --run=DIR --classifier=RUN [--features=RUN ...]

The second has other runs judge what a diffusion run draws, beside what its own config measures;
what each says is in evaluators/judges.py.

results.json is of the newest checkpoint, as at the end of training. Of others (--run=RUN@step,
--weights=raw), or where --evaluators names some only, the figures are printed, and written where
--out says.

--evaluators=descriptions asks a contrastive, clip, captioning or diffusion run, whatever its config
has, to pick the right description of each picture (evaluators/descriptions.py): with the same
--split and --count all answer the same questions. --templates, --per_token, --noises, --error and
--choices are about that. --evaluators=probe [--layer=NAME] learns the classes of the data set from
the features of any run that has some, by a linear classifier and by the nearest neighbours
(evaluators/probe.py).

Several processes share the work as in vision_lang.main, by the same flags.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vision_lang import by_description, watching
from vision_lang import flags as commands
from vision_lang.errors import InputError, choose

FLAGS = flags.FLAGS
# Flags that set fields of config.evaluators.generation.
GENERATION = ("features", "layer", "allow_few", "captioner", "matcher", "classifier", "shown")


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    commands.define_processes()
    flags.DEFINE_string("split", "", "One split; '' = those of the run's config.")
    flags.DEFINE_integer("count", 0, "Examples that are drawn or described; 0 = the run's config.")
    flags.DEFINE_string("out", "", "Another file than the run's results.json.")
    flags.DEFINE_list(
        "evaluators", [], "Some of the run's config, descriptions, or probe; none = all."
    )
    flags.DEFINE_integer("choices", None, "Descriptions to choose from.", lower_bound=2)
    by_description.define_flags()
    flags.DEFINE_string("pictures", "", "A folder for the pictures that evaluators make.")
    run = "RUN[@step][:ema|raw]"
    flags.DEFINE_string("features", "", f"{run} in whose features what is drawn is compared.")
    flags.DEFINE_string(
        "layer", "", "Of --features, or of --evaluators=probe; '' = the last one before the logits."
    )
    flags.DEFINE_boolean("allow_few", False, "Accept fewer pictures than that has dimensions.")
    flags.DEFINE_string("captioner", "", f"{run} that describes what is drawn.")
    flags.DEFINE_string("matcher", "", f"{run} that matches what is drawn with its prompt.")
    flags.DEFINE_string("classifier", "", f"{run} that recognises what is drawn.")
    flags.DEFINE_integer(
        "shown", 0, "How many are shown beside the nearest training picture.", lower_bound=0
    )
    commands.run(_run)


def _run() -> None:
    from vision_lang.training import devices

    devices.set_up()
    with commands.together():
        _evaluate()


def _evaluate() -> None:
    from vision_lang import processes
    from vision_lang.data import sources
    from vision_lang.evaluators import make_evaluators
    from vision_lang.evaluators.context import Context, Result
    from vision_lang.training import parallel, setup

    loaded = setup.load(FLAGS.run, FLAGS.weights)
    data = processes.in_turn("data", lambda: sources.prepare(loaded.config.data))
    setup.check_data(data, loaded.run)
    config = loaded.config.copy_and_resolve_references().unlock()
    _select(config)
    judged = {name: FLAGS[name].value for name in GENERATION if FLAGS[name].present}
    probes = [e for e in config.evaluators.values() if e.kind == "probe"]
    if probes and judged.keys() == {"layer"}:
        for evaluator in probes:
            evaluator.update(judged)
    elif judged:
        _add_judges(config.evaluators, judged)
    if FLAGS.split:
        data.open(FLAGS.split)  # an unknown split is refused before anything is computed
        for evaluator in config.evaluators.values():
            _restrict(evaluator, FLAGS.split)
    for evaluator in config.evaluators.values():
        if FLAGS.count and "final_count" in evaluator:
            evaluator.final_count = FLAGS.count
    way = parallel.make(config.parallel)
    context = Context(config, loaded.task, data, loaded.tokenizer, way, setup.load)
    averages = list(config.ema.keys())
    weights = {averages[0] if averages else "raw": loaded.variables}
    newest = not loaded.chosen
    if newest and averages:  # the same names as at the end of training
        weights["raw"] = setup.load(FLAGS.run, "raw").variables
    results = Result({})
    for name, evaluator in make_evaluators(context).items():
        with watching.watcher(functools.partial(_shown, name)):
            found = evaluator(weights, True)
        results |= found
        if FLAGS.pictures and processes.first():
            _write_pictures(found.pictures)
    if not results.numbers:
        raise InputError(f"The run's evaluators measure nothing on the split '{FLAGS.split}'.")
    if processes.first():
        _report(loaded, results, newest)


def _report(loaded, found, newest: bool) -> None:
    """Prints what was found, and writes it where it belongs."""
    from vision_lang.runs import records

    results, notes = found.numbers, found.notes
    width = max(map(len, results))
    for name, value in sorted(results.items()):
        print(f"{name:{width}s}  {np.round(value, 6):g}")
    for what, note in notes.items():
        print(f"{what}: {note}")
    if FLAGS.out:
        commands.write_record(FLAGS.out, {**results, "source": loaded.source, **notes})
        print(f"written to {FLAGS.out}")
    elif newest and not FLAGS.evaluators:
        records.write_results(loaded.run, results, found.examples, keep_other_splits=True)
        print(f"written to {loaded.run.results}")
    else:
        print(f"of {loaded.source}: results.json stays; --out=FILE writes these")


@contextlib.contextmanager
def _shown(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over the batches of one evaluator; one batch is over before it is seen."""
    from vision_lang import processes
    from vision_lang.runs.console import Progress

    if total < 2 or not processes.first():
        yield lambda done: None
        return
    with Progress(total, what=name) as progress:
        yield progress.update


def _select(config: ConfigDict) -> None:
    """Leaves the evaluators that are asked for, with what flags say of them."""
    from vision_lang.evaluators import descriptions, probe

    if FLAGS.evaluators:
        known = {m.default_config().kind: m.default_config() for m in (descriptions, probe)}
        known |= dict(config.evaluators.items())
        config.evaluators = ConfigDict(
            {name: choose(known, name, "evaluator") for name in FLAGS.evaluators}
        )
    given = by_description.given(config.task)
    if FLAGS.choices is not None:
        given["choices"] = FLAGS.choices
    asked = [e for e in config.evaluators.values() if e.kind == "descriptions"]
    if given and not asked:
        raise InputError(f"--{next(iter(given))} is for --evaluators=descriptions.")
    for evaluator in asked:
        evaluator.update(given)


def _add_judges(evaluators: ConfigDict, judged: dict[str, object]) -> None:
    """Sets fields of the evaluator `generation`, which a run's config need not have."""
    import dataclasses

    from vision_lang.evaluators.generation import Generation

    if "generation" not in evaluators:
        evaluators.generation = ConfigDict(dataclasses.asdict(Generation()))
    evaluators.generation.update(judged, splits=())  # nothing is drawn at a period here


def _write_pictures(pictures: dict[str, np.ndarray]) -> None:
    """Writes what evaluators show as PNG files, named like `nearest_test.png`."""
    from etils import epath
    from PIL import Image

    folder = epath.Path(FLAGS.pictures)
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        path = folder / f"{name.replace('/', '_')}.png"
        with path.open("wb") as file:
            Image.fromarray(picture).save(file, "PNG")
        print(path)


def _restrict(evaluator: ConfigDict, split: str) -> None:
    """Points an evaluator at one split."""
    several = "final_splits" if "final_splits" in evaluator else "splits"  # this is the end
    if several in evaluator:
        evaluator[several] = (split,)
    if "split" in evaluator:
        evaluator.split = split


if __name__ == "__main__":
    main()
