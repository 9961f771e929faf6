"""The judge, tried on pictures painted by hand.

They share nothing with the package: no colour table, no drawing code.
"""

from __future__ import annotations

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.shapes import splits
from vision_lang.shapes.batteries import gaussian_blur
from vision_lang.shapes.draw import draw
from vision_lang.shapes.oracle import Reading, ReadObject, grade, read, render_error

PAINT = {
    "W": (245, 245, 245), "K": (18, 18, 18), "E": (128, 128, 128), "N": (115, 72, 40),
    "r": (215, 25, 45), "g": (25, 160, 60), "b": (35, 65, 225), "y": (250, 232, 50),
    "p": (130, 25, 190), "o": (255, 130, 0), "c": (45, 215, 230), "k": (250, 125, 200),
}  # fmt: skip

# Without anti-aliasing, as a human paints pixels.
BOX_8 = ["########"] * 8
BOX_12 = ["############"] * 12
PLUS_10 = """
    ...####...
    ...####...
    ...####...
    ##########
    ##########
    ##########
    ##########
    ...####...
    ...####...
    ...####...
""".split()
DISC_8 = """
    ..####..
    .######.
    ########
    ########
    ########
    ########
    .######.
    ..####..
""".split()
DISC_12 = """
    ....####....
    ..########..
    .##########.
    .##########.
    ############
    ############
    ############
    ############
    .##########.
    .##########.
    ..########..
    ....####....
""".split()
WEDGE = """
    ......#......
    .....###.....
    .....###.....
    ....#####....
    ....#####....
    ...#######...
    ..#########..
    ..#########..
    .###########.
    .###########.
""".split()
SALTIRE = """
    ..##......##..
    .####....####.
    ######..######
    ##############
    .############.
    ..##########..
    ...########...
    ...########...
    ..##########..
    .############.
    ##############
    ######..######
    .####....####.
    ..##......##..
""".split()
HOOP = """
    ....####....
    ..########..
    .##########.
    .###....###.
    ###......###
    ###......###
    ###......###
    ###......###
    .###....###.
    .##########.
    ..########..
    ....####....
""".split()


def paint(ground: str, *things: tuple[str, list[str], int, int], side: int = 32) -> np.ndarray:
    """A picture [side, side, 3] with (colour, pixels, left column, top row) on a ground."""
    image = np.full((side, side, 3), PAINT[ground], np.uint8)
    for colour, rows, left, top in things:
        for y, row in enumerate(rows):
            for x, pixel in enumerate(row):
                if pixel == "#":
                    image[top + y, left + x] = PAINT[colour]
    return image


HAND_PAINTED = [
    ("W", "r", BOX_8, "white", "red", "square", "small"),
    ("K", "b", BOX_12, "black", "blue", "square", "large"),
    ("E", "y", DISC_8, "grey", "yellow", "circle", "small"),
    ("N", "c", DISC_12, "brown", "cyan", "circle", "large"),
    ("W", "g", WEDGE, "white", "green", "triangle", "large"),
    ("K", "p", PLUS_10, "black", "purple", "plus", "small"),
    ("E", "o", SALTIRE, "grey", "orange", "cross", "large"),
    ("N", "k", HOOP, "brown", "pink", "ring", "large"),
]


@pytest.mark.parametrize(("g", "c", "rows", "ground", "colour", "shape", "size"), HAND_PAINTED)
def test_reads_hand_painted_objects(g, c, rows, ground, colour, shape, size):
    reading = read(paint(g, (c, rows, 6, 14)))
    assert reading.reason is None and reading.background == ground
    (seen,) = reading.objects
    assert (seen.shape, seen.colour, seen.size) == (shape, colour, size)
    assert abs(seen.x * 32 - (6 + len(rows[0]) / 2)) < 0.3
    if shape != "triangle":
        assert abs(seen.y * 32 - (14 + len(rows) / 2)) < 0.3


