"""T5's encoder as transformers publishes it (`T5EncoderModel`, or the encoder of a whole T5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vision_lang.models import t5_encoder
from vision_lang.models.t5_encoder import FEED_FORWARDS, T5Encoder, T5Spec
from vision_lang.pretrained import layout, tensors
from vision_lang.pretrained.layout import DENSE, NORM, TABLE, Row, under
from vision_lang.pretrained.options import Options, as_mask

LAYERS = (
    Row("layer.0.layer_norm", "layer_0/layer_norm", NORM),
    Row("layer.0.SelfAttention.q", "layer_0/SelfAttention/q", DENSE),
    Row("layer.0.SelfAttention.k", "layer_0/SelfAttention/k", DENSE),
    Row("layer.0.SelfAttention.v", "layer_0/SelfAttention/v", DENSE),
    Row("layer.0.SelfAttention.o", "layer_0/SelfAttention/o", DENSE),
    Row(
        "layer.0.SelfAttention.relative_attention_bias",
        "layer_0/SelfAttention/relative_attention_bias",
        TABLE,
    ),
    Row("layer.1.layer_norm", "layer_1/layer_norm", NORM),
    Row("layer.1.DenseReluDense.wi", "layer_1/DenseReluDense/wi", DENSE),
    Row("layer.1.DenseReluDense.wi_0", "layer_1/DenseReluDense/wi_0", DENSE),
    Row("layer.1.DenseReluDense.wi_1", "layer_1/DenseReluDense/wi_1", DENSE),
    Row("layer.1.DenseReluDense.wo", "layer_1/DenseReluDense/wo", DENSE),
)
ROWS = (
    Row("shared", "shared", TABLE),
    *under(LAYERS, "encoder.block.{}", "block_{}"),
    Row("encoder.final_layer_norm", "final_layer_norm", NORM),
)
# The table of the tokens once more, and what a whole T5 has beside its encoder.
IGNORED = r"(encoder|decoder)\.embed_tokens\.weight|decoder\..*|lm_head\.weight"


@dataclass(frozen=True, eq=False)
class PublishedT5:
    """Attributes:
    net: the network.
    """

    net: T5Encoder

    def apply(
        self, variables: Any, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> dict[str, Any]:
        """input_ids [B, L] int32, attention_mask [B, L] -> `last_hidden_state` [B, L, D], and
        `hidden_states`, each block's input and that again."""
        made: Any = self.net.apply(variables, input_ids, as_mask(attention_mask))
        states, found = made
        inputs = (found[f"hidden_{i}"] for i in range(self.net.spec.layers))
        return {"last_hidden_state": states, "hidden_states": (*inputs, states)}

    def shapes(self) -> Any:
        """Its variables as shapes."""
        tokens = jnp.zeros((1, 2), jnp.int32)
        return jax.eval_shape(lambda key: self.net.init(key, tokens), jax.random.key(0))

    def rows(self) -> tuple[Row, ...]:
        """The table of its layout."""
        return ROWS


def read(path: Any) -> tuple[PublishedT5, Any]:
    """Returns the network and its variables."""
    model = build(Options(tensors.config_beside(path), f"{path}: config.json"))
    return model, layout.read(tensors.open(path), model.shapes(), ROWS, IGNORED)


def build(config: Options) -> PublishedT5:
    """Returns the network that a config.json describes."""
    config.demand(
        model_type=("t5", "mt5"),
        feed_forward_proj=tuple(FEED_FORWARDS),
        layer_norm_epsilon=(1e-6,),
    )
    spec = T5Spec(
        width=config.get("d_model", 512),
        layers=config.get("num_layers", 6),
        heads=config.get("num_heads", 8),
        hidden=config.get("d_ff", 2048),
        key_size=config.get("d_kv", 64),
        feed_forward=config.get("feed_forward_proj", "relu"),
        buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
        dropout=config.get("dropout_rate", 0.1),
    )
    t5_encoder.check(spec)
    return PublishedT5(T5Encoder(spec, config.get("vocab_size", 32128)))
