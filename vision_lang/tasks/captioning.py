"""Image -> text: the loss of a captioner, how it describes, and how likely it finds a description.

Shapes: B batch, H W height and width of the image, L text length, M places of the encoder's map,
E its channels, V vocabulary. Texts are <bos> tokens <eos> <pad>...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_lang import decoding
from vision_lang import keys as random_keys
from vision_lang.errors import choose
from vision_lang.models import layers, text_decoder
from vision_lang.models.text_decoder import TextDecoder
from vision_lang.tasks.augmentation import Augmentation
from vision_lang.tasks.encoder import ImageEncoder
from vision_lang.tasks.example import example_spec

Variables = Any


@dataclass(frozen=True)
class Decoding:
    """How texts are written; the fields' meanings: vision_lang/decoding.py.

    method: "greedy" | "beam" | "nucleus".
    """

    method: str = "greedy"
    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    min_length: int = 0
    no_repeat_ngram: int = 0


class Bridge(nn.Module):
    """The encoder's map as a row of vectors that know where they are.

    A convolution's features hardly say their place, but "left of" is about places.
    """

    width: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[B, h, w, E] -> [B, h w, D]."""
        batch, height, width, _ = features.shape
        where = layers.position_features(height, width)
        x = nn.Dense(self.width, name="features")(features)
        x = x + nn.Dense(self.width, use_bias=False, name="position")(where)
        return layers.layer_norm(1e-5, "norm")(x.reshape(batch, height * width, self.width))