SCENE = paint("W", ("r", DISC_8, 3, 4), ("b", BOX_12, 19, 4), ("g", SALTIRE, 3, 17))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("three objects: a red circle left of a blue square, and a green cross", []),
        ("a small crimson disc above a large emerald saltire, and a big azure box", []),
        ("a blue square right of a red circle, and a green cross on a white backdrop", []),
        ("a green cross left of a blue square, and a red circle", []),  # both left and below
        ("a green cross below a blue square, and a red circle", []),
        ("a red circle left of a blue square", ["number"]),
        ("a red circle right of a blue square, and a green cross", ["relation"]),
        ("a red circle above a blue square, and a green cross", ["relation"]),
        ("a red ring left of a blue square, and a green cross", ["shape"]),
        ("a pink circle left of a blue square, and a green cross", ["colour"]),
        ("a blue circle left of a red square, and a green cross", None),
        ("a big red circle left of a blue square, and a green cross", ["size"]),
        ("a red circle left of a blue square, and a green cross on a black backdrop",
         ["background"]),
    ],
)  # fmt: skip
def test_grades_a_hand_painted_scene(text, wrong):
    grades = grade(SCENE, text)
    stated = {"number", "shape", "colour", "all_right"}
    words = set(text.split())
    stated |= {"relation"} if words & {"left", "right", "above", "below"} else set()
    stated |= {"size"} if words & {"small", "large", "big"} else set()
    stated |= {"background"} if "backdrop" in words else set()
    assert set(grades) == stated
    if wrong is None:  # colours exchanged: something is wrong, whichever way one matches
        assert not grades["all_right"] and not (grades["shape"] and grades["colour"])
    else:
        assert [key for key in grades if not grades[key]] == wrong + ["all_right"] * bool(wrong)


def _cut(rows: list[str], keep: int) -> list[str]:
    return [row[:keep] for row in rows]


