"""Published networks at their real size: every name, every shape, and how many numbers they hold.
No weight is made; the facts are in fixtures/published.json."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from vision_lang.models.autoencoder import AUTOENCODERS, Autoencoder
from vision_lang.models.clip import CLIP
from vision_lang.models.text_decoder import TEXT_DECODERS, TextDecoder
from vision_lang.models.text_encoder import TEXT_ENCODERS
from vision_lang.models.unet import UNETS, UNet
from vision_lang.models.vgg import VGG, VGGS
from vision_lang.pretrained import autoencoder, clip, gpt2, layout, unet, vgg

FILE = pathlib.Path(__file__).parents[1] / "fixtures" / "published.json"
# Of Stable Diffusion 1.5 the first three; the numbers are those that are published.
NETWORKS: dict[str, tuple[Any, int]] = {
    "unet": (unet.PublishedUNet(UNet(UNETS["sd15"], 4), 4, 768), 859_520_964),
    "autoencoder": (
        autoencoder.PublishedAutoencoder(Autoencoder(AUTOENCODERS["sd"]), 0.18215, 0.0),
        83_653_863,
    ),
    "clip_text": (
        clip.PublishedText(
            CLIP(TEXT_ENCODERS["clip_l14"], None, projection=0, vocab_size=49408, max_length=77)
        ),
        123_060_480,
    ),
    "vgg": (vgg.PublishedVGG(VGG(VGGS["16"], 1000), "torchvision", "torchvision"), 138_357_544),
    "gpt2": (gpt2.PublishedGPT2(TextDecoder(TEXT_DECODERS["gpt2"], 50257, 1024)), 124_439_808),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_names_shapes_and_numbers(kind):
    model, number = NETWORKS[kind]
    ours = layout.flat(model.shapes())
    assert sum(math.prod(x.shape) for x in ours.values()) == number
    found = {}
    for path, (name, leaf) in layout.names(model.rows(), ours).items():
        nothing = np.broadcast_to(np.int8(0), ours[path].shape)
        found[name.removeprefix("text_model.")] = list(leaf.to_published(nothing).shape)
    assert found == json.loads(FILE.read_text())[kind]
