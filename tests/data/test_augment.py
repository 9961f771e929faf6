"""Geometry: which pixels of a picture end up where."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vision_lang.data import augment
from vision_lang.errors import InputError


def ramp(height: int, width: int) -> np.ndarray:
    """Red = x, green = y: a pixel tells where it was."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, 0 * x], -1).astype(np.uint8)


def test_resize_takes_the_centred_square() -> None:
    wide = ramp(100, 200)
    out = augment.fit(wide, 50, crop="resize")
    # Output pixel i covers source pixels 2i and 2i+1 of the square that begins at x = 50.
    expected = 50 + 2 * np.arange(50) + 0.5
    assert np.abs(out[25, 2:-2, 0] - expected[2:-2]).max() <= 1
    assert np.abs(out[2:-2, 25, 1] - (expected[2:-2] - 50)).max() <= 1


@pytest.mark.parametrize("size", [(50, 20), (20, 33), (45, 31), (9, 7), (8, 8)])
def test_shortest_edge_resizes_the_whole_and_then_cuts_whole_pixels(size) -> None:
    """11 px of the shorter side; of the longer one 27, 18, 15, 14 or 11, an even rest or an odd."""
    width, height = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    longer = {50: 27, 33: 18, 45: 15, 9: 14, 8: 11}[max(size)]
    resized = (longer, 11) if width >= height else (11, longer)
    whole = np.asarray(Image.fromarray(image).resize(resized, Image.Resampling.BICUBIC))
    left, top = ((side - 11) // 2 for side in resized)
    found = augment.fit(image, 11, crop="shortest_edge")
    np.testing.assert_array_equal(found, whole[top : top + 11, left : left + 11])


def test_shrinking_is_antialiased() -> None:
    fine = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    out = augment.fit(np.stack([fine] * 3, -1), 16, crop="resize")
    assert np.abs(out.astype(int) - 127).max() <= 2  # the mean, not a pattern of black and white


def test_right_size_is_left_alone() -> None:
    image = ramp(32, 32)
    for crop in augment.CROPS:
        if not augment.CROPS[crop].random:
            assert augment.fit(image, 32, crop=crop) is image


def test_pad_moves_pixels_without_changing_them() -> None:
    digit = ramp(28, 28)
    out = augment.fit(digit, 32, crop="pad", background=(7, 8, 9))
    np.testing.assert_array_equal(out[2:30, 2:30], digit)
    assert (out[:2] == (7, 8, 9)).all() and (out[:, 30:] == (7, 8, 9)).all()


def test_pad_shows_the_whole_of_a_long_picture() -> None:
    long = np.full((200, 50, 3), 200, np.uint8)
    out = augment.fit(long, 40, crop="pad")
    assert (out[:, 15:25] == 200).all() and (out[:, :15] == 0).all() and (out[:, 25:] == 0).all()


def test_random_resized_crop_draws_from_inceptions_distribution() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([augment.random_box(200, 200, rng) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert (boxes >= 0).all() and (boxes <= 200).all()
    aspect = (right - left) / (bottom - top)
    assert aspect.min() >= 0.7 and aspect.max() <= 1.4
    share = (right - left) * (bottom - top) / 200**2
    assert 0.07 < share.min() < 0.1 and share.max() > 0.95
    # Expected mean: area uniform, log aspect uniform, given that the box fits; on a fine grid.
    areas, logs = np.meshgrid(np.linspace(0.08, 1, 500), np.linspace(0, np.log(4 / 3), 500))
    expected = areas[areas * np.exp(logs) <= 1].mean()
    assert abs(share.mean() - expected) < 4 * share.std() / np.sqrt(4000)
    # The place is uniform over what is possible: centred on average.
    assert abs((left + right).mean() / 2 - 100) < 2 and abs((top + bottom).mean() / 2 - 100) < 2


def test_random_resized_crop_of_an_extreme_shape_falls_back_to_the_centre() -> None:
    box = augment.random_box(1000, 10, np.random.default_rng(0), scale=(0.9, 1.0))
    np.testing.assert_allclose(box, (500 - 10 * 2 / 3, 0, 500 + 10 * 2 / 3, 10))


def test_evaluation_keeps_the_centre_224_of_256() -> None:
    out = augment.fit(ramp(256, 256), 224, crop="random_resized_crop")
    np.testing.assert_array_equal(out, ramp(256, 256)[16:240, 16:240])


def test_flip_mirrors_half_and_only_in_training() -> None:
    image = ramp(8, 8)
    rng = np.random.default_rng(0)
    flipped = 0
    for _ in range(1000):
        out = augment.fit(image, 8, crop="resize", flip=True, rng=rng)
        mirrored = bool((out == image[:, ::-1]).all())
        assert mirrored or (out == image).all()
        flipped += mirrored
    assert 440 < flipped < 560
    assert augment.fit(image, 8, crop="resize", flip=True) is image
    assert augment.fit(image, 8, crop="resize", rng=rng) is image


def test_unknown_policy_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="random_resized_crop"):
        augment.fit(ramp(4, 4), 8, crop="random_resize_crop")
