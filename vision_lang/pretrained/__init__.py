"""Published weights in our networks, and back.

    model, variables = vision_lang.pretrained.load("gpt2", "path/to/gpt2")
    model.apply(variables, input_ids)["logits"]

    kind             published as                           apply(variables, ...) takes
    vgg              torchvision, timm, Keras               images, preprocessed
    gpt2             transformers: GPT2LMHeadModel          input_ids, attention_mask,
                                                            encoder_hidden_states and its mask
    clip             transformers: CLIPModel                input_ids, pixel_values, attention_mask
    clip_text        CLIPTextModel, ...WithProjection       input_ids, attention_mask
    clip_vision      CLIPVisionModel, ...WithProjection     pixel_values
    t5_encoder       transformers: T5EncoderModel           input_ids, attention_mask
    unet             diffusers: UNet2DConditionModel        sample, timesteps, class_labels,
                                                            encoder_hidden_states and its mask
    autoencoder      diffusers: AutoencoderKL               sample, noise
    inception_fid    torch-fidelity: Inception-v3           images, 0 to 255

Each returns a dict with the reference's field names; shapes are in its docstring. Images are NHWC;
masks, noise and labels may be left out. Paths are of this machine: nothing is downloaded.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vision_lang.errors import choose
from vision_lang.pretrained import layout, tensors

# kind -> the module and its function that reads a path; loaded when asked for.
KINDS = {
    "vgg": ("vgg", "read"),
    "gpt2": ("gpt2", "read"),
    "clip": ("clip", "read"),
    "clip_text": ("clip", "read_text"),
    "clip_vision": ("clip", "read_vision"),
    "t5_encoder": ("t5", "read"),
    "unet": ("unet", "read"),
    "autoencoder": ("autoencoder", "read"),
    "inception_fid": ("inception", "read"),
}


class Loaded(NamedTuple):
    """A published network and its variables.

    model: has `apply(variables, ...)`, the network `net`, `shapes()` of its variables and the
      `rows()` of its layout.
    """

    model: Any
    variables: Any


def load(kind: str, path: Any) -> Loaded:
    """Reads published weights.

    Args:
      kind: a row of the table above.
      path: a file (.safetensors, its .index.json where there are shards, .weights.h5, .h5) or a
        folder with one. The architecture is read from the config.json beside the weights; a VGG's
        from the tensors.

    Returns:
      The network and its variables, {"params": ..., and "batch_stats": ...} in float32.

    Raises:
      InputError: an unknown kind; no such file, a damaged one, a missing shard, a pickle; a config
        of another architecture; tensors that are missing, left over or of another shape.
    """
    module, function = choose(KINDS, kind, "kind of published weights")
    read = getattr(importlib.import_module(f"vision_lang.pretrained.{module}"), function)
    return Loaded(*read(epath.Path(path)))


def save(model: Any, variables: Any, path: Any) -> None:
    """Writes variables in the layout that they are published in.

    Args:
      model: what `load` returned, or another of its kind.
      variables: of its network.
      path: a .safetensors file, whose folder is there; an .h5 of a network of Keras's.
    """
    found: dict[str, np.ndarray] = layout.write(variables, model.rows())
    tensors.write(epath.Path(path), found, {})
