"""VGG (Simonyan & Zisserman 2014): images -> labels, and every feature on the way.

Shapes: B batch, H W height and width, C channels, D width of a dense layer. Images are NHWC, as
the weights' source wants them (torchvision: RGB, scaled; Keras: BGR, mean subtracted, not scaled).

torchvision's and Keras's weights map one to one, by transposes alone. `conv3_2` is the second
convolution of the third stage, `conv3_2_bn` its batch norm; the hidden dense layers are numbered on
from the stages, `fc6` and `fc7`, as in Caffe; `logits` is the last layer (Caffe's fc8), whatever
the head. The last pool is flattened H, W, C as in Keras; torchvision's C, H, W is another order of
the rows of fc6's kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_lang.errors import InputError, choose
from vision_lang.models.batch_norm import BatchNorm
from vision_lang.models.convolution import Conv3x3
from vision_lang.models.layers import Dropout

Dtype = jnp.dtype
Features = dict[str, jax.Array]
SMALLEST = 32  # pixels; five poolings leave one of them


@dataclass(frozen=True)
class VGGSpec:
    """Sizes of a VGG.

    Attributes:
      stages: channels of the 3x3 convolutions of each stage; a stage ends in 2x2 max pooling.
      hidden: widths of the dense head's hidden layers.
      width: multiplier of `stages` and `hidden`.
      padding: of the convolutions, "SAME" or "VALID".
      batch_norm: between a convolution (which keeps its bias, as in torchvision) and its ReLU.
      momentum: share of the running statistics that a step keeps; 1 - torch's.
      epsilon: of the batch norms.
      head: what follows the last pool, a row of `HEADS`.
      grid: side of the map that the dense head sees. Every size of image is brought to it by
        torchvision's adaptive average pooling, which at 224 px changes nothing. 0: the last pool
        as it is, as in Keras; the head then fits images of one size.
      dropout: behind each hidden dense layer.
    """

    stages: tuple[tuple[int, ...], ...]
    hidden: tuple[int, ...] = (4096, 4096)
    width: float = 1.0
    padding: str = "SAME"
    batch_norm: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    head: str = "dense"
    grid: int = 7
    dropout: float = 0.5

    def scaled(self, channels: int) -> int:
        """Returns `channels` times the width multiplier."""
        return max(1, round(self.width * channels))


VGGS = {
    "tiny": VGGSpec(((4,), (8, 8)), hidden=(16,), grid=2),
    # The small network of an introductory article.
    "5": VGGSpec(
        ((64,), (128,), (256,)), hidden=(1024,), padding="VALID", grid=0, dropout=0.0
    ),
    # Table 1 of the paper: columns A, B, D and E.
    "11": VGGSpec(((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2)),
    "13": VGGSpec(((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2)),
    "16": VGGSpec(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)),
    "19": VGGSpec(((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)),
}  # fmt: skip

# As in torchvision, but that hidden dense layers get He et al.'s deviation instead of 0.01, which
# fits fc6 at 25,088 inputs (0.009) and would shrink the signal where images or widths are small.
CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
HIDDEN_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
LOGITS_INIT = nn.initializers.normal(0.01)


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of each 2x2 block, [B, H, W, C] -> [B, H // 2, W // 2, C]; an odd last row or
    column is dropped.

    linen's max_pool has a select-and-scatter for a gradient, which does not compile under XLA's
    deterministic flags on a GPU and takes 16 times as long on a CPU. Where entries tie, the
    gradient is shared; after a ReLU, ties at zero get none either way.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])  # a reduction over both axes is twice as slow
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def adaptive_average_pool(x: jax.Array, grid: int) -> jax.Array:
    """torch's AdaptiveAvgPool2d, [B, H, W, C] -> [B, grid, grid, C]: cell i is the mean of rows
    floor(i H / grid) up to ceil((i + 1) H / grid), and likewise of columns."""

    def shares(size: int) -> np.ndarray:  # [grid, size]
        cell, place = np.arange(grid)[:, None], np.arange(size)
        inside = (place >= cell * size // grid) & (place < -(-(cell + 1) * size // grid))
        return inside / inside.sum(axis=1, keepdims=True)

    if x.shape[1:3] == (grid, grid):
        return x
    rows, columns = (jnp.asarray(shares(size), x.dtype) for size in x.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision=jax.lax.Precision.HIGHEST)


def pad_to_smallest(images: jax.Array) -> jax.Array:
    """Puts images with a side below 32 px, as MNIST's 28, in the middle of one of 32, framed by
    zeros like those that convolutions pad with."""
    missing = [max(0, SMALLEST - side) for side in images.shape[1:3]]
    return jnp.pad(images, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])


def _logits(x: jax.Array, classes: int) -> jax.Array:
    layer = nn.Dense(classes, dtype=jnp.float32, kernel_init=LOGITS_INIT, name="logits")
    return layer(x.astype(jnp.float32))


def _dense_head(net: VGG, x: jax.Array, keys: jax.Array | None) -> tuple[jax.Array, Features]:
    spec, out = net.spec, {}
    if spec.grid:
        x = adaptive_average_pool(x, spec.grid)
    x = x.reshape(x.shape[0], -1)
    for number, channels in enumerate(spec.hidden, start=len(spec.stages) + 1):
        layer = nn.Dense(
            spec.scaled(channels), dtype=net.dtype, kernel_init=HIDDEN_INIT, name=f"fc{number}"
        )
        x = out[f"fc{number}"] = nn.relu(layer(x))
        x = Dropout(spec.dropout, name=f"drop{number}")(x, keys)
    return _logits(x, net.classes), out


def _pool_head(net: VGG, x: jax.Array, keys: jax.Array | None) -> tuple[jax.Array, Features]:
    pooled = x.astype(jnp.float32).mean(axis=(1, 2))
    return _logits(pooled, net.classes), {"pooled": pooled}


def _no_head(net: VGG, x: jax.Array, keys: jax.Array | None) -> tuple[None, Features]:
    return None, {}


# dense: the paper's dense layers; pool: global average pooling and one dense layer; none: no logits
HEADS: dict[str, Callable] = {"dense": _dense_head, "pool": _pool_head, "none": _no_head}


def check(spec: VGGSpec, side: int) -> None:
    """Raises InputError for an unknown name, or for stages that leave nothing of pictures of `side`
    pixels."""
    choose(HEADS, spec.head, "head of a VGG")
    lost = choose({"SAME": 0, "VALID": 2}, spec.padding, "padding of a VGG")
    left = max(side, SMALLEST)
    for widths in spec.stages:
        left = (left - lost * len(widths)) // 2
    if left < 1 or not spec.stages:
        raise InputError(
            f"A VGG of {len(spec.stages)} stage(s) with padding={spec.padding} makes nothing of "
            f"pictures of {side} pixels: give other stages or a larger data.resolution."
        )


class VGG(nn.Module):
    """Images -> logits and features.

    Attributes:
      spec: the sizes, a row of `VGGS`.
      classes: number of logits; unused without a head.
      dtype: compute dtype; parameters, batch norms and logits are float32.
    """

    spec: VGGSpec
    classes: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: jax.Array,  # [B, H, W, C] float32, preprocessed
        keys: jax.Array | None = None,  # [B] dropout keys, or None: no dropout
        *,
        train: bool,
        weight: jax.Array | None = None,  # [B]; 0 keeps a row out of the batch's statistics
        across: Any = None,  # what a task knows of devices; None: these rows are the whole batch
    ) -> tuple[jax.Array | None, Features]:
        """Returns the logits [B, classes] in float32 (None without a head) and the intermediates:
        `conv1_1` ... (after their ReLUs) and `pool1` ..., NHWC; by the head, `fc6` and `fc7` [B, D]
        (after their ReLUs, before dropout) or `pooled` [B, C] (float32).

        `train` only concerns batch norm: the batch's own statistics are used, and the collection
        `batch_stats`, which must be mutable then, moves towards them. Images smaller than 32 px
        are padded to that.

        Raises:
          ValueError: a head without classes.
          InputError: no such head.
        """
        spec, out = self.spec, {}
        head = choose(HEADS, spec.head, "head of a VGG")
        if spec.head != "none" and self.classes < 1:
            raise ValueError(f"the head '{spec.head}' of a VGG needs a number of classes")
        x = pad_to_smallest(images).astype(self.dtype)
        for stage, widths in enumerate(spec.stages, start=1):
            for i, channels in enumerate(widths, start=1):
                name = f"conv{stage}_{i}"
                width = spec.scaled(channels)
                x = Conv3x3(width, spec.padding, self.dtype, CONV_INIT, name=name)(x)
                if spec.batch_norm:
                    norm = BatchNorm(spec.momentum, spec.epsilon, name=f"{name}_bn")
                    x = norm(x, train=train, weight=weight, across=across)
                x = out[name] = nn.relu(x).astype(self.dtype)
            x = out[f"pool{stage}"] = max_pool(x)
        logits, features = head(self, x, keys)
        return logits, out | features
