"""Which t a training example gets: functions of its own key, so that 1 and 8 devices agree.

`index` is the example's position in the global batch and `batch_size` the global size: only
stratified sampling uses them. `progress` is the share of the training that is done, from 0 to 1:
the normal ones use it. Keys come from fold_in(seed, purpose, step, example).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from vision_lang.diffusion.schedules import Schedule
from vision_lang.errors import InputError, choose

Array = Any
# Of a normal's mean and deviation: rows (share of the training, mean, deviation), shares rising;
# straight lines between them, and the first and last row hold before and after. One row: constant.
Course = Sequence[tuple[float, float, float]]


class TimeSampling(Protocol):
    """keys [B], index [B], progress [] or [B] -> t [B] in [t_min, t_max]; see above."""

    def __call__(
        self,
        schedule: Schedule,
        keys: Array,
        index: Array,
        batch_size: int,
        progress: Array | float = 0.0,
    ) -> Array: ...


def _uniform(keys: Array) -> jax.Array:
    return jax.vmap(jax.random.uniform)(keys)  # [B] in [0, 1)


def _slices(keys: Array, index: Array, batch_size: int) -> jax.Array:
    """Uniform in the example's own slice of [0, 1]: example i of B in the i-th of B. [B]"""
    return jnp.clip((jnp.asarray(index) + _uniform(keys)) / batch_size, 0.0, 1.0)


def _normal(keys: Array, index: Array, batch_size: int, stratified: bool) -> jax.Array:
    """[B]; stratified: each in its own of B equally likely slices."""
    if not stratified:
        return jax.vmap(jax.random.normal)(keys)
    return jax.scipy.special.ndtri(_slices(keys, index, batch_size))


def _stretch(schedule: Schedule, u: Array) -> jax.Array:
    return schedule.t_min + (schedule.t_max - schedule.t_min) * u


def uniform() -> TimeSampling:
    """t uniform in [t_min, t_max]."""

    def draw(schedule, keys, index, batch_size, progress=0.0):
        return _stretch(schedule, _uniform(keys))

    return draw


def stratified() -> TimeSampling:
    """t uniform in the example's own slice of [t_min, t_max]: example i of B in the i-th of B.

    Uniform over a batch whose examples come in random order, with less variance (the aim of Kingma
    et al. 2021, appendix I.1, with one offset per example in place of a shared one).
    """

    def draw(schedule, keys, index, batch_size, progress=0.0):
        return _stretch(schedule, _slices(keys, index, batch_size))

    return draw


def logit_normal(course: Course = ((0.0, 0.0, 1.0),), stratified: bool = False) -> TimeSampling:
    """t = sigmoid(mean + std n), n normal (Esser et al. 2024, eq. 19), clipped to [t_min, t_max].

    A positive mean looks at high noise more often. With `stratified` each example of a batch draws
    from its own slice, as in `stratified`.
    """
    _check(course)

    def draw(schedule, keys, index, batch_size, progress=0.0):
        mean, std = _at(course, progress)
        t = jax.nn.sigmoid(mean + std * _normal(keys, index, batch_size, stratified))
        return jnp.clip(t, schedule.t_min, schedule.t_max)

    return draw


def log_normal(course: Course = ((0.0, -1.2, 1.2),), stratified: bool = False) -> TimeSampling:
    """log(sigma / alpha) normal with P_mean, P_std (Karras et al. 2022, table 1), clipped in t.

    `stratified` as in `logit_normal`.
    """
    _check(course)

    def draw(schedule, keys, index, batch_size, progress=0.0):
        mean, std = _at(course, progress)
        t = schedule.t(-2.0 * (mean + std * _normal(keys, index, batch_size, stratified)))
        return jnp.clip(t, schedule.t_min, schedule.t_max)

    return draw


def _check(course: Course) -> None:
    rows = [tuple(row) for row in course]
    shares = [row[0] for row in rows if len(row) == 3]
    if not rows or len(shares) < len(rows) or shares != sorted(set(shares)):
        raise InputError(
            f"time_course={rows} wants rows (share of the training, mean, deviation) with rising "
            "shares."
        )
    if min(row[2] for row in rows) < 0:
        raise InputError(f"time_course={rows} has a negative deviation.")


def _at(course: Course, progress: Array | float) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation at a share of the training."""
    shares, means, stds = jnp.asarray(course, jnp.float32).T
    return jnp.interp(progress, shares, means), jnp.interp(progress, shares, stds)


TIME_SAMPLINGS: dict[str, Callable[..., TimeSampling]] = {
    "uniform": uniform,
    "stratified": stratified,
    "logit_normal": logit_normal,
    "log_normal": log_normal,
}


def make_time_sampling(name: str, **parameters: Any) -> TimeSampling:
    """Returns the time sampling `name` of TIME_SAMPLINGS; an unknown name raises InputError."""
    return choose(TIME_SAMPLINGS, name, "time sampling")(**parameters)
