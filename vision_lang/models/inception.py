"""Inception-v3 (Szegedy et al. 2015) as FID is computed with it: images -> features and logits.

Not the network of the paper, but that of TensorFlow's graph of 2015-12-05, whose weights
torch-fidelity publishes for its `FeatureExtractorInceptionV3`: 1008 classes, average pools that
leave out the padding, a max pool in the last block, and images resized by TensorFlow 1's rule. For
inference alone: running statistics are read, never moved.

Shapes: B batch, H W height and width, C channels. Images are NHWC. Names are those of the published
state dict, with '/' for '.': `Mixed_5b/branch1x1/conv/kernel` is `Mixed_5b.branch1x1.conv.weight`,
`bn/scale` is `bn.weight`; `mean` and `var` in `batch_stats` are `running_mean` and `running_var`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_lang.models.batch_norm import BatchNorm

SIDE = 299  # pixels that the network sees
PUBLISHED_SHA256 = "6726825d"  # how it begins, of pt_inception-2015-12-05-6726825d.pth
CLASSES = 1008
EXACT = jax.lax.Precision.HIGHEST  # a GPU's default, TensorFloat-32, would shift the metric


def is_fid(source_sha256: str) -> bool:
    """Whether the sha256 of the file that weights came from is that of the weights that FID is
    defined by. Distances by others are no FID."""
    return source_sha256.startswith(PUBLISHED_SHA256)


def resize(images: Any, side: int = SIDE) -> Any:
    """TensorFlow 1's bilinear resizing, [B, H, W, C] -> float32 [B, side, side, C]; of NumPy's
    arrays by NumPy, which compiles nothing for a new size.

    Pixel i lies at i H / side of the original, its corner and not its centre, and mixes the two
    that it lies between; shrinking skips pixels. Places are rounded to float32 as there.
    """
    xp: Any = np if isinstance(images, np.ndarray) else jnp
    x = images.astype(np.float32)
    for axis in (2, 1):
        size = x.shape[axis]
        place = np.arange(side, dtype=np.float32) * np.float32(size / side)
        below = np.floor(place)
        low = below.astype(np.int32)
        share = (place - below).reshape(-1, *[1] * (3 - axis))
        a = xp.take(x, low, axis, mode="clip")
        b = xp.take(x, low + 1, axis, mode="clip")  # the last pixel is its own neighbour
        x = a + (b - a) * share
    return x


def average_pool(x: jax.Array) -> jax.Array:
    """The mean of the 3x3 places around each that lie in the map, [B, H, W, C] -> the same."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of the 3x3 places around each, [B, H, W, C] -> the same shape."""
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def halving_pool(x: jax.Array) -> jax.Array:
    """The largest of every other 3x3 window, [B, H, W, C] -> [B, (H - 1) // 2, (W - 1) // 2, C]."""
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


