"""Analysis by synthesis: finds the shape, place, radius, blur and colour that redraw a patch.

Each blob of a picture is compared with all shapes. A candidate is theta = (x, y, radius, blur,
stretch), in pixels; stretch, the logarithm of width over height, is 0 for all shapes of this world
and left free only to find out what is none. Its drawing is background + C(theta) b, with C the
coverage blurred by a Gaussian and b the colour's difference from the background. For a given theta
the best b is a linear least-squares solution, so Gauss-Newton runs over theta alone with b
eliminated (variable projection: Golub and Pereyra 1973, as simplified by Kaufman 1975).

n candidates; S side of a patch in pixels; 3 colour channels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from vision_lang.shapes.draw import COVERAGE, coverage

SHAPES = tuple(COVERAGE)
# Areas for radius 1, by counting: the drawing's own proportions.
_FINE = np.arange(300) + 0.5
AREAS = np.array(
    [coverage(s, *np.array([150.0, 150.0, 100.0]), _FINE, _FINE).sum() / 1e4 for s in SHAPES]
)
BLURS = (0.25, 1.3)  # admitted standard deviations, px; under 0.25 a Gaussian blurs nothing
# For the derivatives in theta by finite differences, and the longest step in theta.
STEPS = np.array([0.05, 0.05, 0.05, 0.1, 0.02], np.float32)
LIMITS = np.array([1.0, 1.0, 1.0, 0.3, 0.3], np.float32)
ZERO = np.float32(0)


@dataclass(frozen=True)
class Patches:
    """Square cut-outs of one picture, one for each candidate.

    left, top: float [n], the corner in the picture (a patch may stick out).
    contrast: float [n, S, S, 3], picture - background - the other objects.
    weight: float [n, S, S], 0 outside the picture and where another blob lies.
    """

    left: np.ndarray
    top: np.ndarray
    contrast: np.ndarray
    weight: np.ndarray

    def take(self, rows: np.ndarray) -> Patches:
        return Patches(self.left[rows], self.top[rows], self.contrast[rows], self.weight[rows])


@dataclass(frozen=True)
class Fit:
    """shape: index into SHAPES [n]; theta [n, 5]; colour: b [n, 3]; error: sum of squares [n].

    cover [n, S*S] and residual [n, S*S, 3] (weighted) are those of theta.
    """

    shape: np.ndarray
    theta: np.ndarray
    colour: np.ndarray
    error: np.ndarray
    cover: np.ndarray
    residual: np.ndarray

    def take(self, rows: np.ndarray) -> Fit:
        return Fit(*(column[rows] for column in astuple(self)))

    def replaced(self, other: Fit, where: np.ndarray) -> Fit:
        """Rows of `other` where `where` [n], else of this one."""
        both = zip(astuple(self), astuple(other), strict=True)
        return Fit(*(np.where(where.reshape(-1, *(1,) * (a.ndim - 1)), b, a) for a, b in both))


def astuple(fit: Fit) -> tuple[np.ndarray, ...]:
    return tuple(getattr(fit, field.name) for field in fields(fit))


def cut(
    contrast: np.ndarray, weight: np.ndarray, centres: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Patches of side S around `centres` [n, 2] (x, y), zero outside the picture.

    Args:
      contrast: [H, W, 3], or [n, H, W, 3] with one picture for each centre.
      weight: [n, H, W].

    Returns:
      left [n], top [n], contrast [n, S, S, 3], weight [n, S, S].
    """
    n = len(centres)
    corner = np.floor(centres).astype(int) - side // 2
    pad = ((0, 0), (side, side), (side, side))
    weight = np.pad(weight, pad)
    if contrast.ndim == 3:
        contrast = contrast[None]
    contrast = np.broadcast_to(np.pad(contrast, (*pad, (0, 0))), (n, *weight.shape[1:], 3))
    places = [
        (i, slice(y + side, y + 2 * side), slice(x + side, x + 2 * side))
        for i, (x, y) in enumerate(corner)
    ]
    return (
        corner[:, 0].astype(np.float32),
        corner[:, 1].astype(np.float32),
        np.stack([contrast[place] for place in places]),
        np.stack([weight[place] for place in places]),
    )


