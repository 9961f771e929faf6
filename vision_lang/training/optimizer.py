"""The optimizer: one optax chain, with parameters in named groups.

Learning-rate schedules count optimizer steps (not micro-batches, not skipped updates).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose

Params = dict[str, jax.Array]  # by path, 'unet/conv_in/kernel'


def cosine(peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then half a cosine down to 0 at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))


def constant(peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then constant."""
    del steps
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, max(warmup, 1)), optax.constant_schedule(peak)],
        [max(warmup, 1)],
    )


SCHEDULES = {"cosine": cosine, "constant": constant}


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
    """Returns step -> learning rate, of the group with scale 1."""
    return choose(SCHEDULES, config.schedule, "learning-rate schedule")(
        config.learning_rate, config.warmup, steps
    )


def group_of(names: Iterable[str], groups: ConfigDict) -> dict[str, str]:
    """Returns parameter path -> the one group whose pattern matches the whole path.

    Raises:
      InputError: a parameter that no group matches, or that more than one matches.
    """
    found = {}
    for name in names:
        fitting = [g for g, spec in groups.items() if re.fullmatch(spec.pattern, name)]
        if len(fitting) != 1:
            where = "groups " + ", ".join(fitting) if fitting else "no group"
            raise InputError(
                f"Parameter '{name}' is in {where} of config.optimizer.groups; each parameter "
                "must match exactly one pattern."
            )
        found[name] = fitting[0]
    return found


class Packing:
    """Parameters as one vector per group, and back.

    The optimizer works on the vectors: a handful of long operations instead of several short ones
    for each of hundreds of arrays, which take XLA far longer to compile and cost a collective each
    when gradients are averaged over devices.
    """

    def __init__(self, params: Params, groups: ConfigDict) -> None:
        self._shapes = {name: p.shape for name, p in params.items()}
        group = group_of(sorted(params), groups)
        self._members = {g: [n for n in group if group[n] == g] for g in groups}
        self._members = {g: names for g, names in self._members.items() if names}

    def pack(self, params: Params) -> dict[str, jax.Array]:
        """{path: array} -> {group: vector}."""
        return {
            g: jnp.concatenate([params[n].ravel() for n in names])
            for g, names in self._members.items()
        }

    def unpack(self, vectors: dict[str, jax.Array]) -> Params:
        """{group: vector} -> {path: array}."""
        params: Params = {}
        for g, names in self._members.items():
            ends = np.cumsum([math.prod(self._shapes[n]) for n in names])[:-1]
            pieces = jnp.split(vectors[g], ends)
            params |= {n: x.reshape(self._shapes[n]) for n, x in zip(names, pieces, strict=True)}
        return params


def make(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer over {group: vector}.

    Global-norm clipping (0 = none), then AdamW (Loshchilov & Hutter 2019) per group, with the
    group's weight decay and a factor on the learning rate.
    """

    def adamw(spec: ConfigDict) -> optax.GradientTransformation:
        rate = learning_rate(config, steps)
        return optax.adamw(
            lambda step: spec.learning_rate_scale * rate(step),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=spec.weight_decay,
        )

    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    groups = {name: adamw(spec) for name, spec in config.groups.items()}
    return optax.chain(*clip, optax.partition(groups, lambda vectors: {g: g for g in vectors}))
