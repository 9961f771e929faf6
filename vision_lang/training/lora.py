"""Low-rank adaptation (Hu et al. 2021, "LoRA"): a kernel W that is frozen becomes
W + alpha / rank A B, of which A and B alone are trained.

A kernel [..., in, out] counts as the matrix [... in, out], a convolution's as well as a dense
layer's. A is drawn with deviation 1 / sqrt(rank), B begins at zero, so that training begins at W.
`merge` puts W + alpha / rank A B in W's place: what reads a run never sees A and B.
"""

from __future__ import annotations

import math
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vision_lang.errors import InputError

A, B, KERNEL = "lora_a", "lora_b", "kernel"  # leaves beside each other
PATTERN = rf".*/({A}|{B})"
# Their entry of config.optimizer.groups.
GROUP = {"pattern": PATTERN, "rule": "adamw", "weight_decay": 0.0, "learning_rate_scale": 1.0}


def scale(config: ConfigDict) -> float:
    """alpha / rank of a run's config; 0 where it adapts nothing."""
    return config.lora.alpha / config.lora.rank if "lora" in config and config.lora.rank else 0.0


def init(params: dict[str, jax.Array], config: ConfigDict, key: jax.Array) -> dict[str, jax.Array]:
    """Returns A and B of every kernel whose whole path config.lora.pattern matches, by path.

    Args:
      params: {"unet/.../to_q/kernel": array}.
      config: config.lora: rank (0: nothing is adapted), alpha, pattern.

    Raises:
      InputError: the pattern matches no kernel, or the rank is that of a kernel or more.
    """
    if not config.rank:
        return {}
    paths = [p for p in params if p.endswith("/" + KERNEL) and re.fullmatch(config.pattern, p)]
    if not paths:
        kernel = min((p for p in params if p.endswith("/" + KERNEL)), default="none")
        raise InputError(
            f"config.lora.pattern='{config.pattern}' matches no kernel's whole path, as '{kernel}' "
            "is one; '.*/(to_q|to_k|to_v|to_out_0)/kernel' would be a U-Net's attention."
        )
    found = {}
    for path in paths:
        rows, columns = _matrix(params[path].shape)
        if config.rank >= min(rows, columns):
            raise InputError(
                f"config.lora.rank={config.rank} is no less than the rank of '{path}', a matrix of "
                f"{rows} x {columns}: give a smaller one, or train the kernel itself."
            )
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        module = path.removesuffix(KERNEL)
        found[module + A] = jax.random.normal(own, (rows, config.rank)) / math.sqrt(config.rank)
        found[module + B] = jnp.zeros((config.rank, columns))
    return found


def merge(params: dict[str, Any], scale: float) -> dict[str, Any]:
    """Returns `params` with every A and B added to its kernel, and without them.

    Paths may have anything before the module's, such as 'params/'.
    """
    if not scale:
        return params
    merged = {path: x for path, x in params.items() if not re.fullmatch(PATTERN, path)}
    for path, a in params.items():
        if path.endswith("/" + A):
            module = path.removesuffix(A)
            kernel = params[module + KERNEL]
            update = jnp.matmul(a, params[module + B], precision=jax.lax.Precision.HIGHEST)
            merged[module + KERNEL] = kernel + scale * update.reshape(kernel.shape)
    return merged


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1]
