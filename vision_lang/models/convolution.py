"""The 3x3 convolution of all networks here, in a form that trains fast on a CPU too.

Shapes: B batch, H W height and width, C channels in, K channels out.

XLA's CPU backend is slow at convolving maps of a few places, up to forty times at 2x2, where a
VGG-11 spent half of its time on 32 px, and at the gradients of wide layers. As a matrix product
with the patches of the map (im2col) the same sums run at the speed of a matrix product. Where a map
is large its patches do not fit a cache, and XLA's own way is as fast or faster. GPUs and TPUs
convolve as ever.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Dtype = jnp.dtype
SMALL = 64  # places of a map; a CPU convolves smaller ones by their patches
WIDE = 128  # channels; it makes the gradients of such layers by patches, too


class Conv3x3(nn.Module):
    """linen's Conv with a 3x3 kernel, stride 1 and a bias: the same parameters, the same sums."""

    features: int
    padding: str = "SAME"  # "SAME" | "VALID"
    dtype: Dtype = jnp.float32
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = (value.astype(self.dtype) for value in (x, kernel, bias))
        return convolve(x, kernel, self.padding) + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    """[B, H, W, C], [3, 3, C, K] -> [B, H', W', K]; padding: "SAME" | "VALID"."""
    directly = functools.partial(_directly, padding=padding)
    if not _is_small(x):
        return directly(x, kernel)
    patches = functools.partial(_by_patches, padding=padding)
    return lax.platform_dependent(x, kernel, cpu=patches, default=directly)


def _forwards(x: jax.Array, kernel: jax.Array, padding: str) -> tuple[jax.Array, Any]:
    return convolve(x, kernel, padding), (x, kernel)


def _backwards(padding: str, given: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    def of(function: Callable[..., jax.Array]) -> Callable[..., Any]:
        forwards = functools.partial(function, padding=padding)
        return lambda x, kernel, gradient: jax.vjp(forwards, x, kernel)[1](gradient)

    x, kernel = given
    if not (_is_small(x) or x.shape[-1] >= WIDE):
        return of(_directly)(x, kernel, gradient)
    return lax.platform_dependent(x, kernel, gradient, cpu=of(_by_patches), default=of(_directly))


convolve.defvjp(_forwards, _backwards)


def _is_small(x: jax.Array) -> bool:
    return x.shape[1] * x.shape[2] < SMALL


def _directly(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout)


def _by_patches(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    if padding == "SAME":
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1] - 2, x.shape[2] - 2
    places = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    patches = jnp.concatenate(places, axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])
