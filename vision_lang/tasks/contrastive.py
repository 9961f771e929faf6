"""Images and texts as vectors that are near where they belong together.

Shapes: b examples of this device, B of the global batch, L text length, D width of the vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_lang import keys as random_keys
from vision_lang.models.margin import unit
from vision_lang.models.text_encoder import TextEncoder, mean_of_tokens
from vision_lang.tasks.augmentation import Augmentation
from vision_lang.tasks.encoder import ImageEncoder
from vision_lang.tasks.example import example_spec

Variables = Any


def softmax_loss(similarity: jax.Array, own: jax.Array, negative: jax.Array) -> jax.Array:
    """The cross-entropy of finding one's own among all (Radford et al. 2021, CLIP, figure 3).

    Args:
      similarity: of b queries to B candidates, scaled [b, B].
      own: which candidate is the query's own, bool [b, B].
      negative: which candidates it is told from, bool [b, B].
    """
    logits = jnp.where(own | negative, similarity, -jnp.inf)
    return jax.nn.logsumexp(logits, axis=-1) - (similarity * own).sum(-1)


def sigmoid_loss(similarity: jax.Array, own: jax.Array, negative: jax.Array) -> jax.Array:
    """Each pair is judged alone (Zhai et al. 2023, SigLIP, eq. 1); arguments as above."""
    sign = jnp.where(own, 1.0, -1.0)
    return -(jax.nn.log_sigmoid(sign * similarity) * (own | negative)).sum(-1)


LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}
# Temperature and bias before the first step: CLIP's 1 / 0.07 and none; SigLIP's 10 and -10.
BEGIN = {"softmax": (math.log(1 / 0.07), 0.0), "sigmoid": (math.log(10.0), -10.0)}
LARGEST_SCALE = math.log(100.0)  # as in CLIP, section 2.4


def compare(
    image: jax.Array,  # unit vectors [b, D]
    text: jax.Array,  # [b, D]
    scale: jax.Array,
    bias: jax.Array | float,
    batch: dict[str, jax.Array],
    *,
    loss: str,
    across: Any,
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Tells each example from those of all devices, by similarities scale * cosine + bias.

    Args:
      batch: has tokens, weight and index.
      loss: a row of `LOSSES`.

    Returns:
      The mean of both directions' losses of each example [b], and (sum, count) of `i2t_right` and
      `t2i_right`, of queries whose own counterpart is the nearest of the batch. An example with the
      very same text is no negative: it belongs together as well.
    """
    every = {"image": image, "text": text, "tokens": batch["tokens"]}
    every |= {name: batch[name] for name in ("weight", "index")}
    every = across.gather(every)
    own = batch["index"][:, None] == every["index"][None]
    same = (batch["tokens"][:, None] == every["tokens"][None]).all(-1)
    negative = ~same & (every["weight"] > 0)[None]
    losses, metrics = jnp.zeros(len(image)), {}
    weight = batch["weight"]
    for name, query, candidates in (
        ("i2t", image, every["text"]),
        ("t2i", text, every["image"]),
    ):
        similarity = scale * query @ candidates.T + bias
        losses += LOSSES[loss](similarity, own, negative) / 2
        best = jnp.where(negative, similarity, -jnp.inf).max(-1)
        right = ((similarity * own).sum(-1) > best) * weight
        metrics[f"{name}_right"] = (right.sum(), weight.sum())
    return losses, metrics


class Projections(nn.Module):
    """From both networks' features to vectors of length 1, and how similarities are scaled."""

    width: int
    loss: str

    def setup(self) -> None:
        self.image = nn.Dense(self.width, use_bias=False)
        self.text = nn.Dense(self.width, use_bias=False)
        scale, bias = BEGIN[self.loss]
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(scale), ())
        self.logit_bias = self.param("logit_bias", nn.initializers.constant(bias), ())

    def __call__(self, image: jax.Array, text: jax.Array) -> tuple[jax.Array, ...]:
        """[b, E] and [b, F] -> unit vectors [b, D] twice, factor and offset of similarities."""
        return self.of_image(image), self.of_text(text), *self.scaling()

    def scaling(self) -> tuple[jax.Array, jax.Array]:
        return jnp.exp(jnp.minimum(self.logit_scale, LARGEST_SCALE)), self.logit_bias

    def of_image(self, x: jax.Array) -> jax.Array:
        return unit(self.image(x).astype(jnp.float32))

    def of_text(self, x: jax.Array) -> jax.Array:
        return unit(self.text(x).astype(jnp.float32))


