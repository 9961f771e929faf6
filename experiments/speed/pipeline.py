"""The input pipeline: pictures decoded and augmented, in batches in this process's memory.

Ours reads what it has prepared of the folder, once; torch's DataLoader reads the files through PIL,
with torchvision's random crop written out and pictures left uint8, which is less work than its
ToTensor. A unit begins when what was computed ahead is used up: workers go on while nobody asks.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.speed import peers
from experiments.speed.case import OURS, Case, Contest, Options

BATCH = 64


class Folder(NamedTuple):
    """Pictures on the disk, and what becomes of them.

    size: width and height, px.
    resolution: that batches have.
    crop: whether a random part is taken, of 8 to 100 % of the area.
    batches: in a unit.
    """

    kind: str
    size: tuple[int, int]
    count: int
    resolution: int
    crop: bool
    batches: int
    workers: int


PNG = Folder("png", (64, 64), 4096, 64, False, 60, 2)
JPEG = Folder("jpeg", (500, 375), 256, 224, True, 6, 2)


def fill(folder: Folder, options: Options) -> Path:
    """Writes the pictures: smooth colours with some grain, so that they compress like photographs.
    All are labelled by the folder they stand in."""
    root, rng = Path(options.scratch, "pictures", "train", "class"), np.random.default_rng(0)
    root.mkdir(parents=True)
    width, height = folder.size
    for i in range(min(folder.count, 2 * BATCH if options.small else folder.count)):
        coarse = Image.fromarray(rng.integers(256, size=(6, 8, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize(folder.size, Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(scale=8.0, size=(height, width, 1))
        picture = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
        options_of = {"quality": 90} if folder.kind == "jpeg" else {}
        picture.save(root / f"{i:05d}.{folder.kind}", **options_of)
    return root.parents[1]


def contest(batches: Iterator[Any], folder: Folder, options: Options) -> Contest:
    """Times `folder.batches` of an endless stream; `batches` gives uint8 arrays of pictures."""
    ahead, count = 4 + 4 * folder.workers, 2 if options.small else folder.batches
    shape = next(batches).shape
    mean = float(np.mean([next(batches).mean() for _ in range(4)]))

    def unit() -> float:
        for _ in range(ahead):
            next(batches)
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        return time.perf_counter() - start

    pixels = math.prod(shape)  # the order of axes is each side's own
    return Contest(unit, {"numbers in a batch": pixels, "mean": mean})


def _ours(options: Options, folder: Folder) -> Contest:
    from ml_collections import ConfigDict

    from vision_lang.data import pipeline, presets, sources

    root = fill(folder, options)
    data = ConfigDict(presets.fields("folder"))
    data.path, data.dir = str(root), f"{options.scratch}/prepared"
    data.resolution, data.flip = folder.resolution, True
    data.crop = "random_resized_crop" if folder.crop else "resize"
    source = sources.prepare(data).open("train")
    batches = pipeline.train_batches(
        source, None, data=data, batch_size=BATCH, seed=0, workers=folder.workers
    )
    return contest((batch["image"] for batch in batches), folder, options)


def _peer(options: Options, folder: Folder) -> Contest:
    torch = peers.set_up(options)
    files = sorted(fill(folder, options).rglob(f"*.{folder.kind}"))
    dataset = Pictures(files, folder)
    loader = torch.utils.data.DataLoader(
        dataset, BATCH, shuffle=True, num_workers=folder.workers, drop_last=True,
        persistent_workers=folder.workers > 0,
    )  # fmt: skip

    def endless() -> Iterator[Any]:
        while True:
            for pictures, _ in loader:
                yield pictures.numpy()

    return contest(endless(), folder, options)


class Pictures:
    """A data set as torch wants it: pictures [3, R, R] and labels."""

    def __init__(self, files: list[Path], folder: Folder) -> None:
        self.files, self.folder = files, folder

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        import torch  # noqa: TID251

        with Image.open(self.files[i]) as file:
            picture = file.convert("RGB")
        if self.folder.crop:
            left, top, width, height = random_part(*picture.size)
            picture = picture.crop((left, top, left + width, top + height))
        side = self.folder.resolution
        if picture.size != (side, side):
            picture = picture.resize((side, side), Image.Resampling.BILINEAR)
        if torch.rand(1) < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous(), 0


def random_part(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of RandomResizedCrop's part."""
    import torch  # noqa: TID251

    for _ in range(10):
        area = width * height * float(torch.empty(1).uniform_(0.08, 1.0))
        aspect = math.exp(float(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3))))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(0, width - w + 1, (1,)))
            return left, int(torch.randint(0, height - h + 1, (1,))), w, h
    return 0, 0, width, height


def _case(what: str, folder: Folder) -> Case:
    return Case(
        what,
        {
            OURS: functools.partial(_ours, folder=folder),
            "dataloader": functools.partial(_peer, folder=folder),
        },
        target=0.7,
    )


CASES = {
    "pipeline_png": _case("3,840 PNGs of 64 px, mirrored, 2 workers", PNG),
    "pipeline_png_alone": _case(
        "3,840 PNGs of 64 px, mirrored, no worker", PNG._replace(workers=0)
    ),
    "pipeline_jpeg": _case("384 JPEGs of 500 px, a random part at 224 px, 2 workers", JPEG),
}