@dataclass(frozen=True)
class Conv:
    """Sizes of a convolution without bias, behind which come a batch norm and a ReLU."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


Pool = Callable[[jax.Array], jax.Array]
# Of a branch. A pool is the first; two convolutions see the same map, and their outputs are joined.
Step = Conv | tuple[Conv, Conv] | Pool
Block = tuple[tuple[str, list[Step]], ...]  # names of branches and their steps


def _block(**branches: list[Step]) -> Block:
    return tuple(branches.items())


def _halving(channels: int) -> Conv:
    return Conv(channels, (3, 3), 2, "VALID")


def _with_5x5(pooled: int) -> Block:
    return _block(
        branch1x1=[Conv(64)],
        branch5x5=[Conv(48), Conv(64, (5, 5))],
        branch3x3dbl=[Conv(64), Conv(96, (3, 3)), Conv(96, (3, 3))],
        branch_pool=[average_pool, Conv(pooled)],
    )


def _with_7x7(inner: int) -> Block:
    row, column = Conv(inner, (1, 7)), Conv(inner, (7, 1))
    return _block(
        branch1x1=[Conv(192)],
        branch7x7=[Conv(inner), row, Conv(192, (7, 1))],
        branch7x7dbl=[Conv(inner), column, row, column, Conv(192, (1, 7))],
        branch_pool=[average_pool, Conv(192)],
    )


def _forked(pool: Pool) -> Block:
    fork = Conv(384, (1, 3)), Conv(384, (3, 1))
    return _block(
        branch1x1=[Conv(320)],
        branch3x3=[Conv(384), fork],
        branch3x3dbl=[Conv(448), Conv(384, (3, 3)), fork],
        branch_pool=[pool, Conv(192)],
    )


LAYERS: dict[str, Conv | Pool | Block] = {
    "Conv2d_1a_3x3": _halving(32),
    "Conv2d_2a_3x3": Conv(32, (3, 3), padding="VALID"),
    "Conv2d_2b_3x3": Conv(64, (3, 3)),
    "MaxPool_1": halving_pool,
    "Conv2d_3b_1x1": Conv(80),
    "Conv2d_4a_3x3": Conv(192, (3, 3), padding="VALID"),
    "MaxPool_2": halving_pool,
    "Mixed_5b": _with_5x5(32),
    "Mixed_5c": _with_5x5(64),
    "Mixed_5d": _with_5x5(64),
    "Mixed_6a": _block(
        branch3x3=[_halving(384)],
        branch3x3dbl=[Conv(64), Conv(96, (3, 3)), _halving(96)],
        branch_pool=[halving_pool],
    ),
    "Mixed_6b": _with_7x7(128),
    "Mixed_6c": _with_7x7(160),
    "Mixed_6d": _with_7x7(160),
    "Mixed_6e": _with_7x7(192),
    "Mixed_7a": _block(
        branch3x3=[Conv(192), _halving(320)],
        branch7x7x3=[Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), _halving(192)],
        branch_pool=[halving_pool],
    ),
    "Mixed_7b": _forked(average_pool),
    "Mixed_7c": _forked(max_pool),
}
# The layers whose means over all places are features, which are called by the published width.
FEATURES = {"MaxPool_1": "64", "MaxPool_2": "192", "Mixed_6e": "768", "Mixed_7c": "2048"}


class BasicConv(nn.Module):
    """Convolution, batch norm by the running statistics and ReLU, [B, H, W, C] -> [B, H', W', K].

    Attributes:
      sizes: of the convolution.
      width: multiplier of its channels.
    """

    sizes: Conv
    width: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        sizes = self.sizes
        # Without padding, XLA's CPU backend takes three times as long as for padding and cropping.
        crop = sizes.stride == 1 and sizes.padding == "VALID"
        x = nn.Conv(
            max(1, round(self.width * sizes.channels)),
            sizes.kernel,
            sizes.stride,
            "SAME" if crop else sizes.padding,
            use_bias=False,
            precision=EXACT,
            name="conv",
        )(x)
        x = x[:, 1:-1, 1:-1] if crop else x
        return nn.relu(BatchNorm(epsilon=1e-3, name="bn")(x, train=False))


class Mixed(nn.Module):
    """Branches that see the same map, joined, [B, H, W, C] -> [B, H', W', K].

    The convolutions of a branch are numbered from 1 if there are several; those side by side have
    letters as well: `branch3x3_2a`, `branch3x3_2b`.
    """

    branches: Block
    width: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = []
        for branch, steps in self.branches:
            y, convolutions = x, [step for step in steps if not callable(step)]
            if callable(steps[0]):
                y = steps[0](y)
            for number, step in enumerate(convolutions, start=1):
                name = f"{branch}_{number}" if len(convolutions) > 1 else branch
                if isinstance(step, Conv):
                    y = BasicConv(step, self.width, name=name)(y)
                else:
                    a = BasicConv(step[0], self.width, name=f"{name}a")(y)
                    b = BasicConv(step[1], self.width, name=f"{name}b")(y)
                    y = jnp.concatenate([a, b], axis=-1)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=-1)


class Classifier(nn.Module):
    """[B, C] -> the products with every class [B, classes], and with the bias added."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        shape = (x.shape[-1], self.classes)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.classes,), jnp.float32)
        products = jnp.dot(x, kernel, precision=EXACT)
        return products, products + bias


class Inception(nn.Module):
    """Pictures -> features and logits.

    Attributes:
      width: multiplier of all channels; for tests.
    """

    width: float = 1.0

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Takes RGB pictures of any size [B, H, W, 3], 0 to 255, of any type.

        Returns float32 arrays by torch-fidelity's names: "64", "192", "768" and "2048" [B, n], the
        means over all places of four maps, the last of which FID compares; "logits_unbiased" and
        "logits" [B, 1008], without the last bias, as the Inception score takes them, and with it.
        """
        x, out = (resize(images) - 128) / 128, {}
        for name, layer in LAYERS.items():
            if isinstance(layer, Conv):
                x = BasicConv(layer, self.width, name=name)(x)
            elif callable(layer):
                x = layer(x)
            else:
                x = Mixed(layer, self.width, name=name)(x)
            if name in FEATURES:
                out[FEATURES[name]] = x.mean(axis=(1, 2))
        out["logits_unbiased"], out["logits"] = Classifier(CLASSES, name="fc")(out["2048"])
        return out
