"""Takes a picture apart for the oracle: its background, what each pixel tends to, its blobs.

Colours are on [0, 1]; distances between them are Euclidean. H = W = resolution.
"""

from __future__ import annotations

import numpy as np

from vision_lang.shapes.draw import rgb
from vision_lang.shapes.scene import BACKGROUNDS, COLOURS

PIXEL_TOLERANCE = 0.25  # a pixel this close to a background's colour may be background
GROUND_SHARE = 0.3  # at least this part of a picture is background
GROUND_TOLERANCE = 0.2  # of the background's measured colour
PALETTE = np.stack([rgb(c) for c in COLOURS.values()]).astype(np.float32)  # [8, 3]


def background(image: np.ndarray) -> tuple[str, np.ndarray] | None:
    """Name and measured colour [3] of the background, or None."""
    names = list(BACKGROUNDS)
    colours = np.stack([rgb(c) for c in BACKGROUNDS.values()])
    distance = np.linalg.norm(image[:, :, None] - colours, axis=-1)  # [H, W, backgrounds]
    near = distance < PIXEL_TOLERANCE
    best = int(near.sum((0, 1)).argmax())
    if near[..., best].mean() < GROUND_SHARE:
        return None
    colour = np.median(image[near[..., best]], axis=0)
    if np.linalg.norm(colour - colours[best]) > GROUND_TOLERANCE:
        return None
    return names[best], colour


def unmix(contrast: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Explains each pixel as background + part x (palette colour - background).

    Returns:
      label [H, W], the colour that explains it best, and part [H, W] in [0, 1].
    """
    directions = PALETTE - ground  # [8, 3]
    part = np.clip(contrast @ (directions / (directions**2).sum(1, keepdims=True)).T, 0, 1)
    off = ((contrast[:, :, None] - part[..., None] * directions) ** 2).sum(-1)
    label = off.argmin(-1)
    return label, np.take_along_axis(part, label[..., None], -1)[..., 0]


def blobs(mask: np.ndarray) -> list[np.ndarray]:
    """8-connected components of a mask [H, W], as masks."""
    side = mask.shape[1] + 2
    flat = np.pad(mask, 1).ravel()
    todo = set(np.flatnonzero(flat).tolist())
    near = [dy * side + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dx or dy]
    blobs = []
    while todo:
        front = [todo.pop()]
        members = list(front)
        while front:
            at = front.pop()
            for step in near:
                if at + step in todo:
                    todo.remove(at + step)
                    front.append(at + step)
                    members.append(at + step)
        blob = np.zeros(flat.size, bool)
        blob[members] = True
        blobs.append(blob.reshape(-1, side)[1:-1, 1:-1])
    return blobs


def grow(mask: np.ndarray, steps: int) -> np.ndarray:
    """The mask [..., H, W] and all within `steps` pixels, counted as a king walks."""
    for _ in range(steps):
        mask = mask.copy()
        mask[..., 1:, :] |= mask[..., :-1, :]
        mask[..., :-1, :] |= mask[..., 1:, :]
        mask[..., :, 1:] |= mask[..., :, :-1]
        mask[..., :, :-1] |= mask[..., :, 1:]
    return mask
