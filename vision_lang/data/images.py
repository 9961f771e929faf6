"""Encoded picture bytes -> RGB array, for every mode of the formats that are read here."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

PLAIN_MODES = {"PNG": ("RGB", "L", "RGBA"), "JPEG": ("RGB", "L")}
EXIF_ORIENTATION = 0x0112
# What the endings of builders/folder_files.py stand for, and nothing else that PIL knows: its
# reader of EPS starts Ghostscript, and many others see little use. TGA has no mark to be known by:
# last but for AVIF, which an old PIL lacks.
FORMATS = (
    "PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "JPEG2000", "TGA", "AVIF",
)  # fmt: skip
# A file of a few bytes can announce any size. The largest cameras have about 2**27 pixels (134
# megapixels), which take 0.4 GB of memory.
LARGEST_PICTURE = 2**27


class BadImage(Exception):
    """A picture that cannot be decoded. The message says why, without the picture's name."""


def decode(encoded: bytes, background: Sequence[int]) -> np.ndarray:
    """Decodes one picture; transparency is composited over a background colour.

    EXIF rotation is not applied here, as in TensorFlow's and torchvision's readers, so that
    public data sets give the pixels that published numbers were measured on. The folder builder
    applies it once, while preparing.

    Args:
      encoded: the bytes of a file in one of FORMATS (its first frame, where there are several).
      background: RGB, 0..255.

    Returns:
      uint8 [H, W, 3].

    Raises:
      BadImage: the bytes are no picture, are cut short or damaged, or it is larger than
        LARGEST_PICTURE.
    """
    image = to_rgb(_load(encoded), background)
    return np.asarray(image)


def normalise(encoded: bytes) -> bytes:
    """Returns `encoded` itself if it is a plain PNG or JPEG, else the same picture as PNG.

    Plain: one frame, RGB or greyscale (PNG also RGBA), no EXIF rotation. Anything else (palette,
    16 bit, CMYK, GIF, WebP, rotated...) becomes RGB, or RGBA where it has transparency: alpha is
    kept, so that the background colour stays a choice of each run.

    Raises:
      BadImage: as in `decode`.
    """
    image = _load(encoded)
    rotated = image.getexif().get(EXIF_ORIENTATION, 1) != 1
    plain = image.mode in PLAIN_MODES.get(image.format or "", ())
    keyed = "transparency" in image.info
    if plain and not rotated and not keyed and getattr(image, "n_frames", 1) == 1:
        return encoded
    if rotated:
        image = ImageOps.exif_transpose(image)
    image = _eight_bit(image)
    image = image.convert("RGBA" if has_alpha(image) else "RGB")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def to_rgb(image: Image.Image, background: Sequence[int]) -> Image.Image:
    """Returns the picture as RGB, transparency composited over `background` (RGB, 0..255)."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    image = _eight_bit(image)
    if not has_alpha(image):
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, (*(int(c) for c in background), 255))
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")


def has_alpha(image: Image.Image) -> bool:
    """True if a pixel may be transparent: an alpha channel, or a transparent palette colour."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _load(encoded: bytes) -> Image.Image:
    """Opens and fully decodes; every way in which PIL reports damage becomes BadImage."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        _check_size(image)
        image.load()
        _check_size(image)  # what is inside of an ICO is larger than announced, if it likes
    except BadImage:
        raise
    except UnidentifiedImageError as error:  # its own text is only an object's address
        raise BadImage(f"not a picture in a format that is read: {', '.join(FORMATS)}") from error
    except Exception as error:  # noqa: BLE001  (OSError, SyntaxError, ValueError, struct.error...)
        raise BadImage(" ".join(f"{type(error).__name__}: {error}".split())) from error
    return image


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > LARGEST_PICTURE:
        raise BadImage(f"{width} x {height} pixels, more than the {LARGEST_PICTURE:,} allowed")


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit greyscale (I;16, or I as some formats load it) -> L; other modes unchanged."""
    if not image.mode.startswith("I"):
        if image.mode == "F":
            raise BadImage("floating-point pictures have no fixed range; save them as 8 or 16 bit")
        return image
    values = np.asarray(image).astype(np.int32)
    if values.max(initial=0) > 255:  # 65535 -> 255, rounded
        values = (np.clip(values, 0, 65535) * 255 + 32767) // 65535
    return Image.fromarray(values.astype(np.uint8))
