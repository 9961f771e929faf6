"""Several processes that do one thing together: each computes its share, process 0 writes.

Of a single process nothing here asks anything. `agreed` is a computation on the devices, so all
processes call it at the same point of their main threads; `wait` may be called from any thread.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from vision_lang.errors import InputError

T = TypeVar("T")
AUTO = "auto"
# What srun and mpirun tell each process: how many they have started.
STARTED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
PATIENCE = 24 * 3600 * 1000  # ms that process 0 may take for something; that it died is noticed


def connect(coordinator: str, count: int | None, index: int | None, timeout: int) -> None:
    """Joins the processes that train together, before the first computation of each.

    Args:
      coordinator: host:port of process 0; 'auto': JAX asks the cluster (SLURM, Open MPI,
        Kubernetes, Cloud TPU); '': the same where srun or mpirun has started several, else there is
        one process.
      count, index: how many processes there are, and which this is; None: the cluster knows.
      timeout: seconds that they wait for one that does not come, and after which one that dies
        ends the others.

    Raises:
      InputError: the arguments do not fit together, or JAX finds no cluster.
    """
    if not coordinator and any(int(os.environ.get(name, 1)) > 1 for name in STARTED):
        coordinator = AUTO
    given = (count, index) != (None, None)
    if not coordinator and not given:
        return
    if coordinator in ("", AUTO):
        if given:
            raise InputError("--num_processes and --process_id want --coordinator=HOST:PORT.")
        where = {}
    else:
        if not coordinator.rpartition(":")[2].isdecimal() or None in (count, index):
            raise InputError(
                f"--coordinator={coordinator}: the address of process 0 as HOST:PORT is wanted, "
                "with --num_processes and --process_id."
            )
        where = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    late = threading.Timer(timeout, _give_up, (coordinator, timeout))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **where,  # type: ignore[arg-type]
            initialization_timeout=timeout + 60,  # it would abort the process
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--coordinator={coordinator}: JAX cannot join other processes here: {error} Where it "
            "does not know the cluster, give --coordinator=HOST:PORT, --num_processes and "
            "--process_id."
        ) from error
    finally:
        late.cancel()
    logging.info("The processes have met. One that dies ends the others within %d s.", timeout)


def _give_up(coordinator: str, timeout: int) -> None:
    """In a thread: JAX's own way to end the wait would be an abort without a sentence."""
    print(
        f"error: After {timeout} s not all processes have met at --coordinator={coordinator}: one "
        "was not started, or cannot reach process 0 there. --process_timeout says how long to "
        "wait.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def several() -> bool:
    """Whether this process is one of several; to ask JAX for their number starts the devices."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this process writes what is shared."""
    return not several() or jax.process_index() == 0


def wait(name: str) -> None:
    """Waits until all processes are here. A name is used once.

    Raises:
      InputError: one of them has ended.
    """
    if not several():
        return
    import orbax.checkpoint as ocp  # takes a second

    try:
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=PATIENCE)
    except jax.errors.JaxRuntimeError as error:
        raise InputError("Another process has ended: what it printed says why.") from error


def agreed(number: int) -> int:
    """The number that process 0 has."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if several() else number


def in_turn(name: str, function: Callable[[], T]) -> T:
    """What `function` returns. Process 0 calls it first, the others find what it has made."""
    if not first():
        wait(name)
    found = function()
    if first():
        wait(name)
    return found
