"""Every kind of picture file becomes the RGB that a viewer would show."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import encode
from vision_lang.data import images
from vision_lang.data.builders import folder_files

BLUE = (0, 0, 255)


def test_transparency_is_composited_over_the_background() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 255  # red
    rgba[0, :, 3] = [255, 0, 51]  # opaque, transparent, one fifth opaque
    pixels = images.decode(encode(rgba), BLUE)
    assert pixels.tolist() == [[[255, 0, 0], [0, 0, 255], [51, 0, 204]]]


def test_transparent_palette_and_grey_with_alpha() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    keyed = images.decode(encode(palette, transparency=0), BLUE)
    assert keyed.tolist() == [[[0, 0, 255], [0, 255, 0]]]
    grey = Image.fromarray(np.array([[[200, 255], [200, 0]]], np.uint8), "LA")
    assert images.decode(encode(grey), BLUE).tolist() == [[[200, 200, 200], [0, 0, 255]]]


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    grey = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert images.decode(encode(grey), BLUE)[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk_jpeg() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    pixels = images.decode(encode(cyan, "JPEG", quality=95), BLUE)
    assert np.abs(pixels[8, 8].astype(int) - [0, 255, 255]).max() <= 3


BLACK = np.zeros((64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", encode(BLACK)[:-20], encode(BLACK, "JPEG")[:-300]],
)
def test_damaged_files_are_named_as_such(content: bytes) -> None:
    with pytest.raises(images.BadImage):
        images.decode(content, BLUE)
    with pytest.raises(images.BadImage):
        images.normalise(content)


def test_the_formats_are_those_of_the_endings() -> None:
    known = Image.registered_extensions()
    assert {known[ending] for ending in folder_files.PICTURE_ENDINGS} == set(images.FORMATS)
    with pytest.raises(images.BadImage, match="not a picture in a format that is read: PNG"):
        images.decode(encode(BLACK, "PCX"), BLUE)


def test_the_size_is_checked_before_the_pixels_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST_PICTURE", 64 * 64)
    assert images.decode(encode(BLACK), BLUE).shape == (64, 64, 3)
    monkeypatch.setattr(images, "LARGEST_PICTURE", 64 * 64 - 1)
    cut = encode(BLACK)[:-30]  # would be reported as such, were it read
    for content in (encode(BLACK), cut):
        with pytest.raises(images.BadImage, match="64 x 64 pixels, more than the 4,095 allowed"):
            images.decode(content, BLUE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_plain_files_are_stored_as_they_are(kind: str) -> None:
    content = encode(np.arange(192, dtype=np.uint8).reshape(8, 8, 3), kind)
    assert images.normalise(content) is content


def test_exif_rotation_is_applied_when_preparing() -> None:
    upright = np.zeros((2, 3, 3), np.uint8)
    upright[0, 0] = 255
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = 6  # to be shown turned by 90 degrees clockwise
    stored = images.normalise(encode(upright, "PNG", exif=exif.tobytes()))
    shown = images.decode(stored, BLUE)
    assert shown.shape == (3, 2, 3)
    assert shown[0, 1].tolist() == [255, 255, 255]  # the top left corner is now top right
    assert shown.sum() == 3 * 255


def test_other_formats_become_png_and_keep_alpha() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (10, 20, 30, 255)
    stored = images.normalise(encode(rgba, "WEBP", lossless=True))
    assert stored.startswith(b"\x89PNG")
    for background in (BLUE, (255, 255, 255)):
        pixels = images.decode(stored, background)
        assert pixels[0, 0].tolist() == [10, 20, 30]
        assert tuple(pixels[3, 3]) == background
