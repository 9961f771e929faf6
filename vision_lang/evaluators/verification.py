"""Whether two pictures show the same: features compared by cosine, in folds of derived pairs.

Numbers per split (metrics/verification.py): `accuracy` at the threshold that is best on the other
folds (the LFW protocol) and its standard error `accuracy_se`, `auc`, `eer` (equal error rate),
`tar_at_far_0.01` and so on (true-accept rates), `pairs`.
"""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from vision_lang.evaluators.context import Context, Evaluator, Result, Weights
from vision_lang.evaluators.features import extractor
from vision_lang.metrics import pairs, verification


def make(config: ConfigDict, context: Context) -> Evaluator:
    """config: layer, splits, final_splits (at the end), folds, per_fold (the most pairs of either
    kind in a fold), far (false-accept rates), batch_size (rows per device). The run's seed draws
    the pairs."""
    wanted = {True: context.present(config.final_splits), False: context.present(config.splits)}
    extract = extractor(context, config.layer, config.batch_size)

    def evaluate(weights: Weights, final: bool) -> Result:
        numbers: dict[str, float] = {}
        for split in wanted[final]:
            features, labels = extract(context.best(weights), split)
            chosen = pairs.derive(
                labels, context.config.seed, folds=config.folds, per_fold=config.per_fold
            )
            found = summary(features, chosen, config.far)
            numbers |= {f"{split}/{name}": value for name, value in found.items()}
        return Result(numbers)

    return evaluate


def summary(features: np.ndarray, chosen: pairs.Pairs, far: tuple[float, ...]) -> dict[str, float]:
    """The numbers of one split, see the module's docstring; features [N, D]."""
    scores = verification.cosine(features[chosen.first], features[chosen.second])
    validated = verification.cross_validated_accuracy(scores, chosen.same, chosen.fold)
    rates = verification.true_accept_rate(scores, chosen.same, np.asarray(far))
    return {
        "accuracy": validated.mean,
        "accuracy_se": validated.standard_error,
        "auc": verification.auc(scores, chosen.same),
        "eer": verification.equal_error_rate(scores, chosen.same),
        "pairs": len(scores),
    } | {f"tar_at_far_{rate:g}": float(value) for rate, value in zip(far, rates, strict=True)}
