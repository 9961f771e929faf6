"""Tiny data sets for the tests of vision_lang.data, made without TensorFlow."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from vision_lang.data import presets

Examples = dict[str, list[dict[str, Any]]]


def encode(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    """Pixels (an array or a PIL image) -> the bytes of a file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def plain(value: int, size: int = 8) -> np.ndarray:
    """A square of one grey: its value names the example."""
    return np.full((size, size, 3), value, np.uint8)


def write_tfds(
    directory: Path, name: str, features: tfds.features.FeaturesDict, splits: Examples
) -> Path:
    """Prepares a TFDS data set as array_record; `name` may be "name/config"."""
    base, _, config = name.partition("/")

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Any]:
        return {split: enumerate(examples) for split, examples in splits.items()}

    members = {
        "VERSION": tfds.core.Version("1.0.0"),
        "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config)] if config else [],
        "_info": lambda self: tfds.core.DatasetInfo(builder=self, features=features),
        "_split_generators": split_generators,
        "_generate_examples": lambda self: None,
        "name": base,
    }
    with tfds.core.registered.skip_registration():
        cls = type("Tiny", (tfds.core.GeneratorBasedBuilder,), members)
    builder = cls(data_dir=str(directory), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def write_folder(directory: Path, files: dict[str, bytes], lines: list[Any] | None = None) -> Path:
    """Writes files and, where there are lines, metadata.jsonl (a str line as it is)."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    if lines is not None:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (directory / "metadata.jsonl").write_text(text)
    return directory


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ConfigDict]:
    """config(name, field=value, ...) -> config.data with its own directory."""

    def make(name: str, **changes: Any) -> ConfigDict:
        data = ConfigDict(presets.fields(name))
        data.dir = str(tmp_path / "prepared")
        data.update(changes)
        return data.lock()

    return make
