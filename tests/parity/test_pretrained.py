"""Published layouts live: fresh random models of the reference libraries, their outputs, and what
we write read by the libraries again."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from tests.pretrained import references
from vision_lang import pretrained

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")
from tests.fixtures import make_references  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("seed", [11, 12, 13])
@pytest.mark.parametrize("case", make_references.CASES)
def test_a_fresh_model_of_the_library(case, seed, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    make_references.CASES[case](seed)(tmp_path)
    references.compare(tmp_path)


CLASSES = {
    "gpt2_crossing": "transformers.GPT2LMHeadModel",
    "clip": "transformers.CLIPModel",
    "clip_text": "transformers.CLIPTextModel",
    "clip_text_projected": "transformers.CLIPTextModelWithProjection",
    "clip_vision": "transformers.CLIPVisionModel",
    "t5_gated": "transformers.T5EncoderModel",
    "unet_2": "diffusers.UNet2DConditionModel",
    "autoencoder": "diffusers.AutoencoderKL",
}


@pytest.mark.parametrize("case", CLASSES)
def test_the_library_reads_what_we_write(case, tmp_path):
    make_references.CASES[case](21)(tmp_path)
    file = references.weights(tmp_path)
    library, _, name = CLASSES[case].partition(".")
    kind = getattr(importlib.import_module(library), name)
    before = {n: x.numpy().copy() for n, x in kind.from_pretrained(tmp_path).state_dict().items()}
    model, variables = pretrained.load(references.read(tmp_path)[0], file)
    file.unlink()
    (tmp_path / "example.safetensors").unlink()
    pretrained.save(model, variables, file)
    after, how = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not how["missing_keys"] and not how["unexpected_keys"], how
    for name, x in after.state_dict().items():
        np.testing.assert_array_equal(x.numpy(), before[name], err_msg=name)