UNREADABLE = {
    "nothing": paint("W"),
    "half a circle": paint("K", ("y", _cut(DISC_12, 6), 8, 8)),
    "three quarters of a circle": paint("K", ("y", _cut(DISC_12, 9), 8, 8)),
    "three quarters of a cross": paint("W", ("b", SALTIRE[:10], 8, 8)),
    "half a ring": paint("W", ("p", HOOP[:6], 8, 8)),
    "a rectangle": paint("W", ("r", ["########"] * 5, 8, 8)),
    "a line": paint("W", ("r", ["####################"] * 3, 5, 8)),
    "two that touch": paint("W", ("r", BOX_8, 6, 8), ("r", BOX_8, 14, 8)),
    "two of two colours that touch": paint("K", ("r", BOX_12, 6, 8), ("c", BOX_12, 18, 8)),
    "an object with a fragment beside it": paint("E", ("r", BOX_12, 6, 8), ("b", ["####"], 22, 20)),
    "a square with a bite": paint("W", ("r", BOX_12, 6, 8), ("W", ["####"] * 4, 14, 16)),
    "a square with a spot": paint("W", ("r", BOX_12, 6, 8), ("c", ["##"] * 2, 9, 11)),
    "a huge square": paint("W", ("r", ["#" * 16] * 16, 8, 8)),
    "a tiny square": paint("W", ("r", ["####"] * 4, 8, 8)),
    "one cut by the edge": paint("W", ("r", [row[3:] for row in DISC_12], 0, 8)),
    "a white square on black": paint("K", ("W", BOX_12, 8, 8)),
    "a brown circle on white": paint("W", ("N", DISC_12, 8, 8)),
    "a red ground": paint("r", ("b", BOX_12, 8, 8)),
    "one too faint to be cut out": np.where(
        paint("N", ("r", DISC_12, 18, 18)) == PAINT["r"],
        np.array([150, 50, 45], np.uint8),
        paint("N", ("c", BOX_8, 4, 4)),
    ).astype(np.uint8),
    "one too blurred": np.rint(
        gaussian_blur(paint("K", ("y", DISC_12, 8, 8)).astype(float), 2.0)
    ).astype(np.uint8),
    "four objects": paint(
        "W", ("r", BOX_8, 3, 3), ("b", BOX_8, 20, 3), ("g", BOX_8, 3, 20), ("y", BOX_8, 20, 20)
    ),
    "two grounds": np.concatenate(
        [paint("W", ("r", BOX_12, 4, 8))[:, :18], paint("E")[:, 18:]], axis=1
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_scene_is_unreadable_and_wrong(name):
    for blur in (0, 0.7):
        image = UNREADABLE[name] / 255
        if blur:
            image = gaussian_blur(image, blur)
        reading = read(image)
        assert reading.reason is not None, (name, blur, reading)
        for text in ("a red square", "a yellow circle", "a blue cross", "a purple ring"):
            assert not any(grade(reading, text).values())


@pytest.mark.parametrize("bad", [
    np.zeros((32, 32), np.uint8), np.zeros((32, 16, 3), np.uint8), np.zeros((8, 8, 3), np.uint8),
    np.zeros((32, 32, 3), np.int64), np.full((32, 32, 3), -1.0), np.full((32, 32, 3), 255.0),
])  # fmt: skip
def test_refuses_what_is_no_picture(bad):
    with pytest.raises(InputError, match="The oracle reads"):
        read(bad)


def _seen(*objects: tuple[str, str, float, float]) -> Reading:
    return Reading(
        tuple(ReadObject(s, c, "small", x, y, 0.125) for s, c, x, y in objects), "white", 0.0
    )


def test_a_relation_needs_its_margin():
    text = "a red circle left of a blue square"
    for gap, right in ((0.09, False), (0.11, True), (-0.3, False)):
        reading = _seen(("square", "blue", 0.4 + gap, 0.2), ("circle", "red", 0.4, 0.8))
        assert grade(reading, text)["relation"] == right


def test_objects_are_matched_in_the_way_that_makes_most_right():
    reading = _seen(("circle", "red", 0.8, 0.5), ("circle", "blue", 0.2, 0.5))
    grades = grade(reading, "a blue circle left of a red circle")
    assert all(grades.values())
    grades = grade(reading, "a red circle and a green ring")
    assert grades == {"number": True, "shape": False, "colour": False, "all_right": False}
    grades = grade(reading, "a blue circle, a red circle and a green ring")
    assert not grades["number"] and not grades["shape"]


def test_positions_and_radii_are_continuous():
    for index in range(60):
        scene = splits.sample(3, "train", index, grid=None)
        reading = read(draw(scene, 32))
        assert len(reading.objects) == len(scene.objects)
        for o in scene.objects:
            (seen,) = [r for r in reading.objects if (r.colour, r.shape) == o.kind]
            np.testing.assert_allclose([seen.x, seen.y], [o.x, o.y], atol=0.02 / 32)
            np.testing.assert_allclose(seen.radius, {"small": 0.125, "large": 0.1875}[o.size], 0.01)


def test_a_mirrored_picture_reads_mirrored():
    for index in range(30):
        image = draw(splits.sample(4, "train", index, grid=None), 32)
        ones = sorted(read(image).objects, key=lambda o: (o.colour, o.shape))
        others = sorted(read(image[:, ::-1]).objects, key=lambda o: (o.colour, o.shape))
        for one, other in zip(ones, others, strict=True):
            assert (one.shape, one.colour, one.size) == (other.shape, other.colour, other.size)
            assert abs(one.x + other.x - 1) < 1e-3 and abs(one.y - other.y) < 1e-3


def test_render_error():
    scene = splits.sample(3, "train", 8)
    clean = draw(scene, 32) / 255
    reading = read(clean)
    assert render_error(clean, reading) < 1e-3
    noise = np.random.default_rng(0).normal(0, 0.01, clean.shape)
    noisy = np.clip(clean + noise, 0, 1)
    np.testing.assert_allclose(
        render_error(noisy, reading), np.abs(noisy - clean).mean(), rtol=0.05
    )
    # It knows the world's own colours: a paler picture is off by what it is paler.
    paler = 0.9 * clean + 0.1
    np.testing.assert_allclose(
        render_error(paler, read(paler)), np.abs(paler - clean).mean(), rtol=0.05
    )
    # What was not read is not redrawn: 144 white pixels of 1024 are missing.
    image = UNREADABLE["a white square on black"]
    missing = Reading((), "black", 1.0, "no object")
    np.testing.assert_allclose(
        render_error(image, missing), 144 * (245 - 18) / 255 / 1024, rtol=1e-5
    )
    assert render_error(image, Reading((), None, 1.0, "no background")) == 1.0
