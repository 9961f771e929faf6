"""Caption metrics without Java: BLEU, ROUGE-L and CIDEr-D as the usual evaluation code prints them.

    from vision_lang.metrics import caption
    caption.score(["a dog runs"], [["A dog is running.", "Dog in the grass."]])

`bleu`, `rouge` and `cider` score tokenised captions, also image by image; `ptb` tokenises.
`python -m vision_lang.metrics.caption` does the same to files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vision_lang.metrics.caption import bleu, cider, ptb, rouge

__all__ = ["bleu", "cider", "ptb", "rouge", "score", "score_each"]


def score(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """All metrics of N captions.

    Args:
      candidates: one caption per image, N.
      references: the captions, one or more, that each image is measured by.

    Returns:
      The record: Bleu_1 to Bleu_4 and ROUGE_L from 0 to 1, CIDEr (CIDEr-D, from 0 to 10, and 0 for
      one image), the number of images and the tokenizer's name, without which the numbers mean
      little: another one gives others.

    Raises:
      InputError: no images, not as many candidates as images, or an image without a reference.
    """
    return score_each(candidates, references)[0]


def score_each(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `score` returns, and the images' own scores [N] whose means ROUGE_L and CIDEr are."""
    words = [ptb.tokenize(caption) for caption in candidates]
    reference_words = [[ptb.tokenize(caption) for caption in own] for own in references]
    record: dict[str, Any] = {
        f"Bleu_{n}": float(value)
        for n, value in enumerate(bleu.score(words, reference_words).corpus, 1)
    }
    each = {}
    for name, metric in (("ROUGE_L", rouge), ("CIDEr", cider)):
        scores = metric.score(words, reference_words)
        record[name], each[name] = float(scores.corpus), scores.images
    return record | {"images": len(words), "tokenizer": ptb.NAME}, each
