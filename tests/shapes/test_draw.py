"""Known pixels: every expected number here is worked out by hand, none is read from the package."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from vision_lang.shapes.draw import COVERAGE, coverage, draw
from vision_lang.shapes.scene import Object, Scene

# Silhouettes (coverage above one half) of radius 6 px, centred on a corner of four pixels.
SILHOUETTES = {
    "circle": """
        ................
        ................
        ......####......
        ....########....
        ...##########...
        ...##########...
        ..############..
        ..############..
        ..############..
        ..############..
        ...##########...
        ...##########...
        ....########....
        ......####......
        ................
        ................
    """,
    "square": """
        ................
        ................
        ..############..
        ..############..
        ..############..
        ..############..
        ..############..
        ..############..
        ..############..
        ..############..
        ..############..
        ..############..
        ..############..
        ..############..
        ................
        ................
    """,
    "triangle": """
        ................
        ................
        .......##.......
        ......####......
        ......####......
        .....######.....
        .....######.....
        ....########....
        ...##########...
        ...##########...
        ..############..
        ..############..
        ................
        ................
        ................
        ................
    """,
    "cross": """
        ................
        ...##......##...
        ..####....####..
        .######..######.
        .##############.
        ..############..
        ...##########...
        ....########....
        ....########....
        ...##########...
        ..############..
        .##############.
        .######..######.
        ..####....####..
        ...##......##...
        ................
    """,
    "ring": """
        ................
        ................
        .....######.....
        ...##########...
        ...##########...
        ..####....####..
        ..###......###..
        ..###......###..
        ..###......###..
        ..###......###..
        ..####....####..
        ...##########...
        ...##########...
        .....######.....
        ................
        ................
    """,
    "plus": """
        ................
        .....######.....
        .....######.....
        .....######.....
        .....######.....
        .##############.
        .##############.
        .##############.
        .##############.
        .##############.
        .##############.
        .....######.....
        .....######.....
        .....######.....
        .....######.....
        ................
    """,
}


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The shapes of radius 1 as plain inequalities; y grows downwards."""
    distance = np.hypot(u, v)
    slash, backslash = abs(u + v) / 2**0.5, abs(u - v) / 2**0.5
    return {
        "circle": distance < 1,
        "square": (abs(u) < 1) & (abs(v) < 1),
        "triangle": (v < 0.61) & (v > -1.22 + abs(u) * 3**0.5),
        "cross": (np.maximum(slash, backslash) < 1.3) & (np.minimum(slash, backslash) < 0.36),
        "ring": (distance < 1.08) & (distance > 0.55),
        "plus": (np.maximum(abs(u), abs(v)) < 1.15) & (np.minimum(abs(u), abs(v)) < 0.45),
    }[shape]


def test_there_are_hand_drawn_fixtures_for_every_shape():
    assert set(COVERAGE) == set(SILHOUETTES)


@pytest.mark.parametrize("shape", SILHOUETTES)
def test_silhouette(shape):
    rows = SILHOUETTES[shape].split()
    wanted = np.array([[pixel == "#" for pixel in row] for row in rows])
    pixels = np.arange(16) + 0.5
    drawn = coverage(shape, np.float64(8), np.float64(8), np.float64(6), pixels, pixels)
    np.testing.assert_array_equal(drawn > 0.5, wanted)


@pytest.mark.parametrize("shape", SILHOUETTES)
def test_coverage_agrees_with_counting_subpixels(shape):
    fine, side = 32, 18
    at = (np.arange(side * fine) + 0.5) / fine
    pixels = np.arange(side) + 0.5
    errors = []
    for x, y, r in [(9.0, 9.0, 5.76), (8.3, 9.45, 5.76), (8.9, 9.2, 3.84), (9.5, 8.6, 3.84)]:
        inside = _inside(shape, (at - x)[None, :] / r, (at - y)[:, None] / r)
        counted = inside.reshape(side, fine, side, fine).mean((1, 3))
        drawn = coverage(shape, np.float64(x), np.float64(y), np.float64(r), pixels, pixels)
        edge = (counted > 0) & (counted < 1)
        assert np.abs(drawn - counted)[~edge].max() < 0.1
        errors.append(np.abs(drawn - counted)[edge].mean())
    assert np.mean(errors) < (0.01 if shape in ("square", "plus") else 0.04)


