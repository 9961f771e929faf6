"""Random parameters for a network, and comparisons of trees."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np


def shapes(network: nn.Module, *inputs: Any, **named: Any) -> Any:
    """The parameters' shapes and types; nothing is computed or allocated."""
    return jax.eval_shape(network.init, jax.random.key(0), *inputs, **named)["params"]


def random_parameters(network: nn.Module, *inputs: Any, **named: Any) -> Any:
    """Every parameter drawn anew, so that nothing hides behind a zero or an identity."""
    rng = np.random.default_rng(0)
    leaves = flax.traverse_util.flatten_dict(shapes(network, *inputs, **named), sep="/")
    drawn = {}
    for name, leaf in leaves.items():
        size = 0.3 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        size = 1.0 if name.endswith("embedding") else size
        drawn[name] = np.float32(rng.normal(size=leaf.shape) * size + name.endswith("scale"))
    return flax.traverse_util.unflatten_dict(drawn, sep="/")


def count(tree: Any) -> int:
    """The number of parameters."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def agree(a: Any, b: Any, tolerance: float) -> None:
    """Demands that two trees differ by at most `tolerance` of the second's largest entry."""
    assert jax.tree.structure(a) == jax.tree.structure(b)  # type: ignore[operator]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0.0, atol=tolerance * largest)
