"""Draws scenes: anti-aliased shapes at continuous positions and sizes.

A pixel is a square; its value is background + coverage x (colour - background), with coverage the
part of the pixel inside the shape. It is exact for the square and the plus. For the others it is
clip(1/2 - d, 0, 1), with d the signed distance to the outline in pixels; that is off by 0.02 to
0.03 on average over the outline's pixels, and by up to 0.3 at the tips of the triangle.

H = W = resolution; N objects, all of one shape, drawn at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vision_lang.shapes.scene import BACKGROUNDS, COLOURS, Scene

# Proportions, as multiples of the radius.
SQUARE_HALF_SIDE = 1.0
TRIANGLE_CIRCUMRADIUS = 1.22  # pointing up, equilateral, its centroid at the centre
CROSS_HALF_LENGTH, CROSS_HALF_WIDTH = 1.3, 0.36  # its arms point to the corners
RING_OUTER, RING_INNER = 1.08, 0.55
PLUS_HALF_LENGTH, PLUS_HALF_WIDTH = 1.15, 0.45


def _edge(distance: np.ndarray) -> np.ndarray:
    return np.clip(0.5 - distance, 0.0, 1.0)


def _strip(u: np.ndarray, half: np.ndarray) -> np.ndarray:
    """The part of the pixel interval [u - 1/2, u + 1/2] inside [-half, half]; exact."""
    return np.clip(np.minimum(u + 0.5, half) - np.maximum(u - 0.5, -half), 0.0, 1.0)


def _circle(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return _edge(np.sqrt(x * x + y * y) - r)


def _square(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    half = SQUARE_HALF_SIDE * r
    return _strip(x, half) * _strip(y, half)


def _triangle(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    inradius = TRIANGLE_CIRCUMRADIUS * r / 2
    slanted = 0.75**0.5 * np.abs(x) - 0.5 * y  # the outward normals are (+-sqrt(3)/2, -1/2), (0, 1)
    return _edge(np.maximum(slanted, y) - inradius)


def _cross(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    length, width = CROSS_HALF_LENGTH * r, CROSS_HALF_WIDTH * r
    u, v = 0.5**0.5 * np.abs(x + y), 0.5**0.5 * np.abs(x - y)  # along the diagonals
    return _edge(np.minimum(np.maximum(u - length, v - width), np.maximum(v - length, u - width)))


def _ring(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    distance = np.sqrt(x * x + y * y)
    return _edge(distance - RING_OUTER * r) - _edge(distance - RING_INNER * r)


def _plus(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    length, width = PLUS_HALF_LENGTH * r, PLUS_HALF_WIDTH * r
    lying, standing = _strip(x, length) * _strip(y, width), _strip(x, width) * _strip(y, length)
    return lying + standing - _strip(x, width) * _strip(y, width)  # what both cover counts once


COVERAGE: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "plus": _plus,
}


def coverage(
    shape: str, x: npt.ArrayLike, y: npt.ArrayLike, radius: npt.ArrayLike, columns: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Coverage [..., H, W] in [0, 1] of one shape.

    Args:
      shape: a row of COVERAGE.
      x, y, radius: arrays [...], in pixels.
      columns, rows: pixel centres [..., W] and [..., H], in pixels.
    """
    u = columns[..., None, :] - np.asarray(x)[..., None, None]
    v = rows[..., :, None] - np.asarray(y)[..., None, None]
    return COVERAGE[shape](u, v, np.asarray(radius)[..., None, None])


def rgb(colour: tuple[int, int, int]) -> np.ndarray:
    """sRGB 0..255 as float64 [3] on [0, 1]."""
    return np.array(colour) / 255.0


def paint(
    objects: list[tuple[str, float, float, float, np.ndarray]], background: np.ndarray,
    resolution: int,
) -> np.ndarray:  # fmt: skip
    """Draws (shape, x, y, radius, colour [3]) at continuous places; float64 [H, W, 3] on [0, 1].

    x, y, radius are in units of the picture's side. Objects do not hide each other: their
    contributions add up, which is the same for objects that do not overlap.
    """
    centres = np.arange(resolution) + 0.5
    image = np.empty((resolution, resolution, 3))
    image[:] = background
    for shape, x, y, radius, colour in objects:
        # Only the pixels that the shape can reach.
        reach = 1.25 * radius * resolution + 1
        left, top = (max(0, int(c * resolution - reach)) for c in (x, y))
        right, bottom = (min(resolution, int(c * resolution + reach) + 1) for c in (x, y))
        cover = coverage(
            shape, np.float64(x * resolution), np.float64(y * resolution),
            np.float64(radius * resolution), centres[left:right], centres[top:bottom],
        )  # fmt: skip
        image[top:bottom, left:right] += cover[..., None] * (colour - background)
    return image


def draw_float(scene: Scene, resolution: int) -> np.ndarray:
    """The picture of a scene, float64 [H, W, 3] on [0, 1]."""
    objects = [(o.shape, o.x, o.y, o.radius, rgb(COLOURS[o.colour])) for o in scene.objects]
    return paint(objects, rgb(BACKGROUNDS[scene.background]), resolution)


def draw(scene: Scene, resolution: int) -> np.ndarray:
    """The picture of a scene, uint8 [H, W, 3]."""
    return np.rint(draw_float(scene, resolution) * 255).astype(np.uint8)
