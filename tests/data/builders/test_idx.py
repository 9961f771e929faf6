"""MNIST's file format, written by hand here."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from vision_lang.data import pipeline, presets, sources
from vision_lang.data.builders import idx
from vision_lang.errors import InputError

Config = Callable[..., ConfigDict]
FASHION = Path(__file__).parents[3] / "../shared/data/fashion_mnist"


def pictures(count: int, first: int = 0) -> bytes:
    """`count` pictures of 28 x 28; number n is grey with the value n."""
    body = b"".join(bytes([(first + n) % 256]) * 784 for n in range(count))
    return b"\0\0\x08\x03" + struct.pack(">III", count, 28, 28) + body


def labels(count: int) -> bytes:
    return b"\0\0\x08\x01" + struct.pack(">I", count) + bytes(n % 10 for n in range(count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "digits"
    path.mkdir()
    (path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(pictures(200)))
    (path / "train-labels-idx1-ubyte").write_bytes(labels(200))
    (path / "t10k-images.idx3-ubyte").write_bytes(pictures(30, first=200))
    (path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels(30)))
    return path


def test_every_picture_with_its_label(config: Config, folder: Path) -> None:
    prepared = sources.prepare(config("idx", path=str(folder)))
    assert prepared.splits == {"train": 180, "validation": 20, "test": 30}
    assert prepared.class_names == [str(n) for n in range(10)]
    first = {"train": 0, "validation": 180, "test": 0}
    for split, count in prepared.splits.items():
        source = prepared.open(split)
        seen = set()
        for n in range(count):
            example = source[n]
            number = int(example["name"].split("[")[1][:-1])
            assert example["image"].shape == (28, 28, 3)
            assert (example["image"] == number + (200 if split == "test" else 0)).all()
            assert example["label"] == number % 10 == source.labels()[n]
            seen.add(number)
        assert seen == set(range(first[split], first[split] + count))


def test_few_pictures_have_a_validation_split_too(config: Config, folder: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(pictures(8)))
    (folder / "train-labels-idx1-ubyte").write_bytes(labels(8))
    for name in ("idx", "fashion_mnist"):
        prepared = sources.prepare(config(name, path=str(folder)))
        assert prepared.splits == {"train": 7, "validation": 1, "test": 30}


def test_28_px_become_32_by_a_black_frame(config: Config, folder: Path) -> None:
    data = config("idx", path=str(folder))
    source = sources.prepare(data).open("test")
    batch = next(pipeline.eval_batches(source, None, data=data, batch_size=30))
    assert batch["image"].shape == (30, 32, 32, 3)
    for image in batch["image"]:
        assert len(np.unique(image[2:30, 2:30])) == 1
        assert not image[:2].any() and not image[30:].any() and not image[:, :2].any()


def test_class_names(config: Config, folder: Path) -> None:
    fashion = sources.prepare(config("fashion_mnist", path=str(folder)))
    assert fashion.class_names == list(presets.FASHION_CLASSES)
    texts = {texts[0] for texts in fashion.open("test").captions()}
    assert {"a photo of an ankle boot", "a photo of a pair of trousers"} <= texts
    (folder / "labels.txt").write_text(
        "\n".join("zero one two three four five six seven eight nine".split())
    )
    named = sources.prepare(config("idx", path=str(folder)))
    assert named.class_names is not None and named.class_names[7] == "seven"
    (folder / "labels.txt").write_text("zero\none")
    with pytest.raises(InputError, match="has label 9, but there are only 2 class names"):
        sources.prepare(config("idx", path=str(folder)))


def test_bad_folders(config: Config, folder: Path) -> None:
    def message() -> str:
        with pytest.raises(InputError) as caught:
            sources.prepare(config("idx", path=str(folder)))
        return str(caught.value)

    images, names = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte"
    good = images.read_bytes()
    images.write_bytes(good[:-40])
    assert "is damaged" in message()
    images.write_bytes(gzip.compress(pictures(200)[:-1]))
    assert "cut short" in message() and "(200, 28, 28)" in message()
    images.write_bytes(gzip.compress(b"\x89PNG" + b"\0" * 100))
    assert "is not an IDX file" in message()
    images.write_bytes(good)
    names.write_bytes(labels(199))
    assert "199 labels: they do not belong together" in message()
    names.unlink()
    assert "lacks the training labels" in message()
    with pytest.raises(InputError, match="needs data.path"):
        sources.prepare(config("idx"))
    with pytest.raises(InputError, match="no folder"):
        sources.prepare(config("idx", path=str(folder / "nowhere")))


@pytest.mark.skipif(not FASHION.exists(), reason="the shared data are not here")
def test_the_real_files() -> None:
    files = idx.find_files(str(FASHION))
    assert set(files) == {(a, b) for a in ("train", "test") for b in ("images", "labels")}
    images, names = idx.read(files["test", "images"]), idx.read(files["test", "labels"])
    assert images.shape == (10_000, 28, 28)
    assert np.bincount(names).tolist() == [1_000] * 10
    assert idx.is_idx_folder(str(FASHION)) and not idx.is_idx_folder(
        str(epath.Path(FASHION).parent)
    )
