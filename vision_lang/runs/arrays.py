"""Arrays to and from one directory, by orbax: the only file that knows how orbax wants them."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from vision_lang.runs import trees


class _OrbaxFilter(logging.Filter):
    """Drops what orbax logs: its progress, and the traceback of a failure that we report."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "asyncio":  # the tasks that a failed save leaves behind
            return "orbax" not in record.getMessage()
        return f"{os.sep}orbax{os.sep}" not in record.pathname


_ORBAX_FILTER = _OrbaxFilter()


def _unraisable(exception: sys.UnraisableHookArgs) -> None:
    """Drops what tensorstore has to say to a save that has failed before."""
    if str(exception.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(exception)


def checkpointer() -> ocp.AsyncCheckpointer:
    """Returns an asynchronous writer of pytrees of arrays; close it."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_ORBAX_FILTER)  # adding it again changes nothing
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    # What a save that could not begin leaves behind.
    warnings.filterwarnings(
        "ignore", r"coroutine '\w*Handler\..* was never awaited", RuntimeWarning
    )
    # Weights hardly compress (8 %), and the zstd that would try takes the processor from training.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    # The directory at once: where it cannot be made in the background, orbax's other threads wait
    # for it, and Python's end for them, for ten minutes.
    at_once = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    return ocp.AsyncCheckpointer(handler, async_options=at_once)


def start_save(writer: ocp.AsyncCheckpointer, directory: epath.Path, flat: Mapping) -> None:
    """Copies the arrays of {path: leaf} to the host and starts to write them.

    Arrays without entries are left out: orbax refuses them, their spec says all.

    Raises:
      TypeError: a leaf is no array and no number.
    """
    stored = {p: _storable(p, leaf) for p, leaf in flat.items() if 0 not in trees.spec(leaf)[0]}
    # Of an array that every device has, orbax would take a slice from each, a program per shape.
    same = {
        p: leaf.addressable_data(0)
        for p, leaf in stored.items()
        if isinstance(leaf, jax.Array) and leaf.is_fully_replicated
    }
    # On a CPU the host's copy is none: it is the memory that the next step will write to.
    stored |= {p: np.array(host) for p, host in jax.device_get(same).items()}
    writer.save(directory, args=ocp.args.PyTreeSave(trees.nest(stored)))


def read(
    directory: epath.Path, wanted: Mapping[str, Any], stored: Mapping[str, trees.Spec]
) -> dict[str, Any]:
    """Reads the leaves that `wanted` names, onto the devices that it says.

    Args:
      directory: what `start_save` wrote.
      wanted: {path: leaf}. A committed jax.Array or a ShapeDtypeStruct with a sharding gives an
        array with that sharding, an uncommitted jax.Array another such, a Python number its own
        type, all else numpy arrays on the host.
      stored: {path: (shape, dtype)} of every array there; `wanted` agrees with it.
    """
    filled = {p: leaf for p, leaf in wanted.items() if 0 not in stored[p][0]}
    found: dict[str, Any] = {}
    if filled:
        item = {p: jax.ShapeDtypeStruct(*_shape_dtype(stored[p])) for p in filled}
        arguments = {p: _restore_argument(leaf, stored[p]) for p, leaf in filled.items()}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.restore(
                directory,
                args=ocp.args.PyTreeRestore(
                    item=trees.nest(item),
                    restore_args=trees.nest(arguments),
                    partial_restore=True,
                ),
            )
        found = trees.named_leaves(tree)
    empty = {p: np.zeros(*_shape_dtype(stored[p])) for p in wanted if p not in filled}
    return {p: _as(leaf, {**found, **empty}[p]) for p, leaf in wanted.items()}


def cause(error: BaseException) -> str:
    """Returns one line on why writing failed: the system's own words where there are any."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    text = " ".join(str(e) for e in chain)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM):
        if os.strerror(number) in text:
            return os.strerror(number)
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if len(first) < 300 else first[:300] + "..."


def _storable(path: str, leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(f"{path} is a PRNG key: derive keys from (seed, step) instead")
        return leaf
    if isinstance(leaf, (np.ndarray, np.generic, bool, int, float)):
        return np.array(trees.native(leaf))
    raise TypeError(f"{path} is a {type(leaf).__name__}, no array and no number")


def _shape_dtype(leaf_spec: trees.Spec) -> tuple[tuple[int, ...], Any]:
    return leaf_spec[0], jnp.dtype(leaf_spec[1])


def _sharding(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def _restore_argument(leaf: Any, leaf_spec: trees.Spec) -> ocp.RestoreArgs:
    sharding = _sharding(leaf)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    shape, dtype = _shape_dtype(leaf_spec)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape, dtype=dtype)


def _as(leaf: Any, array: Any) -> Any:
    """Gives what was read the kind that is wanted."""
    if isinstance(leaf, (bool, int, float)) and not isinstance(leaf, np.generic):
        return type(leaf)(array)
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return jnp.array(array)  # a copy: donating an alias of numpy's memory would be unsafe
    sharding = _sharding(leaf)
    if sharding is not None and not isinstance(array, jax.Array):
        return jax.device_put(array, sharding)  # an empty array
    return array
