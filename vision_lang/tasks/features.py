"""Pictures -> features, by published networks that are not trained here. They have no loss.

Shapes: b examples of this device, F width of a network, D width of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_lang.models import inception
from vision_lang.models.clip import CLIP
from vision_lang.models.inception import Inception
from vision_lang.tasks import clip
from vision_lang.tasks.encoder import part
from vision_lang.tasks.example import Struct
from vision_lang.tasks.preprocessing import Preprocess

Variables = Any


@dataclass(frozen=True, eq=False)
class InceptionFeatures:
    """The Inception-v3 of FID, with its own way to resize pictures."""

    net: Inception

    def batch_spec(self) -> dict[str, Struct]:
        """The shape and type of one example: a picture that `fit` has resized."""
        return {"image": Struct((inception.SIDE, inception.SIDE, 3), jnp.float32)}

    def init(self, key: jax.Array) -> Variables:
        """Returns {"params": {"inception": ...}, "batch_stats": {"inception": ...}}."""
        made = self.net.init(key, jnp.zeros((1, inception.SIDE, inception.SIDE, 3)))
        return {name: {"inception": tree} for name, tree in made.items()}

    def fit(self, picture: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] of any size -> float32 [299, 299, 3], by the network's own resizing,
        which then leaves it as it is."""
        return inception.resize(picture[None])[0]

    def layers(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """[b, H, W, 3], 0 to 255 -> "64", "192", "768" and "2048" [b, n], by which FID compares,
        and `logits` [b, 1008]."""
        found: Any = self.net.apply(part(variables, "inception"), images)
        return {name: found[name] for name in (*inception.FEATURES.values(), "logits")}


@dataclass(frozen=True, eq=False)
class VisionFeatures:
    """CLIP's vision tower alone."""

    net: CLIP
    preprocess: Preprocess
    resolution: int

    def batch_spec(self) -> dict[str, Struct]:
        """The shape and type of one example."""
        return {"image": Struct((self.resolution, self.resolution, 3), jnp.uint8)}

    def init(self, key: jax.Array) -> Variables:
        """Returns {"params": {"vision_encoder", and where it has one "projections"}}."""
        black = jnp.zeros((1, self.resolution, self.resolution, 3), jnp.uint8)
        return clip.to_task(self.net.init(key, self.preprocess(black), method="of_image"))

    def layers(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Those of a clip run, `embedding` where there is a projection."""
        return clip.image_layers(self.net, variables, self.preprocess(images))
