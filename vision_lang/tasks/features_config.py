"""From a config to a task of `tasks/features.py`.

| config.model.network | fields of config.model beside it             | made by convert --kind= |
|----------------------|----------------------------------------------|-------------------------|
| inception            | source_sha256, of the file of the weights    | inception_fid           |
| clip_vision          | vision, projection (0: none), preprocessing  | clip_vision             |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from vision_lang.errors import choose
from vision_lang.models import vision_transformer
from vision_lang.models.clip import CLIP
from vision_lang.models.inception import Inception
from vision_lang.models.vision_transformer import VisionSpec
from vision_lang.tasks.facts import DataFacts
from vision_lang.tasks.features import InceptionFeatures, VisionFeatures
from vision_lang.tasks.preprocessing import make_preprocessing


def _inception(config: ConfigDict) -> InceptionFeatures:
    del config
    return InceptionFeatures(Inception())


def _clip_vision(config: ConfigDict) -> VisionFeatures:
    model, resolution = config.model, config.data.resolution
    vision = VisionSpec(**model.vision, resolution=resolution)
    vision_transformer.check(vision)
    net = CLIP(text=None, vision=vision, projection=model.projection)
    return VisionFeatures(net, make_preprocessing(model.preprocessing), resolution)


NETWORKS: dict[str, Callable[[ConfigDict], Any]] = {
    "inception": _inception,
    "clip_vision": _clip_vision,
}


def from_config(config: ConfigDict, facts: DataFacts) -> Any:
    """Builds the task.

    Raises:
      InputError: an unknown name, or sizes that do not fit together.
    """
    del facts
    return choose(NETWORKS, config.model.network, "network (config.model.network)")(config)
