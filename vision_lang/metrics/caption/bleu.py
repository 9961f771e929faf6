"""BLEU, Papineni et al. 2002: clipped n-gram precisions and a brevity penalty over a corpus.

The numbers are those of the usual caption evaluation: of an image's references the one closest in
length counts for the brevity (the shorter of two), and the fractions are kept from 0/0 by adding
1e-15 above and 1e-9 below, which takes up to 1e-9 / c off a precision out of c n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vision_lang.metrics.caption.sentences import Score, Words, check, ngrams

TINY, SMALL = 1e-15, 1e-9


def score(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]], order: int = 4
) -> Score:
    """BLEU-1 to BLEU-`order`, from 0 to 1.

    Args:
      candidates: one tokenised caption per image, N.
      references: the tokenised captions, one or more, that each image is measured by.
      order: length of the longest n-grams.

    Returns:
      corpus [order], which is no mean of the images' scores; images [N, order].

    Raises:
      InputError: see `sentences.check`.
    """
    check(candidates, references)
    counts = [_counts(*pair, order) for pair in zip(candidates, references, strict=True)]
    images = np.asarray(counts, np.float64)  # [N, 2 + 2 order]
    return Score(_bleu(images.sum(axis=0), order), _bleu(images, order))


def _counts(candidate: Words, references: Sequence[Words], order: int) -> list[int]:
    """[candidate's length, reference's, n-grams that are right for each n, n-grams for each n]."""
    own = ngrams(candidate, order)
    theirs = [ngrams(reference, order) for reference in references]
    right = [
        sum(min(c, max(counts[n][ngram] for counts in theirs)) for ngram, c in own[n].items())
        for n in range(order)
    ]
    length = own[0].total()
    lengths = (counts[0].total() for counts in theirs)
    closest = min(lengths, key=lambda other: (abs(other - length), other))
    return [length, closest, *right, *(count.total() for count in own)]


def _bleu(counts: np.ndarray, order: int) -> np.ndarray:
    """BLEU-1.. of counts [..., 2 + 2 order], eq. of section 2.3. Returns [..., order]."""
    length, reference = counts[..., 0:1], counts[..., 1:2]
    precision = (counts[..., 2 : 2 + order] + TINY) / (counts[..., 2 + order :] + SMALL)
    mean = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, order + 1))  # geometric
    ratio = (length + TINY) / (reference + SMALL)
    return mean * np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
