"""Batteries of pictures that the judge must grade right, or must not: how far it can be trusted.

A right picture shows what its caption says, clean or within the stated tolerance. A wrong one
contradicts its caption in one respect. Every picture is a function of (kind, number, resolution).
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable

import numpy as np

from vision_lang.errors import choose
from vision_lang.shapes import splits
from vision_lang.shapes.draw import draw, draw_float, rgb
from vision_lang.shapes.grammar import Description, caption, describe, parse
from vision_lang.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    GAP,
    RIM,
    SHAPES,
    SIZES,
    Object,
    Scene,
    holds,
)

Picture = np.ndarray  # [H, H, 3], uint8 or float on [0, 1]
Maker = Callable[[np.random.Generator, int], tuple[Picture, Description]]
SEED = 7  # not the data set's


def _scene(rng: np.random.Generator, least: int = 1) -> Scene:
    """A scene of the data set's distribution with at least `least` objects, anywhere."""
    while True:
        scene = splits.sample(SEED, "train", int(rng.integers(2**31)), grid=None)
        if len(scene.objects) >= least:
            return scene


def _allowed(scene: Scene) -> bool:
    """Whether the objects lie inside the picture and apart from each other."""
    inside = all(
        RIM + r <= c <= 1 - RIM - r
        for o in scene.objects for c, r in zip((o.x, o.y), o.reach, strict=True)
    )  # fmt: skip
    return inside and all(
        abs(a.x - b.x) >= a.reach[0] + b.reach[0] + GAP
        or abs(a.y - b.y) >= a.reach[1] + b.reach[1] + GAP
        for a, b in itertools.combinations(scene.objects, 2)
    )


def _changed(scene: Scene, *changes: tuple[int, dict[str, object]]) -> Scene:
    objects = list(scene.objects)
    for i, change in changes:
        objects[i] = dataclasses.replace(objects[i], **change)  # type: ignore[arg-type]
    return Scene(tuple(objects), scene.background)


def _other(rng: np.random.Generator, names: tuple[str, ...], name: str) -> str:
    return str(rng.choice([n for n in names if n != name]))


def _swapped(attribute: str, names: tuple[str, ...]) -> Maker:
    """Gives one object another colour or shape, or exchanges those of two objects."""

    def make(rng: np.random.Generator, resolution: int) -> tuple[Picture, Description]:
        while True:
            scene = _scene(rng)
            i = int(rng.integers(len(scene.objects)))
            values = [getattr(o, attribute) for o in scene.objects]
            j = int(rng.integers(len(scene.objects)))
            if rng.random() < 0.5 and values[i] != values[j]:
                wrong = _changed(scene, (i, {attribute: values[j]}), (j, {attribute: values[i]}))
            else:
                wrong = _changed(scene, (i, {attribute: _other(rng, names, values[i])}))
            kinds = {o.kind for o in wrong.objects}
            if kinds != {o.kind for o in scene.objects} and len(kinds) == len(values):
                if _allowed(wrong):
                    return draw(wrong, resolution), parse(caption(scene, rng))

    return make


def _size_changed(rng: np.random.Generator, resolution: int) -> tuple[Picture, Description]:
    while True:
        scene = _scene(rng)
        i = int(rng.integers(len(scene.objects)))
        wrong = _changed(scene, (i, {"size": _other(rng, tuple(SIZES), scene.objects[i].size)}))
        stated = parse(caption(scene, rng))
        if _allowed(wrong) and stated.objects[0].size is not None:
            return draw(wrong, resolution), stated


def _removed(rng: np.random.Generator, resolution: int) -> tuple[Picture, Description]:
    scene = _scene(rng)
    i = int(rng.integers(len(scene.objects)))
    wrong = Scene(scene.objects[:i] + scene.objects[i + 1 :], scene.background)
    return draw(wrong, resolution), parse(caption(scene, rng))


def _added(rng: np.random.Generator, resolution: int) -> tuple[Picture, Description]:
    scene = _scene(rng)
    while True:
        colour, shape = splits.KINDS[rng.integers(len(splits.KINDS))]
        x, y = rng.random(2)
        extra = Object(shape, colour, str(rng.choice(tuple(SIZES))), float(x), float(y))
        wrong = Scene((*scene.objects, extra), scene.background)
        if _allowed(wrong):
            return draw(wrong, resolution), parse(caption(scene, rng))
        if rng.random() < 0.01:
            scene = _scene(rng)  # this one may be full


