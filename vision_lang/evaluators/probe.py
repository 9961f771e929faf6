"""What a network's features know: a linear classifier and a vote of neighbours over one layer.

Both learn from the features of one split and are measured on others. Numbers per split: `linear`
and `knn`, the shares named right (metrics/probes.py), and `probe_n`, of how many. Examples without
a label are left out.
"""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from vision_lang.errors import InputError
from vision_lang.evaluators.context import Context, Evaluator, Result, Weights
from vision_lang.evaluators.features import extractor
from vision_lang.metrics import probes


def default_config() -> ConfigDict:
    """The fields that `make` reads, for a run whose config has no such evaluator."""
    return ConfigDict(
        {
            "kind": "probe",
            "layer": "",
            "train_split": "train",
            "splits": ("validation", "test"),
            "batch_size": 64,
            "l2": probes.L2,
            "k": probes.K,
            "temperature": probes.TEMPERATURE,
            "at_end": True,
        }
    )


def make(config: ConfigDict, context: Context) -> Evaluator:
    """config: layer, train_split, splits, batch_size (rows per device), l2 (of the linear one), k
    and temperature (of the vote), at_end (only at the end of a run)."""
    names = context.data.class_names or []
    if not names:
        raise InputError(f"A probe names classes; the data set '{context.data.name}' has none.")
    context.data.check(config.train_split)
    wanted = context.present(config.splits)
    extract = extractor(context, config.layer, config.batch_size)

    def evaluate(weights: Weights, final: bool) -> Result:
        if config.at_end and not final:
            return Result({})
        variables = context.best(weights)
        known, labels = extract(variables, config.train_split)
        linear = probes.fit_linear_probe(known, labels, len(names), l2=config.l2)
        numbers = {}
        for split in wanted:
            asked, truth = extract(variables, split)
            votes = probes.nearest_neighbours(
                known, labels, asked, len(names), k=min(config.k, len(known)),
                temperature=config.temperature,
            )  # fmt: skip
            for name, answer in (("linear", linear.logits(asked)), ("knn", votes)):
                numbers[f"{split}/{name}"] = float(np.mean(answer.argmax(-1) == truth))
            numbers[f"{split}/probe_n"] = len(truth)
        return Result(numbers)

    return evaluate
