"""Redraws the blobs of a picture: one object of this world for each, as near as it gets.

H = W = resolution; n blobs.
"""

from __future__ import annotations

import numpy as np

from vision_lang.shapes import fit as fitting
from vision_lang.shapes.fit import Fit, Patches
from vision_lang.shapes.segment import grow

COARSE = 32  # px, the side at which shapes are told apart; larger pictures refine what that found


def fit_blobs(
    contrast: np.ndarray, blobs: np.ndarray, colour: np.ndarray
) -> tuple[Fit, np.ndarray, np.ndarray]:
    """Fits one object to each blob.

    Args:
      contrast: picture - background [H, W, 3].
      blobs: masks [n, H, W].
      colour: of the palette, that each blob tends to, - background [n, 3].

    Returns:
      The fits of the n blobs, in pixels; each drawn alone [n, H, W, 3]; how deformed each
      blob is [n].
    """
    n, side = blobs.shape[:2]
    factor = side // COARSE if side % COARSE == 0 else 1
    if factor > 1:  # find the shapes in a small copy
        small = contrast.reshape(COARSE, factor, COARSE, factor, 3).mean((1, 3))
        masks = blobs.reshape(n, COARSE, factor, COARSE, factor).max((2, 4))
        found, _ = _guess(small, masks, colour)
        theta = found.theta * np.array([factor, factor, factor, 1], np.float32)
        theta[:, 3] = 0.5
        patches = _patches(contrast, blobs, theta[:, :2])
        fit = fitting.refine(patches, fitting.evaluate(patches, found.shape, theta), 3)
    else:
        fit, patches = _guess(contrast, blobs, colour)
    # Once more, with the neighbours taken away instead of masked.
    drawn = _drawn(fit, patches, side)
    others = drawn.sum(0) - drawn
    patches = _patches(contrast - others, blobs, fit.theta[:, :2], masked=False)
    fit = fitting.refine(
        patches, fitting.evaluate(patches, fit.shape, fit.theta), 2 if n > 1 else 0
    )
    return fit, _drawn(fit, patches, side), fitting.deformation(patches, fit)


def _guess(contrast: np.ndarray, blobs: np.ndarray, colour: np.ndarray) -> tuple[Fit, Patches]:
    """Tries all shapes, sharp and blurred, on each blob; keeps the best; see `fit_blobs`."""
    n, side = blobs.shape[:2]
    pixels = np.arange(side) + 0.5
    # Moments of the blob give place and, for each shape, radius. The colour that the blob tends to
    # is that of the palette: a thin blurred ring nowhere reaches its own.
    part = np.einsum("hwc,nc->nhw", contrast, colour) / (colour**2).sum(1)[:, None, None]
    part = np.clip(part, 0, 1) * grow(blobs, 1) * _own(blobs)
    mass = part.sum((1, 2))
    centre = np.stack([(part.sum(1) * pixels).sum(1), (part.sum(2) * pixels).sum(1)], 1)
    centre /= mass[:, None]
    patches = _patches(contrast, blobs, centre)

    hypotheses = [(k, blur) for k in range(len(fitting.SHAPES)) for blur in (0.4, 1.0)]
    group = np.repeat(np.arange(n), len(hypotheses))
    shape = np.tile([k for k, _ in hypotheses], n)
    radius = np.sqrt(mass[group] / fitting.AREAS[shape])
    blur = np.tile([b for _, b in hypotheses], n)
    theta = np.column_stack([centre[group], radius, blur]).astype(np.float32)
    fit = fitting.evaluate(patches.take(group), shape, theta)
    for keep, iterations in ((3, 2), (1, 2)):
        rows = fitting.best_of(fit, group, keep)
        group, fit = group[rows], fit.take(rows)
        fit = fitting.refine(patches.take(group), fit, iterations)
    return fit, patches


def _own(blobs: np.ndarray) -> np.ndarray:
    """Weights [n, H, W]: 0 on the other blobs and 2 px around them, unless that is its own."""
    others = [np.delete(blobs, i, 0).any(axis=0) for i in range(len(blobs))]
    return (~grow(np.stack(others), 2) | blobs).astype(np.float32)


def _patches(
    contrast: np.ndarray, blobs: np.ndarray, centres: np.ndarray, masked: bool = True
) -> Patches:
    """Patches around `centres` [n, 2] that hold the blobs and what blur spreads around them."""
    side = blobs.shape[-1]
    extent = max(np.ptp(at) for b in blobs for at in np.nonzero(b)) + 1
    window = 2 * int(np.ceil(min(extent, 0.5 * side) * 0.6)) + 8
    weight = _own(blobs) if masked else np.ones(blobs.shape, np.float32)
    return Patches(*fitting.cut(contrast, weight, centres, window))


def _drawn(fit: Fit, patches: Patches, side: int) -> np.ndarray:
    """Each fit drawn over the whole picture [n, H, W, 3], as a difference from the background."""
    n, size = patches.weight.shape[:2]
    drawn = np.zeros((n, side + 2 * size, side + 2 * size, 3), np.float32)
    cover = fit.cover.reshape(n, size, size, 1) * fit.colour[:, None, None]
    for k, (x, y) in enumerate(zip(patches.left.astype(int), patches.top.astype(int), strict=True)):
        drawn[k, y + size : y + 2 * size, x + size : x + 2 * size] = cover[k]
    return drawn[:, size:-size, size:-size]
