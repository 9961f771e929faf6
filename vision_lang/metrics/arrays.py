"""What the metrics accept, checked at the door, and slices that bound their memory.

Shapes: N examples, D dimensions, C classes. All arithmetic of this part is float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vision_lang.errors import InputError

Array = Any  # what np.asarray takes
SLICE_ENTRIES = 2**24  # of one float64 slab: 128 MiB


def features(values: Array, what: str = "The features") -> np.ndarray:
    """Returns features [N, D] as float64.

    Raises:
      InputError: the array has no shape [N, D], is empty, or holds NaN or infinity.
    """
    array = np.asarray(values)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{what} have the shape {list(array.shape)}; [examples, dimensions] is wanted: "
            "pool spatial features first."
        )
    return finite(array, what)


def finite(values: Array, what: str) -> np.ndarray:
    """Returns the array as float64; InputError if it is not of numbers, or not all are finite."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what} are of the type {array.dtype}; real numbers are wanted.")
    array = array.astype(np.float64, copy=False)
    if not np.isfinite(array).all():
        raise InputError(f"{what} hold NaN or infinity: look at the network or the input.")
    return array


def labels(values: Array, count: int, classes: int) -> np.ndarray:
    """Returns the labels [count] as int64; InputError unless each is in 0 ... classes - 1."""
    array = np.asarray(values)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise InputError(
            f"The labels are {array.dtype} {list(array.shape)}; integers [{count}] are wanted."
        )
    wrong = (array < 0) | (array >= classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"Label {array[row]} of example {row} is not in 0 ... {classes - 1}.")
    return array.astype(np.int64)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows [N, D] of length 1. A row of zeros has no direction: its cosine with all is 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def slices(rows: int, width: int) -> Iterator[slice]:
    """Slices of `rows` rows, such that a slab [slice, width] keeps to SLICE_ENTRIES."""
    step = max(1, SLICE_ENTRIES // max(width, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
