"""GPT-2 as transformers publishes it (`GPT2LMHeadModel`), with and without cross-attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_lang.errors import InputError
from vision_lang.models import text_decoder
from vision_lang.models.text_decoder import DecoderSpec, TextDecoder
from vision_lang.pretrained import layout, tensors
from vision_lang.pretrained.layout import DENSE_IN_OUT, NORM, TABLE, Row, under
from vision_lang.pretrained.options import Options, as_mask

LAYER = (
    Row("ln_1", "ln_1", NORM),
    Row("attn.c_attn", "attn/c_attn", DENSE_IN_OUT),
    Row("attn.c_proj", "attn/c_proj", DENSE_IN_OUT),
    Row("ln_cross_attn", "ln_cross_attn", NORM),
    Row("crossattention.q_attn", "crossattention/q_attn", DENSE_IN_OUT),
    Row("crossattention.c_attn", "crossattention/c_attn", DENSE_IN_OUT),
    Row("crossattention.c_proj", "crossattention/c_proj", DENSE_IN_OUT),
    Row("ln_2", "ln_2", NORM),
    Row("mlp.c_fc", "mlp/c_fc", DENSE_IN_OUT),
    Row("mlp.c_proj", "mlp/c_proj", DENSE_IN_OUT),
)
ROWS = (
    Row("transformer.wte", "wte", TABLE),
    Row("transformer.wpe", "wpe", TABLE),
    *under(LAYER, "transformer.h.{}", "h_{}"),
    Row("transformer.ln_f", "ln_f", NORM),
)
PREFIX = "transformer."  # OpenAI's own files leave it out
HEAD = "lm_head.weight"  # of the tied output embeddings, which are `wte` once more
IGNORED = r"lm_head\.weight|.*\.(attn|crossattention)\.(masked_)?bias"  # the latter are masks


@dataclass(frozen=True, eq=False)
class PublishedGPT2:
    """Attributes:
    net: the network; vision_lang/decoding.py writes texts with it.
    """

    net: TextDecoder

    def apply(
        self,
        variables: Any,
        input_ids: jax.Array,  # [B, L] int32
        attention_mask: jax.Array | None = None,  # [B, L]
        encoder_hidden_states: jax.Array | None = None,  # [B, M, D]
        encoder_attention_mask: jax.Array | None = None,  # [B, M]
        position_ids: jax.Array | None = None,  # [B, L] int32; None: 0, 1, 2, ... for all texts
    ) -> dict[str, Any]:
        """Returns `logits` [B, L, V] and `hidden_states`, each layer's input [B, L, D] and the last
        one's output behind the final norm."""
        made: Any = self.net.apply(
            variables,
            input_ids,
            as_mask(attention_mask),
            encoder_hidden_states,
            as_mask(encoder_attention_mask),
            places=jnp.arange(input_ids.shape[1])[None] if position_ids is None else position_ids,
        )
        logits, found = made
        states = [found[f"hidden_{i}"] for i in range(self.net.spec.layers)]
        return {"logits": logits, "hidden_states": (*states, found["final"])}

    def shapes(self) -> Any:
        """Its variables as shapes."""
        tokens, features = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 1, self.net.spec.width))
        context = features if self.net.crossing else None
        init = lambda key: self.net.init(key, tokens, features=context)  # noqa: E731
        return jax.eval_shape(init, jax.random.key(0))

    def rows(self) -> tuple[Row, ...]:
        """The table of its layout."""
        return ROWS


def read(path: Any) -> tuple[PublishedGPT2, Any]:
    """Returns the network and its variables."""
    model = build(Options(tensors.config_beside(path), f"{path}: config.json"))
    found = layout.with_prefix(tensors.open(path), PREFIX, r"lm_head\.weight")
    variables = layout.read(found, model.shapes(), ROWS, IGNORED)
    if HEAD in found and not np.array_equal(found[HEAD], found["transformer.wte.weight"]):
        raise InputError(
            f"'{found.source}': {HEAD} differs from transformer.wte.weight; only tied ones fit."
        )
    return model, variables


def build(config: Options) -> PublishedGPT2:
    """Returns the network that a config.json describes."""
    config.demand(
        model_type=("gpt2",),
        activation_function=("gelu_new",),
        layer_norm_epsilon=(1e-5,),
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        tie_word_embeddings=(True,),
    )
    width = config["n_embd"]
    spec = DecoderSpec(
        width=width,
        layers=config["n_layer"],
        heads=config["n_head"],
        mlp_ratio=config.get("n_inner", 4 * width) / width,
        dropout=config.get("resid_pdrop", 0.1),
    )
    text_decoder.check(spec)
    return PublishedGPT2(
        TextDecoder(
            spec=spec,
            vocab_size=config["vocab_size"],
            max_length=config["n_positions"],
            crossing=config.get("add_cross_attention", False),
        )
    )
