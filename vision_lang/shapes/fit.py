"""Analysis by synthesis: finds the shape, place, radius, blur and colour that redraw a patch.

Each blob of a picture is compared with all shapes. A candidate is theta = (x, y, radius, blur), in
pixels; its drawing is background + C(theta) b, with C the coverage blurred by a Gaussian and b the
colour's difference from the background. For a given theta the best b is a linear least-squares
solution, so Gauss-Newton runs over theta alone with b eliminated (variable projection: Golub and
Pereyra 1973, as simplified by Kaufman 1975).

n candidates; S side of a patch in pixels; 3 colour channels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from vision_lang.shapes.draw import COVERAGE, coverage

SHAPES = tuple(COVERAGE)
# Areas for radius 1, by counting: the drawing's own proportions.
_FINE = np.arange(300) + 0.5
AREAS = np.array([coverage(k, 150.0, 150.0, 100.0, _FINE, _FINE).sum() / 1e4 for k in SHAPES])
BLURS = (0.25, 1.6)  # admitted standard deviations, px; under 0.25 a Gaussian blurs nothing
# For the derivatives in theta by finite differences, and the longest step in theta.
STEPS = np.array([0.05, 0.05, 0.05, 0.1], np.float32)
LIMITS = np.array([1.0, 1.0, 1.0, 0.3], np.float32)
HARMONICS = (2, 3, 4)


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
    """shape: index into SHAPES [n]; theta [n, 4]; colour: b [n, 3]; error: sum of squares [n].

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
    """Blurred coverage [n, ..., S, S] of shape [n], theta [n, ..., 4] on patches at left, top."""
    pixels = np.arange(side, dtype=theta.dtype) + theta.dtype.type(0.5)
    out = np.empty((*theta.shape[:-1], side, side), theta.dtype)
    ones = (1,) * (theta.ndim - 2)
    for k in np.unique(shape):
        rows = shape == k
        x, y, radius = (theta[rows][..., i] for i in range(3))
        columns = left[rows].reshape(-1, *ones, 1) + pixels
        lines = top[rows].reshape(-1, *ones, 1) + pixels
        out[rows] = coverage(SHAPES[k], x, y, radius, columns, lines)
    blur = blur_matrix(theta[..., 3], side)
    return blur @ out @ blur  # it is symmetric


def blur_matrix(sigma: np.ndarray, side: int) -> np.ndarray:
    """Gaussian blur along one axis as a matrix [..., S, S]; what leaves the patch is lost."""
    sigma = sigma[..., None]
    distance = np.arange(side)
    wide = np.arange(-6, 7, dtype=sigma.dtype)
    total = np.exp(-0.5 * (wide / sigma) ** 2).sum(-1, keepdims=True)
    kernel = np.exp(-0.5 * (distance.astype(sigma.dtype) / sigma) ** 2) / total  # [..., S]
    kernel[kernel < 1e-6] = 0  # what would multiply to denormal numbers, which are slow
    return kernel[..., np.abs(distance[:, None] - distance)]


def evaluate(patches: Patches, shape: np.ndarray, theta: np.ndarray) -> Fit:
    """The fit at given theta [n, 4], with the best colours."""
    n, side = patches.weight.shape[:2]
    cover = blurred(shape, theta, patches.left, patches.top, side).reshape(n, -1)  # [n, S*S]
    weighted = patches.weight.reshape(n, -1) * cover
    contrast = patches.contrast.reshape(n, -1, 3)
    norm = np.maximum((weighted * cover).sum(1), 1e-6)
    colour = (weighted[:, None, :] @ contrast)[:, 0] / norm[:, None]
    residual = contrast - cover[..., None] * colour[:, None, :]
    residual *= patches.weight.reshape(n, -1, 1)
    return Fit(shape, theta, colour, (residual**2).sum((1, 2)), cover, residual)


