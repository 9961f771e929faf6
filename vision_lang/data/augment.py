"""Any picture -> a square of the wanted size. Shapes: H, W any; R the resolution.

A crop policy is a row of `CROPS`: how a picture becomes square in training and in evaluation.
The draws of an example come from the generator passed in, so they are whatever the caller keys
them by: in the pipeline, (seed, step, row).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vision_lang.errors import choose

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def centre_box(width: int, height: int, share: float = 1.0) -> Box:
    """The centred square with `share` of the shorter side: resize and centre crop in one."""
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Inception's random crop (Szegedy et al. 2015, section 6), drawn as torchvision does.

    Area share uniform in `scale`, log aspect ratio uniform in `ratio`; ten tries, then the
    largest centred crop whose aspect ratio is allowed.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = float(rng.integers(0, width - w + 1))
            top = float(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    wide, high = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def pad(image: Image.Image, resolution: int, fill: Sequence[int]) -> Image.Image:
    """Centres the picture on a canvas [R, R]; it is only ever shrunk, never enlarged.

    28 px digits become 32 px without resampling, so that their pixels stay what they are.
    """
    longest = max(image.size)
    if longest > resolution:
        size = [max(1, round(side * resolution / longest)) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (resolution, resolution), (fill[0], fill[1], fill[2]))
    canvas.paste(image, ((resolution - image.width) // 2, (resolution - image.height) // 2))
    return canvas


def shortest_edge(image: Image.Image, resolution: int, fill: Sequence[int]) -> Image.Image:
    """Resizes the shorter side to R and the longer by as much, rounded down, then cuts the centre
    out, pixel by pixel: what CLIP's pictures went through (transformers' CLIPImageProcessor).

    `centre_box` resamples once, from where the centre lies exactly: up to half a pixel elsewhere.
    """
    del fill
    width, height = (resolution * side // min(image.size) for side in image.size)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + resolution, top + resolution))


@dataclasses.dataclass(frozen=True)
class Crop:
    """How a picture becomes square.

    box: (width, height, rng or None in evaluation) -> the part to keep, which is resampled.
    whole: instead, (picture, R, background) -> the square.
    filter: PIL's resampling filter; all of PIL's filters are antialiased when shrinking.
    random: training draws the box, so that a picture of the right size is not left as it is.
    """

    box: Callable[[int, int, np.random.Generator | None], Box] | None = None
    whole: Callable[[Image.Image, int, Sequence[int]], Image.Image] = pad
    filter: Image.Resampling = Image.Resampling.BICUBIC
    random: bool = False


def _resized_crop(width: int, height: int, rng: np.random.Generator | None) -> Box:
    # Evaluation: shorter side to 256/224 of R, then the centre R x R (Krizhevsky et al. 2012).
    return centre_box(width, height, 224 / 256) if rng is None else random_box(width, height, rng)


CROPS: dict[str, Crop] = {
    "resize": Crop(lambda width, height, rng: centre_box(width, height)),
    "pad": Crop(whole=pad),
    "shortest_edge": Crop(whole=shortest_edge),
    "random_resized_crop": Crop(_resized_crop, filter=Image.Resampling.BILINEAR, random=True),
}


Fit = Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] -> [R, R, 3]


def fitter(data: ConfigDict) -> Fit:
    """Returns how a run with this `config.data` sees a picture in evaluation; see `fit`."""
    background = tuple(data.background)
    return lambda image: fit(image, data.resolution, crop=data.crop, background=background)


def draws(crop: str, flip: bool) -> bool:
    """Whether `fit` needs a generator in training."""
    return flip or choose(CROPS, crop, "crop policy (data.crop)").random


def mirrors(flip: bool, rng: np.random.Generator | None) -> bool:
    """Whether an example is mirrored: the first thing that is drawn of a picture."""
    return flip and rng is not None and bool(rng.random() < 0.5)


def fit(
    image: np.ndarray,
    resolution: int,
    *,
    crop: str,
    flip: bool = False,
    background: Sequence[int] = (0, 0, 0),
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Brings one picture to the resolution.

    Args:
      image: uint8 [H, W, 3].
      resolution: R in pixels.
      crop: a key of `CROPS`.
      flip: mirror left-right with probability 1/2 (training only).
      background: RGB of the canvas for 'pad'.
      rng: the example's own generator; None in evaluation: no random draw at all.

    Returns:
      uint8 [R, R, 3]; the input itself where nothing is to be done.
    """
    policy = choose(CROPS, crop, "crop policy (data.crop)")
    mirror = mirrors(flip, rng)
    if image.shape[:2] != (resolution, resolution) or (policy.random and rng is not None):
        picture = Image.fromarray(image)
        if policy.box is None:
            picture = policy.whole(picture, resolution, background)
        else:
            box = policy.box(picture.width, picture.height, rng)
            picture = picture.resize((resolution, resolution), policy.filter, box=box)
        image = np.asarray(picture)
    return image[:, ::-1] if mirror else image