def blurred(shape: np.ndarray, theta: np.ndarray, left: np.ndarray, top: np.ndarray, side: int):
    """Blurred coverage [n, ..., S, S] of shape [n], theta [n, ..., 5] on patches at left, top."""
    pixels = np.arange(side, dtype=theta.dtype) + theta.dtype.type(0.5)
    out = np.empty((*theta.shape[:-1], side, side), theta.dtype)
    ones = (1,) * (theta.ndim - 2)
    for k in np.unique(shape):
        rows = shape == k
        x, y, radius, _, stretch = np.moveaxis(theta[rows], -1, 0)
        wide = np.exp(stretch / 2)
        columns = (left[rows].reshape(-1, *ones, 1) + pixels - x[..., None]) / wide[..., None]
        lines = (top[rows].reshape(-1, *ones, 1) + pixels - y[..., None]) * wide[..., None]
        out[rows] = coverage(SHAPES[k], ZERO, ZERO, radius, columns, lines)
    blur = blur_matrix(theta[..., 3], side)
    return blur @ out @ np.swapaxes(blur, -1, -2)


def blur_matrix(sigma: np.ndarray, side: int) -> np.ndarray:
    """Gaussian blur along one axis as a matrix [..., S, S]; what leaves the patch is lost."""
    sigma = sigma[..., None]
    distance = np.arange(side)
    wide = np.arange(-6, 7, dtype=sigma.dtype)
    total = np.exp(-0.5 * (wide / sigma) ** 2).sum(-1, keepdims=True)
    kernel = np.exp(-0.5 * (distance.astype(sigma.dtype) / sigma) ** 2) / total  # [..., S]
    return kernel[..., np.abs(distance[:, None] - distance)]


def evaluate(patches: Patches, shape: np.ndarray, theta: np.ndarray) -> Fit:
    """The fit at given theta [n, 5], with the best colours."""
    n, side = patches.weight.shape[:2]
    cover = blurred(shape, theta, patches.left, patches.top, side).reshape(n, -1)  # [n, S*S]
    weighted = patches.weight.reshape(n, -1) * cover
    contrast = patches.contrast.reshape(n, -1, 3)
    norm = np.maximum((weighted * cover).sum(1), 1e-6)
    colour = (weighted[:, None, :] @ contrast)[:, 0] / norm[:, None]
    residual = contrast - cover[..., None] * colour[:, None, :]
    residual *= patches.weight.reshape(n, -1, 1)
    return Fit(shape, theta, colour, (residual**2).sum((1, 2)), cover, residual)


def refine(patches: Patches, fit: Fit, iterations: int, free: int = 4) -> Fit:
    """Gauss-Newton in the first `free` columns of theta.

    A step that would make a candidate worse is not taken, and the next one is halved.
    """
    n, side = patches.weight.shape[:2]
    steps = STEPS[:free]
    weight = patches.weight.reshape(n, 1, -1)
    scale = np.ones(n, np.float32)
    for _ in range(iterations):
        shifted = fit.theta[:, None, :] + np.diag(STEPS)[:free]
        cover = blurred(fit.shape, shifted, patches.left, patches.top, side).reshape(n, free, -1)
        base = fit.cover[:, None, :]  # [n, 1, S*S]
        slope = (cover - base) / steps[:, None]  # [n, free, S*S]
        # What of a change the best colour takes up does not count (Kaufman).
        weighted = weight * base
        norm = np.maximum((weighted * base).sum((1, 2)), 1e-6)[:, None, None]
        slope -= (slope @ weighted.transpose(0, 2, 1)) / norm * base
        slope *= weight
        normal = slope @ slope.transpose(0, 2, 1) * (fit.colour**2).sum(1)[:, None, None]
        damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) + 1e-6
        normal += damping[:, None, None] * np.eye(free, dtype=np.float32)
        right = slope @ (fit.residual @ fit.colour[..., None])  # [n, free, 1]
        step = np.clip(np.linalg.solve(normal, right)[..., 0], -LIMITS[:free], LIMITS[:free])
        theta = fit.theta.copy()
        theta[:, :free] += scale[:, None] * step
        theta[:, 2] = np.maximum(theta[:, 2], 1.0)
        theta[:, 3] = np.clip(theta[:, 3], *BLURS)
        tried = evaluate(patches, fit.shape, theta)
        better = tried.error <= fit.error
        scale = np.where(better, np.float32(1), scale / 2)
        fit = fit.replaced(tried, better)
    return fit


def best_of(fit: Fit, group: np.ndarray, keep: int) -> np.ndarray:
    """Rows of the `keep` candidates with the smallest errors of each group [n]."""
    order = np.lexsort((fit.error, group))
    _, start = np.unique(group[order], return_index=True)
    rank = np.arange(len(order)) - np.repeat(start, np.diff([*start, len(order)]))
    return order[rank < keep]
