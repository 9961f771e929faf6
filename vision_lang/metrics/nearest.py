"""The nearest of many features to a few queries, by cosine, with a part of them in memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vision_lang.errors import InputError
from vision_lang.metrics import arrays
from vision_lang.metrics.arrays import Array


def nearest(
    queries: Array, parts: Iterable[tuple[Array, Array]], k: int
) -> list[list[tuple[float, str]]]:
    """Returns for each query (cosine, name) of the k features that are most similar, the best
    first and equals in the order of the parts; all where there are not more than k.

    Args:
      queries: [Q, D].
      parts: (features [N, D], the names of their rows [N]), one by one.
      k: at least 1.

    Raises:
      InputError: the dimensions differ, or there are values that are no numbers.
    """
    x = arrays.unit(arrays.features(queries, "The queries"))
    best: list[list[tuple[float, str]]] = [[] for _ in x]
    for features, names in parts:
        width = features.shape[1]
        if width != x.shape[1]:
            raise InputError(f"The features have {width} dimensions, the queries {x.shape[1]}.")
        for part in arrays.slices(len(features), max(width, len(x))):
            cosines = x @ arrays.unit(arrays.features(features[part])).T  # [Q, n]
            for own, cosine in zip(best, cosines, strict=True):
                order = np.argsort(-cosine, kind="stable")[:k]
                own += [(float(cosine[i]), str(names[part.start + i])) for i in order]
                own.sort(key=lambda found: -found[0])  # stable
                del own[k:]
    return best
