"""Training states for the tests of checkpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vision_lang.runs.checkpoint import Checkpoints


def state(seed=0, size=200):
    """All kinds of leaves that a training state has; about 12 * size bytes."""
    rng = np.random.default_rng(seed)
    params = {"w": jnp.asarray(rng.standard_normal((size, 1)), jnp.float32)}
    params["half"] = jnp.asarray(rng.standard_normal(3), jnp.bfloat16)
    return {
        "step": jnp.int32(seed),
        "params": params,
        "ema": {"default": jax.tree.map(lambda x: x + 1, params)},
        "opt_state": optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params),
        "mutable": {},
        "empty": np.zeros((0, 3), np.float32),
        "window": (np.float64(0.1), 3, 0.25, True),
    }


def like(tree):
    """The structure of a state with other values."""
    return jax.tree.map(lambda x: type(x)(0) if isinstance(x, (int, float)) else x * 0, tree)


def save(directory, *steps, **options):
    with Checkpoints(directory, keep=9, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))
