"""CLIP as transformers publishes it: `CLIPModel`, and either tower alone, with or without its
projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vision_lang.models import text_encoder, vision_transformer
from vision_lang.models.clip import CLIP
from vision_lang.models.text_encoder import TextSpec
from vision_lang.models.vision_transformer import VisionSpec
from vision_lang.pretrained import layout, tensors
from vision_lang.pretrained.layout import CONV, DENSE, NORM, PARAMETER, TABLE, Row, under
from vision_lang.pretrained.options import Options, as_mask
from vision_lang.pretrained.tensors import Tensors

BLOCK = (
    Row("encoder.layers.{}.layer_norm1", "layers_{}/layer_norm1", NORM),
    Row("encoder.layers.{}.self_attn.q_proj", "layers_{}/self_attn/q_proj", DENSE),
    Row("encoder.layers.{}.self_attn.k_proj", "layers_{}/self_attn/k_proj", DENSE),
    Row("encoder.layers.{}.self_attn.v_proj", "layers_{}/self_attn/v_proj", DENSE),
    Row("encoder.layers.{}.self_attn.out_proj", "layers_{}/self_attn/out_proj", DENSE),
    Row("encoder.layers.{}.layer_norm2", "layers_{}/layer_norm2", NORM),
    Row("encoder.layers.{}.mlp.fc1", "layers_{}/fc1", DENSE),
    Row("encoder.layers.{}.mlp.fc2", "layers_{}/fc2", DENSE),
)
TEXT = (
    Row("embeddings.token_embedding", "token_embedding", TABLE),
    Row("embeddings.position_embedding", "position_embedding", TABLE),
    *BLOCK,
    Row("final_layer_norm", "final_layer_norm", NORM),
)
VISION = (
    Row("embeddings.class_embedding", "class_embedding", PARAMETER),
    Row("embeddings.patch_embedding", "patch_embedding", CONV),
    Row("embeddings.position_embedding", "position_embedding", TABLE),
    Row("pre_layrnorm", "pre_layrnorm", NORM),
    *BLOCK,
    Row("post_layernorm", "post_layernorm", NORM),
)


# Of a whole model. A tower alone is a part of it, often without `text_model.` before its names.
ROWS = (
    *under(TEXT, "text_model", "text_model"),
    *under(VISION, "vision_model", "vision_model"),
    Row("text_projection", "text_projection", DENSE),
    Row("visual_projection", "visual_projection", DENSE),
    Row("logit_scale", "logit_scale", PARAMETER),
)
IGNORED = r".*\.position_ids"
# What a file of the whole model has beside one tower.
OTHER = {
    "text": r"vision_model\..*|visual_projection\.weight|logit_scale",
    "vision": r"text_model\..*|text_projection\.weight|logit_scale",
}
LEGACY_END = 2  # as eos_token_id: a text ends at its largest id, as OpenAI's configs mean by it
SAME = {"layer_norm_eps": (1e-5,), "hidden_act": tuple(text_encoder.ACTIVATIONS)}


@dataclass(frozen=True, eq=False)
class PublishedCLIP:
    """Attributes:
    net: both towers.
    """

    net: CLIP

    def apply(
        self,
        variables: Any,
        input_ids: jax.Array,  # [K, L] int32
        pixel_values: jax.Array,  # [B, H, W, 3], preprocessed
        attention_mask: jax.Array | None = None,  # [K, L]
    ) -> dict[str, Any]:
        """Returns `logits_per_image` [B, K], `logits_per_text` [K, B], and `text_embeds` [K, P] and
        `image_embeds` [B, P], of length 1."""
        mask = as_mask(attention_mask)
        found: Any = self.net.apply(variables, input_ids, pixel_values, mask)
        return found

    def shapes(self) -> Any:
        """Its variables as shapes."""
        init = lambda key: self.net.init(key, _text(), _image(self.net))  # noqa: E731
        return jax.eval_shape(init, jax.random.key(0))

    def rows(self) -> tuple[Row, ...]:
        """The table of its layout."""
        return ROWS


@dataclass(frozen=True, eq=False)
class PublishedText(PublishedCLIP):
    """The text tower alone."""

    def apply(  # type: ignore[override]
        self, variables: Any, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> dict[str, Any]:
        """input_ids [B, L] int32, attention_mask [B, L] -> `last_hidden_state` [B, L, D],
        `pooler_output` [B, D], `hidden_states`, and with a projection `text_embeds` [B, P]."""
        assert self.net.text is not None
        found = self.net.apply(variables, input_ids, as_mask(attention_mask), method="of_text")
        return _with_states(found, self.net.text.layers)

    def shapes(self) -> Any:
        """Its variables as shapes."""
        init = lambda key: self.net.init(key, _text(), method="of_text")  # noqa: E731
        return jax.eval_shape(init, jax.random.key(0))


@dataclass(frozen=True, eq=False)
class PublishedVision(PublishedCLIP):
    """The vision tower alone."""

    def apply(self, variables: Any, pixel_values: jax.Array) -> dict[str, Any]:  # type: ignore[override]
        """pixel_values [B, H, W, 3] -> `last_hidden_state` [B, N + 1, D], `pooler_output` [B, D],
        `hidden_states`, and with a projection `image_embeds` [B, P]."""
        assert self.net.vision is not None
        found = self.net.apply(variables, pixel_values, method="of_image")
        return _with_states(found, self.net.vision.layers)

    def shapes(self) -> Any:
        """Its variables as shapes."""
        init = lambda key: self.net.init(key, _image(self.net), method="of_image")  # noqa: E731
        return jax.eval_shape(init, jax.random.key(0))


def read(path: Any) -> tuple[PublishedCLIP, Any]:
    """Returns both towers and their variables."""
    config, found = _open(path)
    config.demand(model_type=("clip",))
    projection = config.get("projection_dim", 512)
    net = CLIP(
        vision=_vision_spec(config.part("vision_config")),
        projection=projection,
        **_text_fields(config.part("text_config")),
    )
    model = PublishedCLIP(net)
    return model, layout.read(found, model.shapes(), ROWS, IGNORED)


def read_text(path: Any) -> tuple[PublishedText, Any]:
    """Returns the text tower and its variables, also out of a whole model."""
    config, found = _open(path)
    projection = found.shape(name)[0] if (name := "text_projection.weight") in found else 0
    config = config.part("text_config") if "text_config" in config.fields else config
    config.demand(model_type=("clip_text_model",))
    net = CLIP(vision=None, projection=projection, **_text_fields(config))
    model = PublishedText(net)
    found = layout.with_prefix(found, "text_model.", r"text_projection\.weight")
    return model, layout.read(found, model.shapes(), ROWS, f"{IGNORED}|{OTHER['text']}")


def read_vision(path: Any) -> tuple[PublishedVision, Any]:
    """Returns the vision tower and its variables, also out of a whole model."""
    config, found = _open(path)
    projection = found.shape(name)[0] if (name := "visual_projection.weight") in found else 0
    config = config.part("vision_config") if "vision_config" in config.fields else config
    config.demand(model_type=("clip_vision_model",))
    net = CLIP(text=None, vision=_vision_spec(config), projection=projection)
    model = PublishedVision(net)
    found = layout.with_prefix(found, "vision_model.", r"visual_projection\.weight")
    return model, layout.read(found, model.shapes(), ROWS, f"{IGNORED}|{OTHER['vision']}")


def _open(path: Any) -> tuple[Options, Tensors]:
    return Options(tensors.config_beside(path), f"{path}: config.json"), tensors.open(path)


def _text_fields(config: Options) -> dict[str, Any]:
    config.demand(**SAME)
    width, end = config.get("hidden_size", 512), config.get("eos_token_id", 49407)
    spec = TextSpec(
        width=width,
        layers=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 8),
        activation=config.get("hidden_act", "quick_gelu"),
        mlp_ratio=config.get("intermediate_size", 2048) / width,
    )
    text_encoder.check(spec)
    return {
        "text": spec,
        "vocab_size": config.get("vocab_size", 49408),
        "max_length": config.get("max_position_embeddings", 77),
        "end": None if end == LEGACY_END else end,
    }


def _vision_spec(config: Options) -> VisionSpec:
    config.demand(**SAME, num_channels=(3,))
    width = config.get("hidden_size", 768)
    spec = VisionSpec(
        width=width,
        layers=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 12),
        patch=config.get("patch_size", 32),
        resolution=config.get("image_size", 224),
        activation=config.get("hidden_act", "quick_gelu"),
        mlp_ratio=config.get("intermediate_size", 3072) / width,
    )
    vision_transformer.check(spec)
    return spec


def _text() -> jax.Array:
    return jnp.zeros((1, 2), jnp.int32)


def _image(net: CLIP) -> jax.Array:
    assert net.vision is not None
    return jnp.zeros((1, net.vision.resolution, net.vision.resolution, 3))


def _with_states(found: Any, layers: int) -> dict[str, Any]:
    states = tuple(found.pop(f"hidden_{i}") for i in range(layers + 1))
    return found | {"hidden_states": states}
