"""The TFDS builder: prepared, read back, and the same as what the world says."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from vision_lang.data.builders.shapes import Shapes, to_scene  # noqa: E402
from vision_lang.shapes import splits  # noqa: E402
from vision_lang.shapes.draw import draw  # noqa: E402
from vision_lang.shapes.grammar import caption  # noqa: E402

SIZES = {"train": 192, "validation": 48, "test": 48, "test_unseen": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared in a fresh process, which must get by without TensorFlow."""
    folder = tmp_path_factory.mktemp("shapes")
    code = (
        "import sys\n"
        "from vision_lang.data.builders.shapes import Shapes\n"
        f"Shapes(config='tiny', data_dir={str(folder)!r}).download_and_prepare()\n"
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TensorFlow not found" not in done.stderr
    return folder


def test_examples_are_the_scenes_of_the_world(folder):
    builder = Shapes(config="tiny", data_dir=str(folder))
    for split, size in SIZES.items():
        source = builder.as_data_source(split)
        assert len(source) == size
        indices = []
        for example in source:
            index = int(example["index"])
            indices.append(index)
            scene = splits.sample(0, split, index)
            np.testing.assert_array_equal(example["image"], draw(scene, 32))
            text = caption(scene, splits.generator(0, split, index, 1))
            assert example["text"].decode() == text
            assert to_scene(example["scene"]) == scene
            assert int(example["scene"]["count"]) == len(scene.objects)
        assert sorted(indices) == list(range(size))


def test_a_prepared_folder_is_read_without_the_builder(folder):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder / "shapes" / "tiny" / "5.0.0"))
    example = builder.as_data_source("test")[0]
    assert example["image"].shape == (32, 32, 3) and example["image"].dtype == np.uint8
    names = builder.info.features["scene"]["objects"]["colour"].names
    assert names[:3] == ["red", "green", "blue"] and len(names) == 8


def test_configs_are_those_promised():
    configs = {c.name: c for c in Shapes.BUILDER_CONFIGS}
    for side in (32, 64, 128):
        config = configs[str(side)]
        assert (config.resolution, config.train, config.held) == (side, 50_000, 2_000)
