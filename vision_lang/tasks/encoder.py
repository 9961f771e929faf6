"""The image encoder of recognition, captioning and contrastive learning: one VGG, used one way.

Shapes: B batch, H W height and width of the image.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vision_lang.errors import choose
from vision_lang.models import vgg
from vision_lang.models.layers import DTYPES
from vision_lang.models.vgg import VGG, Features, VGGSpec
from vision_lang.tasks.preprocessing import make_preprocessing

Variables = Any


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """A network and its preprocessing. Its variables stand in a task's under the name "encoder".

    learns: False where config.optimizer.frozen names all of its convolutions: its batch statistics
      then are left as they are, too.
    """

    net: VGG
    preprocess: Callable[[jax.Array], jax.Array]
    resolution: int
    learns: bool = True

    def init(self, key: jax.Array) -> tuple[Variables, Features]:
        """Returns {"params": {"encoder": ...}, "batch_stats": {"encoder": ...}}, the statistics
        where there are any, and what the network finds in one black picture."""
        black = jnp.zeros((1, self.resolution, self.resolution, 3), jnp.uint8)
        made = self.net.init(key, self.preprocess(black), train=False)
        variables = {name: {"encoder": tree} for name, tree in made.items()}
        return variables, self(variables, black)[0]

    def __call__(
        self,
        variables: Variables,
        images: jax.Array,  # uint8 [B, H, W, 3], or float32 between 0 and 255
        keys: jax.Array | None = None,
        *,
        train: bool = False,
        weight: jax.Array | None = None,
        across: Any = None,
    ) -> tuple[Features, Variables]:
        """Returns the intermediates (see `VGG`), `logits` among them where there is a head, and,
        with `train`, the new mutable collections.

        keys: [B] dropout's, or None; weight: [B], 0 keeps a row out of the batch's statistics.
        """
        own = part(variables, "encoder")
        made: Any
        made, changed = self.net.apply(
            own,
            self.preprocess(images),
            keys,
            train=train and self.learns,
            weight=weight,
            across=across,
            mutable=["batch_stats"],
        )
        if not train:
            changed = {}
        elif not self.learns:  # what is not returned would be lost
            changed = {name: tree for name, tree in own.items() if name != "params"}
        logits, found = made
        if logits is not None:
            found["logits"] = logits
        return found, {name: {"encoder": tree} for name, tree in changed.items()}


def part(variables: Variables, name: str) -> Variables:
    """The variables of one network of a task."""
    return {c: tree[name] for c, tree in variables.items() if name in tree}


def make_encoder(config: ConfigDict, *, head: str, classes: int = 0) -> ImageEncoder:
    """Builds the encoder of config.model.encoder, with `head` in place of its own.

    Raises:
      InputError: an unknown name, or stages that leave nothing of the pictures.
    """
    model, resolution = config.model, config.data.resolution
    spec = VGGSpec(**{**model.encoder, "head": head})
    vgg.check(spec, resolution)
    dtype = choose(DTYPES, model.dtype, "dtype (config.model.dtype)")
    net = VGG(spec=spec, classes=classes, dtype=dtype)
    encoder = ImageEncoder(net, make_preprocessing(model.preprocessing), resolution)
    variables, _ = jax.eval_shape(encoder.init, jax.random.key(0))
    paths = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    kernels = [p for p in paths if re.fullmatch("encoder/conv.*/kernel", p)]
    frozen = all(any(re.fullmatch(f, p) for f in config.optimizer.frozen) for p in kernels)
    return dataclasses.replace(encoder, learns=not frozen)


def stage_shape(encoder: ImageEncoder, stage: str) -> tuple[int, int, int]:
    """Returns height, width and channels of an intermediate.

    Raises:
      InputError: the encoder has no such map.
    """
    _, found = jax.eval_shape(encoder.init, jax.random.key(0))
    maps = {name: x.shape[1:] for name, x in found.items() if x.ndim == 4}
    return choose(maps, stage, "stage of the encoder (config.model.stage)")