def _positions_swapped(rng: np.random.Generator, resolution: int) -> tuple[Picture, Description]:
    """Exchanges the places of the two objects that the caption relates."""
    while True:
        scene = _scene(rng, least=2)
        stated = parse(caption(scene, rng))
        named = [stated.objects[k] for k in stated.relations[0][::2]]
        kinds = [o.kind for o in scene.objects]
        i, j = (kinds.index((m.colour, m.shape)) for m in named)
        a, b = scene.objects[i], scene.objects[j]
        wrong = _changed(scene, (i, {"x": b.x, "y": b.y}), (j, {"x": a.x, "y": a.y}))
        if _allowed(wrong):
            return draw(wrong, resolution), stated


def _spliced(rng: np.random.Generator, resolution: int) -> tuple[Picture, Description]:
    """Half of one scene and half of another, on one background in half of the cases.

    Only pictures that are wrong for the caption (of the first scene): an object is cut (a tenth of
    its area or more is hidden, and as much shows), or the backgrounds differ, or what is left
    whole is not what the caption says. A triangle without its base is whole: a smaller triangle.
    """
    while True:
        first, second = _scene(rng), _scene(rng)
        if rng.random() < 0.5:
            second = dataclasses.replace(second, background=first.background)
        stated = parse(caption(first, rng))
        half = np.zeros((resolution, resolution, 1), bool)
        half[: resolution // 2] = True  # the second scene shows here
        half = np.rot90(half, int(rng.integers(4)))
        below = half[-1].all()  # of the first scene, what is above shows
        whole, cut = [], first.background != second.background
        for scene, shown, loses_base in ((first, ~half, below), (second, half, half[0].all())):
            for k, o in enumerate(scene.objects):
                share = _share(scene, k, shown, resolution)
                based = o.shape != "triangle" or not loses_base
                cut |= 0.1 < share < 0.9 and based
                if share >= 0.9 or (share > 0.1 and not based):
                    whole.append(o)
        truth = Scene(tuple(whole), first.background)
        if cut or not says(stated, truth):
            picture = np.where(half, draw(second, resolution), draw(first, resolution))
            return picture, stated


def says(stated: Description, scene: Scene) -> bool:
    """Whether a description is true of a scene; by brute force, apart from the oracle."""
    kinds = [o.kind for o in scene.objects]
    if sorted(kinds) != sorted((m.colour, m.shape) for m in stated.objects):
        return False
    at = [scene.objects[kinds.index((m.colour, m.shape))] for m in stated.objects]
    return (
        stated.background in (None, scene.background)
        and all(m.size in (None, o.size) for m, o in zip(stated.objects, at, strict=True))
        and all(holds(r, at[i].x - at[j].x, at[i].y - at[j].y) for i, r, j in stated.relations)
    )


def _foreign(rng: np.random.Generator, resolution: int) -> tuple[Picture, Description]:
    """One object whose shape is none of this world's, captioned as each shape in turn."""
    colour, background = str(rng.choice(tuple(COLOURS))), str(rng.choice(tuple(BACKGROUNDS)))
    fine = 8  # samples per pixel and axis
    at = (np.arange(resolution * fine) + 0.5) / (resolution * fine)
    radius = SIZES[str(rng.choice(tuple(SIZES)))]
    x, y = rng.uniform(0.3, 0.7, 2)
    u, v = (at - x)[None, :] / radius, (at - y)[:, None] / radius
    c, s = np.cos(np.pi / 8), np.sin(np.pi / 8)
    tilted, across = c * u + s * v, c * v - s * u
    inside = (
        (u / 1.25) ** 2 + (v / 0.8) ** 2 < 1,  # an ellipse
        (np.abs(tilted) < 0.82) & (np.abs(across) < 0.82),  # a tilted square
        np.maximum(0.75**0.5 * np.abs(u) + 0.5 * v, -v) < 0.61,  # a triangle on its head
        (u**2 + v**2 < 1.2) & (v > 0),  # a half disc
        (np.abs(u) < 0.9) & (np.abs(v) < 0.9) & ((u < -0.2) | (v > 0.2)),  # an L
    )[rng.integers(5)]
    cover = inside.reshape(resolution, fine, resolution, fine).mean((1, 3))[..., None]
    ground = rgb(BACKGROUNDS[background])
    picture = ground + cover * (rgb(COLOURS[colour]) - ground)
    return picture, parse(f"a {colour} {rng.choice(SHAPES)}")


def _share(scene: Scene, k: int, where: np.ndarray, resolution: int) -> float:
    """The part of object k's area inside the mask `where` [H, H, 1]."""
    alone = draw_float(Scene(scene.objects[k : k + 1], scene.background), resolution)
    covered = np.abs(alone - draw_float(Scene((), scene.background), resolution)).sum(-1)
    return float(covered[where[..., 0]].sum() / covered.sum())


def _noise(rng: np.random.Generator, resolution: int) -> tuple[Picture, Description]:
    """Uniform noise, or noise of sigma 0.15 around a background's colour."""
    scene = _scene(rng)
    picture = rng.random((resolution, resolution, 3))
    if rng.random() < 0.5:
        ground = draw_float(Scene((), scene.background), resolution)
        picture = np.clip(ground + rng.normal(0, 0.15, picture.shape), 0, 1)
    return picture, parse(caption(scene, rng))


def _gradient(rng: np.random.Generator, resolution: int) -> tuple[Picture, Description]:
    """A linear blend of two colours of the world, at any angle."""
    colours = np.array([*COLOURS.values(), *BACKGROUNDS.values()]) / 255
    one, two = colours[rng.choice(len(colours), 2, replace=False)]
    angle = rng.random() * 2 * np.pi
    t = np.arange(resolution) / (resolution - 1) - 0.5
    t = np.clip(np.cos(angle) * t[:, None, None] + np.sin(angle) * t[None, :, None] + 0.5, 0, 1)
    return one + t * (two - one), parse(caption(_scene(rng), rng))


def _photograph(rng: np.random.Generator, resolution: int) -> tuple[Picture, Description]:
    """Noise with the 1/f spectrum of photographs, its channels correlated like theirs."""
    f = np.fft.fftfreq(resolution)
    amplitude = 1 / np.maximum(np.hypot(f[:, None], f), 1 / resolution) ** rng.uniform(0.8, 1.5)
    phase = np.fft.fft2(rng.normal(size=(3, resolution, resolution)))
    planes = np.fft.ifft2(phase * amplitude).real
    planes /= planes.std((1, 2), keepdims=True)
    mixed = planes[0] + 0.5 * planes
    mean = rng.uniform(0.2, 0.8, (3, 1, 1))
    picture = np.clip(mean + rng.uniform(0.1, 0.3) * mixed, 0, 1)
    return picture.transpose(1, 2, 0), parse(caption(_scene(rng), rng))


def _unrelated(rng: np.random.Generator, resolution: int) -> tuple[Picture, Description]:
    """A picture of another scene: what this lets pass, chance made right."""
    return draw(_scene(rng), resolution), parse(caption(_scene(rng), rng))


def _right(spoil: Callable[[np.random.Generator, Picture], Picture]) -> Maker:
    """A true picture, spoiled within tolerance, with everything that is true of it."""

    def make(rng: np.random.Generator, resolution: int) -> tuple[Picture, Description]:
        scene = _scene(rng)
        return spoil(rng, draw(scene, resolution) / 255), describe(scene)

    return make


def add_noise(rng: np.random.Generator, picture: Picture, sigma: float = 0.05) -> Picture:
    return np.clip(picture + rng.normal(0, sigma, picture.shape), 0, 1)


def gaussian_blur(picture: Picture, sigma: float = 1.0) -> Picture:
    """Convolution with a sampled Gaussian; the edge pixels are repeated outside."""
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        wide = np.lib.stride_tricks.sliding_window_view(
            np.pad(picture, pad, mode="edge"), len(kernel), axis
        )
        picture = wide @ kernel
    return picture


RIGHT: dict[str, Maker] = {
    "clean": _right(lambda rng, picture: np.rint(picture * 255).astype(np.uint8)),
    "noise_0.05": _right(add_noise),
    "blur_1px": _right(lambda rng, picture: gaussian_blur(picture)),
}
WRONG: dict[str, Maker] = {
    "colour_swapped": _swapped("colour", tuple(COLOURS)),
    "shape_swapped": _swapped("shape", SHAPES),
    "size_changed": _size_changed,
    "object_removed": _removed,
    "object_added": _added,
    "positions_swapped": _positions_swapped,
    "halves_spliced": _spliced,
    "foreign_shape": _foreign,
}
UNRELATED: dict[str, Maker] = {
    "noise": _noise,
    "gradient": _gradient,
    "photograph_like": _photograph,
    "other_scene": _unrelated,
}


def picture(kind: str, number: int, resolution: int) -> tuple[Picture, Description]:
    """Picture `number` of a kind (a row of RIGHT, WRONG or UNRELATED), and what is said of it."""
    make = choose(RIGHT | WRONG | UNRELATED, kind, "kind of picture")
    return make(np.random.default_rng((zlib.crc32(kind.encode()), number)), resolution)
