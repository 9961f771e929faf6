"""The optimizer: one optax chain, with parameters in named groups.

Learning-rate schedules count optimizer steps (not micro-batches, not skipped updates).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose

Params = dict[str, jax.Array]  # by path, 'unet/conv_in/kernel'


def cosine(peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then half a cosine down to 0 at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))


def linear(peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then a straight line down to 0 at `steps`."""
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, max(warmup, 1)),
            optax.linear_schedule(peak, 0.0, max(steps - warmup, 1)),
        ],
        [max(warmup, 1)],
    )


def constant(peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then constant."""
    del steps
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, max(warmup, 1)), optax.constant_schedule(peak)],
        [max(warmup, 1)],
    )


SCHEDULES = {"cosine": cosine, "linear": linear, "constant": constant}


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


def with_group(config: ConfigDict, name: str, group: dict) -> ConfigDict:
    """Returns a copy of config.optimizer with one group more."""
    config = ConfigDict(config.to_dict())
    config.groups[name] = ConfigDict(group)
    return config


class Grouping:
    """Parameters by optimizer group, and back."""

    def __init__(self, params: Params, groups: ConfigDict) -> None:
        self._shapes = {name: p.shape for name, p in params.items()}
        group = group_of(sorted(params), groups)
        self._members = {g: [n for n in group if group[n] == g] for g in groups}
        self._members = {g: names for g, names in self._members.items() if names}

    def shapes(self, group: str) -> list[tuple[int, ...]]:
        """The shapes of a group's parameters, in the order of their paths."""
        return [self._shapes[name] for name in self._members.get(group, [])]

    def pack(self, params: Params) -> dict[str, Any]:
        """{path: array} -> {group: {path: array}}."""
        return {g: {n: params[n] for n in names} for g, names in self._members.items()}

    def unpack(self, groups: dict[str, Any]) -> Params:
        """What `pack` returns -> {path: array}."""
        return {name: x for members in groups.values() for name, x in members.items()}


class Packing(Grouping):
    """Parameters as one vector per group, and back.

    The optimizer works on the vectors: a handful of long operations instead of several short ones
    for each of hundreds of arrays, which take XLA far longer to compile and cost a collective each
    when gradients are averaged over devices. (Of arrays that lie in parts on the devices, a vector
    would gather all: there, `Grouping` is enough.)
    """

    def pack(self, params: Params) -> dict[str, Any]:
        """{path: array} -> {group: vector}."""
        return {
            g: jnp.concatenate([params[n].ravel() for n in names])
            for g, names in self._members.items()
        }

    def unpack(self, groups: dict[str, Any]) -> Params:
        """{group: vector} -> {path: array}."""
        params: Params = {}
        for g, names in self._members.items():
            params |= dict(zip(names, _split(groups[g], self.shapes(g)), strict=True))
        return params


def _split(vector: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Cuts a vector into arrays of the given shapes."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    pieces = jnp.split(vector, ends)
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def adamw(
    config: ConfigDict, spec: ConfigDict, rate: optax.Schedule, shapes: list[tuple[int, ...]]
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay, Loshchilov & Hutter 2019."""
    del shapes
    return optax.adamw(
        rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=spec.weight_decay
    )


def muon(
    config: ConfigDict, spec: ConfigDict, rate: optax.Schedule, shapes: list[tuple[int, ...]]
) -> optax.GradientTransformation:
    """Orthogonalised momentum, Jordan et al. 2024, for a group of matrices and kernels.

    A convolution's kernel [h, w, in, out] counts as the matrix [h w in, out], and one that holds
    `spec.parts` matrices side by side (queries, keys and values) as these: together, the largest
    gradients among them would decide the direction of all. The update's root mean square is 0.2
    whatever the shape, as in Liu et al. 2025 (arXiv:2502.16982), which lets the learning rate be of
    Adam's order. Matrices of one shape, or of one shape transposed, are orthogonalised together,
    and each device takes some of them: `update` wants `across`.

    Raises:
      InputError: a parameter of the group is a vector, or has no equal parts.
    """
    parts = spec.get("parts", 1)  # not in runs older than it
    if any(len(shape) < 2 for shape in shapes):
        raise InputError("rule=muon is for matrices; a group with it holds a bias or a scale.")
    if parts < 1 or any(shape[-1] % parts for shape in shapes):
        raise InputError(f"rule=muon: a kernel of {shapes} is not made of parts={parts} matrices.")
    whole = [(math.prod(shape[:-1]), shape[-1]) for shape in shapes]
    sides = [(rows, columns // parts) for rows, columns in whole for _ in range(parts)]
    kinds = sorted({(min(side), max(side)) for side in sides})
    where = {kind: [i for i, s in enumerate(sides) if (min(s), max(s)) == kind] for kind in kinds}

    def stack(kernels):
        """One array [n, short, long] for each kind."""
        flat = [kernel.reshape(side) for kernel, side in zip(kernels, whole, strict=True)]
        split = [part for m in flat for part in jnp.split(m, parts, axis=1)]
        matrices = [m if m.shape[0] <= m.shape[1] else m.T for m in split]
        return {f"{a}x{b}": jnp.stack([matrices[i] for i in where[a, b]]) for a, b in kinds}

    def unstack(stacks):
        pieces: list = [None] * len(sides)
        for (a, b), members in where.items():
            for i, matrix in zip(members, stacks[f"{a}x{b}"], strict=True):
                pieces[i] = matrix if sides[i][0] <= sides[i][1] else matrix.T
        joined = [
            jnp.concatenate(pieces[i : i + parts], axis=1) for i in range(0, len(pieces), parts)
        ]
        return [matrix.reshape(shape) for matrix, shape in zip(joined, shapes, strict=True)]

    # optax orthogonalises what it has averaged itself; with beta 0 that is what it is given.
    orthogonal = optax.contrib.scale_by_muon(
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(1, 2),
    )

    def orthogonalise(matrices):
        updates, _ = orthogonal.update(matrices, orthogonal.init(matrices))
        return 0.2 * math.sqrt(matrices.shape[2]) * updates

    def update(updates, state, params=None, *, across, **extra):
        del params, extra
        leaves, structure = jax.tree.flatten(updates)  # of this group alone, by optax.partition
        is_packed = leaves[0].ndim == 1  # all in one vector, or each matrix on its own
        kernels = _split(leaves[0], shapes) if is_packed else leaves
        stacks = {name: across.spread(orthogonalise, m) for name, m in stack(kernels).items()}
        found = unstack(stacks)
        found = [jnp.concatenate([x.ravel() for x in found])] if is_packed else found
        return jax.tree.unflatten(structure, found), state

    return optax.chain(
        optax.trace(config.momentum, nesterov=True),
        optax.GradientTransformationExtraArgs(optax.init_empty_state, update),
        optax.add_decayed_weights(spec.weight_decay),
        optax.scale_by_learning_rate(rate),
    )


RULES = {"adamw": adamw, "muon": muon}


def make(config: ConfigDict, steps: int, packing: Grouping) -> optax.GradientTransformation:
    """Returns the optimizer over what `packing` makes of the parameters.

    Global-norm clipping (0 = none), then each group's `rule` with its own weight decay and a
    factor on the learning rate.
    """
    rate = learning_rate(config, steps)

    def of_group(name: str, spec: ConfigDict) -> optax.GradientTransformation:
        own_rate = lambda step: spec.learning_rate_scale * rate(step)  # noqa: E731
        rule = choose(RULES, spec.rule, "optimizer rule")
        return rule(config, spec, own_rate, packing.shapes(name))

    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    groups = {n: of_group(n, spec) for n, spec in config.groups.items() if packing.shapes(n)}
    return optax.chain(*clip, optax.partition(groups, lambda packed: {g: g for g in packed}))
