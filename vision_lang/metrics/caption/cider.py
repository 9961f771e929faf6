"""CIDEr-D, Vedantam et al. 2015: agreement of n-grams that count the more, the rarer they are.

This is what the usual caption evaluation prints as CIDEr: from 0 to 10, with clipped counts and a
penalty for another length (the paper's CIDEr-D, section 7). How rare an n-gram is depends on the
references of the images that are evaluated, so that scores of different sets do not compare. Of one
image alone no n-gram is rare, log(1 / 1) = 0, and CIDEr is 0 whatever the caption.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vision_lang.metrics.caption.sentences import NGram, Score, Words, check, ngrams

ORDER = 4
SIGMA = 6.0
SCALE = 10.0


def score(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Score:
    """CIDEr-D, from 0 to 10; 0 if there is but one image.

    Args:
      candidates: one tokenised caption per image, N.
      references: the tokenised captions, one or more, that each image is measured by.

    Returns:
      corpus [], the mean; images [N].

    Raises:
      InputError: see `sentences.check`.
    """
    check(candidates, references)
    counts = [[ngrams(reference, ORDER) for reference in own] for own in references]
    rarity = _rarity(counts)
    unseen = math.log(len(counts))  # an n-gram of no reference is as rare as one of a single image

    def vector(count: list[Counter[NGram]]) -> _Vector:
        return _vector([{g: c * rarity.get(g, unseen) for g, c in n.items()} for n in count], count)

    images = np.asarray(
        [
            _image(vector(ngrams(candidate, ORDER)), [vector(count) for count in own])
            for candidate, own in zip(candidates, counts, strict=True)
        ]
    )
    return Score(images.mean(), images)


def _rarity(counts: list[list[list[Counter[NGram]]]]) -> dict[NGram, float]:
    """log(images / images with the n-gram in one of their references)."""
    frequency: Counter[NGram] = Counter()
    for own in counts:
        frequency.update({ngram for reference in own for order in reference for ngram in order})
    log_images = math.log(len(counts))
    return {ngram: log_images - math.log(n) for ngram, n in frequency.items()}


class _Vector(NamedTuple):
    """A caption, eq. 1: for each n the weights of its n-grams and their norm."""

    weights: list[dict[NGram, float]]
    norms: list[float]
    bigrams: int  # the length that the usual code takes: words - 1


def _vector(weights: list[dict[NGram, float]], counts: list[Counter[NGram]]) -> _Vector:
    norms = [math.sqrt(sum(w * w for w in order.values())) for order in weights]
    return _Vector(weights, norms, counts[1].total())


def _image(candidate: _Vector, references: list[_Vector]) -> float:
    """Mean over n and references of the similarity with clipped counts, section 7."""
    total = 0.0
    for reference in references:
        penalty = math.exp(-((candidate.bigrams - reference.bigrams) ** 2) / (2 * SIGMA**2))
        for n in range(ORDER):
            norm = candidate.norms[n] * reference.norms[n]
            if norm:
                theirs = reference.weights[n]
                total += penalty / norm * sum(
                    min(weight, theirs[g]) * theirs[g]
                    for g, weight in candidate.weights[n].items()
                    if g in theirs
                )  # fmt: skip
    return SCALE * total / (ORDER * len(references))
