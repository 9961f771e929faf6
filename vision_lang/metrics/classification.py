"""Classification: accuracies, confusion, calibration, average precision, F1.

What adds up over batches comes as (sum, count), or as a table of sums: add them, then divide.
Shapes: N examples, C classes.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vision_lang.errors import InputError
from vision_lang.metrics import arrays
from vision_lang.metrics.arrays import Array

BINS = 15  # Guo et al. 2017


def top_k(scores: Array, labels: Array, k: int, mask: Array | None = None) -> tuple[float, float]:
    """How many labels are among the k best classes, as (sum, count).

    A class that scores the same as the right one counts as better, so that a network that gives all
    classes the same is never right (unless k is C).

    Args:
      scores: logits or probabilities [N, C].
      labels: int [N].
      k: at least 1.
      mask: bool [N], False for the padding of a last batch; its scores are not looked at.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if mask is not None:
        scores, labels = scores[np.asarray(mask, bool)], labels[np.asarray(mask, bool)]
        if not len(scores):
            return 0.0, 0.0
    right = hits(scores, labels, k)
    return float(right.sum()), float(len(right))


def hits(scores: Array, labels: Array, k: int) -> np.ndarray:
    """Whether each label is among the k best classes, as `top_k` counts them: bool [N]."""
    scores, labels = _checked(np.asarray(scores), np.asarray(labels))
    right = np.take_along_axis(scores, labels[:, None], axis=1)
    rank = (scores >= right).sum(axis=1)  # itself included: at least 1
    return rank <= k


def confusion_matrix(predicted: Array, labels: Array, classes: int) -> np.ndarray:
    """How often label i (row) was called j (column), int64 [C, C]; tables of batches add up."""
    count = len(np.asarray(labels))
    truth = arrays.labels(labels, count, classes)
    called = arrays.labels(predicted, count, classes)
    return np.bincount(truth * classes + called, minlength=classes**2).reshape(classes, classes)


def per_class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """The share of each class that is recognised, [C]; NaN for a class without examples."""
    count = confusion.sum(axis=1)
    return np.divide(
        np.diag(confusion), count, out=np.full(len(count), np.nan), where=count > 0
    )  # fmt: skip


def balanced_accuracy(confusion: np.ndarray) -> float:
    """The mean of the accuracies of all classes that have examples: 1 / their number by chance."""
    if not confusion.sum():
        raise InputError("There are no examples.")
    return float(np.nanmean(per_class_accuracy(confusion)))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Sums per bin of confidence, [bins]; the sums of batches add up."""

    count: np.ndarray
    confidence: np.ndarray
    right: np.ndarray

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(
            self.count + other.count, self.confidence + other.confidence, self.right + other.right
        )

    @property
    def error(self) -> float:
        """Expected calibration error: sum over bins of count / N |accuracy - confidence|."""
        return float(np.abs(self.right - self.confidence).sum() / self.count.sum())


def calibration(probabilities: Array, labels: Array, bins: int = BINS) -> Calibration:
    """How often the class of the highest probability is right, per bin of that probability.

    Guo et al. 2017, eqs. 2 to 5: bin m of M holds confidences in ((m - 1) / M, m / M].

    Args:
      probabilities: [N, C], rows that sum to 1 (to 1e-3, as float16 ones do).
      labels: int [N].
      bins: of equal width.
    """
    p, labels = _checked(probabilities, labels)
    if p.min() < 0.0 or np.abs(p.sum(axis=1) - 1.0).max() > 1e-3:
        raise InputError("Probabilities that sum to 1 are wanted: apply a softmax first.")
    confidence = p.max(axis=1)
    right = p.argmax(axis=1) == labels
    index = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    return Calibration(*(np.bincount(index, w, bins) for w in (np.ones(len(p)), confidence, right)))


def average_precision(scores: Array, positive: Array) -> float:
    """The area under precision over recall, as a sum over the steps of recall.

    sum_n (R_n - R_(n-1)) P_n over the thresholds, one for each distinct score: equals are accepted
    together, so that their order does not matter (no interpolation, unlike VOC 2007).

    Args:
      scores: [N].
      positive: bool (or 0 and 1) [N], at least one of them.
    """
    scores, positive = arrays.finite(scores, "The scores"), np.asarray(positive).astype(bool)
    if scores.shape != positive.shape or scores.ndim != 1:
        raise InputError(f"Scores {list(scores.shape)} and truth {list(positive.shape)} differ.")
    if not positive.any():
        raise InputError("Average precision wants at least one positive example.")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of each group of equals
    hits = np.cumsum(positive[order])[last]
    accepted = np.flatnonzero(last) + 1
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * (hits / accepted)))


def mean_average_precision(scores: Array, targets: Array) -> tuple[float, np.ndarray]:
    """Multi-label: (mean, per class [C]) from scores and targets (0 or 1), both [N, C].

    A class without a positive example has NaN and does not count in the mean.
    """
    scores, targets = arrays.features(scores, "The scores"), np.asarray(targets).astype(bool)
    if scores.shape != targets.shape:
        raise InputError(f"Scores {list(scores.shape)} and targets {list(targets.shape)} differ.")
    if not targets.any():
        raise InputError("No class has a positive example.")
    values = np.array(
        [
            average_precision(s, t) if t.any() else np.nan
            for s, t in zip(scores.T, targets.T, strict=True)
        ]
    )
    return float(np.nanmean(values)), values


def f1(answers: Array, targets: Array) -> tuple[float, float]:
    """Multi-label: (micro, macro) F1 = 2 TP / (2 TP + FP + FN), of all answers and the mean of the
    classes' own, from answers and targets (0 or 1), both [N, C].

    A class that is neither there nor answered has 0, as in scikit-learn.
    """
    answers, targets = np.asarray(answers).astype(bool), np.asarray(targets).astype(bool)
    if answers.shape != targets.shape or answers.ndim != 2 or not answers.size:
        raise InputError(f"Answers {list(answers.shape)} and targets {list(targets.shape)} differ.")
    hits, all_of_both = (answers & targets).sum(0), answers.sum(0) + targets.sum(0)
    micro = 2 * hits.sum() / max(all_of_both.sum(), 1)
    return float(micro), float(np.mean(2 * hits / np.maximum(all_of_both, 1)))


def _checked(scores: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    scores = arrays.features(scores, "The scores")
    return scores, arrays.labels(labels, *scores.shape)
