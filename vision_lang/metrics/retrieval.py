"""Retrieval over a whole split: recall at k and median rank, image to text and text to image.

The rank of a query is 1 + the number of wrong candidates that are at least as similar to it as its
best right one: equals count as better. A collapsed model, to which everything is equally similar,
thus ranks each right answer last instead of first. Of several right candidates the best one counts,
as is usual on COCO: an image-to-text query is a hit at k if any of the image's captions is among
the first k; each caption is a text-to-image query of its own.

Shapes: N images, M texts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vision_lang.errors import InputError
from vision_lang.metrics import arrays
from vision_lang.metrics.arrays import Array

KS = (1, 5, 10)
EQUAL = 1e-12  # of the largest product of two lengths; inner products are rounded to about 1e-15

# (image indices [n], text indices [m]) -> whether the image fits the text, bool [n, m]
Satisfies = Callable[[np.ndarray, np.ndarray], np.ndarray]
Similar = Callable[[slice], np.ndarray]  # slice of queries -> similarities [slice, candidates]


def retrieval(
    images: Array, texts: Array, *, image_of_text: Array | None = None,
    satisfies: Array | Satisfies | None = None, ks: tuple[int, ...] = KS,
) -> dict[str, float]:  # fmt: skip
    """Both directions from embeddings; similarity is the inner product.

    Args:
      images: embeddings [N, D]; of length 1 for the cosine.
      texts: embeddings [M, D].
      image_of_text: the index of each text's image, int [M]; by default text i is of image i.
      satisfies: bool [N, M], or a function of indices that gives parts of it: which images fit
        which texts, where that is more than `image_of_text` says.
      ks: ranks up to which a right answer is a hit.

    Returns:
      i2t_recall1, i2t_recall5, ..., i2t_median_rank, and the same as t2i; recalls in 0 ... 1.

    Raises:
      InputError: shapes do not fit, a value is NaN, or a query has no right answer at all.
    """
    return _summaries(ranks(images, texts, image_of_text=image_of_text, satisfies=satisfies), ks)


def ranks(
    images: Array, texts: Array, *, image_of_text: Array | None = None,
    satisfies: Array | Satisfies | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The ranks that `retrieval` counts: i2t [N] of each image's best text, t2i [M] of each text's
    best image, from 1."""
    x, y = arrays.features(images, "The images"), arrays.features(texts, "The texts")
    if x.shape[1] != y.shape[1]:
        raise InputError(f"Images have {x.shape[1]} dimensions, texts {y.shape[1]}.")
    slack = EQUAL * np.linalg.norm(x, axis=1).max() * np.linalg.norm(y, axis=1).max()
    fits = _fits(len(x), len(y), image_of_text, satisfies)
    return _both(lambda s: x[s] @ y.T, lambda s: y[s] @ x.T, fits, (len(x), len(y)), slack)


def retrieval_of_similarity(
    similarity: Array, *, image_of_text: Array | None = None,
    satisfies: Array | Satisfies | None = None, ks: tuple[int, ...] = KS,
) -> dict[str, float]:  # fmt: skip
    """`retrieval` from similarities [N, M], of which only exact equals are equal."""
    table = arrays.features(similarity, "The similarities")
    images, texts = table.shape
    fits = _fits(images, texts, image_of_text, satisfies)
    found = _both(lambda s: table[s], lambda s: table.T[s], fits, (images, texts), 0.0)
    return _summaries(found, ks)


def summary(of_queries: np.ndarray, prefix: str, ks: tuple[int, ...] = KS) -> dict[str, float]:
    """Recall at each of ks and the median of ranks [Q] that begin at 1."""
    result = {f"{prefix}_recall{k}": float(np.mean(of_queries <= k)) for k in ks}
    return result | {f"{prefix}_median_rank": float(np.median(of_queries))}


def _summaries(both: dict[str, np.ndarray], ks: tuple[int, ...]) -> dict[str, float]:
    return summary(both["i2t"], "i2t", ks) | summary(both["t2i"], "t2i", ks)


def _both(
    by_image: Similar, by_text: Similar, fits: Satisfies, shape: tuple[int, int], slack: float
) -> dict[str, np.ndarray]:
    i2t = _ranks(by_image, fits, *shape, slack, "Image")
    t2i = _ranks(by_text, lambda t, i: fits(i, t).T, *shape[::-1], slack, "Text")
    return {"i2t": i2t, "t2i": t2i}


def _ranks(
    similar: Similar, fits: Satisfies, queries: int, candidates: int, slack: float, what: str
) -> np.ndarray:
    """The rank of each query, int [queries], in slices."""
    found = np.empty(queries, np.int64)
    everything = np.arange(candidates)
    for rows in arrays.slices(queries, candidates):
        s = similar(rows)
        right = fits(np.arange(rows.start, rows.stop), everything)
        lost = ~right.any(axis=1)
        if lost.any():
            row = rows.start + int(np.argmax(lost))
            raise InputError(f"{what} {row} has no right answer among the {candidates} candidates.")
        best = np.where(right, s, -np.inf).max(axis=1, keepdims=True)
        found[rows] = 1 + (~right & (s >= best - slack)).sum(axis=1)
    return found


def _fits(
    images: int, texts: int, image_of_text: Array | None, satisfies: Array | Satisfies | None
) -> Satisfies:
    """Which image fits which text, as a function of indices, from any way to say it."""
    if satisfies is not None and image_of_text is not None:
        raise InputError("Give image_of_text or satisfies, not both: satisfies says all.")
    if callable(satisfies):
        return satisfies
    if satisfies is not None:
        table = np.asarray(satisfies)
        if table.shape != (images, texts) or table.dtype != bool:
            raise InputError(
                f"satisfies is {table.dtype} {list(table.shape)}; bool {[images, texts]} is wanted."
            )
        return lambda i, t: table[np.ix_(i, t)]
    if image_of_text is None:
        if images != texts:
            raise InputError(
                f"There are {images} images and {texts} texts: say by image_of_text which image "
                "each text is of."
            )
        image_of_text = np.arange(texts)
    owner = arrays.labels(image_of_text, texts, images)
    return lambda i, t: i[:, None] == owner[t]
