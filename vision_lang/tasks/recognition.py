"""Image -> label: the loss of a classifier, its probabilities, and features for everything else.

Shapes: B batch, H W height and width of the image, C classes, D width of the features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vision_lang import keys as random_keys
from vision_lang.models.margin import MarginHead
from vision_lang.models.vgg import VGG
from vision_lang.tasks.augmentation import Augmentation

Variables = Any


@dataclass(frozen=True, eq=False)
class Recognition:
    """The task. `recognition_config.from_config` builds it; nothing in it changes afterwards.

    head: of a network that is trained by angles, which then has no head of its own; or None.
    label_smoothing: share of the target that is spread over all classes.
    """

    encoder: VGG
    head: MarginHead | None
    preprocess: Callable[[jax.Array], jax.Array]
    augmentation: Augmentation
    label_smoothing: float
    classes: int
    resolution: int

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of one example (without the batch axis)."""
        struct = jax.ShapeDtypeStruct
        return {
            "image": struct((self.resolution, self.resolution, 3), jnp.uint8),
            "label": struct((), jnp.int32),
            "weight": struct((), jnp.float32),
            "index": struct((), jnp.int32),
        }

    def init(self, key: jax.Array) -> Variables:
        """Returns {"params": {"encoder": ..., "head": ...}, "batch_stats": {"encoder": ...}}; head
        and statistics where there are any."""
        encoder_key, head_key = jax.random.split(key)
        images = jnp.zeros((1, self.resolution, self.resolution, 3), jnp.float32)
        made = {"encoder": self.encoder.init(encoder_key, images, train=False)}
        if self.head is not None:
            found: Any = self.encoder.apply(made["encoder"], images, train=False)[1]
            made["head"] = self.head.init(head_key, self._pooled(found))
        collections = {name for variables in made.values() for name in variables}
        return {
            c: {part: variables[c] for part, variables in made.items() if c in variables}
            for c in collections
        }

    def loss(
        self,
        variables: Variables,
        batch: dict[str, jax.Array],
        keys: jax.Array,  # [B], one per example
        *,
        across: Any,
        train: bool,
    ) -> tuple[jax.Array, dict, dict[str, tuple[jax.Array, jax.Array]]]:
        """Returns the cross-entropy of each example [B], the new batch statistics, and metrics as
        (sum, count): `top1`. Examples without a label count nothing."""
        weight = batch["weight"] * (batch["label"] >= 0)
        targets = jax.nn.one_hot(batch["label"], self.classes)
        x = batch["image"]
        if train:
            x = self.augmentation.pictures(x, keys)
            x, targets = self.augmentation.mix(x, targets, weight, keys)
        x = self.preprocess(x)
        logits, mutable = self._logits(variables, x, batch["label"], weight, keys, across, train)
        right = (logits.argmax(-1) == batch["label"]) * weight
        if train:
            targets = (1 - self.label_smoothing) * targets + self.label_smoothing / self.classes
        losses = -(targets * jax.nn.log_softmax(logits)).sum(-1) * (batch["label"] >= 0)
        return losses, mutable, {"top1": (right.sum(), weight.sum())}

    def logits(self, variables: Variables, images: jax.Array) -> jax.Array:
        """uint8 [B, H, W, 3] -> float32 [B, C], each row on its own."""
        x = self.preprocess(images)
        return self._logits(variables, x, None, None, None, None, False)[0]

    def layers(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Every named intermediate of the network: convolutions and pools [B, h, w, c], dense
        layers [B, D], and `embedding`, where there is a head by angle."""
        x = self.preprocess(images)
        found: Any
        logits, found = self.encoder.apply(_part(variables, "encoder"), x, train=False)
        if self.head is not None:
            pooled = self._pooled(found)
            logits, found["embedding"] = self.head.apply(_part(variables, "head"), pooled)
        return found | {"logits": logits}

    def _logits(self, variables, x, label, weight, keys, across, train):
        """Returns the logits [B, C] and the new mutable collections."""
        encoder = _part(variables, "encoder")
        mutable: dict = {}
        found: Any
        if train:
            (logits, found), changed = self.encoder.apply(
                encoder, x, random_keys.named(keys, "dropout"), train=True, weight=weight,
                across=across, mutable=["batch_stats"],
            )  # fmt: skip
            mutable = {name: {"encoder": tree} for name, tree in changed.items()}
        else:
            logits, found = self.encoder.apply(encoder, x, train=False)
        if self.head is not None:
            pooled = self._pooled(found)
            logits, _ = self.head.apply(_part(variables, "head"), pooled, label if train else None)
        return logits.astype(jnp.float32), mutable

    def _pooled(self, found: dict[str, jax.Array]) -> jax.Array:
        """The mean over the picture of the last pooled stage, [B, c] float32."""
        last = found[f"pool{len(self.encoder.spec.stages)}"]
        return last.astype(jnp.float32).mean((1, 2))


def _part(variables: Variables, name: str) -> Variables:
    """The variables of one network."""
    return {c: tree[name] for c, tree in variables.items() if name in tree}