@dataclass(frozen=True, eq=False)
class Contrastive:
    """The task. `contrastive_config.from_config` builds it; nothing in it changes afterwards.

    stage: the encoder's intermediate that becomes the picture's vector, averaged over its places
      in `grid` x `grid` parts, so that it is not lost what is where.
    """

    encoder: ImageEncoder
    stage: str
    grid: int
    text_encoder: TextEncoder
    projections: Projections
    loss_of: str
    augmentation: Augmentation
    length: int

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of one example (without the batch axis)."""
        return example_spec(self.encoder.resolution, text_length=self.length)

    def init(self, key: jax.Array) -> Variables:
        """Returns {"params": {"encoder", "text_encoder", "projections"}, "batch_stats":
        {"encoder"}}; the statistics where there are any."""
        encoder_key, text_key, projection_key = jax.random.split(key, 3)
        variables, found = self.encoder.init(encoder_key)
        tokens = jnp.zeros((1, self.length), jnp.int32)
        text = self.text_encoder.init(text_key, tokens)
        words: Any = self.text_encoder.apply(text, tokens)[0]
        projections = self.projections.init(
            projection_key, self._pooled(found), words.mean(1).astype(jnp.float32)
        )
        variables["params"] |= {
            "text_encoder": text["params"],
            "projections": projections["params"],
        }
        return variables

    def loss(
        self,
        variables: Variables,
        batch: dict[str, jax.Array],
        keys: jax.Array,  # [b], one per example
        *,
        across: Any,
        train: bool,
    ) -> tuple[jax.Array, dict, dict[str, tuple[jax.Array, jax.Array]]]:
        """Returns the losses of each example [b], the new batch statistics, and the metrics; see
        `compare`."""
        x = batch["image"]
        if train:
            x = self.augmentation.pictures(x, keys)
        dropout = random_keys.named(keys, "dropout") if train else None
        found, mutable = self.encoder(
            variables, x, train=train, weight=batch["weight"], across=across
        )
        states, _ = self._states(variables, batch["tokens"], batch["text_mask"], dropout)
        words = mean_of_tokens(states, batch["text_mask"])
        projections = {"params": variables["params"]["projections"]}
        made: Any = self.projections.apply(projections, self._pooled(found), words)
        image, text, scale, bias = made
        losses, metrics = compare(image, text, scale, bias, batch, loss=self.loss_of, across=across)
        return losses, mutable, metrics

    def embed_images(self, variables: Variables, images: jax.Array) -> jax.Array:
        """uint8 [b, H, W, 3] -> unit vectors [b, D]."""
        return self.layers(variables, images)["embedding"]

    def embed_texts(self, variables: Variables, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """tokens [b, L], mask [b, L] -> unit vectors [b, D]."""
        return self.text_layers(variables, tokens, mask)["embedding"]

    def similarity(self, variables: Variables, image: jax.Array, text: jax.Array) -> jax.Array:
        """Unit vectors [b, D] and [K, D] -> the logits that the loss compares, [b, K]."""
        projections = {"params": variables["params"]["projections"]}
        scaling: Any = self.projections.apply(projections, method="scaling")
        scale, bias = scaling
        return scale * image @ text.T + bias

    def layers(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Every named intermediate of the encoder [b, h, w, c], and `embedding` [b, D]."""
        found, _ = self.encoder(variables, images)
        embedding = self._project(variables, self._pooled(found), "of_image")
        return found | {"embedding": embedding}

    def text_layers(
        self, variables: Variables, tokens: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """Every named intermediate of the text encoder and its `states`, each [b, L, F], and
        `embedding` [b, D]."""
        states, found = self._states(variables, tokens, mask, None)
        embedding = self._project(variables, mean_of_tokens(states, mask), "of_text")
        return found | {"states": states, "embedding": embedding}

    def _project(self, variables: Variables, x: jax.Array, method: str) -> jax.Array:
        projections = {"params": variables["params"]["projections"]}
        found: Any = self.projections.apply(projections, x, method=method)
        return found

    def _pooled(self, found: dict[str, jax.Array]) -> jax.Array:
        """The stage's means over grid x grid parts of the picture, [b, grid grid c]."""
        x = found[self.stage].astype(jnp.float32)
        batch, height, width, channels = x.shape
        parts = (batch, self.grid, height // self.grid, self.grid, width // self.grid, channels)
        return x.reshape(parts).mean((2, 4)).reshape(batch, -1)

    def _states(self, variables, tokens, mask, keys) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the text encoder makes of a text, [b, L, F], and its intermediates."""
        text = {"params": variables["params"]["text_encoder"]}
        made: Any = self.text_encoder.apply(text, tokens, mask, keys)
        return made
