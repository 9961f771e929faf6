"""The judge: reads a picture back into a scene, without learning, and grades it by a caption.

How it reads: it takes the background's colour from the pixels, cuts out what differs from it by
half a colour's contrast, redraws each blob as every shape (fit.py), keeps the best, and then looks
at what the redrawing leaves unexplained, on average and locally. What is left must be explicable
by the stated tolerance: noise of sigma 0.05 on [0, 1], blur of sigma 1 px, a colour off by 0.2, a
radius off by 20 %. Otherwise the picture is unreadable, and an unreadable picture is wrong in
everything: a cut, merged, unfinished or extra object never passes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from vision_lang.errors import InputError
from vision_lang.shapes import fit as fitting
from vision_lang.shapes import redraw, segment
from vision_lang.shapes.draw import paint, rgb
from vision_lang.shapes.grammar import Description, parse
from vision_lang.shapes.scene import BACKGROUNDS, COLOURS, REACH, SIZES, Scene, holds

# Distances between colours are Euclidean, on [0, 1]^3.
COLOUR_TOLERANCE = 0.2  # of an object's fitted colour; no two colours are closer than 0.4
SIZE_TOLERANCE = 0.2  # of a radius, relative: 1.2 x small is 0.8 x large
BLUR_TOLERANCE = 1.25  # standard deviation of an edge, px
DEFORMATION = 0.1  # of the radius; a square is a circle with 0.14
SMALLEST_BLOB = 0.01  # part of the picture; a small triangle covers 0.030
DEBRIS = 0.0025  # what is larger but no object is a fragment: 3 px of 1024, as noise never makes
MEAN_RESIDUAL = 0.06  # noise of sigma 0.05 leaves 0.04
# The residual averaged over LOCAL_SIDE x LOCAL_SIDE may always be the first of LOCAL_RESIDUAL
# (noise alone: 0.08), near an object also LOCAL_PART of its contrast to the background (an edge off
# by 3/4 px of 32), in a grainy picture also LOCAL_OUTLIER times what is usual there; but never more
# than the last.
LOCAL_PART = 0.25
LOCAL_OUTLIER = 3.5
LOCAL_RESIDUAL = (0.11, 0.2)
LOCAL_SIDE = 3 / 32
# The same over a quarter of the picture's side: a blotchy ground, or an object too faint to be cut
# out, is no grain.
WIDE_RESIDUAL = 0.1
WIDE_SIDE = 1 / 4


@dataclass(frozen=True)
class ReadObject:
    """An object as read: x, y, radius are continuous; the picture's side is 1."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Reading:
    """What the oracle saw.

    reason: why the picture is unreadable, or None. An unreadable picture may list objects, for the
      curious, but grades as wrong.
    residual: mean absolute difference to the fitted picture, on [0, 1].
    """

    objects: tuple[ReadObject, ...]
    background: str | None
    residual: float
    reason: str | None = None


def as_float(image: np.ndarray) -> np.ndarray:
    """uint8 or float [H, H, 3] to float32 on [0, 1].

    Raises:
      InputError: not a square RGB picture of at least 16 px, uint8 or float on [0, 1].
    """
    if image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3:
        raise InputError(f"The oracle reads square RGB pictures [H, H, 3], not {image.shape}.")
    if image.shape[0] < 16:
        raise InputError(f"The oracle reads pictures of 16 px or more, not {image.shape[0]} px.")
    if image.dtype == np.uint8:
        return image / np.float32(255)
    if not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"The oracle reads uint8 or float on [0, 1], not {image.dtype}.")
    if image.min() < -0.01 or image.max() > 1.01:
        raise InputError("The oracle reads floats on [0, 1]; scale or clip the picture first.")
    return image.astype(np.float32)


def read(image: np.ndarray) -> Reading:
    """Reads a picture [H, H, 3], uint8 or float on [0, 1], back into a scene."""
    image = as_float(image)
    side = len(image)
    found = segment.background(image)
    if found is None:
        return Reading((), None, 1.0, "no background")
    background, ground = found
    contrast = image - ground
    label, part = segment.unmix(contrast, ground)
    found_blobs = segment.blobs(part > 0.5)
    blobs = [b for b in found_blobs if b.sum() >= SMALLEST_BLOB * side**2]
    debris = any(DEBRIS * side**2 <= b.sum() < SMALLEST_BLOB * side**2 for b in found_blobs)
    if not 1 <= len(blobs) <= 3:
        return Reading((), background, 1.0, "no object" if not blobs else "more than 3 objects")
    colours = [np.bincount(label[b], (contrast[b] ** 2).sum(-1)).argmax() for b in blobs]
    fit, drawn, bent = redraw.fit_blobs(
        contrast, np.stack(blobs), segment.PALETTE[colours] - ground
    )
    residual = contrast - drawn.sum(0)
    objects, reason = [], "a fragment of an object" if debris else None
    for k in range(len(blobs)):
        read_object, problem = _name(fit.take(np.array([k])), ground, side)
        objects.append(read_object)
        reason = reason or problem
    if (bent > DEFORMATION).any():
        reason = reason or "an object that is deformed"
    return Reading(
        tuple(objects),
        background,
        float(np.abs(residual).mean()),
        reason or _unexplained(residual, drawn),
    )


