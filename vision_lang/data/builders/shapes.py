"""The built-in world as a TFDS data set: images, captions, and the exact scenes beside them.

Prepare and read it without TensorFlow:

    builder = Shapes(config="32", data_dir=...)
    builder.download_and_prepare()
    source = builder.as_data_source("train")
    source[0]["image"]  # uint8 [32, 32, 3]

What the splits hold apart is said in vision_lang/shapes/splits.py. On disk the examples lie in the
order of a hash (as in every TFDS data set); `index` says which scene of its split an example is.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vision_lang.data.reading import Source
from vision_lang.shapes import splits
from vision_lang.shapes.draw import draw
from vision_lang.shapes.grammar import caption
from vision_lang.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Object, Scene

SEED = 0


@dataclasses.dataclass(eq=False)
class ShapesConfig(tfds.core.BuilderConfig):
    """resolution: side of the pictures in pixels; train, held: examples in train and elsewhere."""

    resolution: int = 32
    train: int = 50_000
    held: int = 2_000


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Pictures of one to three simple objects, with captions. All configs show the same scenes.

    No test or validation scene of two or more objects has the meaning of a train scene.
    test_unseen holds out six of the 48 pairs of colour and shape, and pairs of such pairs that
    never stand together elsewhere; each of its scenes shows one of these (shapes/splits.py).
    """

    VERSION = tfds.core.Version("5.0.0")
    BUILDER_CONFIGS = [
        ShapesConfig(name="32", description="32 x 32 px", resolution=32),
        ShapesConfig(name="64", description="64 x 64 px", resolution=64),
        ShapesConfig(name="128", description="128 x 128 px", resolution=128),
        ShapesConfig(name="tiny", description="for tests", resolution=32, train=192, held=48),
    ]

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        # The only format that is written and read without TensorFlow.
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.resolution
        label = tfds.features.ClassLabel
        features = {
            "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
            "text": tfds.features.Text(),
            "index": np.int64,
            "scene": {
                "count": np.int64,
                "background": label(names=list(BACKGROUNDS)),
                "objects": tfds.features.Sequence(
                    {
                        "shape": label(names=list(SHAPES)),
                        "colour": label(names=list(COLOURS)),
                        "size": label(names=list(SIZES)),
                        "x": np.float32,  # the centre; the picture's side is 1, y grows downwards
                        "y": np.float32,
                    }
                ),
            },
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("text", "image"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config = self.builder_config
        return {
            name: self._generate_examples(name, config.train if name == "train" else config.held)
            for name in splits.SPLITS
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(count):
            yield index, example(split, index, self.builder_config.resolution)


def example(split: str, index: int, resolution: int) -> dict[str, Any]:
    """Example number `index` of a split, as the builder stores it; a function of the arguments."""
    scene = splits.sample(SEED, split, index)
    png = io.BytesIO()
    Image.fromarray(draw(scene, resolution)).save(png, format="PNG")
    return {
        "image": png.getvalue(),  # encoded here, because TFDS encodes arrays with TensorFlow
        "text": caption(scene, splits.generator(SEED, split, index, 1)),
        "index": index,
        "scene": {
            "count": len(scene.objects),
            "background": scene.background,
            "objects": [
                {"shape": o.shape, "colour": o.colour, "size": o.size, "x": o.x, "y": o.y}
                for o in scene.objects
            ],
        },
    }


def scenes(source: Source) -> list[Scene]:
    """The scenes of the examples of a split, or of some of them."""
    return [splits.sample(SEED, source.split, int(i)) for i in source.integers("index")]


def to_scene(stored: dict[str, Any]) -> Scene:
    """The scene of an example that was read back, given its "scene" field."""
    columns = (stored["objects"][name] for name in ("shape", "colour", "size", "x", "y"))
    objects = tuple(
        Object(SHAPES[s], list(COLOURS)[c], list(SIZES)[z], float(x), float(y))
        for s, c, z, x, y in zip(*columns, strict=True)
    )
    return Scene(objects, list(BACKGROUNDS)[stored["background"]])
