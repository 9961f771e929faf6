"""How a step is spread over devices: the only file with pmap and with collectives.

The state has no device axis: it goes in and comes out the same on every device. Batches are split
along their first axis. `across` is all that a task sees of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vision_lang.errors import InputError, choose

Tree = Any
AXIS = "devices"


class Across(NamedTuple):
    """What a task and an optimizer may do over devices.

    mean: tree -> the same tree, averaged over devices.
    gather: [b, ...] -> [B, ...], the rows of all devices in the order of the global batch.
    spread: (function, x) -> function(x), where x [n, ...] is the same on every device and the
      function treats each row on its own: each device computes some of the rows.
    """

    mean: Callable[[Tree], Tree]
    gather: Callable[[Tree], Tree]
    spread: Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]


def _gather(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, axis=0, tiled=True), tree)


def _spread(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    rows, count = x.shape[0], jax.lax.axis_size(AXIS)
    each = -(-rows // count)
    x = jnp.pad(x, [(0, each * count - rows)] + [(0, 0)] * (x.ndim - 1))
    own = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(AXIS) * each, each)
    return _gather(function(own))[:rows]


ONE_DEVICE = Across(
    mean=lambda tree: tree,
    gather=lambda tree: tree,
    spread=lambda function, x: function(x),
)
DEVICES = Across(mean=lambda tree: jax.lax.pmean(tree, AXIS), gather=_gather, spread=_spread)


class Parallel(NamedTuple):
    """A way to run over devices.

    devices: how many.
    step: (state, batch, *, across) -> state, compiled; the old state is donated.
    forward: fn(tree, batch) -> tree of [b, ...] rows, compiled; rows come back in global order.
    place: host batch [B, ...] -> arrays on the devices.
    place_state: host or device tree -> the same tree on every device.
    alone: `across` for what concerns one device's rows only.
    """

    devices: int
    step: Callable[[Callable], Callable]
    forward: Callable[[Callable], Callable]
    place: Callable[[Tree], Tree]
    place_state: Callable[[Tree], Tree]
    alone: Across = ONE_DEVICE


def _shardings(devices: Sequence[jax.Device]) -> tuple[NamedSharding, NamedSharding]:
    """Of arrays that are split by rows, and of those that are the same on every device."""
    mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())


def with_pmap(devices: Sequence[jax.Device]) -> Parallel:
    """Each device runs the step on its rows; gradients are averaged by `across`."""
    n = len(devices)
    rows, same = _shardings(devices)
    split = lambda tree: jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), tree)  # noqa: E731
    join = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)  # noqa: E731

    def step(function):
        return jax.pmap(
            lambda state, batch: function(state, batch, across=DEVICES),
            AXIS,
            in_axes=(None, 0),
            out_axes=None,
            donate_argnums=(0,),
            devices=devices,
        )

    def forward(function):
        mapped = jax.pmap(function, AXIS, in_axes=(None, 0), out_axes=0, devices=devices)
        return lambda tree, batch: join(jax.device_get(mapped(tree, batch)))

    def place(batch):
        return jax.tree.map(lambda x: jax.device_put(x, rows), split(batch))

    return Parallel(n, step, forward, place, lambda tree: jax.device_put(tree, same))


def with_jit(devices: Sequence[jax.Device]) -> Parallel:
    """One global program; XLA splits it along the batch (NamedSharding)."""
    rows, same = _shardings(devices)

    def step(function):
        return jax.jit(
            lambda state, batch: function(state, batch, across=ONE_DEVICE),
            out_shardings=same,
            donate_argnums=(0,),
        )

    def forward(function):
        compiled = jax.jit(function, out_shardings=rows)
        return lambda tree, batch: jax.device_get(compiled(tree, batch))

    return Parallel(
        len(devices),
        step,
        forward,
        lambda batch: jax.device_put(batch, rows),
        lambda tree: jax.device_put(tree, same),
    )


PARALLEL = {"pmap": with_pmap, "jit": with_jit}


def make(
    name: str,
    batch_size: int = 0,
    accumulate: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Parallel:
    """Returns the way `name`, over `devices` (None: all local ones).

    batch_size, accumulate: of training; 0 = there is none to check.

    Raises:
      InputError: the batch can't be split evenly over devices and micro-batches.
    """
    way = choose(PARALLEL, name, "way to run in parallel (config.parallel)")
    parallel = way(jax.local_devices() if devices is None else devices)
    if batch_size % (parallel.devices * accumulate):
        raise InputError(
            f"batch_size={batch_size} can't be split over {parallel.devices} device(s) and "
            f"accumulate={accumulate} micro-batches; make it a multiple of "
            f"{parallel.devices * accumulate}."
        )
    return parallel
