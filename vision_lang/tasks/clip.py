"""CLIP whole, as it is published (Radford et al. 2021): pictures and texts as vectors that are near
where they belong together. The loss is that of `tasks/contrastive.py`.

Shapes: b examples of this device, L text length, F a tower's width, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vision_lang.models.clip import CLIP, unit
from vision_lang.tasks import contrastive
from vision_lang.tasks.augmentation import Augmentation
from vision_lang.tasks.example import example_spec

Variables = Any
# A task's network -> the parts of `CLIP` in it; all others are "projections".
TOWERS = {"text_encoder": "text_model", "vision_encoder": "vision_model"}


@dataclass(frozen=True, eq=False)
class Clip:
    """The task. `clip_config.from_config` builds it; nothing in it changes afterwards.

    The text tower sees every position, padding too, as it was trained: masks are not looked at.
    """

    net: CLIP
    preprocess: Callable[[jax.Array], jax.Array]
    resolution: int
    augmentation: Augmentation
    length: int

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of one example (without the batch axis)."""
        return example_spec(self.resolution, text_length=self.length)

    def init(self, key: jax.Array) -> Variables:
        """Returns {"params": {"text_encoder", "vision_encoder", "projections"}}."""
        black = jnp.zeros((1, self.resolution, self.resolution, 3), jnp.uint8)
        tokens = jnp.zeros((1, self.length), jnp.int32)
        return to_task(self.net.init(key, tokens, self.preprocess(black)))

    def loss(
        self,
        variables: Variables,
        batch: dict[str, jax.Array],
        keys: jax.Array,  # [b], one per example
        *,
        across: Any,
        train: bool,
    ) -> tuple[jax.Array, dict, dict[str, tuple[jax.Array, jax.Array]]]:
        """Returns the losses of each example [b], no new collections, and the metrics; see
        `contrastive.compare`."""
        x = batch["image"]
        if train:
            x = self.augmentation.pictures(x, keys)
        image = self.embed_images(variables, x)
        text = self.embed_texts(variables, batch["tokens"], batch["text_mask"])
        scale = jnp.exp(jnp.minimum(_log_scale(variables), contrastive.LARGEST_SCALE))
        losses, metrics = contrastive.compare(
            image, text, scale, 0.0, batch, loss="softmax", across=across
        )
        return losses, {}, metrics

    def embed_images(self, variables: Variables, images: jax.Array) -> jax.Array:
        """uint8 [b, H, W, 3] -> unit vectors [b, D]."""
        return self.layers(variables, images)["embedding"]

    def embed_texts(self, variables: Variables, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """tokens [b, L], mask [b, L] -> unit vectors [b, D]."""
        return self.text_layers(variables, tokens, mask)["embedding"]

    def similarity(self, variables: Variables, image: jax.Array, text: jax.Array) -> jax.Array:
        """Unit vectors [b, D] and [K, D] -> transformers' logits_per_image, [b, K]."""
        return jnp.exp(_log_scale(variables)) * image @ text.T

    def layers(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """See `image_layers`."""
        return image_layers(self.net, variables, self.preprocess(images))

    def text_layers(
        self, variables: Variables, tokens: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """`pooled` [b, F], the text tower's end token; `hidden_0` ... and its `states`, each
        [b, L, F]; and `embedding` [b, D]."""
        del mask
        found: Any = self.net.apply(to_published(variables), tokens, method="of_text")
        hidden = {name: x for name, x in found.items() if name.startswith("hidden_")}
        made = {"states": found["last_hidden_state"], "embedding": unit(found["text_embeds"])}
        return {"pooled": found["pooler_output"]} | hidden | made


def image_layers(net: CLIP, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
    """Preprocessed [b, H, W, 3] -> the patches `hidden_0` ... as maps [b, h, w, F]; `pooled`
    [b, F], the vision tower's class token; and, of a net with projections, `embedding` [b, D]."""
    found: Any = net.apply(to_published(variables), images, method="of_image")
    side = net.vision.resolution // net.vision.patch  # type: ignore[union-attr]
    maps = {
        name: x[:, 1:].reshape(len(images), side, side, -1)
        for name, x in found.items()
        if name.startswith("hidden_")
    }
    embedding = {"embedding": unit(found["image_embeds"])} if net.projection else {}
    return maps | {"pooled": found["pooler_output"]} | embedding


def to_task(variables: Variables) -> Variables:
    """The variables of `CLIP`, or of a tower alone, as a task's: a sub-tree for each tower, which
    config.init names, and one for the projections if there are any."""
    params = dict(variables["params"])
    towers = {ours: params.pop(theirs) for ours, theirs in TOWERS.items() if theirs in params}
    return {"params": towers | ({"projections": params} if params else {})}


def to_published(variables: Variables) -> Variables:
    """The inverse of `to_task`."""
    params = dict(variables["params"])
    projections = params.pop("projections", {})
    return {"params": {TOWERS[ours]: tree for ours, tree in params.items()} | projections}


def _log_scale(variables: Variables) -> jax.Array:
    return variables["params"]["projections"]["logit_scale"]
