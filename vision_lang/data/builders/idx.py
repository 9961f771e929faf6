"""TFDS builder on MNIST's IDX files: train-images-idx3-ubyte and its three companions, gz or not.

Format: http://yann.lecun.com/exdb/mnist/ (a big-endian magic number 0 0 type rank, one uint32 per
dimension, then the bytes). The last 5,000 training images become the validation split (a tenth
where there are fewer than 50,000). A `labels.txt` in the folder, one name per line, names the
classes.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from vision_lang.data.builders import copies
from vision_lang.errors import InputError

FILE_NAME = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
VALIDATION = 5_000
UNSIGNED_BYTE = 0x08

Files = dict[tuple[str, str], epath.Path]  # (train or test, images or labels) -> file


@dataclasses.dataclass(eq=False, kw_only=True)
class IdxConfig(tfds.core.BuilderConfig):
    """files: the four files; class_names: by label, or None."""

    files: Files = dataclasses.field(repr=False)  # TFDS writes the repr to the log
    class_names: Sequence[str] | None


class Idx(tfds.core.GeneratorBasedBuilder):
    """Small pictures with a class number, from IDX files."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        names = self.builder_config.class_names
        if names is None:
            labels = [read(file) for (_, kind), file in self.builder_config.files.items()
                      if kind == "labels"]  # fmt: skip
            names = [str(i) for i in range(int(max(part.max() for part in labels)) + 1)]
        features = {
            "image": tfds.features.Image(shape=(None, None, 0), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(names)),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures and classes from IDX files.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        arrays = {key: read(file) for key, file in self.builder_config.files.items()}
        _check(arrays, self.builder_config)
        train, labels = arrays["train", "images"], arrays["train", "labels"]
        held = min(VALIDATION, len(train) // 10)
        cut = len(train) - held
        parts = {
            "train": self._generate_examples("train", train[:cut], labels[:cut], 0),
            "validation": self._generate_examples("train", train[cut:], labels[cut:], cut),
        }
        if ("test", "images") in arrays:
            test = arrays["test", "images"], arrays["test", "labels"]
            parts["test"] = self._generate_examples("test", *test, 0)
        return {name: part for name, part in parts.items() if name != "validation" or held}

    def _generate_examples(
        self, origin: str, pictures: np.ndarray, labels: np.ndarray, first: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for offset, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            png = io.BytesIO()
            Image.fromarray(picture).save(png, "PNG", compress_level=1)
            name = f"{origin}[{first + offset}]"
            yield first + offset, {"image": png.getvalue(), "label": int(label), "file_name": name}


def prepare(path: str, directory: str, class_names: Sequence[str] | None) -> tuple[Any, str]:
    """The prepared data set of a folder of IDX files, and the fingerprint of the folder.

    Args:
      path: the folder.
      directory: where prepared data sets live.
      class_names: by label; None = labels.txt in the folder, else the numbers themselves.

    Raises:
      InputError: files are missing, cut short, or do not belong together.
    """
    if not path:
        raise InputError("The data set 'idx' needs data.path: a folder with MNIST's IDX files.")
    files = find_files(path)
    missing = [kind for kind in ("images", "labels") if ("train", kind) not in files]
    if ("test", "images") in files and ("test", "labels") not in files:
        missing.append("test labels")
    if missing:
        raise InputError(
            f"{path} lacks the training {' and '.join(missing)}: IDX files are called "
            "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
            "t10k-labels-idx1-ubyte, with or without .gz."
        )
    names_file = epath.Path(path) / "labels.txt"
    if class_names is None and names_file.exists():
        class_names = [line.strip() for line in names_file.read_text().splitlines() if line.strip()]
    digest = hashlib.sha256(f"{Idx.VERSION} {class_names}".encode())
    for file in sorted(files.values()):
        stat = file.stat()
        digest.update(f"{file.name} {stat.length} {stat.mtime}\n".encode())
    fingerprint = digest.hexdigest()[:16]
    builder = copies.prepare(
        Idx,
        lambda name: IdxConfig(name=name, files=files, class_names=class_names),
        source=str(epath.Path(path).resolve()),
        fingerprint=fingerprint,
        directory=directory,
    )
    return builder, fingerprint


def is_idx_folder(path: str) -> bool:
    """True if the folder holds IDX files with MNIST's names."""
    return epath.Path(path).is_dir() and bool(find_files(path))


def find_files(path: str) -> Files:
    """The IDX files in a folder."""
    folder = epath.Path(path)
    if not folder.is_dir():
        raise InputError(f"There is no folder {path} (data.path).")
    found = {}
    for file in sorted(folder.iterdir()):
        if match := FILE_NAME.fullmatch(file.name):
            found["train" if match[1] == "train" else "test", match[2]] = file
    return found


def read(file: epath.Path) -> np.ndarray:
    """Reads one IDX file of unsigned bytes: images [N, H, W] (or [N, H, W, 3]), labels [N].

    Raises:
      InputError: the file is damaged or holds something else.
    """
    content = file.read_bytes()
    try:
        content = gzip.decompress(content) if file.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} is damaged: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise InputError(f"{file} is not an IDX file of unsigned bytes.")
    rank = content[3]
    start = 4 + 4 * rank
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    if len(shape) != rank or len(content) - start != math.prod(shape):
        raise InputError(
            f"{file} is cut short or too long: its header announces {shape}, that is "
            f"{math.prod(shape)} bytes, and {len(content) - start} follow."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _check(arrays: dict[tuple[str, str], np.ndarray], config: IdxConfig) -> None:
    """Each picture has its label, and each label its name."""
    for part in sorted({part for part, _ in arrays}):
        pictures, labels = arrays[part, "images"], arrays[part, "labels"]
        if len(pictures) != len(labels) or pictures.ndim not in (3, 4) or not len(pictures):
            raise InputError(
                f"{config.files[part, 'images']} holds {len(pictures)} pictures of rank "
                f"{pictures.ndim}, and {config.files[part, 'labels']} {len(labels)} labels: they "
                "do not belong together."
            )
        if config.class_names is not None and labels.max() >= len(config.class_names):
            raise InputError(
                f"{config.files[part, 'labels']} has label {labels.max()}, but there are only "
                f"{len(config.class_names)} class names."
            )
