"""Was a picture memorised? Pictures beside the nearest ones of the training data, by their pixels.

Shapes: N pictures, R pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vision_lang.data.pipeline import Batch
from vision_lang.evaluators import drawing
from vision_lang.metrics import neighbours


class Nearest(NamedTuple):
    """pictures: uint8 [N, R, R, 3]; distance: mean squared difference of pixels on [0, 1], [N]."""

    pictures: np.ndarray
    distance: np.ndarray


def nearest(images: np.ndarray, batches: Iterable[Batch]) -> Nearest:
    """The picture of some batches that is nearest to each of `images`.

    Args:
      images: uint8 [N, R, R, 3].
      batches: of pictures of that size; those that cannot be read have weight 0.
    """
    points = images.reshape(len(images), -1)
    found = np.zeros_like(images)
    distance = np.full(len(images), np.inf)
    for batch in batches:
        others = batch["image"][batch["weight"] > 0]
        if not len(others):
            continue
        places, squared = neighbours.nearest(points, others.reshape(len(others), -1))
        mean = squared / (255**2 * points.shape[1])
        closer = mean < distance
        found[closer], distance[closer] = others[places[closer]], mean[closer]
    return Nearest(found, distance)


def page(
    titles: Sequence[str], real: np.ndarray, drawn: np.ndarray, near: np.ndarray
) -> np.ndarray:
    """A row for each of K titles: the real picture, S that were drawn, and the nearest to each.

    Shapes: real uint8 [K, R, R, 3], drawn and near [K, S, R, R, 3]; returns uint8 [H, W, 3].
    """
    samples = drawn.shape[1]
    rows = np.concatenate([real[:, None], drawn, near], axis=1)
    names = [[f"real: {t}", *["sample"] * samples, *["nearest"] * samples] for t in titles]
    pictures = rows.reshape(-1, *rows.shape[2:])
    return drawing.grid(pictures, [name for row in names for name in row], rows.shape[1])
