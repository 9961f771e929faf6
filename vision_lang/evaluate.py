"""Measures a trained run and writes its results.json.

python -m vision_lang.evaluate --run=DIR [--split=test]
"""

from __future__ import annotations

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vision_lang import flags as commands
from vision_lang.errors import InputError

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_string("split", "", "One split; '' = those of the run's config.")
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
    config = loaded.config.copy_and_resolve_references().unlock()
    if FLAGS.split:
        data.open(FLAGS.split)  # an unknown split is refused before anything is computed
        for evaluator in config.evaluators.values():
            _restrict(evaluator, FLAGS.split)
    way = parallel.make(config.parallel)
    context = Context(config, loaded.task, data, loaded.tokenizer, way)
    results: dict[str, float] = {}
    for evaluator in make_evaluators(context).values():
        results |= evaluator({"ema": loaded.variables}, True).numbers
    if not results:
        raise InputError(f"The run's evaluators measure nothing on the split '{FLAGS.split}'.")
    records.write_results(loaded.run, results, keep_other_splits=True)
    width = max(map(len, results))
    for name, value in sorted(results.items()):
        print(f"{name:{width}s}  {np.round(value, 6):g}")
    print(f"written to {loaded.run.results}")


def _restrict(evaluator: ConfigDict, split: str) -> None:
    """Points an evaluator at one split."""
    if "splits" in evaluator:
        evaluator.splits = (split,)
    if "split" in evaluator:
        evaluator.split = split


if __name__ == "__main__":
    main()
