"""Measures a trained run and writes its results.json.

    python -m vision_lang.evaluate --run=DIR [--split=test] [--count=1000]

results.json is of the newest checkpoint, as at the end of training. Of others (--run=RUN@step,
--weights=raw), or where --evaluators names some only, the figures are printed, and written where
--out says.

--evaluators=descriptions asks a contrastive, captioning or diffusion run, whatever its config has,
to pick the right description of each picture (evaluators/descriptions.py): with the same --split
and --count the three answer the same questions. --templates, --per_token, --noises, --error and
--choices are about that.
"""

from __future__ import annotations

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vision_lang import by_description
from vision_lang import flags as commands
from vision_lang.errors import InputError, choose

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_string("split", "", "One split; '' = those of the run's config.")
    flags.DEFINE_integer("count", 0, "Examples that are drawn or described; 0 = the run's config.")
    flags.DEFINE_string("out", "", "Another file than the run's results.json.")
    flags.DEFINE_list("evaluators", [], "Some of the run's config, or descriptions; none = all.")
    flags.DEFINE_integer("choices", None, "Descriptions to choose from.", lower_bound=2)
    by_description.define_flags()
    commands.run(_run)


def _run() -> None:
    from vision_lang.training import devices

    devices.set_up()
    from vision_lang.data import sources
    from vision_lang.evaluators import make_evaluators
    from vision_lang.evaluators.context import Context
    from vision_lang.runs import records
    from vision_lang.training import parallel, setup

    loaded = setup.load(FLAGS.run, FLAGS.weights)
    data = sources.prepare(loaded.config.data)
    setup.check_data(data, loaded.run)
    config = loaded.config.copy_and_resolve_references().unlock()
    _select(config)
    if FLAGS.split:
        data.open(FLAGS.split)  # an unknown split is refused before anything is computed
        for evaluator in config.evaluators.values():
            _restrict(evaluator, FLAGS.split)
    for evaluator in config.evaluators.values():
        if FLAGS.count and "final_count" in evaluator:
            evaluator.final_count = FLAGS.count
    way = parallel.make(config.parallel)
    context = Context(config, loaded.task, data, loaded.tokenizer, way)
    averages = list(config.ema.keys())
    weights = {averages[0] if averages else "raw": loaded.variables}
    newest = not (FLAGS.weights or loaded.step_given)
    if newest and averages:  # the same names as at the end of training
        weights["raw"] = setup.load(FLAGS.run, "raw").variables
    results: dict[str, float] = {}
    for evaluator in make_evaluators(context).values():
        results |= evaluator(weights, True).numbers
    if not results:
        raise InputError(f"The run's evaluators measure nothing on the split '{FLAGS.split}'.")
    width = max(map(len, results))
    for name, value in sorted(results.items()):
        print(f"{name:{width}s}  {np.round(value, 6):g}")
    if FLAGS.out:
        commands.write_record(FLAGS.out, results | {"source": loaded.source})
        print(f"written to {FLAGS.out}")
    elif newest and not FLAGS.evaluators:
        records.write_results(loaded.run, results, keep_other_splits=True)
        print(f"written to {loaded.run.results}")
    else:
        print(f"of {loaded.source}: results.json stays; --out=FILE writes these")


def _select(config: ConfigDict) -> None:
    """Leaves the evaluators that are asked for, with what flags say of them."""
    from vision_lang.evaluators import descriptions

    if FLAGS.evaluators:
        known = {"descriptions": descriptions.default_config()} | dict(config.evaluators.items())
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


def _restrict(evaluator: ConfigDict, split: str) -> None:
    """Points an evaluator at one split."""
    for several in ("splits", "final_splits"):
        if several in evaluator:
            evaluator[several] = (split,)
    if "split" in evaluator:
        evaluator.split = split


if __name__ == "__main__":
    main()
