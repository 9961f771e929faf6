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
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vision_lang.errors import InputError, choose

Tree = Any
AXIS = "devices"
SMALL = 1024  # entries; a smaller array is not worth cutting: every device has it whole


class Across(NamedTuple):
    """What a task and an optimizer may do over devices.

    mean: tree -> the same tree, averaged over devices.
    gather: [b, ...] -> [B, ...], the rows of all devices in the order of the global batch.
    spread: (function, x) -> function(x), where x [n, ...] is the same on every device and the
      function treats each row on its own: each device computes some of the rows.
    whole: (function, variables) -> function(variables), where the function finds every array of
      the variables whole, however they are kept.
    """

    mean: Callable[[Tree], Tree]
    gather: Callable[[Tree], Tree]
    spread: Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]
    whole: Callable[[Callable[[Tree], Tree], Tree], Tree] = lambda function, tree: function(tree)


def _gather(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, axis=0, tiled=True), tree)


def _padded(x: jax.Array, count: int) -> jax.Array:
    """With rows of zeros, so that `count` devices can share them evenly."""
    return jnp.pad(x, [(0, -x.shape[0] % count)] + [(0, 0)] * (x.ndim - 1))


def _spread(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    count = jax.lax.axis_size(AXIS)
    rows = _padded(x, count)
    each = rows.shape[0] // count
    own = jax.lax.dynamic_slice_in_dim(rows, jax.lax.axis_index(AXIS) * each, each)
    return _gather(function(own))[: x.shape[0]]


ONE_DEVICE = Across(
    mean=lambda tree: tree,
    gather=lambda tree: tree,
    spread=lambda function, x: function(x),
)
DEVICES = Across(mean=lambda tree: jax.lax.pmean(tree, AXIS), gather=_gather, spread=_spread)


class Parallel(NamedTuple):
    """A way to run over devices, which may belong to several processes.

    devices: how many, over all processes.
    step: (state, batch, *, across) -> state, compiled; the old state is donated.
    forward: fn(tree, batch) -> tree of [b, ...] rows, compiled; all rows come back, [B, ...] in
      global order, to every process.
    place: this process's rows of a host batch -> arrays on the devices.
    place_state: host or device tree -> the same tree on the devices: on every one, or in parts.
    lay_out: within a compiled function: tree -> the same tree, lying as `place_state` puts it.
    share: which process this is, and of how many: each has an equal, contiguous part of a batch.
    gather: this process's rows [n, ...] of host arrays -> those of all, [N, ...].
    host: device tree -> NumPy arrays, whole; all processes call it.
    alone: `across` for what concerns one device's rows only.
    """

    devices: int
    step: Callable[[Callable], Callable]
    forward: Callable[[Callable], Callable]
    place: Callable[[Tree], Tree]
    place_state: Callable[[Tree], Tree]
    lay_out: Callable[[Tree], Tree]
    share: tuple[int, int]
    gather: Callable[[Tree], Tree]
    host: Callable[[Tree], Tree]
    alone: Across = ONE_DEVICE

    def own(self, rows: int) -> slice:
        """This process's part of a batch of so many rows."""
        index, count = self.share
        return slice(index * rows // count, (index + 1) * rows // count)


def _shardings(devices: Sequence[jax.Device]) -> tuple[NamedSharding, NamedSharding]:
    """Of arrays that are split by rows, and of those that are the same on every device."""
    mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())


def with_pmap(devices: Sequence[jax.Device]) -> Parallel:
    """Each device runs the step on its rows; gradients are averaged by `across`.

    Arrays are those of this process alone: its rows, its copy of the state.
    """
    local = _local(devices)
    rows, same = _shardings(local)
    split = lambda tree: jax.tree.map(lambda x: x.reshape(len(local), -1, *x.shape[1:]), tree)  # noqa: E731
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
        if len(local) < len(devices):
            everywhere = lambda tree, batch: _gather(function(tree, batch))  # noqa: E731
            mapped = jax.pmap(everywhere, AXIS, in_axes=(None, 0), out_axes=None, devices=devices)
            return lambda tree, batch: jax.device_get(mapped(tree, batch))
        mapped = jax.pmap(function, AXIS, in_axes=(None, 0), out_axes=0, devices=devices)
        return lambda tree, batch: join(jax.device_get(mapped(tree, batch)))

    def place(batch):
        return jax.tree.map(lambda x: jax.device_put(x, rows), split(batch))

    def place_state(tree):
        return jax.device_put(tree, same)

    return _parallel(devices, step, forward, place, place_state, lambda tree: tree)


def with_jit(devices: Sequence[jax.Device]) -> Parallel:
    """One global program; XLA splits it along the batch (NamedSharding).

    Arrays are those of all processes.
    """
    rows, same = _shardings(devices)
    return _with_jit(devices, rows, same, lambda x: same, ONE_DEVICE)


def with_fsdp(devices: Sequence[jax.Device]) -> Parallel:
    """As `with_jit`, but each device keeps its part of parameters, averages and optimizer state.

    An array is cut along its longest axis that the devices share evenly (fully sharded data
    parallelism, Rajbhandari et al. 2020, arXiv:1910.02054, stage 3). Where a network computes with
    it, its parts are gathered, once forwards and once backwards, and what is known of its gradient
    is handed back in parts.
    """
    rows, same = _shardings(devices)
    mesh = rows.mesh

    def part(x: jax.Array) -> NamedSharding:
        axes = [axis for axis, length in enumerate(x.shape) if length % mesh.size == 0]
        if x.size < SMALL or not axes:
            return same
        longest = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, AXIS))

    @jax.custom_vjp
    def gathered(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, same)

    gathered.defvjp(
        lambda x: (gathered(x), None),
        lambda _, gradient: (jax.lax.with_sharding_constraint(gradient, part(gradient)),),
    )

    def whole(function: Callable[[Tree], Tree], tree: Tree) -> Tree:
        named = lambda x: checkpoint_name(gathered(x), AXIS) if x.size >= SMALL else x  # noqa: E731
        # All that the backward pass wants is kept, but for whole arrays: they are gathered again.
        return jax.checkpoint(
            lambda tree: function(jax.tree.map(named, tree)),
            policy=jax.checkpoint_policies.save_anything_except_these_names(AXIS),
        )(tree)

    def spread(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        split = jax.lax.with_sharding_constraint(_padded(x, mesh.size), rows)
        return function(split)[: x.shape[0]]

    return _with_jit(devices, rows, same, part, ONE_DEVICE._replace(spread=spread, whole=whole))


def _with_jit(
    devices: Sequence[jax.Device],
    rows: NamedSharding,
    same: NamedSharding,
    part: Callable[[jax.Array], NamedSharding],
    across: Across,
) -> Parallel:
    """The ways under jit: `part` says of an array of the state how it lies on the devices."""
    several = len(_local(devices)) < len(devices)

    def lay_out(tree):
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, part(x)), tree)

    def step(function):
        def laid_out(state, batch):
            return lay_out(function(state, batch, across=across))

        return jax.jit(laid_out, donate_argnums=(0,))

    def forward(function):
        compiled = jax.jit(
            lambda tree, batch: across.whole(lambda tree: function(tree, batch), tree),
            out_shardings=same if several else rows,
        )
        return lambda tree, batch: jax.device_get(compiled(tree, batch))

    def place(batch):
        if not several:
            return jax.device_put(batch, rows)
        # Not device_put, which would have all processes compare what they put: the thread that
        # places batches must not start a computation among those of the step.
        local = lambda x: jax.make_array_from_process_local_data(rows, np.asarray(x))  # noqa: E731
        return jax.tree.map(local, batch)

    copied = jax.jit(lambda tree: lay_out(jax.tree.map(jnp.copy, tree)))

    def place_state(tree):
        if not several:
            return jax.device_put(tree, jax.tree.map(part, tree))
        # Of NumPy arrays JAX takes it that they are the same in every process.
        on_host = lambda x: x if _is_global(x) else np.asarray(x)  # noqa: E731
        return copied(jax.tree.map(on_host, tree))

    return _parallel(devices, step, forward, place, place_state, lay_out)


