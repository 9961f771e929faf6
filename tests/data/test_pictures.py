"""Pictures named on a command line: which are found, and that bad ones are named and left out."""

from __future__ import annotations

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vision_lang.data import pictures, presets
from vision_lang.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one of them in a folder below, a broken one, and a text."""
    (tmp_path / "below").mkdir()
    for name, grey in (("b.png", 40), ("below/a.png", 80), ("c.PNG", 120)):
        Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / name, "PNG")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    return tmp_path


def data(**fields):
    return ConfigDict(presets.fields("folder") | {"resolution": 8} | fields)


def test_files_folders_and_patterns_are_found(folder):
    at = lambda *names: [str(folder / name) for name in names]  # noqa: E731
    everything = at("b.png", "below/a.png", "broken.png", "c.PNG")
    assert pictures.find([str(folder)]) == everything
    assert pictures.find([f"{folder}/*.png"]) == at("b.png", "broken.png")
    assert pictures.find([f"{folder}/**/*.png"]) == at("b.png", "below/a.png", "broken.png")
    assert pictures.find(at("notes.txt", "b.png")) == at("notes.txt", "b.png")


@pytest.mark.parametrize("places", [["nowhere.png"], ["*.gif"], []])
def test_what_is_not_there_is_refused(folder, places):
    with pytest.raises(InputError, match=places[0].replace("*", r"\*") if places else "Name"):
        pictures.find(places)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_good_picture_comes_once_and_bad_ones_are_named(folder, size):
    reader = pictures.Reader(data())
    names = [*pictures.find([str(folder)]), "gone.png"]
    found: dict[str, int] = {}
    for there, batch in reader.batches(names, size):
        assert batch["image"].shape == (size, 8, 8, 3) and 0 < len(there) <= size
        assert not batch["image"][len(there) :].any()
        found |= dict(zip(there, batch["image"][:, 0, 0, 0].tolist(), strict=False))
    assert found == {names[0]: 40, names[1]: 80, names[3]: 120}
    assert set(reader.bad) == {names[2], "gone.png"}


def test_a_picture_is_read_as_the_folder_builder_reads_it(tmp_path):
    """Turned as EXIF says, transparency over the run's background, cropped to the square."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, 12, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    found = pictures.Reader(data(resolution=6, background=(9, 9, 9))).read(str(tmp_path / "x.png"))
    turned = np.rot90(pixels, -1)[3:9].astype(float)
    alpha = turned[..., 3:] / 255
    wanted = alpha * turned[..., :3] + (1 - alpha) * 9
    assert np.abs(found - wanted).max() <= 1
