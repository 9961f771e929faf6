"""Image -> label: the loss of a classifier, its probabilities, and features for everything else.

Shapes: B batch, H W height and width of the image, C classes, D width of the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vision_lang import keys as random_keys
from vision_lang.models.margin import MarginHead
from vision_lang.tasks.augmentation import Augmentation
from vision_lang.tasks.encoder import ImageEncoder, part
from vision_lang.tasks.example import example_spec

Variables = Any


@dataclass(frozen=True, eq=False)
class Recognition:
    """The task. `recognition_config.from_config` builds it; nothing in it changes afterwards.

    head: of a network that is trained by angles, which then has no head of its own; or None.
    label_smoothing: share of the target that is spread over all classes; of several labels, each
      target moves by it towards 1/2.
    multi_label: an example has any number of classes, each of which is a question of its own.
    """

    encoder: ImageEncoder
    head: MarginHead | None
    augmentation: Augmentation
    label_smoothing: float
    classes: int
    multi_label: bool = False

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of one example (without the batch axis)."""
        labels = self.classes if self.multi_label else 0
        return example_spec(self.encoder.resolution, label=True, labels=labels)

    def init(self, key: jax.Array) -> Variables:
        """Returns {"params": {"encoder": ..., "head": ...}, "batch_stats": {"encoder": ...}}; head
        and statistics where there are any."""
        encoder_key, head_key = jax.random.split(key)
        variables, found = self.encoder.init(encoder_key)
        if self.head is not None:
            made = self.head.init(head_key, self._pooled(found))
            variables["params"]["head"] = made["params"]
        return variables

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
        (sum, count): `top1`, or with several labels `exact`, of examples for which every class is
        told right. Examples without a label count nothing, unless there may be several."""
        known = jnp.ones_like(batch["label"], bool) if self.multi_label else batch["label"] >= 0
        weight = batch["weight"] * known
        if self.multi_label:
            targets = batch["labels"]
        else:
            targets = jax.nn.one_hot(batch["label"], self.classes)
        x = batch["image"]
        if train:
            x = self.augmentation.pictures(x, keys)
            x, targets = self.augmentation.mix(x, targets, weight, keys)
        dropout = random_keys.named(keys, "dropout") if train else None
        found, mutable = self.encoder(
            variables, x, dropout, train=train, weight=weight, across=across
        )
        if self.head is not None:
            found |= self._by_angle(variables, found, batch["label"] if train else None)
        logits = found["logits"]
        if train:
            ways = 2 if self.multi_label else self.classes
            targets = (1 - self.label_smoothing) * targets + self.label_smoothing / ways
        if self.multi_label:
            likely = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
            losses = -(targets * likely[0] + (1 - targets) * likely[1]).sum(-1)
            name, right = "exact", ((logits > 0) == (batch["labels"] > 0)).all(-1)
        else:
            losses = -(targets * jax.nn.log_softmax(logits)).sum(-1) * known
            name, right = "top1", logits.argmax(-1) == batch["label"]
        return losses, mutable, {name: ((right * weight).sum(), weight.sum())}

    def logits(self, variables: Variables, images: jax.Array) -> jax.Array:
        """uint8 [B, H, W, 3] -> float32 [B, C], each row on its own."""
        return self.layers(variables, images)["logits"]

    def probabilities(self, variables: Variables, images: jax.Array) -> jax.Array:
        """uint8 [B, H, W, 3] -> float32 [B, C]; they sum to 1, unless there are several labels."""
        squash = jax.nn.sigmoid if self.multi_label else jax.nn.softmax
        return squash(self.logits(variables, images))

    def layers(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Every named intermediate of the network: convolutions and pools [B, h, w, c], dense
        layers [B, D], `logits` [B, C], and `embedding` [B, D] where there is a head by angle."""
        found, _ = self.encoder(variables, images)
        return found if self.head is None else found | self._by_angle(variables, found)

    def _by_angle(self, variables, found, label=None) -> dict[str, jax.Array]:
        """What the head adds: logits [B, C], and unit vectors [B, D]."""
        assert self.head is not None
        made: Any = self.head.apply(part(variables, "head"), self._pooled(found), label)
        return dict(zip(("logits", "embedding"), made, strict=True))

    def _pooled(self, found: dict[str, jax.Array]) -> jax.Array:
        """The mean over the picture of the last pooled stage, [B, c] float32."""
        last = found[f"pool{len(self.encoder.net.spec.stages)}"]
        return last.astype(jnp.float32).mean((1, 2))
