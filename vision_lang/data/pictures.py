"""Pictures named on a command line: files, folders, patterns -> batches of arrays.

A batch is {"image": uint8 [B, R, R, 3], "number": uint32 [B]}, its pictures float32 where a network
resizes them in its own way, always of the same size; rows that
nobody asked for are black padding. The number is a checksum of the pixels: what is drawn by it does
not depend on which other pictures are there. One that cannot be read is named, the rest goes on.
"""

from __future__ import annotations

import glob
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vision_lang.data import augment, images
from vision_lang.data.builders import folder_files
from vision_lang.errors import InputError


def find(places: Sequence[str]) -> list[str]:
    """The files that `places` name: files as they are, all pictures below folders, patterns; in the
    order given, those of a folder or a pattern by name.

    Raises:
      InputError: a place that does not exist, or holds no picture.
    """
    found: list[str] = []
    for place in places:
        if os.path.isdir(place):
            files = [os.path.join(place, name) for name in folder_files.Files(place).pictures()]
        elif os.path.exists(place):
            files = [place]
        else:
            files = sorted(glob.glob(place, recursive=True))
        if not files:
            raise InputError(f"There is no picture at '{place}'.")
        found += files
    if not found:
        raise InputError("Name pictures: files, folders or patterns.")
    return found


@dataclass
class Reader:
    """Reads pictures as a run reads those of its data set in evaluation.

    data: the run's `config.data`.
    fit: picture uint8 [H, W, 3] -> [R, R, 3], where its network has a way of its own; None: the
      data's.
    bad: name -> why it could not be read, filled while reading.
    """

    data: ConfigDict
    fit: augment.Fit | None = None
    bad: dict[str, str] = field(default_factory=dict)
    what = "pictures"

    def read(self, name: str) -> np.ndarray:
        """One picture, [R, R, 3], turned as its EXIF data say.

        Raises:
          BadImage: it cannot be read.
        """
        try:
            encoded = epath.Path(name).read_bytes()
        except OSError as error:
            raise images.BadImage(error.strerror or str(error)) from error
        picture = images.decode(images.normalise(encoded), tuple(self.data.background))
        return (self.fit or augment.fitter(self.data))(picture)

    def batches(
        self, names: Sequence[str], size: int
    ) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
        """(the names in it, a batch of `size` rows whose first rows are theirs)."""
        kept: list[str] = []
        pictures: list[np.ndarray] = []
        for name in names:
            try:
                pictures.append(self.read(name))
                kept.append(name)
            except images.BadImage as error:
                self.bad[name] = str(error)
            if len(kept) == size:
                yield kept, _batch(pictures, size)
                kept, pictures = [], []
        if kept:
            yield kept, _batch(pictures, size)


def _batch(pictures: list[np.ndarray], size: int) -> dict[str, np.ndarray]:
    padding = [np.zeros_like(pictures[0])] * (size - len(pictures))
    numbers = [zlib.crc32(picture.tobytes()) for picture in (*pictures, *padding)]
    return {"image": np.stack([*pictures, *padding]), "number": np.array(numbers, np.uint32)}
