"""The training state: everything that a step reads and changes, and nothing else.

No leading device axis: the state is the same on every device. Nothing random is in it.
"""

from __future__ import annotations

import re
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from vision_lang.errors import InputError
from vision_lang.training import lora

Tree = Any


class Ema(flax.struct.PyTreeNode):
    """An average of the parameters with a count of its own updates."""

    params: Tree
    count: jax.Array  # int32 []


class TrainState(flax.struct.PyTreeNode):
    """Attributes:
    step: optimizer steps taken (skipped updates included), int32 [].
    params: trainable parameters; frozen: the others. Both are dicts "a/b/c" -> array.
    mutable: collections that the model itself changes (batch statistics).
    ema: named averages of `params`.
    window: sums of the metrics since the last log, name -> (sum, count).
    bad_steps: updates in a row that were skipped because they were not finite, int32 [].
    lora_scale: of low-rank updates among `params`, see training/lora.py; 0: there are none.
    """

    step: jax.Array
    params: dict[str, jax.Array]
    frozen: dict[str, jax.Array]
    mutable: Tree
    opt_state: Tree
    ema: dict[str, Ema]
    window: dict[str, tuple[jax.Array, jax.Array]]
    bad_steps: jax.Array
    lora_scale: float = flax.struct.field(pytree_node=False, default=0.0)

    def variables(self, average: str = "") -> Tree:
        """The task's variables, with the raw parameters or those of the named average."""
        return variables(self.ema[average].params if average else self.params, self)


def variables(params: dict[str, jax.Array], state: TrainState) -> Tree:
    """Puts `params` and the frozen ones together as the model's variables."""
    flat = lora.merge({**params, **state.frozen}, state.lora_scale)
    nested = flax.traverse_util.unflatten_dict(flat, sep="/")
    return {"params": nested, **state.mutable}


def split(
    variables: Tree, frozen: tuple[str, ...], updates: dict[str, jax.Array] | None = None
) -> tuple[dict, dict, Tree]:
    """Returns (trainable, frozen, mutable) of a task's variables.

    A parameter is frozen if one of the patterns `frozen` matches its whole path, or if there are
    low-rank updates of it, which are trainable.

    Raises:
      InputError: a pattern matches no parameter, or nothing is left to be trained.
    """
    updates = updates or {}
    flat = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    for pattern in frozen:
        if not any(re.fullmatch(pattern, name) for name in flat):
            raise InputError(
                f"config.optimizer.frozen: the pattern '{pattern}' matches no parameter's whole "
                f"path, as '{min(flat)}' is one; '{min(flat).partition('/')[0]}/.*' would be all "
                "of that network."
            )
    adapted = {name.removesuffix(lora.A) + lora.KERNEL for name in updates}
    fixed = {
        k: v for k, v in flat.items() if k in adapted or any(re.fullmatch(p, k) for p in frozen)
    }
    trainable = {k: v for k, v in flat.items() if k not in fixed} | updates
    if not trainable:
        raise InputError(
            f"config.optimizer.frozen={frozen} freezes every parameter: nothing is left to train."
        )
    return trainable, fixed, {k: v for k, v in variables.items() if k != "params"}


def create(
    variables: Tree,
    frozen: tuple[str, ...],
    updates: dict[str, jax.Array] | None = None,
    lora_scale: float = 0.0,
) -> TrainState:
    """Returns the state before the first step, without optimizer state, averages and metrics."""
    params, fixed, mutable = split(variables, frozen, updates)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        frozen=fixed,
        mutable=mutable,
        opt_state=(),
        ema={},
        window={},
        bad_steps=jnp.int32(0),
        lora_scale=lora_scale,
    )
