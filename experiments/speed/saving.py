"""Checkpoints of 1 GB: how long a save stops the training, how long until it is on its way to the
disk whole, and reading it back, against torch.save and torch's distributed checkpoints.

Ours writes a hash of every file and checks it before it reads; torch does neither.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.speed import ours, peers
from experiments.speed.case import OURS, Case, Contest, Options

ARRAYS = 64


def length(options: Options) -> int:
    """Numbers in each of the arrays, float32."""
    return options.size(cpu=4_000_000, cuda=4_000_000, small=10_000)


def _state(options: Options) -> Any:
    import jax.numpy as jnp

    values = np.random.default_rng(0).normal(size=length(options)).astype(np.float32)
    return {f"array_{i}": jnp.asarray(values + i) for i in range(ARRAYS)}


def _tensors(options: Options) -> Any:
    torch = peers.set_up(options)
    values = torch.randn(length(options), device=options.device)
    return {f"array_{i}": values + i for i in range(ARRAYS)}


def _size(options: Options) -> dict[str, float]:
    return {"megabytes": 4 * ARRAYS * length(options) // 10**6}


def _save_ours(options: Options, whole: bool) -> Contest:
    from vision_lang.runs.checkpoint import Checkpoints

    ours.set_up(options)
    state, step = _state(options), 0
    saved = Checkpoints(Path(options.scratch, "checkpoints"), keep=1)

    def unit() -> float:
        nonlocal step
        step += 1
        start = time.perf_counter()
        saved.save(step, state)
        blocked = time.perf_counter() - start
        saved.wait()
        seconds = time.perf_counter() - start if whole else blocked
        os.sync()
        return seconds

    return Contest(unit, _size(options))


def _save_torch(options: Options) -> Contest:
    import torch  # noqa: TID251

    state, path = _tensors(options), Path(options.scratch, "state.pt")

    def unit() -> float:
        start = time.perf_counter()
        torch.save(state, path)
        seconds = time.perf_counter() - start
        path.unlink()
        os.sync()
        return seconds

    return Contest(unit, _size(options))


def _save_async(options: Options, whole: bool) -> Contest:
    """torch.distributed.checkpoint.async_save, which copies the state and writes in a thread."""
    import torch.distributed as dist  # noqa: TID251
    import torch.distributed.checkpoint as dcp  # noqa: TID251

    state, path = _tensors(options), Path(options.scratch, "dcp")
    dist.init_process_group(
        "gloo", init_method=f"file://{options.scratch}/rendezvous", rank=0, world_size=1
    )

    def unit() -> float:
        start = time.perf_counter()
        saving = dcp.async_save(state, checkpoint_id=str(path))
        blocked = time.perf_counter() - start
        saving.result()
        seconds = time.perf_counter() - start if whole else blocked
        shutil.rmtree(path)
        os.sync()
        return seconds

    return Contest(unit, _size(options))


def _restore_ours(options: Options) -> Contest:
    import jax

    from vision_lang.runs.checkpoint import Checkpoints

    ours.set_up(options)
    state = _state(options)
    saved = Checkpoints(Path(options.scratch, "checkpoints"), keep=1)
    saved.save(1, state)
    saved.wait()
    os.sync()

    def unit() -> None:
        _, found = saved.restore(state)
        jax.block_until_ready(found)

    return Contest(unit, _size(options))


def _restore_torch(options: Options) -> Contest:
    import torch  # noqa: TID251

    path = Path(options.scratch, "state.pt")
    torch.save(_tensors(options), path)
    os.sync()

    def unit() -> None:
        torch.load(path, weights_only=True, map_location=options.device)
        peers.finish(options)

    return Contest(unit, _size(options))


CASES = {
    "save_blocking": Case(
        "1 GB saved: until the training may go on",
        {
            OURS: lambda options: _save_ours(options, whole=False),
            "torch_save": _save_torch,
            "torch_async_save": lambda options: _save_async(options, whole=False),
        },
    ),
    "save": Case(
        "1 GB saved: until it is written",
        {
            OURS: lambda options: _save_ours(options, whole=True),
            "torch_save": _save_torch,
            "torch_async_save": lambda options: _save_async(options, whole=True),
        },
    ),
    "restore": Case(
        "1 GB read back, from memory that the system keeps of the disk",
        {OURS: _restore_ours, "torch_load": _restore_torch},
    ),
}
