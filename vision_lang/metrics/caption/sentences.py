"""What the caption metrics share: what they take, what they give, and n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vision_lang.errors import InputError

Words = Sequence[str]  # a tokenised caption
NGram = tuple[str, ...]


class Score(NamedTuple):
    """A metric of N images: `corpus` [...] of all together, `images` [N, ...] of each."""

    corpus: np.ndarray
    images: np.ndarray


def check(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    """Refuses what cannot be scored.

    Raises:
      InputError: no images, not as many candidates as images, an image without a reference, or a
        caption that is a string where a list of words is wanted.
    """
    if not len(candidates):
        raise InputError("There are no captions to score.")
    if len(candidates) != len(references):
        raise InputError(f"{len(candidates)} candidates cannot describe {len(references)} images.")
    for i, (candidate, own) in enumerate(zip(candidates, references, strict=True)):
        if not len(own):
            raise InputError(f"Image number {i} has no reference.")
        if any(isinstance(caption, str) for caption in (candidate, own, *own)):
            raise InputError(f"The captions of image number {i} are not tokenised.")


def ngrams(words: Words, order: int) -> list[Counter[NGram]]:
    """Counts of the n-grams of n = 1..order words.

    A token that holds a space (of any kind, as in "1 1/2") counts as several words: the usual code
    joins the tokens and splits them again.
    """
    words = " ".join(words).split()
    return [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for n in range(1, order + 1)]