def _is_global(x: Any) -> bool:
    """Whether other processes have parts of it that this one has not."""
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def _on_host(x: Any) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(x, tiled=True) if _is_global(x) else x)


def _local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    return [device for device in devices if device.process_index == jax.process_index()]


def _parallel(
    devices: Sequence[jax.Device],
    step: Callable,
    forward: Callable,
    place: Callable[[Tree], Tree],
    place_state: Callable[[Tree], Tree],
    lay_out: Callable[[Tree], Tree],
) -> Parallel:
    owners = sorted({device.process_index for device in devices})
    share = owners.index(jax.process_index()), len(owners)
    everywhere = forward(lambda _, batch: batch)
    gather = lambda tree: everywhere((), place(tree)) if len(owners) > 1 else tree  # noqa: E731
    host = lambda tree: jax.tree.map(_on_host, tree)  # noqa: E731
    return Parallel(len(devices), step, forward, place, place_state, lay_out, share, gather, host)


PARALLEL = {"pmap": with_pmap, "jit": with_jit, "fsdp": with_fsdp}


def make(
    name: str,
    batch_size: int = 0,
    accumulate: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Parallel:
    """Returns the way `name`, over `devices` (None: all, of every process).

    batch_size, accumulate: of training; 0 = there is none to check.

    Raises:
      InputError: the batch can't be split evenly over devices and micro-batches.
    """
    way = choose(PARALLEL, name, "way to run in parallel (config.parallel)")
    # Rows of a batch stand in the order of processes: each has a contiguous share of the data.
    every = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    parallel = way(every if devices is None else devices)
    if batch_size % (parallel.devices * accumulate):
        raise InputError(
            f"batch_size={batch_size} can't be split over {parallel.devices} device(s) and "
            f"accumulate={accumulate} micro-batches; make it a multiple of "
            f"{parallel.devices * accumulate}."
        )
    return parallel
