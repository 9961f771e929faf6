"""Prepared data sets: read without a lock, and refused in a sentence where they cannot be made."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.data.conftest import encode, plain, write_folder
from vision_lang.data import sources
from vision_lang.errors import InputError

Config = Callable[..., ConfigDict]


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    files = {f"{n}.png": encode(plain(n, 64), compress_level=0) for n in range(20)}
    return str(write_folder(tmp_path / "pics", files))


@pytest.mark.parametrize("name", ["folder", "shapes/tiny"])
def test_what_is_prepared_is_read_from_a_disk_that_cannot_be_written(
    config: Config, tmp_path: Path, pictures: str, name: str
) -> None:
    data = config(name, path=pictures if name == "folder" else "")
    first = sources.prepare(data)
    lock = tmp_path / "prepared" / ".lock"
    lock.unlink()
    lock.mkdir()  # cannot be opened, for the superuser neither
    again = sources.prepare(data)
    assert again.splits == first.splits and again.open("train")[0]["image"].any()
    (tmp_path / "pics" / "0.png").unlink()
    with pytest.raises(InputError, match=r"Cannot prepare data in '.*prepared': Is a directory"):
        sources.prepare(config("folder", path=pictures))


def test_a_folder_that_cannot_be_made_is_named(config: Config, pictures: str) -> None:
    data = config("folder", path=pictures, dir=f"{pictures}/1.png/data")
    with pytest.raises(InputError, match=r"Cannot prepare data in '.*1\.png/data': Not a dir"):
        sources.prepare(data)


def test_a_full_disk_names_the_folder(config: Config, tmp_path: Path, pictures: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(InputError, match=r"in '.*prepared': File too large\. .*data\.dir"):
            sources.prepare(config("folder", path=pictures))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sum(sources.prepare(config("folder", path=pictures)).splits.values()) == 20
