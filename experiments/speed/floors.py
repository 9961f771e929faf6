"""Floating-point operations counted by hand: two for each multiplication of a matrix product or a
convolution, nothing for all else.

A training step has three times those of the forward pass, since each product has two gradients (the
first layer, whose input wants none, is counted all the same).
"""

from __future__ import annotations

from typing import Any


def conv(pixels: int, inputs: int, outputs: int, size: int = 3) -> int:
    """Of a convolution with a kernel [size, size] that gives so many pixels."""
    return 2 * pixels * size * size * inputs * outputs


def dense(rows: int, inputs: int, outputs: int) -> int:
    """Of a dense layer."""
    return 2 * rows * inputs * outputs


def attention(queries: int, keys: int, width: int) -> int:
    """Of the two products of queries, keys and values."""
    return 2 * dense(queries, width, keys)


def unet(spec: Any, side: int, channels: int, length: int, context: int) -> int:
    """Of our U-Net (vision_lang/models/unet.py) on one picture."""
    widths = spec.widths
    embedded = 4 * widths[0]

    def block(pixels: int, inputs: int, width: int) -> int:
        shortcut = conv(pixels, inputs, width, 1) if inputs != width else 0
        both = conv(pixels, inputs, width) + conv(pixels, width, width)
        return both + shortcut + dense(1, embedded, width)

    def transformer(pixels: int, width: int, depth: int) -> int:
        own = 4 * dense(pixels, width, width) + attention(pixels, pixels, width)
        other = 2 * dense(pixels, width, width) + 2 * dense(length, context, width)
        other += attention(pixels, length, width)
        forward = dense(pixels, width, 8 * width) + dense(pixels, 4 * width, width)
        return 2 * dense(pixels, width, width) + depth * (own + other + forward)

    def level(i: int, pixels: int, inputs: list[int]) -> int:
        found = sum(block(pixels, n, widths[i]) for n in inputs)
        return found + bool(spec.depth[i]) * len(inputs) * transformer(
            pixels, widths[i], spec.depth[i]
        )

    total = dense(1, widths[0], embedded) + dense(1, embedded, embedded)
    total += conv(side**2, channels, widths[0])
    skips, x = [widths[0]], widths[0]
    sides = [side]
    for i, width in enumerate(widths):
        total += level(i, sides[-1] ** 2, [x] + [width] * (spec.layers - 1))
        skips += [width] * spec.layers
        x = width
        if i < len(widths) - 1:
            sides.append(-(-sides[-1] // 2))
            total += conv(sides[-1] ** 2, width, width)
            skips.append(width)
    bottom = sides[-1] ** 2
    total += 2 * block(bottom, x, x) + transformer(bottom, x, max(spec.depth[-1], 1))
    for i in reversed(range(len(widths))):
        inputs = []
        for _ in range(spec.layers + 1):
            inputs.append(x + skips.pop())
            x = widths[i]
        total += level(i, sides[i] ** 2, inputs)
        if i:
            total += conv(sides[i - 1] ** 2, widths[i], widths[i])
    return total + conv(side**2, widths[0], channels)


def text(spec: Any, length: int) -> int:
    """Of a text encoder (vision_lang/models/text_encoder.py) on one text."""
    width, hidden = spec.width, round(spec.mlp_ratio * spec.width)
    layer = 4 * dense(length, width, width) + attention(length, length, width)
    return spec.layers * (layer + 2 * dense(length, width, hidden))


def vgg(spec: Any, side: int, classes: int) -> int:
    """Of a VGG with the dense head, convolutions padded, on one picture."""
    total, channels = 0, 3
    for widths in spec.stages:
        for width in map(spec.scaled, widths):
            total += conv(side**2, channels, width)
            channels = width
        side //= 2
    inputs = (spec.grid or side) ** 2 * channels
    for width in (*map(spec.scaled, spec.hidden), classes):
        total += dense(1, inputs, width)
        inputs = width
    return total