def _slopes(patches: Patches, fit: Fit) -> np.ndarray:
    """Derivative of the coverage by theta [n, 4, S*S]."""
    n, side = patches.weight.shape[:2]
    shifted = fit.theta[:, None, :] + np.diag(STEPS)
    cover = blurred(fit.shape, shifted, patches.left, patches.top, side).reshape(n, 4, -1)
    return (cover - fit.cover[:, None, :]) / STEPS[:, None]


def _solve(patches: Patches, fit: Fit, slope: np.ndarray) -> np.ndarray:
    """Gauss-Newton step [n, m] in parameters that change the coverage by slope [n, m, S*S]."""
    n, m, _ = slope.shape
    weight = patches.weight.reshape(n, 1, -1)
    base = fit.cover[:, None, :]
    # What of a change the best colour takes up does not count (Kaufman).
    weighted = weight * base
    norm = np.maximum((weighted * base).sum((1, 2)), 1e-6)[:, None, None]
    slope = weight * (slope - (slope @ weighted.transpose(0, 2, 1)) / norm * base)
    normal = slope @ slope.transpose(0, 2, 1) * (fit.colour**2).sum(1)[:, None, None]
    damping = 4e-3 / m * np.trace(normal, axis1=1, axis2=2) + 1e-6
    normal += damping[:, None, None] * np.eye(m, dtype=np.float32)
    right = slope @ (fit.residual @ fit.colour[..., None])  # [n, m, 1]
    return np.linalg.solve(normal, right)[..., 0]


def refine(patches: Patches, fit: Fit, iterations: int) -> Fit:
    """Gauss-Newton from a fit.

    A step that would make a candidate worse is not taken, and the next one is halved.
    """
    scale = np.ones(len(fit.shape), np.float32)
    for _ in range(iterations):
        step = np.clip(_solve(patches, fit, _slopes(patches, fit)), -LIMITS, LIMITS)
        theta = fit.theta + scale[:, None] * step
        theta[:, 2] = np.maximum(theta[:, 2], 1.0)
        theta[:, 3] = np.clip(theta[:, 3], *BLURS)
        tried = evaluate(patches, fit.shape, theta)
        better = tried.error <= fit.error
        scale = np.where(better, np.float32(1), scale / 2)
        fit = fit.replaced(tried, better)
    return fit


def deformation(patches: Patches, fit: Fit) -> np.ndarray:
    """How far the outline is from the fit's, as a part of the radius [n].

    The radius may vary with the angle as 1 + sum over k of a_k cos(k angle) + b_k sin(k angle), k
    in HARMONICS; this is the largest hypot(a_k, b_k), to first order. k = 2 stretches, a square is
    a circle with k = 4 of 0.14.
    """
    n, side = patches.weight.shape[:2]
    slope = _slopes(patches, fit)
    pixels = np.arange(side, dtype=np.float32) + np.float32(0.5)
    u = (patches.left - fit.theta[:, 0])[:, None, None] + pixels
    v = (patches.top - fit.theta[:, 1])[:, None, None] + pixels[:, None]
    angle = np.arctan2(v, u).reshape(n, 1, -1)
    waves = [wave(k * angle) for k in HARMONICS for wave in (np.cos, np.sin)]
    bent = slope[:, 2:3] * np.concatenate(waves, axis=1)  # [n, 6, S*S], for amplitudes in pixels
    amplitude = _solve(patches, fit, np.concatenate([slope, bent], axis=1))[:, 4:]
    return np.linalg.norm(amplitude.reshape(n, -1, 2), axis=2).max(1) / fit.theta[:, 2]


def best_of(fit: Fit, group: np.ndarray, keep: int) -> np.ndarray:
    """Rows of the `keep` candidates with the smallest errors of each group [n]."""
    order = np.lexsort((fit.error, group))
    _, start = np.unique(group[order], return_index=True)
    rank = np.arange(len(order)) - np.repeat(start, np.diff([*start, len(order)]))
    return order[rank < keep]