def _name(fit: fitting.Fit, ground: np.ndarray, side: int) -> tuple[ReadObject, str | None]:
    """Names what one fit shows, and why it is no object of this world, if so."""
    x, y, radius = (float(v) / side for v in fit.theta[0, :3])
    shape = fitting.SHAPES[fit.shape[0]]
    distance = np.linalg.norm(segment.PALETTE - (ground + fit.colour[0]), axis=1)
    ratios = {name: abs(radius / size - 1) for name, size in SIZES.items()}
    size = min(ratios, key=ratios.__getitem__)
    problem = None
    if fit.theta[0, 3] > BLUR_TOLERANCE:
        problem = "an object that is blurred"
    elif distance.min() > COLOUR_TOLERANCE:
        problem = "an object of an unknown colour"
    elif ratios[size] > SIZE_TOLERANCE:
        problem = "an object of an unknown size"
    elif not all(
        reach * radius - 0.03 < c < 1.03 - reach * radius
        for c, reach in zip((x, y), REACH[shape], strict=True)
    ):
        problem = "an object that is cut by the edge"
    colour = list(COLOURS)[int(distance.argmin())]
    return ReadObject(shape, colour, size, x, y, radius), problem


def _unexplained(residual: np.ndarray, drawn: np.ndarray) -> str | None:
    """Why a residual [H, W, 3] is more than noise, or None; `drawn`: each object [n, H, W, 3]."""
    if np.abs(residual).mean() > MEAN_RESIDUAL:
        return "too much noise"
    wide = _box_mean(residual, round(WIDE_SIDE * len(residual)))
    if np.linalg.norm(wide, axis=-1).max() > WIDE_RESIDUAL:
        return "a blotchy ground"
    width = max(3, round(LOCAL_SIDE * len(residual)))
    local = np.linalg.norm(_box_mean(residual, width), axis=-1)
    least, most = LOCAL_RESIDUAL
    allowed = np.full(local.shape, least)
    for each in np.linalg.norm(drawn, axis=-1):
        near = _box_mean(each[..., None], width)[..., 0] > 1e-3
        allowed[near] = np.maximum(allowed, LOCAL_PART * each.max())[near]
    grain = LOCAL_OUTLIER * np.sqrt((local**2).mean())
    if (local > np.minimum(np.maximum(allowed, grain), most)).any():
        return "something that is no object of this world"
    return None


def _box_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over width x width pixels [H - width + 1, W - width + 1, C]."""
    total = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
    w = width
    return (total[w:, w:] - total[:-w, w:] - total[w:, :-w] + total[:-w, :-w]) / w**2


def render_error(image: np.ndarray, reading: Reading) -> float:
    """Mean absolute pixel difference, on [0, 1], between a picture and the scene read from it.

    The scene is drawn sharply, in the world's own colours, at the continuous positions and sizes
    that were read. A picture without a background counts as 1.
    """
    image = as_float(image)
    if reading.background is None:
        return 1.0
    objects = [(o.shape, o.x, o.y, o.radius, rgb(COLOURS[o.colour])) for o in reading.objects]
    drawn = paint(objects, rgb(BACKGROUNDS[reading.background]), len(image))
    return float(np.abs(image - drawn).mean())


def reading_of(scene: Scene) -> Reading:
    """A scene as a perfect reader sees it, to be graded like a picture (radii aside)."""
    seen = [ReadObject(o.shape, o.colour, o.size, o.x, o.y, 0.0) for o in scene.objects]
    return Reading(tuple(seen), scene.background, 0.0)


def grade(seen: np.ndarray | Reading, stated: str | Description) -> dict[str, bool]:
    """Grades a picture, or its reading, by what a caption states.

    Returns:
      number, shape, colour, and size, background, relation where stated: whether it is right for
      every object that the caption names (the objects are matched with the caption's in the way
      that makes most right); all_right: all of these. All are False if the picture is unreadable.
    """
    reading = seen if isinstance(seen, Reading) else read(seen)
    wanted = parse(stated) if isinstance(stated, str) else stated
    keys = ["number", "shape", "colour"]
    keys += ["size"] * any(m.size is not None for m in wanted.objects)
    keys += ["background"] * (wanted.background is not None)
    keys += ["relation"] * bool(wanted.relations)
    if reading.reason is not None:
        return {key: False for key in (*keys, "all_right")}
    n = len(wanted.objects)
    candidates: list[ReadObject | None] = [*reading.objects]
    candidates += [None] * (n - len(candidates))
    graded = [_grade_matched(order, wanted) for order in itertools.permutations(candidates, n)]
    _, right = max(graded, key=lambda pair: pair[0])
    right["number"] = len(reading.objects) == wanted.count
    right["background"] = reading.background == wanted.background
    grades = {key: right[key] for key in keys}
    return {**grades, "all_right": all(grades.values())}


def _grade_matched(
    objects: tuple[ReadObject | None, ...], wanted: Description
) -> tuple[int, dict[str, bool]]:
    """How much is right, and which attributes, if objects[i] is what wanted.objects[i] names."""

    def agree(attribute: str) -> list[bool]:
        return [
            o is not None and getattr(m, attribute) in (None, getattr(o, attribute))
            for o, m in zip(objects, wanted.objects, strict=True)
        ]

    def stands(i: int, name: str, j: int) -> bool:
        a, b = objects[i], objects[j]
        return a is not None and b is not None and holds(name, a.x - b.x, a.y - b.y)

    marks = {key: agree(key) for key in ("shape", "colour", "size")}
    marks["relation"] = [stands(*r) for r in wanted.relations]
    return sum(map(sum, marks.values())), {key: all(marks[key]) for key in marks}
