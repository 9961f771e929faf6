"""Every random number is a function of (seed, purpose, step, example); nothing random is stored.

Keys are folded, never split in a chain, so that any draw can be made again from those four alone:
on another number of devices, after a resume, or in a test.
"""

from __future__ import annotations

import zlib

import jax


def make(seed: int, purpose: str, step: jax.Array | int = 0) -> jax.Array:
    """Returns the typed key of a purpose ("train", "init", ...) at a step (may be traced)."""
    purpose_id = zlib.crc32(purpose.encode())
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose_id), step)


def per_example(base: jax.Array, index: jax.Array) -> jax.Array:
    """Returns one key per example, [B], from their indices [B] int32 in the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, index)


def named(keys: jax.Array, name: str) -> jax.Array:
    """Returns keys [B] for one of several draws of the same examples ("noise", "times", ...)."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, zlib.crc32(name.encode()))