def test_pixels_of_a_small_red_square_on_white():
    # Radius and half side 0.125 x 32 = 4 px, centre (17.22, 10.72):
    # columns 13.22 to 21.22, rows 6.72 to 14.72.
    image = draw(Scene((Object("square", "red", "small", 17.22 / 32, 10.72 / 32),), "white"), 32)
    assert image.dtype == np.uint8 and image.shape == (32, 32, 3)
    white, red = np.array([245, 245, 245]), np.array([215, 25, 45])
    assert (image[0, 0] == white).all()
    assert (image[7:14, 14:21] == red).all()
    # Column 13 is covered by 0.78, row 6 by 0.28, their corner by the product 0.2184.
    assert image[10, 13].tolist() == [222, 73, 89]  # 245 - 0.78 x (30, 220, 200)
    assert image[6, 16].tolist() == [237, 183, 189]  # 245 - 0.28 x (30, 220, 200)
    assert image[6, 13].tolist() == [238, 197, 201]  # 245 - 0.2184 x (30, 220, 200)
    others = image.copy()
    others[6:15, 13:22] = white
    assert (others == white).all()


def test_colours_are_what_they_are_called():
    """Hues in degrees, as every colour wheel has them."""
    hues = {
        "red": (345, 5), "orange": (20, 40), "yellow": (48, 62), "green": (110, 160),
        "cyan": (175, 195), "blue": (220, 245), "purple": (270, 290), "pink": (310, 340),
    }  # fmt: skip
    for name, (low, high) in hues.items():
        image = draw(Scene((Object("circle", name, "large", 0.5, 0.5),), "grey"), 32)
        hue, light, saturation = colorsys.rgb_to_hls(*(image[16, 16] / 255))
        assert (hue * 360 - low) % 360 <= (high - low) % 360, name
        assert saturation > 0.6, name
        assert light > 0.7 if name == "pink" else light < 0.65, name


def test_backgrounds_are_what_they_are_called():
    wanted = {"white": [245] * 3, "black": [18] * 3, "grey": [128] * 3, "brown": [115, 72, 40]}
    for name, colour in wanted.items():
        assert (draw(Scene((), name), 32) == colour).all()


def test_directions_and_sizes():
    left = Object("circle", "red", "small", 0.25, 0.5)  # columns 8 to 24 of 64
    top = Object("circle", "blue", "large", 0.75, 0.25)  # columns 36 to 60
    image = draw(Scene((left, top), "black"), 64).astype(int)
    red, blue = image[..., 0] > 150, image[..., 2] > 150
    rows, columns = np.nonzero(red)
    assert abs(columns.mean() + 0.5 - 16) < 0.2 and abs(rows.mean() + 0.5 - 32) < 0.2
    rows, columns = np.nonzero(blue)
    assert abs(columns.mean() + 0.5 - 48) < 0.2 and abs(rows.mean() + 0.5 - 16) < 0.2
    # Areas: what the blue channel (18 to 225) and the red one (18 to 215) gained, in pixels.
    areas = ((image[:, 32:, 2] - 18) / 207).sum(), ((image[:, :32, 0] - 18) / 197).sum()
    np.testing.assert_allclose(areas, [np.pi * 12**2, np.pi * 8**2], rtol=0.01)


def test_resolutions_show_one_scene():
    scene = Scene((Object("triangle", "pink", "large", 0.4, 0.6),), "brown")
    small = draw(scene, 32).astype(float)
    large = draw(scene, 128).astype(float).reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(small - large).mean() < 0.4 and np.abs(small - large).max() < 60
