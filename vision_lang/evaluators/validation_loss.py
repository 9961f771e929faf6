"""The loss over a whole split, at fixed times and noises, for the raw weights and every average."""

from __future__ import annotations

from collections import defaultdict

import jax
import numpy as np
from ml_collections import ConfigDict

from vision_lang import keys as random_keys
from vision_lang.evaluators.context import Context, Evaluator, Result, Weights


def make(config: ConfigDict, context: Context) -> Evaluator:
    """config: split, batch_size (rows per device)."""
    task, parallel = context.task, context.parallel
    context.data.check(config.split)

    def rows(variables, batch):
        """Per example: the loss and the metrics' (sum, count), each row on its own. [b, ...]"""
        key = random_keys.make(context.config.seed, "validation")
        keys = random_keys.per_example(key, batch["index"])

        def one(example, key):
            example = jax.tree.map(lambda x: x[None], example)
            losses, _, metrics = task.loss(
                variables, example, key[None], across=parallel.alone, train=False
            )
            weight = example["weight"][0]
            return metrics | {"loss": (losses[0] * weight, weight)}

        return jax.vmap(one)(batch, keys)

    forward = parallel.forward(rows)

    def evaluate(weights: Weights, final: bool) -> Result:
        del final
        sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        source = context.data.learned_from(config.split)
        for own, _ in context.batches(source, config.batch_size, as_learned=True):
            placed = parallel.place(own)
            for name, variables in weights.items():
                suffix = "_raw" if name == "raw" else "" if len(weights) <= 2 else f"_{name}"
                for metric, (total, count) in forward(variables, placed).items():
                    pair = np.array([np.sum(total, dtype=np.float64), np.sum(count)])
                    sums[f"{config.split}/{metric}{suffix}"] += pair
        return Result({name: float(s / max(n, 1e-9)) for name, (s, n) in sums.items()})

    return evaluate
