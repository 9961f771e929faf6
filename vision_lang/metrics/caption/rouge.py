"""ROUGE-L, Lin 2004, section 3: F-measure of the longest common subsequence.

As in the usual caption evaluation, precision and recall are each the best over an image's
references (not necessarily of the same one), and beta = 1.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from vision_lang.metrics.caption.sentences import Score, Words, check

BETA = 1.2


def score(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Score:
    """ROUGE-L, from 0 to 1.

    Args:
      candidates: one tokenised caption per image, N.
      references: the tokenised captions, one or more, that each image is measured by.

    Returns:
      corpus [], the mean; images [N].

    Raises:
      InputError: see `sentences.check`.
    """
    check(candidates, references)
    images = np.asarray([_image(*pair) for pair in zip(candidates, references, strict=True)])
    return Score(images.mean(), images)


def _image(candidate: Words, references: Sequence[Words]) -> float:
    # The usual code takes an empty caption for one empty word, which another one equals.
    candidate = candidate or [""]
    references = [reference or [""] for reference in references]
    common = [common_length(candidate, reference) for reference in references]
    precision = max(common) / len(candidate)
    recall = max(c / len(reference) for c, reference in zip(common, references, strict=True))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)  # eq. 4


def common_length(a: Words, b: Words) -> int:
    """Length of the longest common subsequence.

    One bit per word of `a` and a few additions of whole numbers per word of `b` in place of a
    table of len(a) x len(b), Hyyro 2004: bit i is 0 where the i-th word adds to the subsequence.
    """
    places: dict[str, int] = defaultdict(int)
    for i, word in enumerate(a):
        places[word] |= 1 << i
    every = (1 << len(a)) - 1
    free = every
    for word in b:
        hit = free & places.get(word, 0)
        free = ((free + hit) | (free - hit)) & every
    return len(a) - free.bit_count()
