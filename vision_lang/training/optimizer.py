"""The optimizer: one optax chain, with parameters in named groups.

Learning-rate schedules count optimizer steps (not micro-batches, not skipped updates).
"""

from __future__ import annotations

import re
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose

Params = Any


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


def path_of(path: tuple) -> str:
    """'unet/conv_in/kernel' from a tree path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def group_of(params: Params, groups: ConfigDict) -> Params:
    """Returns the tree of group names: the one group whose pattern matches the whole path.

    Raises:
      InputError: a parameter that no group matches, or that more than one matches.
    """

    def find(path, _):
        name = path_of(path)
        found = [g for g, spec in groups.items() if re.fullmatch(spec.pattern, name)]
        if len(found) != 1:
            raise InputError(
                f"Parameter '{name}' is in {'no group' if not found else 'groups ' + ', '.join(found)}"
                " of config.optimizer.groups; each parameter must match exactly one pattern."
            )
        return found[0]

    return jax.tree_util.tree_map_with_path(find, params)


def make(config: ConfigDict, steps: int, params: Params) -> optax.GradientTransformation:
    """Returns the optimizer for the trainable parameters.

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
    return optax.chain(*clip, optax.partition(groups, group_of(params, config.groups)))
