"""What one example of a task looks like: names, shapes and types, without the batch axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Struct = jax.ShapeDtypeStruct


def example_spec(
    resolution: int, *, text_length: int = 0, label: bool = False, labels: int = 0
) -> dict[str, Struct]:
    """Returns a picture of `resolution` pixels a side, with a text, a label, or both.

    labels: how many classes there are, where an example may have several: float32, 0 or 1 each.

    `weight` is 0 for rows that only fill a batch up; `index` tells examples apart.
    """
    found = {"image": Struct((resolution, resolution, 3), jnp.uint8)}
    if text_length:
        found["tokens"] = Struct((text_length,), jnp.int32)
        found["text_mask"] = Struct((text_length,), jnp.bool_)
    if label:
        found["label"] = Struct((), jnp.int32)
    if labels:
        found["labels"] = Struct((labels,), jnp.float32)
    return found | {"weight": Struct((), jnp.float32), "index": Struct((), jnp.int32)}