@dataclass(frozen=True, eq=False)
class Captioning:
    """The task. `captioning_config.from_config` builds it; nothing in it changes afterwards.

    stage: the encoder's intermediate whose places the decoder attends.
    token_weights: how many times a token's loss counts while training [V]; None: once each.
    begin, end, padding: ids of the tokens around a text.
    """

    encoder: ImageEncoder
    stage: str
    bridge: Bridge
    decoder: TextDecoder
    augmentation: Augmentation
    label_smoothing: float
    token_weights: np.ndarray | None
    length: int
    begin: int
    end: int
    padding: int

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of one example (without the batch axis)."""
        return example_spec(self.encoder.resolution, text_length=self.length)

    def init(self, key: jax.Array) -> Variables:
        """Returns {"params": {"encoder", "bridge", "decoder"}, "batch_stats": {"encoder"}}; the
        statistics where there are any."""
        encoder_key, bridge_key, decoder_key = jax.random.split(key, 3)
        variables, found = self.encoder.init(encoder_key)
        bridge = self.bridge.init(bridge_key, found[self.stage])
        context = self.bridge.apply(bridge, found[self.stage])
        tokens = jnp.zeros((1, self.length), jnp.int32)
        decoder = self.decoder.init(decoder_key, tokens, features=context)
        variables["params"] |= {"bridge": bridge["params"], "decoder": decoder["params"]}
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
        """Returns each text's mean cross-entropy per token [B], padding left out; the new batch
        statistics; and (sum, count) of `token_right`: the likeliest token was the right one."""
        x = batch["image"]
        if train:
            x = self.augmentation.pictures(x, keys)
        context, mutable = self.context(
            variables, x, train=train, weight=batch["weight"], across=across
        )
        dropout = random_keys.named(keys, "dropout") if train else None
        logits = self._logits(variables, batch["tokens"], batch["text_mask"], context, dropout)
        wanted, counts = batch["tokens"][:, 1:], batch["text_mask"][:, 1:]
        smoothing = self.label_smoothing if train else 0.0
        log_p = jax.nn.log_softmax(logits)
        losses = -(1 - smoothing) * _at(log_p, wanted) - smoothing * log_p.mean(-1)
        if train and self.token_weights is not None:
            losses = losses * jnp.asarray(self.token_weights)[wanted]
        per_text = (losses * counts).sum(1) / jnp.maximum(counts.sum(1), 1)
        counts = counts * batch["weight"][:, None]
        right = (logits.argmax(-1) == wanted) * counts
        return per_text, mutable, {"token_right": (right.sum(), counts.sum())}

    def context(
        self, variables: Variables, x: jax.Array, *, train: bool = False, weight=None, across=None
    ) -> tuple[jax.Array, dict]:
        """Pictures [B, H, W, 3] -> what the decoder attends [B, M, D], and the new mutable
        collections."""
        found, mutable = self.encoder(variables, x, train=train, weight=weight, across=across)
        bridge = {"params": variables["params"]["bridge"]}
        context: Any = self.bridge.apply(bridge, found[self.stage])
        return context, mutable

    def describe(
        self, variables: Variables, images: jax.Array, keys: jax.Array, how: Decoding
    ) -> decoding.Beams:
        """Writes texts for uint8 pictures [B, H, W, 3]: the candidates of each, best first (one,
        but for beam search). `keys` [B] decide what is drawn."""
        rules = decoding.Rules(
            self.length - 1, self.end, self.padding, how.min_length, how.no_repeat_ngram
        )
        features, _ = self.context(variables, images)
        params = {"params": variables["params"]["decoder"]}
        context: Any = self.decoder.apply(params, features, method="read")
        step = text_decoder.next_token(self.decoder, params, context)
        cache = text_decoder.empty_cache(self.decoder, images.shape[0], self.length)
        prompt = jnp.full((images.shape[0], 1), self.begin, jnp.int32)
        return choose(METHODS, how.method, "way of decoding")(
            step, cache, prompt, rules, random_keys.named(keys, "decoding"), how
        )

    def log_likelihood(
        self, variables: Variables, images: jax.Array, tokens: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """The log-probability of each text [B, L], EOS included, given its picture. [B]"""
        return self.likelihood_in(variables, self.context(variables, images)[0], tokens, mask)

    def likelihood_in(
        self, variables: Variables, context: jax.Array, tokens: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """The same of pictures whose `context` [B, M, D] is there already."""
        logits = self._logits(variables, tokens, mask, context, None)
        return (_at(jax.nn.log_softmax(logits), tokens[:, 1:]) * mask[:, 1:]).sum(1)

    def attention(
        self, variables: Variables, images: jax.Array, tokens: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """Where the decoder looks while it writes each token: the mean over heads of the last
        layer's weights, [B, L - 1, M]; the one at l goes with tokens[:, l + 1]."""
        features, _ = self.context(variables, images)
        params = {"params": variables["params"]["decoder"]}
        _, found = self.decoder.apply(params, tokens[:, :-1], mask[:, :-1], features)
        return found[f"cross_{self.decoder.spec.layers - 1}"].mean(1)

    def layers(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Every named intermediate of the encoder, [B, h, w, c]."""
        return self.encoder(variables, images)[0]

    def _logits(self, variables, tokens, mask, features, keys):
        """The logits of tokens 1 ... L - 1, float32 [B, L - 1, V]."""
        params = {"params": variables["params"]["decoder"]}
        logits, _ = self.decoder.apply(params, tokens[:, :-1], mask[:, :-1], features, keys=keys)
        return logits


def _at(log_p: jax.Array, tokens: jax.Array) -> jax.Array:
    """log_p [B, N, V] at tokens [B, N]."""
    return jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]


def _one(found: decoding.Decoded) -> decoding.Beams:
    """A single candidate; its score is its log-probability."""
    tokens, lengths, log_probs = (x[:, None] for x in found)
    return decoding.Beams(tokens, lengths, log_probs, scores=log_probs)


def _greedy(step, cache, prompt, rules, keys, how) -> decoding.Beams:
    return _one(decoding.greedy(step, cache, prompt, rules))


def _nucleus(step, cache, prompt, rules, keys, how) -> decoding.Beams:
    return _one(
        decoding.sample(
            step, cache, prompt, rules, keys,
            temperature=how.temperature, top_k=how.top_k, top_p=how.top_p,
        )
    )  # fmt: skip


def _beam(step, cache, prompt, rules, keys, how) -> decoding.Beams:
    return decoding.beam(
        step, cache, prompt, rules, beams=how.beams, length_penalty=how.length_penalty,
        early_stopping=how.early_stopping,
    )  # fmt: skip


METHODS = {"greedy": _greedy, "beam": _beam, "nucleus": _nucleus}
